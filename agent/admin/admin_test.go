package admin

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/discovery"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/fleet"
	"github.com/lbagent/lbagent/agent/mute"
	"github.com/lbagent/lbagent/agent/notify"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/registrar"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
)

var update = flag.Bool("update", false, "write the expected results anew")

// start is the moment of all tests.
func start() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// fixture is a Server beside a real table with two services: user with two backends, and cart without a list.
type fixture struct {
	*Server
	table *table.Table
	ok    bool
	miss  []string
	good  bool
	etcd  etcd.Status
	lists discovery.Status
	proxy Proxy
	found health.Stats
	stop  func() // ends Run and waits for it
}

// serve runs a Server; change may alter its Config first.
func serve(t *testing.T, change func(*Config)) *fixture {
	t.Helper()
	f := &fixture{ok: true, miss: []string{"cart"}, good: true}
	events := event.NewLog(10)
	tab, err := table.New(table.Config{Log: hclog.NewNullLogger(), Events: events})
	if err != nil {
		t.Fatal(err)
	}
	f.table = tab
	tab.SetSpec(start(), table.Spec{Name: "user", Policy: picker.P2C, Protocol: "auto", Listeners: []string{"127.0.0.1:7001", "unix:/run/<user>.sock"}, PanicPercent: 50})
	tab.SetSpec(start(), table.Spec{Name: "cart", Policy: picker.RoundRobin, Protocol: "h2"})
	tab.Apply(start(), &service.List{
		Service: "user", Source: service.FromEtcd, Epoch: 1, Revision: 7, Confirmed: start(), BadCount: 2,
		Backends: []*service.Backend{
			{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Weight: 1},
			{Addr: netip.MustParseAddrPort("10.0.0.2:80"), Weight: 1, Draining: true},
		},
	})
	cfg := Config{
		Log: hclog.NewNullLogger(), Version: "v1.2.3", Listen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0",
		Table: tab, Events: events, API: &fakeAPI{table: tab},
		Ready:     func() (bool, []string) { return f.ok, f.miss },
		ConfigOK:  func() bool { return f.good },
		Etcd:      func() etcd.Status { return f.etcd },
		Discovery: func() discovery.Status { return f.lists },
		Mutes: func() mute.Stats {
			return mute.Stats{Here: 2, Fleet: 1, Followed: true, Following: true, FileError: "no space left on device"}
		},
		Proxy:  func() Proxy { return f.proxy },
		Health: func() health.Stats { return f.found },
		Fleet: func() fleet.Status {
			return fleet.Status{Confirmed: start(), Items: []fleet.Item{{Outcome: fleet.Outcome{Problem: "no such key"}}}}
		},
		Registrar: func() registrar.Stats {
			return registrar.Stats{Wanted: 3, Announced: 2, LeaseLosses: 1, Writes: 5, Failures: 4}
		},
		Process: func() Process {
			return Process{Generation: 3, Reloads: 4, Refused: 1, Applied: start(), CrashLoop: 6, TookOver: true, Predecessor: true, UpgradesFailed: 2}
		},
		Ask: func() Ask {
			return Ask{Connections: 4, Refused: 1, Picks: 100, Reports: 50, Methods: []Method{
				{Name: "lbagent.v1.LookupService/Watch", Open: 3, Ended: map[string]uint64{"OK": 7, "Canceled": 2}}, {Name: "lbagent.v1.LookupService/Pick"},
			}}
		},
		AccessLog: func() AccessLog { return AccessLog{On: true, OK: true, Written: 9, Dropped: 1} },
		Notify: func() notify.Stats {
			return notify.Stats{On: true, Sent: 8, Dropped: 2, Posts: 3, Failures: 4, Waiting: 5}
		},
		Now: func() time.Time { return start().Add(3 * time.Second) },
	}
	if change != nil {
		change(&cfg)
	}
	f.Server, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("Run did not end")
		}
	})
	t.Cleanup(f.stop)
	return f
}

// get asks door i with the Host header host ("" = the address itself).
func (f *fixture) get(t *testing.T, i int, method, path, host string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+f.Addrs()[i].String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

func TestHealthAndReadiness(t *testing.T) {
	f := serve(t, nil)
	tests := []struct {
		path    string
		ok      bool
		missing []string
		code    int
		body    string
	}{
		{"/healthz", false, nil, 200, "ok\n"},
		{"/readyz", true, nil, 200, "ready\n"},
		{"/readyz", true, []string{"cart", "user"}, 200, "ready; no list yet: cart, user\n"},
		{"/readyz", false, nil, 503, "not ready\n"},
		{"/readyz", false, []string{"cart"}, 503, "not ready; no list yet: cart\n"},
	}
	for _, tt := range tests {
		f.ok, f.miss = tt.ok, tt.missing
		for door := range f.Addrs() {
			if code, body, _ := f.get(t, door, "GET", tt.path, ""); code != tt.code || body != tt.body {
				t.Errorf("%s at door %d: %d %q, want %d %q", tt.path, door, code, body, tt.code, tt.body)
			}
		}
	}
}

// scrape returns the agent's own metrics, without the build's.
func (f *fixture) scrape(t *testing.T) string {
	t.Helper()
	code, body, _ := f.get(t, 1, "GET", "/metrics", "")
	if code != 200 {
		t.Fatalf("scrape: %d %s", code, body)
	}
	var out strings.Builder
	for line := range strings.Lines(body) {
		if strings.Contains(line, "lbagent_") && !strings.HasPrefix(line, "lbagent_build_info{") {
			out.WriteString(line)
		}
	}
	if !strings.Contains(body, `lbagent_build_info{go_version="go`) || !strings.Contains(body, `version="v1.2.3"} 1`) ||
		!strings.Contains(body, "\ngo_goroutines ") || !strings.Contains(body, "\nprocess_open_fds ") {
		t.Errorf("no build, go or process metrics:\n%s", body)
	}
	return out.String()
}

func TestMetrics(t *testing.T) {
	f := serve(t, nil)
	f.etcd = etcd.Status{Configured: true, Connected: true, LastContact: start(), Reconnects: 1}
	f.lists.Reads = 4
	f.found = health.Stats{
		Probes: 11, ProbeFailures: 12, ProbesSpared: 13, ProbesPutOff: 14, ProbesRunning: 15, ProbesWaiting: 16, Ejections: [health.Reasons]uint64{17, 27, 37}, WouldEject: [health.Reasons]uint64{47, 57, 67}, EjectionsHeldBack: 18,
		Results:   health.ProbeResults{Passed: 21, Answered: 22, Unreachable: 23, Silent: 24, PutOff: 25},
		Lateness:  health.Histogram{Buckets: [5]uint64{5, 4, 3, 2, 1}, Sum: 90 * time.Second},
		Durations: health.Histogram{Buckets: [5]uint64{1, 1, 1, 0, 0}, Sum: time.Second}, Targets: 29,
		Watches: 26, Suspicion: health.Suspicion{On: true}, Suspicions: 27, Withheld: 28,
	}
	f.proxy = Proxy{
		LatencyBounds: []time.Duration{time.Millisecond, 2 * time.Millisecond}, Clients: 3, Refused: 9, Buffered: 4096, ClientsLimit: 10000, BufferedLimit: 1 << 28,
		OverheadBounds: []time.Duration{10 * time.Microsecond},
		Loops:          []Loop{{Index: 0, Busy: 1500 * time.Millisecond, Wakeups: 12, Conns: 5}},
		Services: []Calls{{
			Service: "user", Codes: []Code{{"grpc", "ok", 5}, {"http1", "5xx", 1}}, Active: map[string]int{"h2": 2},
			Latencies: []Latency{{"h2", Histogram{Buckets: []uint64{3, 2, 1}, Native: append(make([]uint64, 39), 5), None: 1, Sum: 1500 * time.Millisecond}}},
			Overheads: []Latency{{"h2", Histogram{Buckets: []uint64{5, 1}, Native: append(make([]uint64, 19), 6), Sum: 60 * time.Microsecond}}},
			Sniffed:   map[string]uint64{"h2": 2, "tcp": 1}, Silent: 1,
			NoBackend: 6, Retried: map[string]uint64{"connect": 7, "policy": 9}, Denied: 10, In: 100, Out: 200, Protections: map[string]uint64{"resets": 8, "slow": 0},
			Backends: BackendConns{Open: 3, Opened: 9, Failed: 4, Closed: map[string]uint64{"hang": 1, "idle": 5}},
		}},
	}
	got := f.scrape(t)
	golden(t, "metrics", got)
	for _, d := range newDescs().all {
		if kind := "# TYPE " + d.name + " " + string(d.kind) + "\n"; !strings.Contains(got, kind) && d.name != "lbagent_build_info" {
			t.Errorf("no %q: nobody sends it, or this test has nothing for it", strings.TrimSpace(kind))
		}
	}
}

// TestMetricsOfLittle: no etcd, an invalid file, a spool that can't be written, and loops that did not answer, whose counters must not fall.
func TestMetricsOfLittle(t *testing.T) {
	f := serve(t, nil)
	f.good, f.ok = false, false
	f.lists.SpoolError = "disk full"
	f.proxy = Proxy{Missing: 1, Services: []Calls{{Service: "user", Codes: []Code{{"grpc", "ok", 5}}}}}
	got := f.scrape(t)
	for _, want := range []string{"\nlbagent_config_ok 0\n", "\nlbagent_ready 0\n", "\nlbagent_discovery_spool_ok 0\n", "\nlbagent_discovery_etcd_configured 0\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	for _, never := range []string{"lbagent_proxy_requests_total", "lbagent_discovery_etcd_connected"} {
		if strings.Contains(got, never) {
			t.Errorf("%s is told:\n%s", never, got)
		}
	}
}

// TestOneBadMetricHidesNoOther: the agent must be seen even if a stage tells nonsense.
func TestOneBadMetricHidesNoOther(t *testing.T) {
	f := serve(t, nil)
	f.proxy = Proxy{Services: []Calls{{Service: "user"}, {Service: "user"}}} // twice the same
	if _, body, _ := f.get(t, 1, "GET", "/metrics", ""); !strings.Contains(body, "lbagent_table_backends") {
		t.Errorf("metrics are gone:\n%s", body)
	}
}

func TestTakenAddressNamesItsKey(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tab, err := table.New(table.Config{Log: hclog.NewNullLogger(), Events: event.NewLog(1)})
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	_, err = New(Config{
		Log: hclog.NewNullLogger(), Table: tab, Events: event.NewLog(1), Ready: func() (bool, []string) { return true, nil }, ConfigOK: func() bool { return true },
		Listen: free.Addr().String(), MetricsListen: l.Addr().String(),
	})
	if err == nil || !strings.Contains(err.Error(), "metrics.listen: ") || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Fatalf("error is %v", err)
	}
	again, err := net.Listen("tcp", free.Addr().String())
	if err != nil {
		t.Fatalf("admin.listen was kept: %v", err)
	}
	again.Close()
}

// A door that fails ends Run, open pages or not.
func TestRunEndsWithItsDoors(t *testing.T) {
	tab, err := table.New(table.Config{Log: hclog.NewNullLogger(), Events: event.NewLog(1)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{
		Log: hclog.NewNullLogger(), Table: tab, Events: event.NewLog(1), API: &fakeAPI{table: tab}, Listen: "127.0.0.1:0",
		Ready: func() (bool, []string) { return true, nil }, ConfigOK: func() bool { return true },
	})
	if err != nil {
		t.Fatal(err)
	}
	s.doors[0].raw.Close()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("no error says why")
		}
	case <-time.After(time.Minute):
		t.Fatal("Run goes on without its door")
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	f := serve(t, nil)
	addr := f.Addrs()[1].String()
	var held []net.Conn
	for range maxConnections {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		held = append(held, c)
		if got := ask(t, c); got != "HTTP/1.1 200 OK" {
			t.Fatalf("connection %d: %q", len(held), got)
		}
	}
	over, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer over.Close()
	if _, err := over.Read(make([]byte, 1)); err == nil {
		t.Error("a connection over the limit got an answer")
	}
	held[0].Close()
	for deadline := time.Now().Add(time.Minute); ; { // the server sees the close in its own time
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		got := ask(t, c)
		c.Close()
		if got == "HTTP/1.1 200 OK" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a closed connection did not make room")
		}
	}
}

// ask sends a request on c and returns the first line of the answer, "" if c was closed.
func ask(t *testing.T, c net.Conn) string {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
	line, _ := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line)
}

func TestBigHeadersAreRefused(t *testing.T) {
	f := serve(t, nil)
	c, err := net.Dial("tcp", f.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n", strings.Repeat("x", 64<<10))
	if line, _ := bufio.NewReader(c).ReadString('\n'); !strings.Contains(line, " 431 ") {
		t.Errorf("answer is %q, want 431", line)
	}
}

func TestNothingToServe(t *testing.T) {
	f := serve(t, func(c *Config) { c.Listen, c.MetricsListen = "", "" }) // Run waits for its end all the same
	if len(f.Addrs()) != 0 {
		t.Errorf("listens on %v", f.Addrs())
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it anew). Got:\n%s", path, got)
	}
}

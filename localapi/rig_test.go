package localapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/mute"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// rig is a running Server on real sockets over a real table.
type rig struct {
	*Server
	t      testing.TB
	dir    string
	table  *table.Table
	events *event.Log
	stop   func() // ends Run and waits for it
}

// newRig starts a Server over a table with the service "user" of five backends 10.0.0.1:80 to 10.0.0.5:80.
func newRig(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, dir: publicDir(t), events: event.NewLog(100)}
	tab, err := table.New(table.Config{Log: hclog.NewNullLogger(), Events: r.events})
	if err != nil {
		t.Fatal(err)
	}
	r.table = tab
	r.set("user", 1, 2, 3, 4, 5)
	cfg := Config{
		Log:         hclog.NewNullLogger(),
		Table:       tab,
		Events:      r.events,
		Socket:      filepath.Join(r.dir, "run", "lbagent.sock"),
		AdminSocket: filepath.Join(r.dir, "run-admin", "admin.sock"),
		Reload: func(context.Context) ([]string, error) {
			return []string{"service user: policy p2c -> round_robin"}, nil
		},
		Status: func() *lbagentv1.StatusResponse { return &lbagentv1.StatusResponse{Version: "v0", Ready: true} },
	}
	if cfg.Mutes, err = mute.New(mute.Config{Events: r.events, Node: "web-1", OnMutes: tab.SetMutes, Backends: r.listed}); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&cfg)
	}
	if r.Server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	if err := r.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(2 * time.Minute):
			t.Error("Run didn't end")
		}
	}
	t.Cleanup(r.stop)
	return r
}

// listed is a list as muting sees it.
func (r *rig) listed(name string) ([]mute.Backend, bool) {
	svc := r.table.Lookup(name)
	if svc == nil {
		return nil, false
	}
	var out []mute.Backend
	for _, b := range svc.View().Backends() {
		out = append(out, mute.Backend{Addr: b.Addr, Usable: b.Verdict.Kind.Usable(), Draining: b.Draining})
	}
	return out, true
}

// publicDir is a directory that other users may enter, unlike t.TempDir.
func publicDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lbapi")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func specOf(name string) table.Spec {
	return table.Spec{
		Name: name, Policy: picker.P2C, PanicPercent: 50, Drain: 30 * time.Second, InUse: true, Protocol: "auto", Listeners: []string{"127.0.0.1:7001"},
		Health: health.Options{Probe: health.ProbeTCP, Interval: 5 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3,
			Eject: true, Consecutive: 5, EjectBase: time.Second, EjectMax: time.Minute, MaxPercent: 50},
	}
}

func addr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
}

func listOf(name string, ids ...int) *service.List {
	l := &service.List{Service: name, Source: service.FromEtcd, Epoch: 7, Revision: 42, Confirmed: time.Now()}
	for _, i := range ids {
		l.Backends = append(l.Backends, &service.Backend{Addr: addr(i), Weight: 100, Zone: "eu-1a", Metadata: map[string]string{"v": "1"},
			Key: fmt.Sprintf("/services/%s/%d", name, i), Created: 1, Modified: 1})
	}
	return l
}

// set makes the service's list those backends.
func (r *rig) set(name string, ids ...int) {
	if r.table.Lookup(name) == nil {
		r.table.SetSpec(time.Now(), specOf(name))
	}
	r.table.Apply(time.Now(), listOf(name, ids...))
}

// judge gives a backend a verdict, as health would.
func (r *rig) judge(name string, id int, to health.Part) {
	r.t.Helper()
	b := r.table.Lookup(name).View().Find(addr(id))
	if b == nil {
		r.t.Fatalf("%s has no backend %d", name, id)
	}
	r.table.SetVerdicts(time.Now(), []health.Change{{Group: name, Addr: b.Addr, State: b.State, From: *b.Verdict, To: to}})
}

// dial connects to a socket by gRPC.
func dial(t testing.TB, socket string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("unix:"+socket, append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

func (r *rig) lookup() lbagentv1.LookupServiceClient {
	return lbagentv1.NewLookupServiceClient(dial(r.t, r.cfg.Socket))
}

func (r *rig) status() lbagentv1.StatusServiceClient {
	return lbagentv1.NewStatusServiceClient(dial(r.t, r.cfg.Socket))
}

// httpClient speaks HTTP/1.1 over a socket.
func httpClient(t testing.TB, socket string) *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 2 * time.Minute}
}

// ask sends one request as curl would and returns status and body.
func ask(t testing.TB, socket, method, path, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := httpClient(t, socket).Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, string(text)
}

// eventually waits until ok returns "", and fails with what it last said.
func eventually(t testing.TB, ok func() string) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		why := ok()
		if why == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(why)
		}
	}
}

// raw opens a plain connection to a socket.
func raw(t testing.TB, socket string) (*net.UnixConn, *bufio.Reader) {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	return c, bufio.NewReader(c)
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

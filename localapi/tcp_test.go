package localapi

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// newTCPRig is newRig, with lookups by TCP at the address that it returns too.
func newTCPRig(t testing.TB, change func(*Config)) (*rig, string) {
	t.Helper()
	r := newRig(t, func(c *Config) {
		c.Listen = "127.0.0.1:0"
		if change != nil {
			change(c)
		}
	})
	for _, f := range r.fronts {
		if f.kind == doorTCP {
			return r, f.sock.Addr().String()
		}
	}
	t.Fatal("it doesn't listen")
	return nil, ""
}

// dialTCP connects by gRPC, from another address of loopback if from is set.
func dialTCP(t testing.TB, addr, from string) *grpc.ClientConn {
	t.Helper()
	d := &net.Dialer{}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// askTCP sends a head of HTTP/1.1 and returns what is answered.
func askTCP(t testing.TB, addr, head string) (int, string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	if _, err := fmt.Fprint(c, head+"Connection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	defer resp.Body.Close()
	text, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	return resp.StatusCode, text
}

// By TCP there are lookups in both faces, and nothing else (DESIGN 6).
func TestTCP(t *testing.T) {
	r, at := newTCPRig(t, nil)
	ctx, cc := testContext(t), dialTCP(t, at, "")
	lookup := lbagentv1.NewLookupServiceClient(cc)
	if p, err := lookup.Pick(ctx, &lbagentv1.PickRequest{Service: "user", Count: 10}); err != nil || len(p.Picks) == 0 {
		t.Error(p, err)
	}
	w, err := lookup.Watch(ctx, &lbagentv1.WatchRequest{Service: "user"})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := w.Recv(); err != nil || len(v.Backends) != 5 {
		t.Error(v, err)
	}
	if code, text := askTCP(t, at, "GET /v1/services/user/pick HTTP/1.1\r\nHost: "+at+"\r\n"); code != 200 || !strings.Contains(text, `"address":"10.0.0.`) {
		t.Error(code, text)
	}
	_, err = lbagentv1.NewStatusServiceClient(cc).Status(ctx, &lbagentv1.StatusRequest{})
	if code, reason := reasonOf(err); code != codes.PermissionDenied || reason != reasonForbidden || !strings.Contains(err.Error(), "lbagent.v1.StatusService is not served by TCP (api.listen), which has lbagent.v1.LookupService only") {
		t.Error(err)
	}
	_, err = lbagentv1.NewAdminServiceClient(cc).Reload(ctx, &lbagentv1.ReloadRequest{})
	if code, _ := reasonOf(err); code != codes.PermissionDenied {
		t.Error(err)
	}
	for request, want := range map[string]int{"GET /v1/status": 403, "GET /v1/events": 403, "POST /v1/admin/reload": 403, "GET /debug/pprof/heap": 404} {
		if code, text := askTCP(t, at, request+" HTTP/1.1\r\nHost: "+at+"\r\nContent-Length: 0\r\nLbagent-Peer: "+forged+"\r\n"); code != want {
			t.Errorf("%s: %d %s", request, code, text)
		}
	}
	r.stop()
	if _, err := net.Dial("tcp", at); err == nil {
		t.Error("it still listens after the stop")
	}
}

// No page of any site can have a browser ask here; whatever is no browser is answered.
func TestTCPIsNotForBrowsers(t *testing.T) {
	_, at := newTCPRig(t, nil)
	_, port, _ := net.SplitHostPort(at)
	for _, c := range []struct {
		host, headers string
		want          int
	}{
		{at, "", 200},
		{"127.0.0.1", "", 200},
		{"localhost:" + port, "", 200},
		{"LOCALHOST.", "", 200},
		{"[::1]:" + port, "", 200},
		{"[::1]", "", 200},
		{"10.88.0.1:" + port, "", 200}, // as a container has it, behind a translation
		{at, "Sec-Fetch-Site: none\r\n", 200},
		{"evil.example:" + port, "", 403}, // DNS rebinding
		{"evil.example", "", 403},
		{"127.0.0.1.evil.example", "", 403},
		{"localhost.evil.example:" + port, "", 403},
		{"127.0.0.1:" + port + "x", "", 403},
		{"[evil.example]:80", "", 400}, // net/http has no such host
		{at, "Origin: http://evil.example\r\n", 403},
		{at, "Origin: null\r\n", 403},
		{at, "Origin: http://" + at + "\r\n", 403},
		{at, "Sec-Fetch-Site: cross-site\r\n", 403},
		{at, "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: navigate\r\n", 403},
		{at, "Sec-Fetch-Site: same-origin\r\n", 403},
	} {
		for _, request := range []string{"GET /v1/services HTTP/1.1\r\n", "POST /v1/report HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n"} {
			if code, text := askTCP(t, at, request+"Host: "+c.host+"\r\n"+c.headers); code != c.want && (code != 403 || c.want != 400) {
				t.Errorf("%q %s: %d %s, want %d", c.host, c.headers, code, text, c.want)
			}
		}
	}
	if code, _ := askTCP(t, at, "OPTIONS /v1/report HTTP/1.1\r\nHost: "+at+"\r\nOrigin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\n"); code != 403 {
		t.Error("a preflight:", code)
	}
	if code, _ := askTCP(t, at, "GET http://evil.example/v1/services HTTP/1.1\r\nHost: 127.0.0.1\r\n"); code != 403 {
		t.Error("another host in the target:", code)
	}
}

// Limits count addresses; whose word counts once counts all callers by TCP as one.
func TestTCPCallers(t *testing.T) {
	var mu sync.Mutex
	var asked []uint32
	r, at := newTCPRig(t, func(c *Config) {
		c.Limits.StreamsPerUID = 1
		c.Follow = func(_ context.Context, name string, uid uint32) error {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, uid)
			return fmt.Errorf("%w: %s", ErrUnknownService, name)
		}
	})
	ctx := testContext(t)
	for _, from := range []string{"127.0.0.1", "127.0.0.2"} {
		lookup := lbagentv1.NewLookupServiceClient(dialTCP(t, at, from))
		if _, err := lookup.Pick(ctx, &lbagentv1.PickRequest{Service: "other"}); err == nil {
			t.Error("other is there")
		}
		var err error
		eventually(t, func() string { // the call before is given back a little after its answer
			var w grpc.ServerStreamingClient[lbagentv1.WatchResponse]
			if w, err = lookup.Watch(ctx, &lbagentv1.WatchRequest{Service: "user"}); err == nil {
				_, err = w.Recv()
			}
			if err != nil {
				return err.Error()
			}
			return ""
		})
		_, err = lookup.Pick(ctx, &lbagentv1.PickRequest{Service: "user"})
		if code, _ := reasonOf(err); code != codes.ResourceExhausted || !strings.Contains(err.Error(), "address "+from+" has 1 calls open") {
			t.Error(from, err)
		}
	}
	if _, err := r.lookup().Pick(ctx, &lbagentv1.PickRequest{Service: "user"}); err != nil {
		t.Error("a user of this host pays for them:", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(asked) != 2 || asked[0] != RemoteUID || asked[1] != RemoteUID {
		t.Errorf("asked for by %d, want %d twice", asked, RemoteUID)
	}
}

// One address's connections are bounded and told so in the caller's protocol; the sockets have places of their own.
func TestTCPConnections(t *testing.T) {
	r, at := newTCPRig(t, func(c *Config) { c.Limits.ConnectionsPerUID = 1 })
	first, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	eventually(t, func() string {
		if n := r.Stats().Connections; n != 1 {
			return fmt.Sprintf("%d connections", n)
		}
		return ""
	})
	if code, text := askTCP(t, at, "GET /v1/services HTTP/1.1\r\nHost: "+at+"\r\n"); code != 429 || !strings.Contains(text, "address 127.0.0.1 has 1 connections") {
		t.Error(code, text)
	}
	if _, err := lbagentv1.NewLookupServiceClient(dialTCP(t, at, "127.0.0.2")).Services(testContext(t), &lbagentv1.ServicesRequest{}); err != nil {
		t.Error("another address:", err)
	}
	if code, _ := ask(t, r.cfg.Socket, "GET", "/v1/services", ""); code != 200 {
		t.Error("the socket:", code)
	}
}

func TestCaller(t *testing.T) {
	for _, c := range []struct{ a, b, words string }{
		{"10.0.0.1", "10.0.0.1", "address 10.0.0.1"},
		{"2001:db8::1", "2001:db8::ffff:1", "network 2001:db8::/64"},
		{"", "", "uid 7"},
	} {
		of := func(addr string) caller {
			p := Peer{UID: 7}
			if addr != "" {
				p.Addr = netip.MustParseAddr(addr)
			}
			return p.caller()
		}
		if of(c.a) != of(c.b) || of(c.a).String() != c.words {
			t.Errorf("%s is %v, %s is %v; want %s", c.a, of(c.a), c.b, of(c.b), c.words)
		}
	}
	if (Peer{Addr: netip.MustParseAddr("10.0.0.1")}).caller() == (Peer{Addr: netip.MustParseAddr("10.0.0.2")}).caller() {
		t.Error("two addresses are one caller")
	}
}

// A listener of a former process is taken over, and an address that is taken is told at the start.
func TestTCPListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	_, err = openTCP(at, nil)
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Error(err)
	}
	_, got := newTCPRig(t, func(c *Config) {
		c.Listen = at
		c.Inherited = func(listen string) net.Listener {
			if listen != at {
				t.Errorf("asked for %q", listen)
			}
			return l
		}
	})
	if got != at {
		t.Errorf("it listens on %s, want %s", got, at)
	}
	if code, text := askTCP(t, at, "GET /v1/services HTTP/1.1\r\nHost: "+at+"\r\n"); code != 200 {
		t.Error(code, text)
	}
}

package localapi

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

func TestRequestLimits(t *testing.T) {
	r := newRig(t, nil)
	ctx := testContext(t)
	c := r.lookup()
	outcomes := func(n int, name string) *lbagentv1.ReportRequest {
		req := &lbagentv1.ReportRequest{}
		for range n {
			req.Outcomes = append(req.Outcomes, &lbagentv1.Outcome{Service: name, Address: "10.0.0.1:80", Result: lbagentv1.Result_RESULT_SUCCESS})
		}
		return req
	}
	_, err := c.Report(ctx, outcomes(1001, "user"))
	if code, reason := reasonOf(err); code != codes.InvalidArgument || reason != reasonInvalid {
		t.Error(err)
	}
	if _, err := c.Report(ctx, outcomes(1000, "user")); err != nil {
		t.Error(err)
	}
	if _, err = c.Report(ctx, outcomes(500, strings.Repeat("x", 200))); status.Code(err) != codes.ResourceExhausted {
		t.Error("a message of 100 KB:", err)
	}
	for _, req := range []*lbagentv1.PickRequest{
		{Service: "user", Count: 10001},
		{Service: "user", Exclude: make([]string, 101)},
		{Service: "user", Exclude: []string{"localhost"}},
		{Service: "user", HashKey: strings.Repeat("k", 4097)},
		{Service: ""},
		{Service: "../../etc/passwd"},
		{Service: strings.Repeat("x", 254)},
	} {
		_, err := c.Pick(ctx, req)
		if code, reason := reasonOf(err); code != codes.InvalidArgument || reason != reasonInvalid {
			t.Errorf("%.60v: %v", req, err)
		}
	}
	if p, err := c.Pick(ctx, &lbagentv1.PickRequest{Service: "user", Count: 10000}); err != nil || len(p.Picks) > maxEntries+5 {
		t.Errorf("%d entries, %v", len(p.GetPicks()), err)
	}
	big := metadata.AppendToOutgoingContext(ctx, "x-big", strings.Repeat("x", 20<<10))
	if _, err := c.Pick(big, &lbagentv1.PickRequest{Service: "user"}); err == nil {
		t.Error("20 KB of metadata were taken")
	}
	if code, text := ask(t, r.cfg.Socket, "POST", "/v1/report", `{"outcomes":[`+strings.Repeat(" ", 70<<10)+`]}`); code < 400 || code >= 500 {
		t.Error("a body of 70 KB:", code, text)
	}
	if code, _ := ask(t, r.cfg.Socket, "GET", "/v1/services", "", "X-Big", strings.Repeat("x", 40<<10)); code != http.StatusRequestHeaderFieldsTooLarge {
		t.Error("40 KB of headers:", code)
	}
}

// One uid's connections are bounded, told so in its own protocol, and no one else's business.
func TestConnectionsPerUID(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.ConnectionsPerUID = 2 })
	a, _ := raw(t, r.cfg.Socket)
	raw(t, r.cfg.Socket)
	eventually(t, func() string {
		if n := r.Stats().Connections; n != 2 {
			return fmt.Sprintf("%d connections", n)
		}
		return ""
	})
	code, text := ask(t, r.cfg.Socket, "GET", "/v1/services", "")
	if code != http.StatusTooManyRequests || !strings.Contains(text, `{"error":{"code":8,"message":"uid `) {
		t.Error(code, text)
	}
	// One that is still writing when it is refused can write to the end, and then reads why.
	big, br := raw(t, r.cfg.Socket)
	if _, err := fmt.Fprintf(big, "POST /v1/report HTTP/1.1\r\nHost: x\r\nContent-Length: 700000\r\n\r\n%700000d", 0); err != nil {
		t.Error(err)
	}
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != http.StatusTooManyRequests {
		t.Error(resp, err)
	}
	_ = big.Close()
	_, err := r.lookup().Services(testContext(t), &lbagentv1.ServicesRequest{})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "has 2 connections to the agent's socket, which is the most") {
		t.Error(err)
	}
	if code, _ := ask(t, r.cfg.AdminSocket, "GET", "/v1/services", ""); code != 200 {
		t.Error("the admin socket:", code)
	}
	if n := r.Stats().Refused; n < 2 {
		t.Error(n)
	}
	_ = a.Close()
	eventually(t, func() string {
		if code, text := ask(t, r.cfg.Socket, "GET", "/v1/services", ""); code != 200 {
			return text
		}
		return ""
	})
}

// So are its open calls, over all its connections.
func TestStreamsPerUID(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.StreamsPerUID = 2 })
	var open []grpc.ServerStreamingClient[lbagentv1.WatchResponse]
	for range 2 {
		w, err := r.lookup().Watch(testContext(t), &lbagentv1.WatchRequest{Service: "user"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Recv(); err != nil {
			t.Fatal(err)
		}
		open = append(open, w)
	}
	c := r.lookup()
	_, err := c.Services(testContext(t), &lbagentv1.ServicesRequest{})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "2 calls open") {
		t.Error(err)
	}
	r.table.Remove(time.Now(), "user")
	for _, w := range open {
		if _, err := w.Recv(); status.Code(err) != codes.NotFound {
			t.Error(err)
		}
	}
	eventually(t, func() string {
		if _, err := c.Services(testContext(t), &lbagentv1.ServicesRequest{}); err != nil {
			return err.Error()
		}
		return ""
	})
}

// Who says nothing, or never ends its headers, is let go.
func TestSilence(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.FirstBytes = 50 * time.Millisecond })
	for _, said := range []string{"", "P", "PRI", "GET / HTTP/1.1\r\nHost:", "PRI * HTTP/2.0\r\n\r\nSM"} {
		c, br := raw(t, r.cfg.Socket)
		if _, err := c.Write([]byte(said)); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if _, _ = io.Copy(io.Discard, br); time.Since(begin) > time.Minute { // nobody would ever close it
			t.Errorf("%q: closed after %v", said, time.Since(begin))
		}
	}
	eventually(t, func() string {
		if n := r.Stats().Connections; n != 0 {
			return fmt.Sprintf("%d connections", n)
		}
		return ""
	})
}

func TestReportLimit(t *testing.T) {
	now := time.Unix(1000, 0)
	var l reportLimit
	took := 0
	for range 100 {
		if l.allow(caller{uid: 1}, 100, 1000, now) {
			took += 100
		}
	}
	if took != 1000 {
		t.Errorf("a burst of %d, want a second's worth", took)
	}
	if !l.allow(caller{uid: 2}, 100, 1000, now) {
		t.Error("another uid pays for the first")
	}
	took = 0
	for i := range 10 {
		if l.allow(caller{uid: 1}, 100, 1000, now.Add(time.Duration(i)*100*time.Millisecond)) {
			took += 100
		}
	}
	if took != 900 {
		t.Errorf("%d in the 900 ms after the burst", took)
	}
	if !l.allow(caller{uid: 3}, 5000, 1000, now) || l.allow(caller{uid: 3}, 1, 1000, now.Add(3*time.Second)) {
		t.Error("a report larger than the burst is taken once, and paid for")
	}
	for uid := range uint32(2 * maxReporters) {
		l.allow(caller{uid: uid + 10}, 1, 1000, now)
	}
	if len(l.due) > maxReporters {
		t.Errorf("%d uids kept", len(l.due))
	}
	if !l.allow(caller{uid: 9999}, 1, 1000, now.Add(10*time.Second)) {
		t.Error("old reporters keep new ones out")
	}

	r := newRig(t, func(c *Config) { c.Limits.OutcomesPerSecond = 1 })
	for host := range uint32(maxReporters) { // as many networks as are kept report by TCP, and have much to make up for
		r.report[doorTCP].allow(caller{RemoteUID, netip.AddrFrom4([4]byte{10, 1, byte(host >> 8), byte(host)})}, 1000, 1, r.now())
	}
	req := &lbagentv1.ReportRequest{Outcomes: []*lbagentv1.Outcome{{Service: "user", Address: "10.0.0.1:80", Result: lbagentv1.Result_RESULT_SUCCESS}}}
	if _, err := r.lookup().Report(testContext(t), req); err != nil {
		t.Error("those from elsewhere keep the users of this host out:", err)
	}
	_, err := r.lookup().Report(testContext(t), req)
	if code, reason := reasonOf(err); code != codes.ResourceExhausted || reason != reasonTooManyReports {
		t.Error(err)
	}
}

// After a thousand comings and goings of each kind nothing is left: no goroutine, no descriptor, no count.
func TestNothingIsLeft(t *testing.T) {
	r := newRig(t, nil)
	kinds := map[string]func(){
		"unary": func() {
			cc := dial(t, r.cfg.Socket)
			if _, err := lbagentv1.NewLookupServiceClient(cc).Pick(testContext(t), &lbagentv1.PickRequest{Service: "user"}); err != nil {
				t.Fatal(err)
			}
			_ = cc.Close()
		},
		"watch": func() {
			cc := dial(t, r.cfg.Socket)
			w, err := lbagentv1.NewLookupServiceClient(cc).Watch(testContext(t), &lbagentv1.WatchRequest{Service: "user"})
			if err == nil {
				_, err = w.Recv()
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = cc.Close() // without a word
		},
		"json": func() { ask(t, r.cfg.Socket, "GET", "/v1/services/user/pick", "", "Connection", "close") },
		"json watch": func() {
			c, br := raw(t, r.cfg.Socket)
			fmt.Fprint(c, "GET /v1/services/user/watch HTTP/1.1\r\nHost: x\r\n\r\n")
			if _, err := br.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			_ = c.Close()
		},
		"silent":  func() { c, _ := raw(t, r.cfg.Socket); _ = c.Close() },
		"garbage": func() { c, _ := raw(t, r.cfg.Socket); fmt.Fprint(c, "\x00\xff\r\n\r\n"); _ = c.Close() },
		"half h2": func() { c, _ := raw(t, r.cfg.Socket); fmt.Fprint(c, "PRI * HTTP/2.0\r\n\r\nS"); _ = c.Close() },
	}
	gone := func() string {
		if n := r.Stats().Connections; n != 0 {
			return fmt.Sprintf("%d connections", n)
		}
		return ""
	}
	kinds["json"]() // everything runs, the gateway's own connection too
	for name, kind := range kinds {
		kind()
		eventually(t, gone)
		goroutines, files := runtime.NumGoroutine(), openFiles(t)
		n := 1000
		if testing.Short() {
			n = 50
		}
		for range n {
			kind()
		}
		eventually(t, gone)
		eventually(t, func() string {
			if g, f := runtime.NumGoroutine(), openFiles(t); g > goroutines+2 || f > files+1 {
				return fmt.Sprintf("%s: %d goroutines and %d files, before %d and %d", name, g, f, goroutines, files)
			}
			return ""
		})
	}
	eventually(t, func() string {
		if n := r.Stats().Calls; n != 0 {
			return fmt.Sprintf("%d calls", n)
		}
		return ""
	})
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// retry: hides a backend that answers 503, and a reload turns it off; limits: of a reload hold for the next connection (4.2, limits:).
func TestRetryAndLimits(t *testing.T) {
	t.Parallel()
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }))
	t.Cleanup(bad.Close)
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "good") }))
	t.Cleanup(good.Close)
	port := freePort(t)
	service := func(retry string) string {
		return fmt.Sprintf("- {name: web, backends: [%q, %q], listen: [%d], policy: round_robin, eject: off, dynamic_weight: off, probe: off, retry: %s}",
			bad.Listener.Addr(), good.Listener.Addr(), port, retry)
	}
	a := newAgent(t, service("{on: [503], budget_percent: 100}"))
	a.start()
	get := func(header string) (status int, body string, err error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Long", header)
		tr := &http.Transport{}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr, Timeout: patience}).Do(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text), err
	}
	for i := range 10 {
		if status, body, err := get(""); err != nil || status != 200 || body != "good" {
			t.Errorf("call %d: %d %q, %v", i, status, body, err)
		}
	}
	poll(t, "retries are counted", func() bool { // a retry is a turn too, so that every call begins at the bad one
		v, ok := a.metric(`lbagent_proxy_retries_total{reason="policy",service="web"}`)
		return ok && v >= 9 // the first call may have begun at the good one
	})

	a.services = service("off")
	a.extra = "limits: {header_bytes: 4KiB, connections: 1}\n"
	a.writeConfig()
	stdout, stderr, code := a.cli("reload")
	if code != 0 || !strings.Contains(stdout, "limits: changed") || !strings.Contains(stdout, "service web: changed") {
		t.Errorf("reload: %d %q %q", code, stdout, stderr)
	}
	seen := map[int]int{}
	for range 4 {
		// The connection before may not have been given back yet: one is the limit.
		poll(t, "a call is served", func() bool {
			status, _, err := get("")
			seen[status]++
			return err == nil
		})
	}
	if seen[200] != 2 || seen[503] != 2 {
		t.Errorf("without retries: %v", seen)
	}
	poll(t, "a head that is too large is refused", func() bool {
		status, _, err := get(strings.Repeat("x", 8000))
		return err == nil && status == http.StatusRequestHeaderFieldsTooLarge
	})

	var held net.Conn
	poll(t, "a connection is held", func() bool {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return false
		}
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if n, _ := c.Read(make([]byte, 1)); n == 0 {
			c.Close()
			return false
		}
		held = c
		return true
	})
	defer held.Close()
	if status, _, err := get(""); err == nil {
		t.Errorf("served with %d over limits.connections", status)
	}
	if v, ok := a.metric("lbagent_proxy_refused_connections_total"); !ok || v < 1 {
		t.Errorf("lbagent_proxy_refused_connections_total %v %v", v, ok)
	}
	if said := a.words("events"); !strings.Contains(said, "the process has too many (limit 1)") { // lines are broken for a terminal
		t.Errorf("events:\n%s", said)
	}
}

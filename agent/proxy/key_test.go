package proxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
)

// Under hash, calls with the same key meet, whichever protocol they come by, and however the header's name is written (3.10); those without one go anywhere.
func TestHashHeader(t *testing.T) {
	r := newRig(t, func(s *Service) { s.Protocol, s.HashHeader = "auto", "x-user" })
	spec := *r.svc.Spec()
	spec.Policy = picker.Hash
	r.table.SetSpec(time.Now(), spec)
	both := new(http.Protocols)
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	var addrs []string
	for i := range 4 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, ln.Addr().String())
		srv := &http.Server{Protocols: both, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, i) })}
		go func() { _ = srv.Serve(ln) }()
		t.Cleanup(func() { _ = srv.Close() })
	}
	r.backends(addrs...)

	h2only := new(http.Protocols)
	h2only.SetUnencryptedHTTP2(true)
	h1 := &http.Client{Transport: &http.Transport{}}
	h2 := &http.Client{Transport: &http.Transport{Protocols: h2only}}
	defer h1.CloseIdleConnections()
	defer h2.CloseIdleConnections()
	ask := func(c *http.Client, header, key string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.addr+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if key != "" {
			req.Header[header] = []string{key}
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %v", resp.Status, err)
		}
		return string(body)
	}
	used := map[string]int{}
	for k := range 30 {
		key := fmt.Sprint("user ", k)
		home := ask(h2, "X-User", key)
		used[home]++
		for _, header := range []string{"X-User", "x-user", "X-USER"} {
			if at := ask(h1, header, key); at != home {
				t.Fatalf("%q is at %s by HTTP/1 with %s, at %s by HTTP/2", key, at, header, home)
			}
		}
	}
	if len(used) != 4 {
		t.Errorf("30 keys are at %v, want all of 4 backends", used)
	}
	without := map[string]bool{}
	for i := range 200 {
		without[ask([]*http.Client{h1, h2}[i%2], "X-User", "")] = true
	}
	if len(without) != 4 {
		t.Errorf("calls without a key went to %v", without)
	}
}

package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// upgraded speaks echo after an upgrade.
func upgraded(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "echo" {
		w.WriteHeader(400)
		return
	}
	c, rw, _ := w.(http.Hijacker).Hijack()
	defer c.Close()
	io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	io.Copy(c, rw)
}

func (r *rig) upgrade() (*net.TCPConn, *bufio.Reader) {
	r.t.Helper()
	c := r.client()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "echo" {
		r.t.Fatalf("%v, %v", resp, err)
	}
	return c, in
}

func TestHTTP1Upgrade(t *testing.T) {
	addr := web(t, upgraded)
	r := newRig(t, func(s *Service) {
		s.Protocol = "auto"
		s.Request = 100 * time.Millisecond
		s.Drain = 50 * time.Millisecond
	})
	r.backends(addr)
	c, in := r.upgrade()
	for range 20 {
		io.WriteString(c, "ping")
		b := make([]byte, 4)
		if _, err := io.ReadFull(in, b); err != nil || string(b) != "ping" {
			t.Fatalf("read %q, %v", b, err)
		}
	}
	if s := r.stats(); s.Active["http1"] != 1 {
		t.Errorf("stats %+v", s)
	}
	// It runs on a backend that goes: its time is the drain (4.7).
	r.backends()
	if _, err := in.ReadByte(); err == nil {
		t.Error("still open after the drain")
	}
	await(t, "the accounts", func() bool { s := r.stats(); return s.Active["http1"] == 0 && s.calls("http1", "2xx") == 1 })
	if n := r.proxy.clients.Load(); n != 0 {
		t.Errorf("%d clients counted", n)
	}
}

package proxy

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/tcp"
	"golang.org/x/net/http2"
)

// silent connects to the rig's service, and returns once its silence has made it a session whose backend is there.
func (r *rig) silent() *net.TCPConn {
	r.t.Helper()
	c := r.client()
	c.SetNoDelay(true)
	r.await("a session", func(k *relay) bool {
		for s := range k.w.sessions[r.svc] {
			return s.late != nil && s.up
		}
		return false
	})
	return c
}

// onLate gives f the one session in doubt, on the loop.
func (r *rig) onLate(f func(s *session)) {
	r.t.Helper()
	r.onLoop(func(k *relay) {
		for s := range k.w.sessions[r.svc] {
			f(s)
		}
	})
}

// noSession wants none left, and nothing of one with a backend.
func (r *rig) noSession(backend string) {
	r.t.Helper()
	r.await("no session", func(k *relay) bool {
		return len(k.w.sessions) == 0 && k.w.statsOf(r.proxy.routes["user"]).active[protoTCP] == 0
	})
	if h := r.state(backend).Snapshot(time.Now()); h.Failures != 0 || h.Outstanding != 0 {
		r.t.Errorf("the backend: %+v", h)
	}
}

// A client that was silent for 200 ms and then speaks HTTP is served as if it had spoken at once, in whatever pieces its first bytes come (4.9).
func TestLateHTTP(t *testing.T) {
	for _, step := range []int{1 << 20, 10, 1} {
		r := newRig(t, asAuto)
		b := newRawBackend(t)
		r.backends(b.addr)
		say := func(c net.Conn, s string) {
			for ; len(s) > step && step < 100; s = s[step:] {
				io.WriteString(c, s[:step])
				r.onLoop(func(*relay) {}) // seen, most likely
			}
			io.WriteString(c, s)
		}
		c := newRawConn(t, r.silent())
		first, err := b.l.Accept() // of the session
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		say(c, http2.ClientPreface)
		c.fr.WriteSettings()
		c.get(1, "/")
		bc := b.accept()
		bc.request()
		bc.headers(1, true, ":status", "204")
		if got := c.answerOf(1); got != "[204]" {
			t.Errorf("step %d: HTTP/2 got %q", step, got)
		}
		first.SetDeadline(time.Now().Add(patience))
		if got, err := io.ReadAll(first); err != nil || len(got) > 0 {
			t.Errorf("step %d: the session's backend got %q, %v", step, got, err)
		}
		r.noSession(b.addr)
		r.backends(web(t, saying("web")))
		h := r.silent()
		say(h, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp := answer(t, bufio.NewReader(h), "GET"); resp.StatusCode != 200 || bodyOf(t, resp) != "web" {
			t.Errorf("step %d: HTTP/1.1 got %v", step, resp)
		}
		r.await("no session", func(k *relay) bool { return len(k.w.sessions) == 0 })
		if s := r.stats(); s.Sniffed["h2"] != 1 || s.Sniffed["http1"] != 1 || s.Sniffed["tcp"] != 0 || s.Silent != 0 || s.calls("tcp", "ok")+s.calls("tcp", "failed") != 0 {
			t.Errorf("step %d: %+v", step, s)
		}
		c.Close()
		h.Close()
		await(t, "all gone", func() bool { return r.proxy.clients.Load() == 0 })
		if n := r.proxy.workers[0].load.Load(); n != 0 {
			t.Errorf("step %d: load %d", step, n)
		}
		r.quiet()
	}
}

// What isn't HTTP, or comes after the backend has spoken, or doesn't go on, or ends, is relayed as it is.
func TestLateTCP(t *testing.T) {
	for name, c := range map[string]struct {
		say   string
		after func(r *rig, c, backend *net.TCPConn) // the first bytes
		gets  string                                // the backend
	}{
		"other bytes":                  {say: "EHLO x\r\n", gets: "EHLO x\r\n"},
		"a method that is none":        {say: "GETX", gets: "GETX"},
		"half a method, then other":    {say: "GE", after: func(_ *rig, c, _ *net.TCPConn) { io.WriteString(c, "RMANY") }, gets: "GERMANY"},
		"half a preface, then the end": {say: "PRI * HT", after: func(r *rig, c, _ *net.TCPConn) { c.CloseWrite() }, gets: "PRI * HT"},
		"half a preface, then the backend speaks": {say: "PRI * HT", after: func(_ *rig, c, backend *net.TCPConn) {
			io.WriteString(backend, "220 ready")
			read(t, c, "220 ready")
			io.WriteString(c, "TP/2.0\r\n\r\nSM\r\n\r\n")
		}, gets: http2.ClientPreface},
		"half a preface, then nothing": {say: "PRI * HT", after: func(r *rig, c, _ *net.TCPConn) {
			r.onLate(func(s *session) { s.late.timer.F() })
		}, gets: "PRI * HT"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, asAuto)
			accepted := make(chan *net.TCPConn, 1)
			over := make(chan struct{})
			addr := tcpBackend(t, "tcp4", func(b *net.TCPConn) { accepted <- b; <-over })
			t.Cleanup(func() { close(over) })
			r.backends(addr)
			client := r.silent()
			backend := <-accepted
			backend.SetDeadline(time.Now().Add(patience))
			io.WriteString(client, c.say)
			if c.after != nil {
				r.await("the first bytes are seen", func(k *relay) bool {
					for s := range k.w.sessions[r.svc] {
						return s.ends[tcp.Client].conn.Received() == uint64(len(c.say))
					}
					return false
				})
				c.after(r, client, backend)
			}
			read(t, backend, c.gets)
			io.WriteString(backend, "answer")
			read(t, client, "answer")
			if s := r.stats(); s.Sniffed["tcp"] != 1 || s.Silent != 1 || s.Picks != 1 {
				t.Errorf("%+v", s)
			}
			client.Close()
			backend.Close()
			r.noSession(addr)
		})
	}
}

// A backend whose first bytes are here already, only not read, has spoken first.
func TestLateMeetsGreeting(t *testing.T) {
	r := newRig(t, asAuto)
	accepted := make(chan *net.TCPConn, 1)
	over := make(chan struct{})
	addr := tcpBackend(t, "tcp4", func(b *net.TCPConn) { accepted <- b; <-over })
	t.Cleanup(func() { close(over) })
	r.backends(addr)
	client := r.silent()
	backend := <-accepted
	backend.SetDeadline(time.Now().Add(patience))
	r.onLate(func(s *session) { // both speak before the loop looks again
		io.WriteString(backend, "220 ready")
		await(t, "the greeting", s.ends[tcp.Backend].conn.Waiting)
		if !s.late.isTCP(tcp.Client, []byte("GET / HTTP/1.1\r\n")) {
			t.Error("it was taken for HTTP")
		}
	})
	io.WriteString(client, "GET / HTTP/1.1\r\n")
	read(t, backend, "GET / HTTP/1.1\r\n")
	read(t, client, "220 ready")
}

// A late client whose service has no backend that can be reached gets an answer that it can read (4.5).
func TestLateWithoutBackend(t *testing.T) {
	t.Parallel() // it waits
	bad := deaf(t)
	r := newRig(t, func(s *Service) { s.Protocol = "auto"; s.Connect = time.Second })
	r.backends(bad)
	c := newRawConn(t, r.client())
	r.await("a dial", func(k *relay) bool { return len(k.w.sessions[r.svc]) == 1 })
	io.WriteString(c, http2.ClientPreface)
	c.fr.WriteSettings()
	c.call(1, true, "/a/b", nil)
	if got := c.answerOf(1); !strings.HasPrefix(got, "[20014]") {
		t.Errorf("got %q", got)
	}
	r.quiet()
}

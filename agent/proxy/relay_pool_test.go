package proxy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
	"golang.org/x/net/http2"
)

// The calls that wait take turns between clients, and a full queue makes room for who has few in it (4.4).
func TestWaiters(t *testing.T) {
	var q waiters
	clients := map[byte]*clientConn{}
	calls := map[string]*call{}
	push := func(name string) {
		if clients[name[0]] == nil {
			clients[name[0]] = &clientConn{}
		}
		calls[name] = &call{client: clients[name[0]]}
		q.push(calls[name])
	}
	name := func(c *call) string {
		for n, o := range calls {
			if o == c {
				return n
			}
		}
		return "none"
	}
	for n := range 4 {
		push(fmt.Sprint("a", n))
	}
	push("b0")
	push("b1")
	push("c0")
	if d := name(q.displaced(clients['b'])); d != "a3" {
		t.Errorf("%s makes room for b", d)
	}
	if d := name(q.displaced(clients['a'])); d != "none" {
		t.Errorf("%s makes room for a, which has most", d)
	}
	q.remove(calls["a2"]) // its caller gave up; nobody's turn changes
	var got []string
	for c := q.next(); c != nil; c = q.next() {
		got = append(got, name(c))
		q.remove(c)
	}
	if s := strings.Join(got, " "); s != "a0 b0 c0 a1 b1 a3" {
		t.Errorf("in the order %s", s)
	}
	if q.n != 0 || len(q.lanes) != 0 {
		t.Errorf("%d calls, %d lanes are left", q.n, len(q.lanes))
	}
	for range waitForConn { // one each
		q.push(&call{client: &clientConn{}})
	}
	for c := q.next(); c != nil; c = q.next() {
		q.remove(c)
	}
	if cap(q.lanes) > 64 {
		t.Errorf("%d places are kept", cap(q.lanes))
	}
}

// full is a backend with one stream, which is taken, and a client that has filled the queue for it.
func full(t *testing.T) (s *script, c *rawConn) {
	s = newScript(t, nil)
	one := DefaultLimits()
	one.BackendConnections = 1
	s.proxy.SetLimits(one)
	s.client.call(1, true, "/first", nil)
	c = s.b.accept(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	c.request()
	for i := range waitForSlot {
		s.client.call(uint32(2*i+3), true, "/many", nil)
	}
	s.await("the queue is full", func(k *relay) bool {
		for _, be := range k.pools[s.svc].backends {
			return be.waiting.n == waitForSlot
		}
		return false
	})
	return s, c
}

// One client with a hundred calls can't keep another from a backend: it gives up its last place, and the other's call is the next but one (4.4).
func TestFairQueue(t *testing.T) {
	s, c := full(t)
	s.client.call(1001, true, "/too/many", nil)
	told := func(id uint32) {
		t.Helper()
		f := s.client.until(func(f frame) bool { return f.fields != nil })
		if f.id != id || f.fields["grpc-status"] != "14" || !strings.HasSuffix(f.fields["grpc-message"], tooManyWait) {
			t.Errorf("stream %d, %v, want stream %d", f.id, f.fields, id)
		}
	}
	told(1001) // its own client has most
	other := newRawClient(t, s.addr)
	other.call(1, true, "/other", nil)
	told(2*(waitForSlot-1) + 3)
	id := uint32(1)
	for _, want := range []string{"/many", "/other", "/many"} {
		c.headers(id, true, ":status", "200", "grpc-status", "0")
		f := c.request()
		if id = f.id; f.fields[":path"] != want {
			t.Errorf("the backend got %s, want %s", f.fields[":path"], want)
		}
	}
	if got := other.answerOf(1); got != "[2000]" {
		t.Errorf("the other client got %q", got)
	}
	s.client.Close() // the rest gives up
	c.headers(id, true, ":status", "200", "grpc-status", "0")
	s.quiet()
}

// While a backend owes the answer to a PING, calls wait for it here: they reach it if it answers, and go elsewhere if it doesn't (2.11).
func TestCallsWaitForPong(t *testing.T) {
	for _, answers := range []bool{true, false} {
		s := newScript(t, nil)
		other := newRawBackend(t)
		s.client.call(1, true, "/first", nil)
		c := s.b.accept()
		c.request()
		s.onBackendConn(func(conn *backendConn) {
			conn.hang.silence = 0
			conn.tick()
			if !conn.hang.suspect() {
				t.Error("no PING is out")
			}
		})
		ping := c.until(func(f frame) bool { p, ok := f.Frame.(*http2.PingFrame); return ok && !p.IsAck() }).Frame.(*http2.PingFrame)
		s.client.call(3, true, "/second", nil)
		s.await("the second call waits", func(k *relay) bool {
			for _, be := range k.pools[s.svc].backends {
				return be.waiting.n == 1 && len(be.conns) == 1
			}
			return false
		})
		s.backends(s.b.addr, other.addr)
		if answers {
			s.onBackendConn(func(conn *backendConn) { conn.hang.silence = time.Hour })
			c.fr.WritePing(true, ping.Data)
			f := c.request()
			if f.fields[":path"] != "/second" {
				t.Errorf("the backend got %v", f.fields)
			}
			c.headers(1, true, ":status", "200", "grpc-status", "0")
			c.headers(f.id, true, ":status", "200", "grpc-status", "0")
		} else {
			d := other.accept()
			d.headers(d.request().id, true, ":status", "200", "grpc-status", "0")
		}
		got := map[uint32]string{}
		for range 2 {
			f := s.client.request()
			got[f.id] = f.fields["grpc-status"]
		}
		if want := map[bool]string{true: "map[1:0 3:0]", false: "map[1:14 3:0]"}[answers]; fmt.Sprint(got) != want {
			t.Errorf("answers %v: the client got %v, want %s", answers, got, want)
		}
		s.quiet()
		want := map[bool]uint64{true: 0, false: 1}[answers]
		if n, last := s.failures(); n != want {
			t.Errorf("answers %v: %d failures (%s), want %d", answers, n, last, want)
		}
	}
}

// A pause of the whole host leaves every backend owing a PONG: the calls of that second wait, more than may for a slot alone (2.11, 4.4).
func TestManyCallsWaitForPong(t *testing.T) {
	const calls = 2 * waitForSlot
	s := newScript(t, nil)
	s.client.call(1, true, "/first", nil)
	c := s.b.accept()
	c.request()
	s.onBackendConn(func(conn *backendConn) {
		conn.hang.silence = 0
		conn.tick()
		conn.hang.silence = time.Hour
	})
	ping := c.until(func(f frame) bool { p, ok := f.Frame.(*http2.PingFrame); return ok && !p.IsAck() }).Frame.(*http2.PingFrame)
	for i := 1; i <= calls; i++ {
		s.client.call(uint32(2*i+1), true, "/more", nil)
	}
	s.await("all calls wait", func(k *relay) bool {
		for _, be := range k.pools[s.svc].backends {
			return be.waiting.n == calls
		}
		return false
	})
	c.fr.WritePing(true, ping.Data)
	c.headers(1, true, ":status", "200", "grpc-status", "0")
	for range calls {
		c.headers(c.request().id, true, ":status", "200", "grpc-status", "0")
	}
	for range calls + 1 {
		if f := s.client.request(); f.fields["grpc-status"] != "0" {
			t.Fatalf("the client got %v", f.fields)
		}
	}
	s.quiet()
}

// Connections beside the first one go soon after they are no longer needed, whatever timeout.idle says; the first one stays.
func TestSpareConnectionsClose(t *testing.T) {
	s := newScript(t, func(o *Service) { o.Idle = 0 })
	var conns []*rawConn
	for i := range 3 {
		s.client.get(uint32(2*i+1), "/")
		c := s.b.accept(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		c.request()
		conns = append(conns, c)
	}
	for _, c := range conns {
		c.headers(1, true, ":status", "200")
	}
	for range conns {
		s.client.request()
	}
	s.quiet()
	s.onLoop(func(k *relay) {
		for _, be := range k.pools[s.svc].backends {
			all := append([]*backendConn(nil), be.conns...)
			if len(all) != 3 {
				t.Fatalf("%d connections", len(all))
			}
			for _, c := range all {
				c.hang.asked = false // a Settings may have come in between
				c.tick()             // no stream any more: idle time from here
			}
			if all[0].timer.Armed() || !all[1].timer.Armed() || !all[2].timer.Armed() {
				t.Error("not only the spare ones have an end")
			}
			for _, c := range all[1:] {
				c.tick()
			}
		}
	})
	s.onBackendConn(func(c *backendConn) {})
	if b := s.proxy.Stats().Services[0].Backends; b.Open != 1 || b.Opened != 3 || b.Closed["idle"] != 2 {
		t.Errorf("%+v", b)
	}
	s.client.get(7, "/")
	f := conns[0].request()
	conns[0].headers(f.id, true, ":status", "204")
	s.client.answerOf(7)
}

// leaving is every way in which a backend is taken out, and back (4.7, 2.8).
func leavings(s *script, other string) map[string]struct{ out, back func() } {
	addr := netip.MustParseAddrPort(s.b.addr)
	list := func(draining bool) {
		s.table.Apply(time.Now(), &service.List{Service: "user", Source: service.FromStatic, Confirmed: time.Now(), Backends: []*service.Backend{
			{Addr: addr, Weight: 100, Draining: draining},
		}})
	}
	return map[string]struct{ out, back func() }{
		"removed":  {func() { s.backends(other) }, func() { s.backends(s.b.addr) }},
		"draining": {func() { list(true) }, func() { list(false) }},
	}
}

// What runs on a backend that is taken out has the time of the drain, then it ends: gRPC by trailers, HTTP/2 by a reset. Idle connections close at once (4.7).
func TestDrain(t *testing.T) {
	for _, name := range []string{"removed", "draining"} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t, func(o *Service) { o.Drain = time.Hour })
			way := leavings(s, newRawBackend(t).addr)[name]
			s.client.call(1, true, "/grpc/unanswered", nil)
			c := s.b.accept()
			c.request()
			s.client.call(3, true, "/grpc/answered", nil)
			c.headers(c.request().id, false, ":status", "200", "content-type", "application/grpc")
			s.client.get(5, "/unanswered")
			c.request()
			s.client.get(7, "/answered")
			c.headers(c.request().id, false, ":status", "200")
			s.client.get(9, "/in/time")
			last := c.request().id
			removed := func() (is bool) {
				s.onBackendConn(func(c *backendConn) { is = c.be.removed })
				return is
			}
			way.out()
			await(t, "the drain begins", removed)
			way.back()
			await(t, "it's undrained", func() bool { return !removed() })
			s.onBackendConn(func(c *backendConn) {
				if c.be.drainTimer.Armed() {
					t.Error("the drain goes on")
				}
			})
			way.out()
			await(t, "the drain begins", removed)
			c.headers(last, true, ":status", "204") // runs on
			s.client.until(func(f frame) bool { return f.id == 9 && f.fields[":status"] == "204" })
			s.onBackendConn(func(c *backendConn) { c.be.expire() })
			got := map[uint32]string{}
			for len(got) < 4 {
				f := s.client.until(func(f frame) bool {
					_, reset := f.Frame.(*http2.RSTStreamFrame)
					return reset || f.fields != nil && (f.end || f.fields["grpc-status"] != "")
				})
				if g, ok := f.Frame.(*http2.RSTStreamFrame); ok {
					got[f.id] = g.ErrCode.String()
				} else {
					got[f.id] = f.fields["grpc-status"] + " " + f.fields["grpc-message"]
				}
			}
			gone := "14 lbagent: user: " + s.b.addr + " backend removed"
			if want := map[uint32]string{1: gone, 3: gone, 5: "CANCEL", 7: "CANCEL"}; fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("the client got %v, want %v", got, want)
			}
			s.await("nothing of it is left", func(k *relay) bool { return k.calls == 0 && len(k.pools[s.svc].backends) == 0 })
			if b := s.proxy.Stats().Services[0].Backends; b.Open != 0 || b.Closed["backend_removed"] != 1 {
				t.Errorf("%+v", b)
			}
			// And an idle one.
			way.back()
			s.client.get(11, "/")
			d := s.b.accept()
			d.headers(d.request().id, true, ":status", "204")
			if got := s.client.answerOf(11); got != "[204]" {
				t.Errorf("the client got %q", got)
			}
			s.quiet()
			way.out()
			d.until(func(f frame) bool { _, ok := f.Frame.(*http2.GoAwayFrame); return ok })
			s.await("closed", func(k *relay) bool { return len(k.pools[s.svc].backends) == 0 })
		})
	}
}

// Muted, down, unreachable, ejected: no new calls, and those that run go on (4.7).
func TestOutButNotLeaving(t *testing.T) {
	for _, kind := range []health.Kind{health.Muted, health.Down, health.Unreachable, health.Ejected} {
		s := newScript(t, nil)
		other := newRawBackend(t)
		s.client.get(1, "/")
		c := s.b.accept()
		c.request()
		s.backends(s.b.addr, other.addr)
		s.table.SetVerdicts(time.Now(), []health.Change{{
			Group: "user", Addr: netip.MustParseAddrPort(s.b.addr), State: s.state(s.b.addr), To: health.Part{Kind: kind, Cause: "a test"},
		}})
		s.await("the loop knows", func(k *relay) bool {
			be := k.pools[s.svc].backends[s.state(s.b.addr)]
			return !be.usable && !be.removed && !be.drainTimer.Armed()
		})
		c.headers(1, true, ":status", "200")
		if got := s.client.answerOf(1); got != "[200]" {
			t.Errorf("%v: the running call got %q", kind, got)
		}
		s.quiet()
	}
}

// Calls that wait for a backend that leaves go to one that came with the same list (4.7).
func TestWaitingCallsFollowTheView(t *testing.T) {
	s, c := full(t)
	d := newRawBackend(t)
	s.backends(d.addr)
	e := d.accept()
	for range waitForSlot {
		e.headers(e.request().id, true, ":status", "200", "grpc-status", "0")
	}
	for range waitForSlot {
		if f := s.client.request(); f.fields["grpc-status"] != "0" {
			t.Fatalf("stream %d got %v", f.id, f.fields)
		}
	}
	c.headers(1, true, ":status", "200", "grpc-status", "0")
	s.client.answerOf(1)
	s.quiet()
	s.onLoop(func(k *relay) {
		if n := len(k.pools[s.svc].backends); n != 1 {
			t.Errorf("%d backends are kept", n)
		}
	})
}

// The end of the agent is nobody's failure: connections with calls, and those on their way to be.
func TestLoopEndIsNoFailure(t *testing.T) {
	t.Parallel() // it waits
	up, silent := newRawBackend(t), newRawBackend(t)
	var p *Proxy
	var states []*health.State
	t.Run("until the end", func(inner *testing.T) {
		r := newRig(inner, nil)
		p = r.proxy
		r.backends(up.addr)
		first := newRawClient(inner, r.addr)
		first.get(1, "/")
		c := up.accept()
		c.request()
		c.headers(1, true, ":status", "200")
		first.answerOf(1)
		client := newRawClient(t, r.addr) // after the backend's connection: a loop ends its connections by their descriptors
		client.get(1, "/")
		c.request()
		r.backends(up.addr, silent.addr)
		states = []*health.State{r.state(up.addr), r.state(silent.addr)}
		for id := uint32(3); id < 9; id += 2 {
			client.get(id, "/")
		}
		r.await("a connection is dialed", func(k *relay) bool {
			be := k.pools[r.svc].backends[states[1]]
			return be != nil && be.dialing == 1 && be.waiting.n > 0
		})
	})
	for i, s := range states {
		if n := s.Snapshot(time.Now()); n.Failures != 0 || n.Outstanding != 0 {
			t.Errorf("backend %d: %d outstanding, %d failures: %s", i, n.Outstanding, n.Failures, n.LastFailure)
		}
	}
	if b := p.Stats().Services[0].Backends; b.Closed["stop"] != 1 || b.Failed != 0 || b.Open != 0 {
		t.Errorf("%+v", b)
	}
}

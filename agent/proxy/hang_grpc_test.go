package proxy

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// onBackendConn gives f the one connection to the one backend, on the loop, once there is one.
func (r *rig) onBackendConn(f func(c *backendConn)) {
	r.t.Helper()
	r.await("a connection to the backend", func(k *relay) bool {
		p := k.pools[r.svc]
		if p == nil {
			return false
		}
		for _, be := range p.backends {
			if len(be.conns) == 1 && be.conns[0].up {
				f(be.conns[0])
				return true
			}
		}
		return false
	})
}

// rests waits until no PING is allowed for a long time.
func (r *rig) rests() {
	r.t.Helper()
	await(r.t, "PINGs rest", func() (ok bool) {
		r.onBackendConn(func(c *backendConn) { ok = c.resting && !c.hang.out })
		return ok
	})
}

// A grpc-go server with its default enforcement of keepalive takes every PING that we send on a stream where it is silent, although the caller talks all the
// time: what the caller sends clears no strike. (TestHangWatchNeverTooManyPings does hours of this.)
func TestGRPCServerTakesOurPings(t *testing.T) {
	r := newRig(t, nil)
	r.onLoop(func(k *relay) { k.silence = 5 * time.Millisecond })
	b := newGRPC(t)
	r.backends(b.addr)
	s, err := r.dial().StreamingInputCall(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(15 * time.Millisecond)
	defer tick.Stop()
	for range 60 {
		<-tick.C
		if err := s.Send(&testpb.StreamingInputCallRequest{Payload: &testpb.Payload{Body: []byte("x")}}); err != nil {
			t.Fatal(err)
		}
	}
	r.rests()
	var pings uint64
	r.onBackendConn(func(c *backendConn) { pings = c.hang.number })
	if pings != freePings {
		t.Errorf("%d PINGs, want %d", pings, freePings)
	}
	if got, err := s.CloseAndRecv(); err != nil || got.AggregatedPayloadSize != 60 {
		t.Errorf("%v, %v", got, err)
	}
	r.quiet()
}

// A connection that has no more PINGs for minutes becomes idle with its last stream all the same.
func TestRestingConnectionBecomesIdle(t *testing.T) {
	r := newRig(t, nil)
	r.onLoop(func(k *relay) { k.silence = 5 * time.Millisecond })
	b := newGRPC(t)
	r.backends(b.addr)
	ctx, cancel := context.WithCancel(timeout(t))
	s, err := r.dial().FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s.Send(&testpb.StreamingOutputCallRequest{})
	r.rests()
	cancel() // nothing comes from the backend
	r.quiet()
	r.onBackendConn(func(c *backendConn) {
		if c.resting || c.watched || !c.timer.Armed() {
			t.Error("the idle time has not begun")
		}
	})
}

// What comes of one PING too many: grpc-go closes the connection at once. It's our fault: no failure, and from then on PINGs are half as frequent (2.11).
func TestTooManyPings(t *testing.T) {
	t.Parallel() // it waits
	r := newRig(t, nil)
	r.onLoop(func(k *relay) { k.silence = 5 * time.Millisecond })
	b := newGRPC(t)
	r.backends(b.addr)
	client := r.dial()
	s, err := client.FullDuplexCall(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	s.Send(&testpb.StreamingOutputCallRequest{})
	for i := range 2 {
		r.rests()
		r.onBackendConn(func(c *backendConn) {
			if c.hang.number != uint64(freePings+i) {
				t.Errorf("%d PINGs", c.hang.number)
			}
			c.hang.pinged = c.hang.pinged.Add(-pingEvery) // time flies, but not for the server
			c.tick()
		})
	}
	_, err = s.Recv()
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
	r.quiet()
	if s := r.state(b.addr).Snapshot(time.Now()); s.Failures != 0 {
		t.Errorf("%d failures: %s", s.Failures, s.LastFailure)
	}
	r.onLoop(func(k *relay) {
		for _, be := range k.pools[r.svc].backends {
			if be.pingEvery != 2*pingEvery {
				t.Errorf("the next one after %v", be.pingEvery)
			}
		}
	})
	if _, err := client.UnaryCall(timeout(t), &testpb.SimpleRequest{}); err != nil {
		t.Error(err)
	}
}

// A backend that goes on complaining, while calls run on, is heard once per connection: else it could fill the log, and stop our PINGs for hours.
func TestTooManyPingsAgainAndAgain(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.call(1, true, "/a/b", nil)
	c := b.accept()
	c.request()
	of := func(f func(be *backend)) {
		r.onLoop(func(k *relay) {
			for _, be := range k.pools[r.svc].backends {
				f(be)
			}
		})
	}
	of(func(be *backend) { be.conns[0].hang.number = 1 })
	for range 5 {
		c.fr.WriteGoAway(1, 0xb, []byte("too_many_pings"))
	}
	c.headers(1, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "0")
	if got := client.answerOf(1); got != "[2000]" {
		t.Errorf("the client got %q", got)
	}
	of(func(be *backend) {
		if be.pingEvery != 2*pingEvery {
			t.Errorf("the next PING after %v", be.pingEvery)
		}
	})
}

// A backend that complains of PINGs on a connection that never had one finds no excuse in it.
func TestTooManyPingsWithoutAny(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.call(1, true, "/a/b", nil)
	c := b.accept()
	c.request()
	c.fr.WriteGoAway(1, 0xb, []byte("too_many_pings"))
	c.Close()
	if got := client.answerOf(1); got != "[20014]" {
		t.Errorf("the client got %q", got)
	}
	if s := r.state(b.addr).Snapshot(time.Now()); s.Failures != 1 || !strings.Contains(s.LastFailure, "too_many_pings") {
		t.Errorf("%d failures: %s", s.Failures, s.LastFailure)
	}
}

package proxy

import (
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// The call of a caller who has its answer ends, even if the backend never takes the rest of the request nor refuses it.
func TestRestNeverTaken(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.call(1, false, "/a/b", make([]byte, 16000))
	for i := range 5 {
		client.fr.WriteData(1, i == 4, make([]byte, 16000)) // above the backend's window
	}
	c := b.accept()
	c.request()
	r.await("all of the request is here", func(k *relay) bool { return k.calls == 1 && k.inUse > 0 && len(k.clients) == 1 && restOf(k) })
	c.headers(1, true, ":status", "200", "grpc-status", "0")
	if got := client.answerOf(1); got != "[2000]" {
		t.Fatalf("the client got %q", got)
	}
	client.Close()
	r.await("the client is gone", func(k *relay) bool { return len(k.clients) == 0 })
	r.onLoop(func(k *relay) {
		for s := range k.pools[r.svc].backends[r.state(b.addr)].conns[0].h2.All() {
			c := s.Owner.(*call)
			if !c.timer.Armed() {
				t.Error("nothing will end the call")
			}
			c.timeUp()
			break
		}
	})
	c.until(func(f frame) bool {
		g, ok := f.Frame.(*http2.RSTStreamFrame)
		return ok && g.ErrCode == http2.ErrCodeCancel
	})
	r.quiet()
	if s := r.state(b.addr).Snapshot(time.Now()); s.Failures != 0 || s.Successes != 1 {
		t.Errorf("%d failures, %d successes", s.Failures, s.Successes)
	}
}

// restOf reports whether the client's only stream has ended its request.
func restOf(k *relay) bool {
	for c := range k.clients {
		s := c.h2.Any()
		return s != nil && s.Owner.(*call).req.end
	}
	return false
}

// Likewise if the request ends after the answer, behind DATA that waits for the backend's window already.
func TestRestEndsAfterTheAnswer(t *testing.T) {
	var all beds
	b := all.get(t, 1)
	var backend *peerEnd
	b.accept = func(e *peerEnd) {
		backend = e
		e.w.settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
		e.w.ack()
	}
	c := b.client("client")
	c.w.settings()
	c.w.ack()
	c.w.headers(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a")
	b.steps(5)
	c.w.data(1, false, make([]byte, 100))
	b.steps(3)
	backend.w.headers(1, true, ":status", "200")
	b.steps(3)
	c.w.data(1, true, make([]byte, 100))
	b.steps(3)
	if s := c.v.streams[1]; !s.over() || b.relay.calls != 1 {
		t.Fatalf("the client's stream: %+v; %d calls", s, b.relay.calls)
	}
	b.advance(restPatience + time.Millisecond)
	b.steps(2)
	if !backend.v.streams[1].reset || b.relay.calls != 0 {
		t.Errorf("the backend's stream: %+v; %d calls", backend.v.streams[1], b.relay.calls)
	}
	all.end(b)
}

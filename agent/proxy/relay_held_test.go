package proxy

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// newSink is a backend that takes all that comes, and answers nothing.
func newSink(t testing.TB) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fr := http2.NewFramer(c, nil)
				fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1 << 30})
				fr.WriteWindowUpdate(0, 1<<31-1-65535)
				fr.WriteSettingsAck()
				io.Copy(io.Discard, c)
			}()
		}
	}()
	return l.Addr().String()
}

// sink gives the rig's service a sink for its backend, to which the connection is there.
func (r *rig) sink() {
	r.t.Helper()
	r.backends(newSink(r.t))
	c := newRawClient(r.t, r.addr)
	c.get(1, "/")
	await(r.t, "a call at the backend", func() (there bool) {
		r.onBackendConn(func(c *backendConn) { there = c.h2.Streams() == 1 })
		return there
	})
	c.Close()
	r.quiet()
}

// heapStays fails if the heap has grown by more than most since before.
func heapStays(t testing.TB, what string, before, most uint64) {
	t.Helper()
	if after := heap(); after > before+most {
		t.Errorf("%s: the heap grew by %d KiB, want at most %d", what, (after-before)>>10, most>>10)
	}
}

// Trailers of requests are kept until a response begins, and count for a connection like header lists.
func TestAttackKeptTrailers(t *testing.T) {
	r := newRig(t, nil)
	r.sink()
	b := newGRPC(t)
	w := r.witness("large trailers", r.other(b.addr))
	w.growth = 512 << 20 // what the sink and the attacker have; what is kept is looked at below
	before := heap()
	a := newAttacker(t, r.addr)
	large := strings.Repeat("\xff", 60_000) // which Huffman codes don't make shorter
	const calls = 200                       // 12 MB of trailers
	for range calls {
		id := a.open()
		block := plain("x-large", large)
		a.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:16_000], EndStream: true})
		for block = block[16_000:]; len(block) > 0; {
			n := min(16_000, len(block))
			a.fr.WriteContinuation(id, n == len(block), block[:n])
			block = block[n:]
		}
		a.flush()
	}
	limit := 250 * heldPerStream
	await(t, "resets", func() bool { return r.protected(protectHeaders) >= calls-uint64(limit/60_000) })
	r.onLoop(func(k *relay) {
		kept := 0
		for c := range k.clients {
			for s := range c.h2.All() {
				one := s.Owner.(*call)
				kept += one.held + one.req.held
			}
		}
		if kept > limit || kept < limit/2 {
			t.Errorf("%d bytes are kept, limit %d", kept, limit)
		}
		if err := k.check(); err != nil {
			t.Error(err)
		}
	})
	a.buf.Reset()
	heapStays(t, "large trailers", before, uint64(limit)+4<<20)
	a.Close()
	<-a.over
	await(t, "calls of another client", func() bool { return w.calls.Load() >= 10 || isClosed(w.done) })
	w.end()
	r.quiet()
	r.onLoop(func(k *relay) {
		if k.parked != 0 {
			t.Errorf("%d bytes are still parked", k.parked)
		}
	})
}

// Many connections, each below its own limit of header lists, meet that of the process.
func TestAttackHeldHeaders(t *testing.T) {
	const limit, connections, calls = 4 << 20, 12, 130 // 15 KB each: 23 MB
	r := newRig(t, nil)
	r.sink()
	b := newGRPC(t)
	w := r.witness("header lists of many connections", r.other(b.addr))
	w.growth = 512 << 20
	w.goroutines += 10 // there may be more connections to the sink
	r.limitBuffered(limit)
	before := heap()
	large := strings.Repeat("\xff", 15_000)
	var all []*attacker
	most := int64(0)
	for range connections {
		a := newAttacker(t, r.addr)
		all = append(all, a)
		for range calls / 10 {
			for range 10 {
				a.open("large", large)
			}
			a.flush()
		}
		r.onLoop(func(k *relay) { most = max(most, k.parked) })
	}
	r.await("all is read", func(k *relay) bool {
		most = max(most, k.parked)
		for c := range k.clients {
			if c.lc.Unread() > 0 {
				return false
			}
		}
		return true
	})
	if n := r.protected(protectBuffered); n < limit/15_000 {
		t.Errorf("%d requests reset", n)
	}
	if n := r.stats().Backends.Closed["error"]; n != 0 {
		t.Errorf("%d connections to the backend closed, which others share", n)
	}
	if most > 2*limit { // what one wake-up reads comes on top
		t.Errorf("%d bytes were held, limit %d", most, limit)
	}
	if n := r.protected(protectHeaders); n != 0 {
		t.Errorf("%d requests refused", n)
	}
	for _, a := range all {
		a.buf.Reset()
	}
	heapStays(t, "header lists of many connections", before, limit+8<<20)
	for _, a := range all {
		a.Close()
		<-a.over
	}
	await(t, "calls of another client", func() bool { return w.calls.Load() >= 10 || isClosed(w.done) })
	w.end()
	r.quiet()
}

// A backend whose trailers can't go on, as its clients keep their windows closed, doesn't fill the process with them.
func TestAttackParkedTrailers(t *testing.T) {
	const limit, calls = 4 << 20, 240 // 60 KB each: 14 MB
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	r.limitBuffered(limit)
	client := newRawClient(t, r.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	var c *rawConn
	large := strings.Repeat("\xff", 15_000)
	for i := range calls {
		id := uint32(2*i + 1)
		client.get(id, "/")
		if c == nil {
			c = b.accept()
		}
	}
	go readAll(c)
	go readAll(client)
	before := heap()
	for i := range calls {
		id := uint32(2*i + 1)
		c.headers(id, false, ":status", "200")
		c.fr.WriteData(id, false, []byte("x"))
		block := plain("a", large, "b", large, "c", large, "d", large)
		c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:16_000], EndStream: true})
		for block = block[16_000:]; len(block) > 0; {
			n := min(16_000, len(block))
			c.fr.WriteContinuation(id, n == len(block), block[:n])
			block = block[n:]
		}
	}
	await(t, "resets", func() bool { return r.protected(protectBuffered) >= calls-limit/60_000 })
	r.onLoop(func(k *relay) {
		if k.parked > limit {
			t.Errorf("%d bytes are parked, limit %d", k.parked, limit)
		}
		if err := k.check(); err != nil {
			t.Error(err)
		}
	})
	heapStays(t, "parked trailers", before, limit+4<<20)
	if s := r.state(b.addr).Snapshot(time.Now()); s.Failures != 0 {
		t.Errorf("the backend has %d failures", s.Failures)
	}
	client.Close()
	r.quiet()
	r.onLoop(func(k *relay) {
		if k.parked != 0 {
			t.Errorf("%d bytes are still parked", k.parked)
		}
	})
}

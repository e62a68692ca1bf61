package proxy

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// Who holds a connection up for too long is cut off and counted, and another client notices nothing (HTTP2.md 3).
func TestAttackSlow(t *testing.T) {
	large := func(b *rawBackend) { // answers each request with header lists of 60 KB, which no window bounds
		c := b.accept()
		for {
			f, err := c.read()
			if err != nil {
				return
			}
			if f.fields != nil {
				block := plain(":status", "200", "x", strings.Repeat("x", 60_000))
				c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: f.id, BlockFragment: block[:16_384], EndStream: true})
				for at := 16_384; at < len(block); at += 16_384 {
					c.fr.WriteContinuation(f.id, at+16_384 >= len(block), block[at:min(len(block), at+16_384)])
				}
			}
		}
	}
	const never = time.Hour
	short := 100 * time.Millisecond
	for _, c := range []struct {
		name    string
		limits  slowness
		send    func(a *attacker)
		trickle []byte // then, again and again
		backend func(b *rawBackend)
		why     string
	}{
		{"nothing", slowness{short, never, never, never, 20 * time.Millisecond}, func(a *attacker) { a.buf.Reset() }, nil, nil, "no SETTINGS came for 100ms"},
		{"half a preface", slowness{short, never, never, never, 20 * time.Millisecond}, func(a *attacker) { a.buf.Truncate(10) }, nil, nil, "no SETTINGS came for 100ms"},
		{"a preface alone", slowness{short, never, never, never, 20 * time.Millisecond}, func(a *attacker) { a.buf.Truncate(len(http2.ClientPreface)) }, nil, nil, "no SETTINGS came for 100ms"},
		{"SETTINGS unanswered", slowness{never, short, never, never, 20 * time.Millisecond}, func(a *attacker) { a.buf.Truncate(a.buf.Len() - 9) }, nil, nil, "our SETTINGS were not acknowledged for 100ms"},
		{"half a frame", slowness{short, never, never, never, 20 * time.Millisecond}, func(a *attacker) { a.buf.WriteString("\x00\x00\x08\x06") }, nil, nil, "the rest of a frame or of a header block did not come for 100ms"},
		{"a frame byte by byte", slowness{short, never, never, never, 20 * time.Millisecond}, func(a *attacker) { a.buf.WriteString("\x00\x40\x00\xbe\x00\x00\x00\x00\x00") }, []byte("x"), nil, "the rest of a frame or of a header block did not come for 100ms"},
		{"a header block that goes on and on", slowness{short, never, never, never, 20 * time.Millisecond}, func(a *attacker) {
			a.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: plain(":method", "GET")})
		}, []byte("\x00\x00\x01\x09\x00\x00\x00\x00\x01\x82"), nil, "the rest of a frame or of a header block did not come for 100ms"},
		{"very many answers unread", slowness{never, never, never, short, 20 * time.Millisecond}, func(a *attacker) {
			for range 200 {
				a.open()
			}
		}, nil, large, "nothing was read, with very much to read for 100ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.onLoop(func(k *relay) { k.slowness = c.limits })
			if c.backend != nil {
				b := newRawBackend(t)
				r.backends(b.addr)
				go c.backend(b)
			}
			g := newGRPC(t)
			w := r.witness(c.name, r.other(g.addr))
			a := newDeafAttacker(t, r.addr)
			c.send(a)
			a.flush()
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for end := time.Now().Add(patience); r.protected(protectSlow) == 0; <-tick.C {
				if time.Now().After(end) {
					t.Fatal("never cut off")
				}
				a.Write(c.trickle)
			}
			r.await("the connection is gone", func(k *relay) bool { return len(k.clients) == 1 })
			if events := r.told(); len(events) != 1 || !strings.HasSuffix(events[0].Detail, "connection closed: "+c.why) {
				t.Errorf("told: %+v", events)
			}
			a.Close()
			await(t, "calls of another client", func() bool { return w.calls.Load() >= 10 })
			w.end()
			r.quiet()
		})
	}
}

// A client whose socket takes nothing is cut off in the end.
func TestSocketThatTakesNothing(t *testing.T) {
	r := newRig(t, nil)
	b := newGRPC(t)
	r.backends(b.addr)
	r.onLoop(func(k *relay) { k.slowness.write, k.slowness.check = 200*time.Millisecond, 20*time.Millisecond })
	a := newDeafAttacker(t, r.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	a.fr.WriteWindowUpdate(0, 1<<30)
	for range 20 {
		a.ask(t, 1)
	}
	a.flush()
	await(t, "cut off", func() bool { return r.protected(protectSlow) == 1 })
	r.await("gone", func(k *relay) bool { return len(k.clients) == 0 })
	if events := r.told(); !strings.HasSuffix(events[0].Detail, "nothing was read for 200ms") {
		t.Errorf("told: %+v", events)
	}
	a.Close()
	r.quiet()
}

// What is slow and not too slow goes on; and when each limit ends a connection.
func TestHoldUp(t *testing.T) {
	limits := defaultSlowness()
	began := time.Unix(1e9, 0)
	const s = time.Second
	// Each step is at a second, and does something; cut is the second in which over says why, 0 for never within an hour.
	type step struct {
		at int
		do func(u *holdUp, now time.Time)
	}
	read := func(consumed, rest int, block uint32) func(*holdUp, time.Time) {
		return func(u *holdUp, now time.Time) { u.read(now, consumed, rest, block) }
	}
	wrote := func(left int) func(*holdUp, time.Time) {
		return func(u *holdUp, now time.Time) { u.wrote(now, left) }
	}
	every := func(seconds, until int, do func(*holdUp, time.Time)) (all []step) {
		for at := 1; at < until; at += seconds {
			all = append(all, step{at, do})
		}
		return all
	}
	for _, c := range []struct {
		name      string
		hello     bool
		ready     bool
		paused    bool
		unwritten int
		steps     []step
		cut       int
		why       string
	}{
		{name: "nothing held up", ready: true},
		{name: "no SETTINGS", hello: true, cut: 10, why: "no SETTINGS came"},
		{name: "no acknowledgement", hello: true, ready: true, cut: 60, why: "our SETTINGS were not acknowledged"},
		{name: "half a frame", ready: true, steps: []step{{5, read(0, 20, 0)}}, cut: 15, why: "the rest of a frame or of a header block did not come"},
		{name: "half a frame behind whole ones", ready: true, steps: []step{{5, read(100, 20, 0)}, {9, read(100, 20, 0)}}, cut: 19, why: "the rest of a frame or of a header block did not come"},
		{name: "a frame byte by byte", ready: true, steps: every(1, 3000, read(0, 20, 0)), cut: 11, why: "the rest of a frame or of a header block did not come"},
		{name: "an upload in pieces, half a frame always there", ready: true, steps: every(9, 3600, read(100, 20, 0))},
		{name: "half a frame that ends in time", ready: true, steps: []step{{1, read(0, 20, 0)}, {10, read(29, 0, 0)}}},
		{name: "half a frame that we don't read", ready: true, paused: true, steps: []step{{1, read(0, 20, 0)}}},
		{name: "a header block that goes on", ready: true, steps: every(1, 3000, read(20, 0, 1)), cut: 11, why: "the rest of a frame or of a header block did not come"},
		{name: "a header block that goes on behind a half frame", ready: true, steps: append([]step{{1, read(0, 5, 0)}}, every(2, 3000, read(20, 3, 1))...), cut: 11, why: "the rest of a frame or of a header block did not come"},
		{name: "a header block that ends", ready: true, steps: []step{{1, read(20, 0, 1)}, {9, read(20, 3, 0)}, {12, read(20, 0, 0)}}},
		{name: "a header block at the end of each read", ready: true, steps: []step{{1, read(20, 0, 1)}, {9, read(20, 0, 3)}, {17, read(20, 9, 5)}, {25, read(20, 0, 0)}}},
		{name: "a socket that takes nothing", ready: true, unwritten: pauseAt, steps: []step{{1, wrote(10)}}, cut: 301, why: "nothing was read"},
		{name: "a socket that takes nothing of very much", ready: true, unwritten: pauseAt + 1, steps: []step{{1, wrote(10)}}, cut: 11, why: "nothing was read, with very much to read"},
		{name: "a socket that takes something every four minutes", ready: true, unwritten: pauseAt, steps: every(240, 3600, wrote(10))},
		{name: "a socket that takes all", ready: true, steps: []step{{1, wrote(10)}, {2, wrote(0)}}},
	} {
		u := holdUp{hello: c.hello}
		steps, cut, said := c.steps, 0, ""
		for at := 1; at < 3600 && cut == 0; at++ {
			now := began.Add(time.Duration(at) * s)
			for len(steps) > 0 && steps[0].at == at {
				steps[0].do(&u, now)
				steps = steps[1:]
			}
			if why, _ := u.over(now, began, &limits, c.ready, c.paused, c.unwritten); why != "" {
				cut, said = at, why
			}
		}
		if cut != c.cut || said != c.why {
			t.Errorf("%s: cut off after %d s: %q; want %d, %q", c.name, cut, said, c.cut, c.why)
		}
	}
}

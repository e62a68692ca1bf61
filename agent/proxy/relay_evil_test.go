package proxy

import (
	"bytes"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// evil is a backend that, once a request has come, writes what it likes until its connection ends.
type evil struct {
	l     net.Listener
	addr  string
	ended atomic.Int64 // connections that the proxy ended
}

func newEvil(t testing.TB, settings []http2.Setting, play func(a *attacker)) *evil {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	e := &evil{l: l, addr: l.Addr().String()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go e.serve(c, settings, play)
		}
	}()
	return e
}

func (e *evil) serve(c net.Conn, settings []http2.Setting, play func(a *attacker)) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	a := &attacker{Conn: c, over: make(chan struct{})}
	a.fr = http2.NewFramer(&a.buf, nil)
	a.fr.AllowIllegalWrites = true
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	a.fr.WriteSettings(settings...)
	a.flush()
	fr := http2.NewFramer(io.Discard, c)
	for { // the first request
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		if f.Header().Type == http2.FrameHeaders {
			break
		}
	}
	go a.read()
	if a.flood(play) {
		e.ended.Add(1)
	}
}

// A backend that floods loses its connection and is blamed, at bounded cost, and clients of another service on the same loop notice nothing (HTTP2.md 3).
func TestEvilBackends(t *testing.T) {
	once := func(do func(a *attacker)) func(a *attacker) { // then nothing but what keeps the script going
		return func(a *attacker) {
			if a.ids++; a.ids == 1 {
				do(a)
			}
		}
	}
	first := func(do, then func(a *attacker)) func(a *attacker) {
		return func(a *attacker) {
			if a.ids++; a.ids == 1 {
				do(a)
			}
			then(a)
		}
	}
	begin := func(a *attacker) { a.headers(1, false, ":status", "200") }
	for _, c := range []struct {
		name string
		kind protection
		play func(a *attacker)
	}{
		{"PING", protectFrames, func(a *attacker) { a.fr.WritePing(false, [8]byte{}) }},
		{"PING once the call is over", protectFrames, first(func(a *attacker) { a.headers(1, true, ":status", "204") }, func(a *attacker) { a.fr.WritePing(false, [8]byte{}) })},
		{"SETTINGS", protectFrames, func(a *attacker) { a.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}) }},
		{"SETTINGS that are absurd", protectMalformed, func(a *attacker) { a.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}) }},
		{"informational responses", protectFrames, func(a *attacker) { a.headers(1, false, ":status", "103") }},
		{"empty DATA", protectFrames, first(begin, func(a *attacker) { a.fr.WriteData(1, false, nil) })},
		{"DATA of one byte", protectFrames, first(begin, func(a *attacker) { a.fr.WriteData(1, false, []byte("x")) })},
		{"DATA beyond the window", protectMalformed, first(begin, func(a *attacker) { a.fr.WriteData(1, false, make([]byte, 16384)) })},
		{"RST_STREAM again and again", protectFrames, func(a *attacker) { a.fr.WriteRSTStream(1, http2.ErrCodeInternal) }},
		{"trailers again and again", protectFrames, first(begin, func(a *attacker) { a.headers(1, true, "grpc-status", "0") })},
		{"trailers that end nothing", protectFrames, first(begin, func(a *attacker) { a.headers(1, false, "grpc-status", "0") })},
		{"responses nobody asked for", protectMalformed, func(a *attacker) { a.headers(99, true, ":status", "200") }},
		{"PUSH_PROMISE", protectMalformed, func(a *attacker) {
			a.fr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: plain(":method", "GET"), EndHeaders: true})
		}},
		{"unknown frames", protectFrames, func(a *attacker) { a.fr.WriteRawFrame(0xbe, 0, 0, nil) }},
		{"PRIORITY", protectFrames, func(a *attacker) { a.fr.WritePriority(1, http2.PriorityParam{Weight: 1}) }},
		{"WINDOW_UPDATE", protectFrames, func(a *attacker) { a.fr.WriteWindowUpdate(1, 1) }},
		{"GOAWAY again and again", protectFrames, func(a *attacker) { a.fr.WriteGoAway(1, 0, nil) }},
		{"CONTINUATION without end", protectHeaders, first(func(a *attacker) {
			a.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: plain(":status", "200")})
		}, func(a *attacker) { a.fr.WriteContinuation(1, false, plain("x", "y")) })},
		{"HPACK bomb", protectMalformed, once(func(a *attacker) {
			block := []byte{0x88, 0x40, 1, 'x', 0x7f, 0x80 + (3900-127)&0x7f, (3900 - 127) >> 7}
			block = append(append(block, make([]byte, 3900)...), bytes.Repeat([]byte{0xbe}, 12000)...)
			a.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndStream: true, EndHeaders: true})
			a.fr.WriteRawFrame(http2.FrameSettings, 0, 1, nil) // ends the script
		})},
		{"bad HPACK", protectMalformed, func(a *attacker) {
			a.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.noRefill()
			e := newEvil(t, nil, c.play)
			r.backends(e.addr)
			g := newGRPC(t)
			w := r.witness(c.name, r.other(g.addr))
			client := newRawClient(t, r.addr)
			client.get(1, "/")
			answer := client.answerOf(1) // of some kind: nothing hangs
			await(t, c.name+": the connection ends", func() bool { return e.ended.Load() > 0 })
			client.Close()
			await(t, "calls of another client", func() bool { return w.calls.Load() >= 10 })
			e.l.Close()
			w.end()
			if r.protected(c.kind) == 0 {
				t.Errorf("%v not counted; the client got %.60q; told %v", c.kind, answer, r.told())
			}
			for _, told := range r.told() {
				if told.Backend != e.addr {
					t.Errorf("told: %+v", told)
				}
			}
			if s := r.state(e.addr).Snapshot(time.Now()); s.Failures == 0 {
				t.Errorf("the backend is not blamed; the client got %.60q", answer)
			}
			r.quiet()
		})
	}
}

// A GOAWAY that denies a stream which was answered in part doesn't send the call again: the client would get two responses.
func TestGoawayDeniesAnAnswer(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.call(1, true, "/a/b", nil)
	c := b.accept()
	c.request()
	c.headers(1, false, ":status", "200", "content-type", "application/grpc")
	c.fr.WriteData(1, false, []byte("half"))
	c.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
	if got := client.answerOf(1); got != "[200]half[14]" {
		t.Errorf("the client got %q", got)
	}
	if s := r.state(b.addr).Snapshot(time.Now()); s.Failures != 1 {
		t.Errorf("%d failures", s.Failures)
	}
	r.quiet()
}

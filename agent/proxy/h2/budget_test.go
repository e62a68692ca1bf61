package h2

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// floods are what a client may send again and again, each for its own sake. Stream 1 is open and answered in part, stream 3 was reset by the client.
var floods = []struct {
	name  string
	send  func(p *peer, i int)
	fault Fault
	most  int // times until the connection ends, with a tenth of the budget
}{
	{"PING", func(p *peer, i int) { p.write.WritePing(false, [8]byte{}) }, FaultFrames, 2_500},
	{"PING that nobody sent answered", func(p *peer, i int) { p.write.WritePing(true, [8]byte{}) }, FaultFrames, 10_000},
	{"SETTINGS", func(p *peer, i int) { p.write.WriteSettings() }, FaultFrames, 2_500},
	{"SETTINGS that toggle the window", func(p *peer, i int) {
		p.write.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i&1) << 20})
	}, FaultFrames, 2_500},
	{"SETTINGS that toggle the table", func(p *peer, i int) {
		p.write.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: uint32(i&1) * (1<<32 - 1)})
	}, FaultFrames, 2_500},
	{"SETTINGS ack", func(p *peer, i int) { p.write.WriteSettingsAck() }, FaultFrames, 10_000},
	{"SETTINGS with very many values", func(p *peer, i int) { p.write.WriteSettings(make([]http2.Setting, 33)...) }, FaultFrames, 1},
	{"PRIORITY", func(p *peer, i int) { p.write.WritePriority(uint32(2*i+1), http2.PriorityParam{Weight: byte(i)}) }, FaultFrames, 10_000},
	{"PRIORITY_UPDATE", func(p *peer, i int) { p.write.WriteRawFrame(0x10, 0, 0, []byte{0, 0, 0, 1, 'u'}) }, FaultFrames, 10_000},
	{"unknown frame", func(p *peer, i int) { p.write.WriteRawFrame(0xbe, 0, 1, nil) }, FaultFrames, 10_000},
	{"WINDOW_UPDATE of 1", func(p *peer, i int) { p.write.WriteWindowUpdate(1, 1) }, FaultFrames, 2_500},
	{"WINDOW_UPDATE of the connection", func(p *peer, i int) { p.write.WriteWindowUpdate(0, 1) }, FaultFrames, 2_500},
	{"WINDOW_UPDATE of a closed stream", func(p *peer, i int) { p.write.WriteWindowUpdate(3, 1) }, FaultFrames, 10_000},
	{"RST_STREAM of a closed stream", func(p *peer, i int) { p.write.WriteRSTStream(3, 0) }, FaultFrames, 10_000},
	{"empty DATA", func(p *peer, i int) { p.write.WriteData(1, false, nil) }, FaultFrames, 2_500},
	{"DATA that is padding", func(p *peer, i int) { p.write.WriteDataPadded(1, false, nil, make([]byte, 255)) }, FaultFrames, 2_500},
	{"DATA for a closed stream", func(p *peer, i int) { p.write.WriteData(3, false, nil) }, FaultFrames, 10_000},
	{"much DATA for a closed stream", func(p *peer, i int) { p.write.WriteData(3, false, make([]byte, 16384)) }, FaultFrames, 589},
	{"GOAWAY", func(p *peer, i int) { p.write.WriteGoAway(0, 0, nil) }, FaultFrames, 2_500},
	{"CONTINUATION without anything", func(p *peer, i int) {
		if i == 0 {
			p.write.WriteHeaders(http2.HeadersFrameParam{StreamID: 5})
		}
		p.write.WriteContinuation(5, false, nil)
	}, FaultHeaders, maxContinuations},
	{"CONTINUATION that goes on", func(p *peer, i int) {
		if i == 0 {
			p.write.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: make([]byte, maxFrame)})
		}
		p.write.WriteContinuation(5, false, make([]byte, maxFrame))
	}, FaultHeaders, 4},
	{"request that is reset at once", func(p *peer, i int) {
		p.headers(uint32(2*i+5), false, post()...)
		p.write.WriteRSTStream(uint32(2*i+5), http2.ErrCodeCancel)
	}, FaultResets, 200},
	{"request in nine frames that is reset at once", func(p *peer, i int) {
		id, b := uint32(2*i+5), p.block(post()...)
		p.write.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b[:1]})
		for range 8 {
			p.write.WriteContinuation(id, false, nil)
		}
		p.write.WriteContinuation(id, true, b[1:])
		p.write.WriteRSTStream(id, http2.ErrCodeCancel)
	}, FaultResets, 120},
	{"made to reset: WINDOW_UPDATE of 0", madeReset(func(p *peer, id uint32) { p.write.WriteWindowUpdate(id, 0) }), FaultResets, 200},
	{"made to reset: window too large", madeReset(func(p *peer, id uint32) { p.write.WriteWindowUpdate(id, maxWindow) }), FaultResets, 200},
	{"made to reset: HEADERS that end nothing", madeReset(func(p *peer, id uint32) { p.headers(id, false, "x", "y") }), FaultResets, 200},
	{"made to reset: pseudo field in trailers", madeReset(func(p *peer, id uint32) { p.headers(id, true, ":path", "/") }), FaultResets, 200},
	{"made to reset: PRIORITY of wrong size", madeReset(func(p *peer, id uint32) { p.write.WriteRawFrame(http2.FramePriority, 0, id, make([]byte, 4)) }), FaultResets, 200},
	{"made to reset: DATA after END_STREAM", func(p *peer, i int) {
		p.headers(uint32(2*i+5), true, get...)
		p.write.WriteData(uint32(2*i+5), true, make([]byte, 10))
	}, FaultResets, 200},
	{"made to reset: DATA that content-length does not allow", func(p *peer, i int) {
		p.headers(uint32(2*i+5), false, post("content-length", "5")...)
		p.write.WriteData(uint32(2*i+5), true, make([]byte, 10))
	}, FaultResets, 200},
	{"made to refuse: malformed", func(p *peer, i int) { p.headers(uint32(2*i+5), true, ":path", "/") }, FaultResets, 200},
	{"made to refuse: content-length without a body", func(p *peer, i int) { p.headers(uint32(2*i+5), true, post("content-length", "5")...) }, FaultResets, 200},
	{"made to refuse: too many streams", func(p *peer, i int) { p.headers(uint32(2*i+5), false, post()...) }, FaultResets, 210},
	{"made to refuse: very many fields", func(p *peer, i int) {
		p.write.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 5), BlockFragment: repeat(0x82, 10_000), EndHeaders: true})
	}, FaultHeaders, 15},
}

// madeReset opens a stream and has us reset it.
func madeReset(how func(p *peer, id uint32)) func(p *peer, i int) {
	return func(p *peer, i int) {
		p.headers(uint32(2*i+5), false, post()...)
		how(p, uint32(2*i+5))
	}
}

func repeat(b byte, n int) []byte {
	s := make([]byte, n)
	for i := range s {
		s[i] = b
	}
	return s
}

// attacked is a server with a stream that is open and answered in part, and one that was reset by the client.
func attacked(t *testing.T) *peer {
	cfg := testConfig(true)
	cfg.StreamWindow, cfg.ConnWindow = 1<<30, 1<<30
	p := greeted(t, cfg)
	p.conn.budget /= 10
	p.headers(1, false, post()...)
	p.headers(3, false, post()...)
	p.write.WriteRSTStream(3, http2.ErrCodeCancel)
	p.quiet()
	p.conn.WriteHeaders(p.streams[1], []Field{{Name: ":status", Value: "200"}}, false)
	return p
}

// Whatever a client repeats without use ends the connection with ENHANCE_YOUR_CALM, however well it reads, and answers are bounded until then.
func TestFloods(t *testing.T) {
	for _, f := range floods {
		p := attacked(t)
		var err error
		n, out := 0, 0
		for ; err == nil && n <= f.most; n++ {
			f.send(p, n)
			_, err = p.conn.Feed(p.now, p.in.Bytes())
			p.in.Reset()
			if err == nil {
				p.conn.Flushed()
				out += len(p.out)
				p.out = p.out[:0]
			}
			// The owner is done with what was reset.
			for p.conn.slots > p.conn.Streams() && f.name != "made to refuse: too many streams" {
				p.conn.Release()
				p.conn.Drop(p.conn.held)
			}
		}
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Code != EnhanceYourCalm || e.Fault != f.fault || n < f.most*8/10 {
			t.Errorf("%s: %v after %d, want fault %d after about %d", f.name, err, n, f.fault, f.most)
		}
		if out > 1<<20 {
			t.Errorf("%s: %d bytes of answers", f.name, out)
		}
		if err := p.conn.Check(); err != nil {
			t.Errorf("%s: %v", f.name, err)
		}
		if frames := p.frames(); len(frames) == 0 || frames[len(frames)-1][:6] != "GOAWAY" {
			t.Errorf("%s: last sent %q", f.name, frames[max(0, len(frames)-3):])
		}
	}
}

// Answers that nobody reads are bounded apart from that.
func TestUnreadAnswers(t *testing.T) {
	p := attacked(t)
	p.conn.budget = budgetFull
	var err error
	n := 0
	for err == nil && n < 2*maxControl {
		p.write.WritePing(false, [8]byte{})
		if _, err = p.conn.Feed(p.now, p.in.Bytes()); err == nil {
			n++
		}
		p.in.Reset()
	}
	if n != maxControl-1 || len(p.out) > 20*maxControl {
		t.Errorf("%v after %d, %d bytes", err, n, len(p.out))
	}
}

// Whoever makes calls, or takes its time, may do all that sane peers do.
func TestSanePeersAreLeftAlone(t *testing.T) {
	// call makes call i, which is served if answer is set.
	call := func(p *peer, i int, answer bool) uint32 {
		id := uint32(2*i + 5)
		p.headers(id, true, get...)
		p.quiet()
		if answer {
			s := p.streams[id]
			p.conn.WriteHeaders(s, []Field{{Name: ":status", Value: "200"}}, false)
			p.conn.WriteData(s, []byte("an answer"), true)
		}
		return id
	}
	cancel := func(p *peer, id uint32) { p.write.WriteRSTStream(id, http2.ErrCodeCancel) }
	for _, c := range []struct {
		name  string
		times int
		step  time.Duration
		do    func(p *peer, i int)
	}{
		{"a PING per second for an hour", 3_600, time.Second, func(p *peer, i int) { p.write.WritePing(false, [8]byte{}) }},
		{"a PING and two WINDOW_UPDATEs per small call", 2_000, 0, func(p *peer, i int) {
			id := call(p, i, true)
			p.write.WritePing(false, [8]byte{})
			p.write.WriteWindowUpdate(id, 9)
			p.write.WriteWindowUpdate(0, 9)
		}},
		{"hedging: every second call is cancelled, 10,000 a second", 4_000, 100 * time.Microsecond, func(p *peer, i int) {
			if id := call(p, i, i&1 == 0); i&1 != 0 {
				cancel(p, id)
			}
		}},
		{"hedging: four of five are cancelled at once", 4_000, 0, func(p *peer, i int) {
			if id := call(p, i, i%5 == 0); i%5 != 0 {
				cancel(p, id)
			}
		}},
		{"deadlines in an outage: four streams, each cancelled after 10 ms", 1_000, 2500 * time.Microsecond, func(p *peer, i int) {
			if i >= 4 {
				cancel(p, uint32(2*(i-4)+5))
				p.quiet()
			}
			call(p, i, false)
		}},
		{"cancels after the response began", 1_000, 0, func(p *peer, i int) {
			id := call(p, i, false)
			p.conn.WriteHeaders(p.streams[id], []Field{{Name: ":status", Value: "200"}}, false)
			cancel(p, id)
		}},
		{"all 250 calls are cancelled at once, twice a second", 20, 500 * time.Millisecond, func(p *peer, i int) {
			for k := range 150 {
				cancel(p, call(p, 250*i+k, false))
				p.quiet()
			}
		}},
		{"PRIORITY with each call, window moved now and then", 4_000, 0, func(p *peer, i int) {
			id := call(p, i, true)
			p.write.WritePriority(id, http2.PriorityParam{Weight: 1})
			if i%10 == 0 {
				p.write.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i + 1<<20)})
			}
		}},
		{"late RST_STREAM, WINDOW_UPDATE and DATA with each call", 4_000, 0, func(p *peer, i int) {
			id := call(p, i, true)
			p.write.WriteRSTStream(id, http2.ErrCodeCancel)
			p.write.WriteWindowUpdate(id, 9)
		}},
		{"a stream of messages of 5 bytes, with a PING and two WINDOW_UPDATEs per answer", 4_000, 0, func(p *peer, i int) {
			p.write.WriteData(1, false, make([]byte, 5))
			p.quiet()
			p.conn.WriteData(p.streams[1], make([]byte, 5), false)
			p.write.WritePing(false, [8]byte{})
			p.write.WriteWindowUpdate(0, 5)
		}},
		{"an upload in DATA frames of 1 KiB, with a PING each", 4_000, 0, func(p *peer, i int) {
			p.write.WriteData(1, false, make([]byte, someData))
			p.write.WritePing(false, [8]byte{})
		}},
		{"a tunnel with a byte per frame both ways, with two WINDOW_UPDATEs each", 20_000, 0, func(p *peer, i int) {
			p.write.WriteData(1, false, []byte("x"))
			p.quiet()
			p.conn.WriteData(p.streams[1], []byte("x"), false)
			p.write.WriteWindowUpdate(1, 1)
			p.write.WriteWindowUpdate(0, 1)
		}},
		{"a call with 60 fields of 1 KiB, in 5 frames", 100, 0, func(p *peer, i int) {
			b := p.block(append(get, "cookie", string(repeat('c', 60_000)))...)
			id := uint32(2*i + 5)
			p.write.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b[:15_000], EndStream: true})
			for at := 15_000; at < len(b); at += 15_000 {
				p.write.WriteContinuation(id, at+15_000 >= len(b), b[at:min(len(b), at+15_000)])
			}
			p.quiet()
			p.conn.WriteHeaders(p.streams[id], []Field{{Name: ":status", Value: "200"}}, true)
		}},
	} {
		p := attacked(t)
		p.write.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		p.write.WriteWindowUpdate(0, 1<<30)
		for i := range c.times {
			c.do(p, i)
			p.now = p.now.Add(c.step)
			if _, err := p.conn.Feed(p.now, p.in.Bytes()); err != nil {
				t.Errorf("%s: %v after %d", c.name, err, i)
				break
			}
			p.in.Reset()
			p.out, p.log = p.out[:0], nil
			p.conn.Flushed()
			for p.conn.slots > p.conn.Streams() {
				p.conn.Release()
				p.conn.Drop(p.conn.held)
			}
		}
	}
}

// A backend's floods end its connection as well.
func TestBackendFloods(t *testing.T) {
	for _, f := range []struct {
		name  string
		send  func(p *peer)
		fault Fault
	}{
		{"PING", func(p *peer) { p.write.WritePing(false, [8]byte{}) }, FaultFrames},
		{"SETTINGS", func(p *peer) { p.write.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1}) }, FaultFrames},
		{"informational responses", func(p *peer) { p.headers(1, false, ":status", "103") }, FaultFrames},
		{"empty DATA", func(p *peer) { p.headers(1, false, ":status", "200"); p.write.WriteData(1, false, nil) }, FaultFrames},
		{"RST_STREAM of a closed stream", func(p *peer) { p.write.WriteRSTStream(1, 0) }, FaultFrames},
		{"HEADERS of a closed stream", func(p *peer) { p.headers(3, true, ":status", "200") }, FaultFrames},
		{"DATA of a closed stream", func(p *peer) { p.write.WriteData(3, false, nil) }, FaultFrames},
		{"GOAWAY", func(p *peer) { p.write.WriteGoAway(9, 0, nil) }, FaultFrames},
		{"unknown frames", func(p *peer) { p.write.WriteRawFrame(0xbe, 0, 1, nil) }, FaultFrames},
	} {
		p := greeted(t, testConfig(false))
		open, closed := &Stream{}, &Stream{}
		for _, s := range []*Stream{open, closed} {
			p.conn.OpenStream(s, false)
			p.conn.WriteHeaders(s, []Field{{Name: ":method", Value: "GET"}}, true)
		}
		p.conn.Reset(closed, Cancel)
		var err error
		begun := false
		for n := 0; err == nil && n <= budgetFull+1; n++ {
			if f.name == "empty DATA" && begun {
				p.write.WriteData(1, false, nil)
			} else {
				f.send(p)
			}
			begun = true
			_, err = p.conn.Feed(p.now, p.in.Bytes())
			p.in.Reset()
			p.out, p.log = p.out[:0], nil
			p.conn.Flushed()
		}
		if e, ok := errors.AsType[*Error](err); !ok || e.Code != EnhanceYourCalm || e.Fault != f.fault {
			t.Errorf("%s: %v", f.name, err)
		}
	}
}

// When calls are cancelled at their deadline, so are they at the backend, whose answers are on their way by then: they are no flood, however many.
func TestLateAnswersAreNoFlood(t *testing.T) {
	p := greeted(t, testConfig(false))
	p.conn.budget /= 10
	for i := range 4_000 {
		s := &Stream{}
		p.conn.OpenStream(s, false)
		p.conn.WriteHeaders(s, []Field{{Name: ":method", Value: "POST"}}, true)
		id := s.ID()
		p.conn.Reset(s, Cancel)
		p.headers(id, false, ":status", "200")
		p.write.WriteData(id, false, []byte("a message"))
		p.headers(id, true, "grpc-status", "4")
		if err := p.feed(); err != nil {
			t.Fatalf("%v after %d", err, i)
		}
		p.out, p.log = p.out[:0], nil
		p.conn.Flushed()
	}
}

// A backend may send as much beside the calls that it answers.
func TestSaneBackendIsLeftAlone(t *testing.T) {
	p := greeted(t, testConfig(false))
	p.conn.budget /= 10
	for i := range 4_000 {
		s := &Stream{}
		p.conn.OpenStream(s, false)
		p.conn.WriteHeaders(s, []Field{{Name: ":method", Value: "GET"}}, true)
		p.headers(s.ID(), false, ":status", "103")
		p.headers(s.ID(), false, ":status", "200")
		p.write.WriteData(s.ID(), true, []byte("x"))
		p.write.WritePing(false, [8]byte{})
		p.write.WriteWindowUpdate(0, 1)
		if err := p.feed(); err != nil {
			t.Fatalf("%v after %d", err, i)
		}
		p.out, p.log = p.out[:0], nil
		p.conn.Flushed()
	}
}

// A client may not make the owner hold more header lists and trailers than HeldBytes.
func TestHeldHeaders(t *testing.T) {
	cfg := testConfig(true)
	cfg.MaxStreams, cfg.HeldBytes = 100, 64_000
	p := greeted(t, cfg)
	big := append(get, "x", string(repeat('x', 15_000)))
	for _, id := range []uint32{1, 3, 5, 7, 9} {
		p.headers(id, true, big...)
		if err := p.feed(); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "frames", p.frames(), "RST 9 REFUSED_STREAM")
	if len(p.refused) != 1 || p.refused[0] != FaultHeaders {
		t.Errorf("refused: %v", p.refused)
	}
	size := p.conn.held / 4
	p.conn.Drop(size)
	p.headers(11, true, big...)
	p.feed()
	want(t, "frames", p.frames())
	p.conn.Drop(4 * size)
}

// Trailers count as well, and those that are too much reset their stream.
func TestHeldTrailers(t *testing.T) {
	cfg := testConfig(true)
	cfg.HeldBytes = 20_000
	p := greeted(t, cfg)
	for _, id := range []uint32{1, 3} {
		p.headers(id, false, post()...)
		p.quiet()
		p.headers(id, true, "x", string(repeat('x', 15_000)))
		p.feed()
	}
	want(t, "events", p.log, "reset 3 ENHANCE_YOUR_CALM local=true")
	want(t, "frames", p.frames(), "RST 3 ENHANCE_YOUR_CALM")
	p.conn.Drop(p.conn.held)
	p.headers(5, false, post()...)
	p.quiet()
	p.headers(5, true, "x", string(repeat('x', 15_000)))
	p.feed()
	want(t, "events", p.log, "trailers 5 1")
}

package proxy

import (
	"bytes"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"
)

// attacker is a client that writes what it likes, many frames at a time, and reads on.
type attacker struct {
	net.Conn
	fr  *http2.Framer // into buf
	buf bytes.Buffer
	ids uint32 // the next stream, less 1
	// over is closed when the connection has ended; code is that of the GOAWAY that came.
	over chan struct{}
	code http2.ErrCode
}

func newAttacker(t testing.TB, addr string, settings ...http2.Setting) *attacker {
	t.Helper()
	a := newDeafAttacker(t, addr, settings...)
	go a.read()
	return a
}

// newDeafAttacker reads nothing.
func newDeafAttacker(t testing.TB, addr string, settings ...http2.Setting) *attacker {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	a := &attacker{Conn: c, over: make(chan struct{})}
	a.fr = http2.NewFramer(&a.buf, nil)
	a.fr.AllowIllegalWrites = true
	a.buf.WriteString(http2.ClientPreface)
	a.fr.WriteSettings(settings...)
	a.fr.WriteSettingsAck()
	return a
}

func (a *attacker) read() {
	defer close(a.over)
	fr := http2.NewFramer(io.Discard, a)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			a.code = g.ErrCode
		}
	}
}

// headers writes a header list that depends on no compression table.
func (a *attacker) headers(id uint32, end bool, nv ...string) {
	a.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: plain(nv...), EndStream: end, EndHeaders: true})
}

// plain is a header block of literals that don't enter the table.
func plain(nv ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(nv); i += 2 {
		e.WriteField(hpack.HeaderField{Name: nv[i], Value: nv[i+1], Sensitive: true})
	}
	return b.Bytes()
}

// open begins a call, with more fields, that the backend never answers, and returns its stream.
func (a *attacker) open(more ...string) uint32 {
	a.ids += 2
	id := a.ids - 1
	a.headers(id, false, append([]string{":method", "POST", ":scheme", "http", ":path", "/hang/up", ":authority", "a", "content-type", "application/grpc", "te", "trailers"}, more...)...)
	return id
}

// ask begins a call that answers with so many MiB.
func (a *attacker) ask(t testing.TB, mib int) {
	t.Helper()
	ask, err := proto.Marshal(&testpb.StreamingOutputCallRequest{ResponseParameters: slices.Repeat([]*testpb.ResponseParameters{{Size: 1 << 20}}, mib)})
	if err != nil {
		t.Fatal(err)
	}
	a.ids += 2
	a.headers(a.ids-1, false, ":method", "POST", ":scheme", "http", ":path", "/grpc.testing.TestService/FullDuplexCall", ":authority", "a", "content-type", "application/grpc", "te", "trailers")
	a.fr.WriteData(a.ids-1, false, append([]byte{0, 0, 0, byte(len(ask) >> 8), byte(len(ask))}, ask...))
}

// flush writes what there is; false once the connection is over.
func (a *attacker) flush() bool {
	_, err := a.Write(a.buf.Bytes())
	a.buf.Reset()
	select {
	case <-a.over:
		return false
	default:
		return err == nil
	}
}

// flood plays until the connection is over, and reports whether it is before the attack's time is.
func (a *attacker) flood(play func(a *attacker)) bool {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		for range 100 {
			play(a)
		}
		if !a.flush() {
			<-a.over
			return true
		}
	}
	return false
}

// hanging is a backend that never answers a call to what it doesn't know.
func hanging(t testing.TB) *grpcBackend {
	return newGRPC(t, grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		<-s.Context().Done()
		return s.Context().Err()
	}))
}

// Each flood ends its connection with ENHANCE_YOUR_CALM, is counted and told, costs bounded memory, and another client of the same backend goes on
// being served (HTTP2.md 3).
func TestAttackFloods(t *testing.T) {
	stream := func(a *attacker) uint32 { // one that stays open
		if a.ids == 0 {
			a.open()
		}
		return 1
	}
	for _, c := range []struct {
		name string
		kind protection
		play func(a *attacker)
	}{
		{"rapid reset, CVE-2023-44487", protectResets, func(a *attacker) { a.fr.WriteRSTStream(a.open(), http2.ErrCodeCancel) }},
		{"made to reset by WINDOW_UPDATE of 0, CVE-2025-8671", protectResets, func(a *attacker) { a.fr.WriteWindowUpdate(a.open(), 0) }},
		{"made to reset by DATA after END_STREAM, CVE-2025-8671", protectResets, func(a *attacker) {
			id := a.open()
			a.fr.WriteData(id, true, nil)
			a.fr.WriteData(id, true, nil)
		}},
		{"made to reset by too much DATA, CVE-2025-8671", protectResets, func(a *attacker) { a.fr.WriteData(a.open("content-length", "1"), true, []byte("no")) }},
		{"malformed requests", protectResets, func(a *attacker) { a.open("UPPER", "case") }},
		{"more streams than offered", protectResets, func(a *attacker) { a.open() }},
		{"PING, CVE-2019-9512", protectFrames, func(a *attacker) { a.fr.WritePing(false, [8]byte{}) }},
		{"SETTINGS, CVE-2019-9515", protectFrames, func(a *attacker) { a.fr.WriteSettings() }},
		{"SETTINGS that move all windows", protectFrames, func(a *attacker) {
			if a.ids == 0 {
				for range 200 {
					a.open()
				}
			}
			a.ids++
			a.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: a.ids & 1 << 16})
		}},
		{"PRIORITY, CVE-2019-9513", protectFrames, func(a *attacker) {
			a.ids += 2
			a.fr.WritePriority(a.ids|1, http2.PriorityParam{StreamDep: a.ids - 1})
		}},
		{"PRIORITY_UPDATE", protectFrames, func(a *attacker) { a.fr.WriteRawFrame(0x10, 0, 0, []byte{0, 0, 0, 1, 'u'}) }},
		{"unknown frames", protectFrames, func(a *attacker) { a.fr.WriteRawFrame(0xbe, 0xff, 7, nil) }},
		{"WINDOW_UPDATE of 1, CVE-2019-9511", protectFrames, func(a *attacker) { a.fr.WriteWindowUpdate(stream(a), 1) }},
		{"empty DATA, CVE-2019-9518", protectFrames, func(a *attacker) { a.fr.WriteData(stream(a), false, nil) }},
		{"DATA of padding", protectFrames, func(a *attacker) { a.fr.WriteDataPadded(stream(a), false, nil, make([]byte, 255)) }},
		{"RST_STREAM again and again, CVE-2019-9514", protectFrames, func(a *attacker) { a.fr.WriteRSTStream(stream(a), http2.ErrCodeCancel) }},
		{"CONTINUATION without end, CVE-2024-27316", protectHeaders, func(a *attacker) {
			if a.ids == 0 {
				a.ids = 1
				a.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: plain(":method", "GET")})
			}
			a.fr.WriteContinuation(1, false, plain("x", "y"))
		}},
		{"CONTINUATION of nothing, CVE-2019-9518", protectHeaders, func(a *attacker) {
			if a.ids == 0 {
				a.ids = 1
				a.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1})
			}
			a.fr.WriteContinuation(1, false, nil)
		}},
		{"HPACK bomb, CVE-2016-6581", protectHeaders, func(a *attacker) {
			a.ids += 2
			block := []byte{0x40, 1, 'x', 0x7f, 0x80 + (3900-127)&0x7f, (3900 - 127) >> 7} // x enters the table
			block = append(append(block, make([]byte, 3900)...), bytes.Repeat([]byte{0xbe}, 8000)...)
			a.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: a.ids - 1, BlockFragment: block, EndStream: true, EndHeaders: true})
		}},
		{"crumbs of cookies", protectHeaders, func(a *attacker) {
			a.ids += 2
			block := append(plain(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"), bytes.Repeat([]byte{0x0f, 17, 1, 'c'}, 3000)...)
			a.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: a.ids - 1, BlockFragment: block, EndStream: true, EndHeaders: true})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil)
			r.noRefill()
			b := hanging(t)
			r.backends(b.addr)
			w := r.witness(c.name, r.dial())
			// It comes again at once, until the other client has made some calls.
			for connections := 0; connections < 2 || w.calls.Load() < 10 && !isClosed(w.done); connections++ {
				a := newAttacker(t, r.addr)
				if !a.flood(c.play) {
					t.Error("the attacker goes on")
				}
				if a.code != http2.ErrCodeEnhanceYourCalm && a.code != http2.ErrCodeNo { // its own writes may cost it the GOAWAY
					t.Errorf("the connection ended with %v", a.code)
				}
				a.Close()
			}
			w.end()
			if n := r.protected(c.kind); n == 0 {
				t.Errorf("%v not counted", c.kind)
			}
			if events := r.told(); len(events) == 0 || len(events) > int(protections) {
				t.Errorf("told: %v", events)
			}
			r.quiet()
		})
	}
}

// What is kept of calls of one client is bounded together, and what is over it is refused.
func TestAttackKeptHeaders(t *testing.T) {
	r := newRig(t, nil)
	b := hanging(t)
	r.backends(b.addr)
	w := r.witness("large headers", r.dial())
	a := newAttacker(t, r.addr)
	large := string(bytes.Repeat([]byte("x"), 15_000))
	for range 240 {
		a.open("large", large)
	}
	a.flush()
	await(t, "refusals", func() bool { return r.protected(protectHeaders) > 0 })
	await(t, "all of them", func() bool { return r.protected(protectHeaders) == 240-250*heldPerStream/15_300 })
	r.onLoop(func(k *relay) {
		kept := 0
		for c := range k.clients {
			for s := range c.h2.All() {
				for _, f := range s.Owner.(*call).fields {
					kept += len(f.Value)
				}
			}
		}
		if limit := 250 * heldPerStream; kept > limit || kept < limit/2 {
			t.Errorf("%d bytes are kept, limit %d", kept, limit)
		}
	})
	a.Close()
	<-a.over
	w.end()
	r.quiet()
	r.onLoop(func(k *relay) { // calls on the free list keep nothing
		for c := k.idleRun; c != nil; c = c.next {
			for _, f := range c.fields[:cap(c.fields)] {
				if f.Name != "" {
					t.Fatalf("a call that is over keeps %s", f.Name)
				}
			}
		}
	})
}

// 50 streams that never read, by their windows or by their socket, don't slow another client whose calls go over the same backend connection, and what
// is parked for them is bounded.
func TestAttackNeverReads(t *testing.T) {
	for _, windows := range []bool{true, false} {
		name := map[bool]string{true: "closed windows", false: "a socket that is not read"}[windows]
		r := newRig(t, nil)
		b := newGRPC(t)
		r.backends(b.addr)
		w := r.witness(name, r.dial())
		w.growth = 512 << 20 // nearly all of it is the backend's; what is parked here is looked at below
		var a *attacker
		if windows {
			a = newAttacker(t, r.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		} else {
			a = newDeafAttacker(t, r.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
			a.fr.WriteWindowUpdate(0, 1<<30)
		}
		for range 50 {
			a.ask(t, 1)
		}
		a.flush()
		var parked int64
		r.await("parked", func(k *relay) bool {
			parked = 0
			for c := range k.clients {
				for s := range c.h2.All() {
					p := &s.Owner.(*call).resp
					parked += p.got - p.sent
				}
			}
			return parked >= 25*streamWindow // those that came first may have been taken whole
		})
		calls := w.calls.Load()
		await(t, "calls of another client", func() bool { return w.calls.Load() >= calls+20 })
		if parked > 50*streamWindow {
			t.Errorf("%s: %d bytes parked", name, parked)
		}
		r.onLoop(func(k *relay) {
			for _, be := range k.pools[r.svc].backends {
				if len(be.conns) != 1 {
					t.Errorf("%s: %d connections to the backend", name, len(be.conns))
				}
			}
		})
		a.Close()
		w.end()
		r.quiet()
	}
}

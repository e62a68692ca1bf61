package proxy

import (
	"bytes"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/lbagent/lbagent/agent/proxy/h2"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// script is a client and a scripted backend, with the proxy between them.
type script struct {
	*rig
	b      *rawBackend
	client *rawConn
}

func newScript(t testing.TB, change func(s *Service)) *script {
	s := &script{rig: newRig(t, change), b: newRawBackend(t)}
	s.backends(s.b.addr)
	s.client = newRawClient(t, s.addr)
	return s
}

// failures is how many hard ones the backend has, and the last in words.
func (s *script) failures() (uint64, string) {
	n := s.state(s.b.addr).Snapshot(time.Now())
	return n.Failures, n.LastFailure
}

// Every code, at each point of a call: what the client gets, and whether it's a failure of the backend.
func TestBackendResetsAnywhere(t *testing.T) {
	points := []struct {
		name   string
		before string // what the client has got by then
		until  func(c *rawConn)
	}{
		{"before headers", "", func(c *rawConn) {}},
		{"after 1xx", "[103]", func(c *rawConn) { c.headers(1, false, ":status", "103") }},
		{"after headers", "[200]", func(c *rawConn) { c.headers(1, false, ":status", "200") }},
		{"after DATA", "[200]half", func(c *rawConn) {
			c.headers(1, false, ":status", "200")
			c.fr.WriteData(1, false, []byte("half"))
		}},
		{"after END_STREAM", "[200]whole", func(c *rawConn) {
			c.headers(1, false, ":status", "200")
			c.fr.WriteData(1, true, []byte("whole"))
		}},
		{"after trailers", "[200]whole[]", func(c *rawConn) {
			c.headers(1, false, ":status", "200")
			c.fr.WriteData(1, false, []byte("whole"))
			c.headers(1, true, "x", "y")
		}},
	}
	for _, p := range points {
		t.Run(p.name, func(t *testing.T) {
			for code := range http2.ErrCode(16) {
				for _, open := range []bool{false, true} { // the request has not ended
					s := newScript(t, nil)
					other := newRawBackend(t)
					if open {
						s.client.headers(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a")
					} else {
						s.client.get(1, "/")
					}
					c := s.b.accept()
					c.request()
					s.backends(s.b.addr, other.addr)
					p.until(c)
					c.fr.WriteRSTStream(1, code)
					over := strings.HasPrefix(p.name, "after END") || strings.HasPrefix(p.name, "after tr")
					want, failures := p.before, uint64(0)
					switch {
					case over:
					case p.before == "" && code == http2.ErrCodeRefusedStream: // never seen: it goes elsewhere
						d := other.accept()
						d.headers(d.request().id, true, ":status", "204")
						want = "[204]"
					default:
						want += http2.ErrCode(passCode(h2.Code(code))).String()
						if p.before == "" || p.before == "[103]" {
							failures = 1
						}
					}
					if got := s.client.answerOf(1); got != want {
						t.Errorf("%v, request open %v: the client got %q, want %q", code, open, got, want)
					}
					if (over || want == "[204]") && open { // the request goes on into nothing, and is ended
						s.client.fr.WriteData(1, true, []byte("rest"))
					}
					s.quiet()
					if n, last := s.failures(); n != failures {
						t.Errorf("%v, request open %v: %d failures (%q), want %d", code, open, n, last, failures)
					}
					// In the middle of a response it's a failure for the weight only (3.3).
					if calls, good := s.state(s.b.addr).Calls(); strings.HasPrefix(p.before, "[200]") && (calls != 1 || (good == 1) != (over || code == http2.ErrCodeNo)) {
						t.Errorf("%v, request open %v: %v calls, %v good", code, open, calls, good)
					}
					s.client.Close()
				}
			}
		})
	}
}

// RFC 9113 8.1: a backend may answer before the request has ended, and then say by RST_STREAM(NO_ERROR) that it wants no more of it.
func TestEarlyResponse(t *testing.T) {
	for _, reset := range []bool{true, false} {
		s := newScript(t, nil)
		s.client.headers(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a")
		s.client.fr.WriteData(1, false, []byte("some"))
		c := s.b.accept()
		c.until(func(f frame) bool { return string(f.data) == "some" })
		c.headers(1, false, ":status", "413")
		c.fr.WriteData(1, true, []byte("too much"))
		if reset {
			c.fr.WriteRSTStream(1, http2.ErrCodeNo)
		}
		if got := s.client.answerOf(1); got != "[413]too much" {
			t.Errorf("the client got %q", got)
		}
		if reset {
			f := s.client.until(func(f frame) bool { _, ok := f.Frame.(*http2.RSTStreamFrame); return ok })
			if code := f.Frame.(*http2.RSTStreamFrame).ErrCode; code != http2.ErrCodeNo {
				t.Errorf("the client got RST_STREAM %v", code)
			}
		} else { // half-closed by the backend: the request goes on
			s.client.fr.WriteData(1, true, []byte("the rest"))
			if f := c.until(func(f frame) bool { return f.data != nil }); string(f.data) != "the rest" || !f.end {
				t.Errorf("the backend got %q, end %v", f.data, f.end)
			}
		}
		s.quiet()
		if n, last := s.failures(); n != 0 {
			t.Errorf("%d failures: %s", n, last)
		}
	}
}

// GOAWAY in all its forms: who goes elsewhere, who ends here, and what counts.
func TestGoaway(t *testing.T) {
	t.Run("twice, with falling ids", func(t *testing.T) {
		s := newScript(t, nil)
		for i := range 5 {
			s.client.get(uint32(2*i+1), fmt.Sprintf("/%d", 2*i+1))
		}
		c := s.b.accept()
		for range 5 {
			c.request()
		}
		c.fr.WriteGoAway(5, http2.ErrCodeNo, nil)
		d := s.b.accept()
		answer := func(paths ...string) {
			t.Helper()
			for _, want := range paths { // in the order in which they came
				f := d.request()
				if f.fields[":path"] != want {
					t.Errorf("the next connection got %s, want %s", f.fields[":path"], want)
				}
				d.headers(f.id, true, ":status", "204")
			}
		}
		answer("/7", "/9")
		c.fr.WriteGoAway(1, http2.ErrCodeNo, nil)
		answer("/3", "/5")
		c.headers(1, true, ":status", "200")
		for range 5 {
			f := s.client.request()
			if w := map[bool]string{true: "200", false: "204"}[f.id == 1]; f.fields[":status"] != w {
				t.Errorf("stream %d got %v, want %s", f.id, f.fields, w)
			}
		}
		s.quiet()
		if _, err := c.read(); err == nil { // its GOAWAY, then FIN
			if _, err := c.read(); err == nil {
				c.read()
			}
		}
		if n, last := s.failures(); n != 0 {
			t.Errorf("%d failures: %s", n, last)
		}
		if cl := s.proxy.Stats().Services[0].Backends.Closed; cl["goaway"] != 1 {
			t.Errorf("closed: %v", cl)
		}
	})
	t.Run("a rising id is an error", func(t *testing.T) {
		s := newScript(t, nil)
		s.client.call(1, true, "/a/b", nil)
		c := s.b.accept()
		c.request()
		c.fr.WriteGoAway(1, http2.ErrCodeNo, nil)
		c.fr.WriteGoAway(3, http2.ErrCodeNo, nil)
		if got := s.client.answerOf(1); got != "[20014]" {
			t.Errorf("the client got %q", got)
		}
		if n, last := s.failures(); n != 1 || !strings.Contains(last, "GOAWAY raised") {
			t.Errorf("%d failures: %q", n, last)
		}
	})
	t.Run("control characters in debug data", func(t *testing.T) {
		s := newScript(t, nil)
		s.client.get(1, "/")
		c := s.b.accept()
		c.request()
		c.fr.WriteGoAway(1, http2.ErrCodeInternal, []byte("oh\r\nno\x1b[2J\x00\xff é"))
		c.Close()
		got := s.client.answerOf(1)
		if !strings.Contains(got, "after GOAWAY INTERNAL_ERROR: oh??no?[2J?? é") {
			t.Errorf("the client got %q", got)
		}
		n, last := s.failures()
		if n != 1 || !strings.Contains(last, "oh??no?[2J?? é") {
			t.Errorf("%d failures: %q", n, last)
		}
	})
	t.Run("an error, and all answered before the end", func(t *testing.T) {
		s := newScript(t, nil)
		s.client.call(1, true, "/a/b", nil)
		c := s.b.accept()
		c.request()
		c.headers(1, false, ":status", "200")
		c.fr.WriteGoAway(1, http2.ErrCodeEnhanceYourCalm, []byte("tired"))
		c.headers(1, true, "grpc-status", "0")
		c.Close()
		if got := s.client.answerOf(1); got != "[200][0]" {
			t.Errorf("the client got %q", got)
		}
		s.quiet()
		if n, last := s.failures(); n != 0 {
			t.Errorf("%d failures: %s", n, last)
		}
	})
}

// A connection that breaks when all its calls have their whole answers, and only rests of requests are on their way, is no failure (2.11).
func TestLostAfterAllAnswers(t *testing.T) {
	s := newScript(t, nil)
	s.client.headers(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a")
	c := s.b.accept()
	c.request()
	c.headers(1, true, ":status", "200")
	if got := s.client.answerOf(1); got != "[200]" {
		t.Errorf("the client got %q", got)
	}
	c.Close()
	s.await("the connection is lost", func(k *relay) bool {
		be := k.pools[s.svc].backends[s.state(s.b.addr)]
		return len(be.conns) == 0
	})
	s.client.fr.WriteData(1, true, []byte("rest"))
	s.quiet()
	if n, last := s.failures(); n != 0 {
		t.Errorf("%d failures: %s", n, last)
	}
}

// REFUSED_STREAM from everybody: each is asked once, and the caller told.
func TestRefusedByAll(t *testing.T) {
	const backends = 5
	r := newRig(t, nil)
	var addrs []string
	asked := make(chan string, 100)
	for range backends {
		b := newRawBackend(t)
		addrs = append(addrs, b.addr)
		go func() {
			c, err := b.l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			raw := newRawConn(t, c)
			if _, err := readFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
				return
			}
			raw.fr.WriteSettings()
			for {
				f, err := raw.read()
				if err != nil {
					return
				}
				if f.fields != nil {
					asked <- b.addr
					raw.fr.WriteRSTStream(f.id, http2.ErrCodeRefusedStream)
				}
			}
		}()
	}
	r.backends(addrs...)
	client := newRawClient(t, r.addr)
	client.call(1, true, "/a/b", nil)
	f := client.until(func(f frame) bool { return f.fields != nil })
	if f.fields["grpc-status"] != "14" || !strings.HasSuffix(f.fields["grpc-message"], " refused the call") {
		t.Errorf("the client got %v", f.fields)
	}
	r.quiet()
	close(asked)
	var all []string
	for a := range asked {
		all = append(all, a)
	}
	slices.Sort(all)
	slices.Sort(addrs)
	if !slices.Equal(all, addrs) {
		t.Errorf("asked were %v, want each of %v once", all, addrs)
	}
}

// A backend that closes, or dies, after any number of bytes of its answer: the client gets what came, then an end that is no success, and the relay's books
// stay right.
func TestBackendClosesAtEachByte(t *testing.T) {
	var answer bytes.Buffer
	fr := http2.NewFramer(&answer, nil)
	fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 100})
	h := &hpackWriter{}
	h.write(fr, 1, false, ":status", "200", "content-type", "application/grpc")
	fr.WriteData(1, false, []byte("\x00\x00\x00\x00\x01x"))
	h.write(fr, 1, true, "grpc-status", "0")
	whole := answer.Len()
	s := newScript(t, nil)
	id := uint32(1)
	for cut := range whole + 1 {
		for _, rst := range []bool{false, true} {
			s.onLoop(func(k *relay) {
				for _, p := range k.pools {
					for _, be := range p.backends {
						be.again.reset()
					}
				}
			})
			s.client.call(id, true, "/a/b", nil)
			s.b.l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
			c, err := s.b.l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(patience))
			// The preface at least is read: else what is unread makes the kernel send RST.
			if _, err := readFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
				t.Fatal(err)
			}
			c.Write(answer.Bytes()[:cut])
			if rst {
				c.(*net.TCPConn).SetLinger(0)
			} else {
				c.(*net.TCPConn).CloseWrite()
				readAll(c)
			}
			c.Close()
			got := s.client.answerOf(id)
			ok := got == "[200]\x00\x00\x00\x00\x01x[0]"
			if ok != (cut == whole) && !rst || !ok && !strings.HasSuffix(got, "14]") {
				t.Fatalf("cut after %d of %d bytes, RST %v: the client got %q", cut, whole, rst, got)
			}
			id += 2
			s.quiet()
		}
	}
}

func readAll(c net.Conn) {
	b := make([]byte, 4096)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
}

// A backend that closes before its SETTINGS, or sends half of them, was never connected (HTTP2.md 3).
func TestBackendNeverReady(t *testing.T) {
	settings := []byte{0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 9}
	for name, act := range map[string]func(c net.Conn){
		"closes at once":           func(c net.Conn) { c.Close() },
		"closes after the preface": func(c net.Conn) { readFull(c, make([]byte, 24)); c.Close() },
		"half a SETTINGS frame":    func(c net.Conn) { c.Write(settings[:11]) },
		"half, then closes":        func(c net.Conn) { c.Write(settings[:11]); c.Close() },
		"something else":           func(c net.Conn) { c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) },
		"DATA first":               func(c net.Conn) { c.Write([]byte{0, 0, 0, 0, 0, 0, 0, 0, 1}) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t, func(o *Service) { o.Connect = 300 * time.Millisecond })
			s.client.call(1, true, "/a/b", nil)
			c, err := s.b.l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			act(c)
			if got := s.client.answerOf(1); got != "[20014]" {
				t.Errorf("the client got %q", got)
			}
			s.quiet()
			if n, last := s.failures(); n != 1 {
				t.Errorf("%d failures (%q), want 1", n, last)
			}
			if b := s.proxy.Stats().Services[0].Backends; b.Failed != 1 || b.Opened != 0 || b.Open != 0 {
				t.Errorf("%+v", b)
			}
		})
	}
}

// What breaks the whole connection, or only one stream of it.
func TestBackendBreaksTheRules(t *testing.T) {
	raw := func(id uint32, flags http2.Flags, block ...byte) func(c *rawConn) {
		return func(c *rawConn) { c.fr.WriteRawFrame(http2.FrameHeaders, flags, id, block) }
	}
	huge := func(n int) []string {
		nv := []string{":status", "200"}
		for i := range n {
			nv = append(nv, fmt.Sprintf("x-%d", i), strings.Repeat("v", 1000))
		}
		return nv
	}
	for name, k := range map[string]struct {
		act  func(c *rawConn)
		want string // of the call that it was about
		lost bool   // with the connection
	}{
		"oversized header list": {func(c *rawConn) {
			c.encb.Reset()
			nv := huge(70)
			for i := 0; i < len(nv); i += 2 {
				c.enc.WriteField(hpack.HeaderField{Name: nv[i], Value: nv[i+1], Sensitive: true})
			}
			b := c.encb.Bytes()
			c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:16000], EndStream: true})
			for b = b[16000:]; len(b) > 16000; b = b[16000:] {
				c.fr.WriteContinuation(1, false, b[:16000])
			}
			c.fr.WriteContinuation(1, true, b)
		}, "[20014]", false},
		"too many fields": {func(c *rawConn) {
			nv := []string{":status", "200"}
			for range 201 {
				nv = append(nv, "a", "b")
			}
			c.headers(1, true, nv...)
		}, "[20014]", false},
		"bad index in HPACK":      {raw(1, http2.FlagHeadersEndHeaders, 0xff, 0xff, 0xff, 0xff, 0x0f), "[20014]", true},
		"HPACK cut short":         {raw(1, http2.FlagHeadersEndHeaders, 0x88, 0x40, 0x7f), "[20014]", true},
		"a stream never opened":   {raw(5, http2.FlagHeadersEndHeaders, 0x88), "[20014]", true},
		"an even stream":          {raw(2, http2.FlagHeadersEndHeaders, 0x88), "[20014]", true},
		"DATA on no stream":       {func(c *rawConn) { c.fr.WriteData(7, true, nil) }, "[20014]", true},
		"DATA before headers":     {func(c *rawConn) { c.fr.WriteData(1, true, []byte("x")) }, "[20014]", false},
		"a window of 2^31":        {func(c *rawConn) { c.fr.WriteWindowUpdate(0, 1<<31-1) }, "[20014]", true},
		"a stream window of 2^31": {func(c *rawConn) { c.fr.WriteWindowUpdate(1, 1<<31-1) }, "[20014]", false},
		"an interrupted block": {func(c *rawConn) {
			c.fr.WriteRawFrame(http2.FrameHeaders, 0, 1, []byte{0x88})
			c.fr.WritePing(false, [8]byte{})
		}, "[20014]", true},
		"a frame of 16385 bytes": {func(c *rawConn) { c.fr.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 16385)) }, "[20014]", true},
		"more DATA than allowed": {func(c *rawConn) { c.headers(1, false, ":status", "200", "content-type", "application/grpc"); flood(c) }, "[200]+[14]", false},
		"END_STREAM twice": {func(c *rawConn) {
			c.headers(1, true, ":status", "200", "grpc-status", "0")
			c.fr.WriteData(1, true, nil)
		}, "[2000]", false},
		"trailers twice": {func(c *rawConn) {
			c.headers(1, false, ":status", "200")
			c.headers(1, true, "grpc-status", "0")
			c.headers(1, true, "grpc-status", "1")
		}, "[200][0]", false},
		"SETTINGS out of range":    {func(c *rawConn) { c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}) }, "[20014]", true},
		"SETTINGS_ENABLE_PUSH = 1": {func(c *rawConn) { c.fr.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 1}) }, "[20014]", true},
		"a frame size of 1":        {func(c *rawConn) { c.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}) }, "[20014]", true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t, nil)
			s.client.call(1, true, "/a/b", nil)
			c := s.b.accept()
			c.request()
			k.act(c)
			s.client.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
			s.client.fr.WriteWindowUpdate(0, 1<<20)
			got := s.client.answerOf(1)
			if head, tail, ok := strings.Cut(k.want, "+"); ok {
				if !strings.HasPrefix(got, head) || !strings.HasSuffix(got, tail) || len(got) > len(head)+len(tail)+streamWindow {
					t.Errorf("the client got %d bytes, %.20q", len(got), got)
				}
			} else if got != k.want {
				t.Errorf("the client got %q, want %q", got, k.want)
			}
			s.quiet()
			open := s.proxy.Stats().Services[0].Backends
			if lost := open.Open == 0; lost != k.lost || k.lost && open.Closed["protocol"] != 1 {
				t.Errorf("the connection was lost: %v, want %v: %+v", lost, k.lost, open)
			}
			if k.lost {
				return
			}
			s.client.get(3, "/") // the others go on
			f := c.request()
			c.headers(f.id, true, ":status", "204")
			if got := s.client.answerOf(3); got != "[204]" {
				t.Errorf("the next call got %q", got)
			}
		})
	}
}

// flood sends more DATA on stream 1 than the stream's window, while the client takes less than that.
func flood(c *rawConn) {
	for range streamWindow/16384 + 2 {
		c.fr.WriteData(1, false, make([]byte, 16384))
	}
	c.until(func(f frame) bool {
		g, ok := f.Frame.(*http2.RSTStreamFrame)
		return ok && g.ErrCode == http2.ErrCodeFlowControl
	})
}

// sync waits until the relay has acted on what was sent before, and wants no DATA meanwhile.
func (c *rawConn) sync() {
	c.t.Helper()
	c.fr.WritePing(false, [8]byte{'s'})
	c.until(func(f frame) bool {
		p, ok := f.Frame.(*http2.PingFrame)
		if f.data != nil {
			c.t.Errorf("%d bytes of DATA where none is allowed", len(f.data))
		}
		return ok && p.IsAck()
	})
}

// SETTINGS_INITIAL_WINDOW_SIZE moves the windows of open streams, below 0 as well (RFC 9113 6.9.2).
func TestBackendMovesWindows(t *testing.T) {
	s := newScript(t, nil)
	s.client.call(1, false, "/a/b", nil)
	c := s.b.accept(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10000})
	for range 3 {
		s.client.fr.WriteData(1, false, make([]byte, 10000))
	}
	total := 0
	take := func(n int) {
		t.Helper()
		for total < n {
			total += len(c.until(func(f frame) bool { return f.data != nil }).data)
		}
		if total != n {
			t.Fatalf("%d bytes, want %d", total, n)
		}
		c.sync()
	}
	take(10000)
	c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000}) // now -9000
	c.sync()
	c.fr.WriteWindowUpdate(1, 9000) // 0
	c.sync()
	c.fr.WriteWindowUpdate(1, 500)
	take(10500)
	c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 6000}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20})
	take(15500)
	c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}) // -6000
	c.sync()
	c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	c.until(func(f frame) bool { // the rest, in frames of 16 KiB at most
		total += len(f.data)
		if len(f.data) > 16384 {
			t.Errorf("a frame of %d bytes", len(f.data))
		}
		return total == 30005
	})
	c.headers(1, true, ":status", "200", "grpc-status", "0")
	if got := s.client.answerOf(1); got != "[2000]" {
		t.Errorf("the client got %q", got)
	}
	s.client.fr.WriteData(1, true, nil)
	s.quiet()
}

// A backend that allows no stream yet is waited for, and one that allows fewer than it did gets no more (4.4).
func TestBackendMovesMaxStreams(t *testing.T) {
	s := newScript(t, nil)
	one := DefaultLimits()
	one.BackendConnections = 1
	s.proxy.SetLimits(one)
	s.client.get(1, "/1")
	most := func(n uint32) http2.Setting { return http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: n} }
	c := s.b.accept(most(0))
	c.sync()
	s.await("the call waits", func(k *relay) bool {
		for _, be := range k.pools[s.svc].backends {
			return be.waiting.n == 1 && len(be.conns) == 1 && be.conns[0].up
		}
		return false
	})
	c.fr.WriteSettings(most(2))
	if f := c.request(); f.fields[":path"] != "/1" {
		t.Errorf("%v", f.fields)
	}
	s.client.get(3, "/3")
	c.request()
	c.fr.WriteSettings(most(1)) // one too many run
	c.sync()
	s.client.get(5, "/5")
	s.await("the call waits", func(k *relay) bool { return k.calls == 3 })
	c.headers(1, true, ":status", "200")
	if got := s.client.answerOf(1); got != "[200]" {
		t.Errorf("%q", got)
	}
	c.fr.WritePing(false, [8]byte{})
	c.until(func(f frame) bool {
		if f.fields != nil {
			t.Errorf("stream %d over the limit", f.id)
		}
		_, ok := f.Frame.(*http2.PingFrame)
		return ok
	})
	c.headers(3, true, ":status", "200")
	f := c.request()
	c.headers(f.id, true, ":status", "204")
	if got := s.client.answerOf(5); got != "[204]" {
		t.Errorf("%q", got)
	}
	s.quiet()
}

// A backend that keeps no HPACK table gets blocks that need none, also when it says so in mid-connection (RFC 7541 4.2).
func TestBackendWithoutTable(t *testing.T) {
	s := newScript(t, nil)
	s.client.call(1, true, "/a/b", nil)
	c := s.b.accept()
	c.request()
	none := http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0}
	c.fr.WriteSettings(none)
	c.until(func(f frame) bool { g, ok := f.Frame.(*http2.SettingsFrame); return ok && g.IsAck() })
	c.fr.WritePing(false, [8]byte{})
	c.until(func(f frame) bool { _, ok := f.Frame.(*http2.PingFrame); return ok })
	c.fr.ReadMetaHeaders.SetAllowedMaxDynamicTableSize(0)
	for id := uint32(3); id < 9; id += 2 {
		s.client.call(id, true, "/a/b", nil)
		if f := c.request(); f.fields[":path"] != "/a/b" || f.fields["content-type"] != "application/grpc" {
			t.Errorf("the backend got %v", f.fields)
		}
	}
	for id := uint32(1); id < 9; id += 2 {
		c.headers(id, true, ":status", "200", "grpc-status", "0")
		if got := s.client.answerOf(id); got != "[2000]" {
			t.Errorf("the client got %q", got)
		}
	}
	s.quiet()
}

// Bodies larger than every window, both ways at once.
func TestBodiesAboveWindows(t *testing.T) {
	s := newScript(t, nil)
	const size = 3*streamWindow + 12345
	s.client.headers(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a")
	c := s.b.accept()
	c.request()
	c.headers(1, false, ":status", "200")
	// Each end sends within its windows, and gives back what it got.
	move := func(r *rawConn, window, conn int) {
		sent, got := 0, 0
		ended := false
		send := func() {
			for sent < size && min(window, conn) > 0 {
				n := min(window, conn, 16384, size-sent)
				b := make([]byte, n)
				for i := range b {
					b[i] = byte((sent + i) % 251)
				}
				sent += n
				window, conn = window-n, conn-n
				r.fr.WriteData(1, sent == size, b)
			}
		}
		for got < size || !ended || sent < size {
			f, err := r.read()
			if err != nil {
				t.Errorf("after %d sent, %d received: %v", sent, got, err)
				return
			}
			switch g := f.Frame.(type) {
			case *http2.SettingsFrame:
				if v, ok := g.Value(http2.SettingInitialWindowSize); ok {
					window += int(v) - 65535
				}
			case *http2.WindowUpdateFrame:
				if f.id == 0 {
					conn += int(g.Increment)
				} else {
					window += int(g.Increment)
				}
			case *http2.DataFrame:
				for i, x := range f.data {
					if x != byte((got+i)%251) {
						t.Errorf("byte %d is wrong", got+i)
						return
					}
				}
				got += len(f.data)
				ended = f.end
				if n := uint32(len(f.data)); n > 0 {
					r.fr.WriteWindowUpdate(0, n)
					if !ended {
						r.fr.WriteWindowUpdate(1, n)
					}
				}
			}
			send()
		}
	}
	done := make(chan struct{})
	go func() { defer close(done); move(c, streamWindow, connWindow) }() // its SETTINGS were read before the request
	move(s.client, 65535, 65535)
	<-done
	s.quiet()
}

// Stream numbers end at 2^31-1: the connection is replaced in time, and what runs on it goes on.
func TestStreamNumbersEnd(t *testing.T) {
	s := newScript(t, nil)
	s.client.get(1, "/1")
	c := s.b.accept()
	c.request()
	s.onBackendConn(func(conn *backendConn) {
		id := reflect.ValueOf(conn.h2).Elem().FieldByName("lastID")
		*(*uint32)(unsafe.Pointer(id.UnsafeAddr())) = 1<<31 - 5
	})
	s.client.get(3, "/3")
	if f := c.request(); f.id != 1<<31-3 {
		t.Errorf("stream %d", f.id)
	}
	s.client.get(5, "/5")
	d := s.b.accept()
	f := d.request()
	if f.id != 1 || f.fields[":path"] != "/5" {
		t.Errorf("stream %d, %v", f.id, f.fields)
	}
	d.headers(f.id, true, ":status", "205")
	c.headers(1<<31-3, true, ":status", "203")
	c.headers(1, true, ":status", "201")
	got := map[uint32]string{}
	for range 3 {
		f := s.client.request()
		got[f.id] = f.fields[":status"]
	}
	if fmt.Sprint(got) != "map[1:201 3:203 5:205]" {
		t.Errorf("the client got %v", got)
	}
	s.quiet()
	await(t, "the old connection is closed", func() bool { return s.proxy.Stats().Services[0].Backends.Closed["replaced"] == 1 })
}

// A connection that dies while it is idle, and a request that is written just then: the caller sees nothing (4.1).
func TestDeadIdleConnection(t *testing.T) {
	for _, how := range []string{"FIN", "RST", "FIN just then", "RST just then"} {
		t.Run(how, func(t *testing.T) {
			s := newScript(t, nil)
			s.client.get(1, "/")
			c := s.b.accept()
			c.request()
			c.headers(1, true, ":status", "200")
			s.client.answerOf(1)
			s.quiet()
			if strings.HasPrefix(how, "RST") {
				c.Conn.(*net.TCPConn).SetLinger(0)
			}
			if strings.HasSuffix(how, "then") {
				s.client.get(3, "/")
				c.request() // it's in the backend's hands, and no byte of an answer comes
				c.Close()
			} else {
				c.Close()
				s.await("the connection is forgotten", func(k *relay) bool {
					for _, be := range k.pools[s.svc].backends {
						return len(be.conns) == 0
					}
					return false
				})
				if n, last := s.failures(); n != 0 {
					t.Errorf("%d failures: %s", n, last)
				}
				s.client.get(3, "/")
			}
			d := s.b.accept()
			d.headers(d.request().id, true, ":status", "204")
			if got := s.client.answerOf(3); got != "[204]" {
				t.Errorf("the client got %q", got)
			}
			s.quiet()
		})
	}
}

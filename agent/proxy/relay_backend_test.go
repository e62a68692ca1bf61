package proxy

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/health"
	"golang.org/x/net/http2"
)

// Each case is a backend's way to end a call that a client sent as GET / on stream 1, and what the client and the backend's state get of it.
func TestBackendAnswers(t *testing.T) {
	trailersOnly := func(c *rawConn, code string) { c.headers(1, true, ":status", "200", "grpc-status", code) }
	cases := []struct {
		name     string
		grpc     bool
		answer   func(c *rawConn)
		want     string
		failures uint64
	}{
		{"body and trailers", false, func(c *rawConn) {
			c.headers(1, false, ":status", "200")
			c.fr.WriteDataPadded(1, false, []byte("hello"), make([]byte, 5))
			c.headers(1, true, "x", "y")
		}, "[200]hello[]", 0},
		{"informational first", false, func(c *rawConn) {
			c.headers(1, false, ":status", "100")
			c.headers(1, false, ":status", "103", "link", "x")
			c.headers(1, true, ":status", "204")
		}, "[100][103][204]", 0},
		{"END_STREAM on empty DATA", false, func(c *rawConn) { c.headers(1, false, ":status", "200"); c.fr.WriteData(1, true, nil) }, "[200]", 0},
		{"503", false, func(c *rawConn) { c.headers(1, true, ":status", "503") }, "[503]", 1},
		{"429", false, func(c *rawConn) { c.headers(1, true, ":status", "429") }, "[429]", 0},
		{"500", false, func(c *rawConn) { c.headers(1, true, ":status", "500") }, "[500]", 0},
		{"trailers-only 14", true, func(c *rawConn) { trailersOnly(c, "14") }, "[20014]", 1},
		{"trailers-only 8", true, func(c *rawConn) { trailersOnly(c, "8") }, "[2008]", 0},
		{"14 after DATA", true, func(c *rawConn) {
			c.headers(1, false, ":status", "200")
			c.fr.WriteData(1, false, []byte("x"))
			c.headers(1, true, "grpc-status", "14")
		}, "[200]x[14]", 0},
		{"reset before headers", false, func(c *rawConn) { c.fr.WriteRSTStream(1, http2.ErrCodeInternal) }, "INTERNAL_ERROR", 1},
		{"reset of its own kind", false, func(c *rawConn) { c.fr.WriteRSTStream(1, http2.ErrCodeFlowControl) }, "INTERNAL_ERROR", 1},
		{"reset after headers", false, func(c *rawConn) { c.headers(1, false, ":status", "200"); c.fr.WriteRSTStream(1, http2.ErrCodeCancel) }, "[200]CANCEL", 0},
		{"reset after 1xx", false, func(c *rawConn) {
			c.headers(1, false, ":status", "103")
			c.fr.WriteRSTStream(1, http2.ErrCodeRefusedStream)
		}, "[103]REFUSED_STREAM", 1},
		{"malformed", false, func(c *rawConn) { c.headers(1, true, "no", "status") }, "[502]lbagent: user: ADDR sent a malformed response\n", 1},
		{"malformed for gRPC", true, func(c *rawConn) { c.headers(1, true, ":status", "200", "Upper", "x") }, "[20014]", 1},
		{"malformed trailers", true, func(c *rawConn) {
			c.headers(1, false, ":status", "200")
			c.headers(1, true, ":status", "200")
		}, "[200][14]", 0},
		{"body above content-length", false, func(c *rawConn) {
			c.headers(1, false, ":status", "200", "content-length", "1")
			c.fr.WriteData(1, true, []byte("xx"))
		}, "[200]INTERNAL_ERROR", 0},
		{"close before headers", true, func(c *rawConn) { c.Close() }, "[20014]", 1},
		{"close after headers", true, func(c *rawConn) { c.headers(1, false, ":status", "200"); c.Close() }, "[200][14]", 1},
		{"close after headers, no gRPC", false, func(c *rawConn) { c.headers(1, false, ":status", "200"); c.Close() }, "[200]INTERNAL_ERROR", 1},
		{"protocol error", true, func(c *rawConn) { c.fr.WriteData(0, true, nil) }, "[20014]", 1},
		{"push", true, func(c *rawConn) { c.fr.WriteRawFrame(http2.FramePushPromise, 4, 1, make([]byte, 8)) }, "[20014]", 1},
		{"GOAWAY with an error, then close", true, func(c *rawConn) { c.fr.WriteGoAway(1, http2.ErrCodeEnhanceYourCalm, []byte("tired")); c.Close() }, "[20014]", 1},
		{"GOAWAY during the call", true, func(c *rawConn) {
			c.fr.WriteGoAway(1, http2.ErrCodeNo, nil)
			c.headers(1, true, ":status", "200", "grpc-status", "0")
		}, "[2000]", 0},
	}
	for _, k := range cases {
		t.Run(k.name, func(t *testing.T) {
			r := newRig(t, nil)
			b := newRawBackend(t)
			r.backends(b.addr)
			client := newRawClient(t, r.addr)
			if k.grpc {
				client.call(1, true, "/a/b", nil)
			} else {
				client.get(1, "/")
			}
			c := b.accept()
			c.request()
			k.answer(c)
			want := strings.ReplaceAll(k.want, "ADDR", b.addr)
			if got := client.answerOf(1); got != want {
				t.Errorf("the client got %q, want %q", got, want)
			}
			r.quiet()
			if s := r.state(b.addr).Snapshot(time.Now()); s.Failures != k.failures {
				t.Errorf("%d failures (%q), want %d", s.Failures, s.LastFailure, k.failures)
			}
		})
	}
}

// What makes a call go on to another backend, unseen by the caller (4.1), and what doesn't.
func TestRetries(t *testing.T) {
	cases := []struct {
		name     string
		fail     func(c *rawConn) // what the first backend does with stream 1
		retried  bool
		want     string
		failures uint64
	}{
		{"REFUSED_STREAM", func(c *rawConn) { c.fr.WriteRSTStream(1, http2.ErrCodeRefusedStream) }, true, "[2000]", 0},
		{"GOAWAY below", func(c *rawConn) { c.fr.WriteGoAway(0, http2.ErrCodeNo, nil) }, true, "[2000]", 0},
		{"GOAWAY below, in two steps", func(c *rawConn) {
			c.fr.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil)
			c.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
		}, true, "[2000]", 0},
		{"a connection that breaks", func(c *rawConn) { c.Close() }, false, "[20014]", 1}, // it may have been acted on
		{"another reset", func(c *rawConn) { c.fr.WriteRSTStream(1, http2.ErrCodeCancel) }, false, "CANCEL", 1},
	}
	for _, k := range cases {
		t.Run(k.name, func(t *testing.T) {
			r := newRig(t, nil)
			first, second := newRawBackend(t), newRawBackend(t)
			r.backends(first.addr)
			client := newRawClient(t, r.addr)
			client.call(1, true, "/a/b", []byte("body"))
			c := first.accept()
			c.request()
			r.backends(first.addr, second.addr)
			k.fail(c)
			if k.retried {
				d := second.accept()
				if f := d.request(); f.fields[":path"] != "/a/b" || f.fields["te"] != "trailers" {
					t.Errorf("the second backend got %v", f.fields)
				}
				if f := d.until(func(f frame) bool { return f.data != nil }); string(f.data) != "\x00\x00\x00\x00\x00body" || !f.end {
					t.Errorf("the second backend got %q, end %v", f.data, f.end)
				}
				d.headers(1, true, ":status", "200", "grpc-status", "0")
			}
			if got := client.answerOf(1); got != k.want {
				t.Errorf("the client got %q, want %q", got, k.want)
			}
			r.quiet()
			if s := r.state(first.addr).Snapshot(time.Now()); s.Failures != k.failures {
				t.Errorf("%d failures (%q), want %d", s.Failures, s.LastFailure, k.failures)
			}
		})
	}
}

// A connection that had answered and broke: GET is sent again, on a fresh connection to the same backend if there is no other.
func TestRetryOnReusedConnection(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.get(1, "/")
	c := b.accept()
	c.request()
	c.headers(1, true, ":status", "200")
	client.answerOf(1)
	client.get(3, "/")
	c.request()
	c.Close()
	c = b.accept()
	c.request()
	c.headers(1, true, ":status", "204")
	if got := client.answerOf(3); got != "[204]" {
		t.Errorf("the client got %q", got)
	}
	// And once more, with a body that is kept.
	client.headers(5, false, ":method", "PUT", ":scheme", "http", ":path", "/", ":authority", "a")
	body := strings.Repeat("0123456789", 6000)
	for i := 0; i < len(body); i += 12000 {
		client.fr.WriteData(5, i+12000 == len(body), []byte(body[i:i+12000]))
	}
	readBody := func() string {
		got := ""
		for {
			f := c.until(func(f frame) bool { return f.id == 3 && f.data != nil || f.id == 1 && f.data != nil })
			got += string(f.data)
			if f.end {
				return got
			}
		}
	}
	if got := readBody(); got != body {
		t.Fatalf("the first attempt has %d bytes", len(got))
	}
	c.Close()
	c = b.accept()
	if got := readBody(); got != body {
		t.Fatalf("the second attempt has %d bytes", len(got))
	}
	c.headers(1, true, ":status", "201")
	if got := client.answerOf(5); got != "[201]" {
		t.Errorf("the client got %q", got)
	}
	r.quiet()
}

// More of the body than is kept (4.3): no retry, and the answer says so.
func TestNoRetryOfLargeBody(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.headers(1, false, ":method", "PUT", ":scheme", "http", ":path", "/", ":authority", "a")
	for range 5 {
		client.fr.WriteData(1, false, make([]byte, 16000))
	}
	c := b.accept(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	c.fr.WriteWindowUpdate(0, 1<<20)
	n := 0
	c.until(func(f frame) bool { n += len(f.data); return n == 80000 })
	c.fr.WriteRSTStream(1, http2.ErrCodeRefusedStream)
	if got := client.answerOf(1); !strings.HasPrefix(got, "[502]") || !strings.Contains(got, "than is kept for a retry") {
		t.Errorf("the client got %q", got)
	}
	r.quiet()
}

// A backend that accepts and says nothing isn't connected (HTTP2.md 3).
func TestNoSettings(t *testing.T) {
	r := newRig(t, func(s *Service) { s.Connect = time.Second })
	silent, b := newRawBackend(t), newGRPC(t)
	r.backends(silent.addr, b.addr)
	client := newRawClient(t, r.addr)
	for i := range 4 {
		id := uint32(2*i + 1)
		client.call(id, true, "/grpc.testing.TestService/UnaryCall", nil)
		if got := client.answerOf(id); !strings.HasSuffix(got, "[0]") {
			t.Errorf("the client got %q", got)
		}
	}
	r.quiet()
	if s := r.state(silent.addr).Snapshot(time.Now()); s.Failures == 0 || !strings.Contains(s.LastFailure, "SETTINGS") {
		t.Errorf("%d failures, %q", s.Failures, s.LastFailure)
	}
}

// The caller's deadline passes while its call waits for a connection.
func TestDeadlineWhileWaiting(t *testing.T) {
	r := newRig(t, nil)
	silent := newRawBackend(t)
	r.backends(silent.addr)
	client := newRawClient(t, r.addr)
	client.headers(1, true, ":method", "POST", ":scheme", "http", ":path", "/a/b", ":authority", "a", "content-type", "application/grpc", "grpc-timeout", "50m")
	start := time.Now()
	if got := client.answerOf(1); got != "[2004]" {
		t.Errorf("the client got %q", got)
	}
	if d := time.Since(start); d < 50*time.Millisecond || d > patience/2 {
		t.Errorf("after %v", d)
	}
	r.quiet()
}

// Two calls may wait for the one slot of a backend; when the wait is over they go on, or are told (4.4).
func TestWaitForSlot(t *testing.T) {
	r := newRig(t, func(s *Service) { s.Connect = 2 * time.Second })
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	var conns []*rawConn
	for i := range DefaultLimits().BackendConnections {
		client.call(uint32(2*i+1), true, "/a/b", nil)
		c := b.accept(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		c.request()
		conns = append(conns, c)
	}
	client.call(101, true, "/a/b", nil)
	f := client.until(func(f frame) bool { return f.id == 101 && f.fields != nil })
	if f.fields["grpc-status"] != "14" || f.fields["grpc-message"] != "lbagent: user: 1 backend, 1 usable; "+b.addr+" had no stream for the call within timeout.connect" {
		t.Errorf("the client got %v", f.fields)
	}
	client.call(103, true, "/a/b", nil)
	conns[3].headers(1, true, ":status", "200", "grpc-status", "0")
	if f := conns[3].request(); f.id != 3 {
		t.Errorf("stream %d", f.id)
	}
	conns[3].headers(3, true, ":status", "200", "grpc-status", "7")
	if got := client.answerOf(103); got != "[2007]" {
		t.Errorf("the client got %q", got)
	}
	for _, c := range conns {
		c.headers(1, true, ":status", "200", "grpc-status", "0")
	}
	r.quiet()
}

// A backend whose windows are shut gets no DATA, and each byte that it opens them by.
func TestBackendWindows(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.call(1, false, "/a/b", make([]byte, 10000))
	client.fr.WriteData(1, true, make([]byte, 10000))
	c := b.accept(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	c.request()
	c.fr.WritePing(false, [8]byte{1})
	f := c.until(func(f frame) bool {
		p, ok := f.Frame.(*http2.PingFrame)
		return f.data != nil || ok && p.IsAck()
	})
	if f.data != nil {
		t.Fatalf("%d bytes for a window of 0", len(f.data))
	}
	got := 0
	for _, n := range []uint32{1, 5, 10000, 10000} {
		c.fr.WriteWindowUpdate(1, n)
		want := min(got+int(n), 20005)
		for got < want {
			got += len(c.until(func(f frame) bool { return f.data != nil }).data)
		}
		if got != want {
			t.Fatalf("%d bytes for windows of %d", got, want)
		}
	}
	c.headers(1, true, ":status", "200", "grpc-status", "0")
	client.answerOf(1)
	r.quiet()
}

// Streams of one client that never reads don't slow another client on the same backend connection, and what is parked for it is bounded.
func TestSlowReader(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	slow := newRawClient(t, r.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	const streams = 20
	for i := range streams {
		slow.get(uint32(2*i+1), "/big")
	}
	c := b.accept()
	windows := map[uint32]int{}
	for range streams {
		id := c.request().id
		windows[id] = streamWindow
		c.headers(id, false, ":status", "200")
		for windows[id] > 0 {
			n := min(windows[id], 16384)
			c.fr.WriteData(id, false, make([]byte, n))
			windows[id] -= n
		}
	}
	fast := newRawClient(t, r.addr)
	for i := range 10 {
		id := uint32(2*i + 1)
		fast.get(id, "/small")
		back := c.until(func(f frame) bool {
			if w, ok := f.Frame.(*http2.WindowUpdateFrame); ok && f.id != 0 {
				t.Errorf("%d bytes of credit on stream %d, which nobody reads", w.Increment, f.id)
			}
			return f.fields != nil
		}).id
		c.headers(back, false, ":status", "200")
		c.fr.WriteData(back, true, []byte("ok"))
		if got := fast.answerOf(id); got != "[200]ok" {
			t.Fatalf("the fast client got %q", got)
		}
	}
	r.onLoop(func(k *relay) {
		if limit := streams * (streamWindow/len(chunk{}.b) + 1); k.inUse == 0 || k.inUse > limit {
			t.Errorf("%d chunks parked, limit %d", k.inUse, limit)
		}
	})
	// The slow one wakes up: everything comes.
	got := 0
	slow.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	slow.fr.WriteWindowUpdate(0, 1<<30)
	slow.until(func(f frame) bool { got += len(f.data); return got == streams*streamWindow })
	slow.Close()
	resets := 0
	c.until(func(f frame) bool { // all of them are cancelled
		if g, ok := f.Frame.(*http2.RSTStreamFrame); ok && g.ErrCode == http2.ErrCodeCancel {
			resets++
		}
		return resets == streams
	})
	r.quiet()
}

// A reset at the caller's deadline is its doing, not the backend's.
func TestResetAtDeadline(t *testing.T) {
	for _, timeout := range []string{"1n", "1H"} {
		r := newRig(t, nil)
		b := newRawBackend(t)
		r.backends(b.addr)
		client := newRawClient(t, r.addr)
		client.call(1, true, "/a/b", nil)
		c := b.accept()
		c.request()
		client.headers(3, true, ":method", "POST", ":scheme", "http", ":path", "/a/b", ":authority", "a", "content-type", "application/grpc", "grpc-timeout", timeout)
		c.request()
		c.fr.WriteRSTStream(3, http2.ErrCodeCancel)
		if got := client.answerOf(3); got != "CANCEL" {
			t.Errorf("the client got %q", got)
		}
		want := uint64(0)
		if timeout == "1H" {
			want = 1
		}
		if s := r.state(b.addr).Snapshot(time.Now()); s.Failures != want {
			t.Errorf("%s: %d failures (%q), want %d", timeout, s.Failures, s.LastFailure, want)
		}
	}
}

// A backend that is ejected for 5 failures in a row comes back by a call that is its trial, as soon as response headers come (2.5, 2.7).
func TestTrial(t *testing.T) {
	r := newRig(t, nil)
	bad, good := newRawBackend(t), newGRPC(t)
	r.backends(bad.addr)
	client := newRawClient(t, r.addr)
	id := uint32(1)
	call := func() frame { // its response headers
		client.call(id, true, "/grpc.testing.TestService/UnaryCall", nil)
		f := client.until(func(f frame) bool { return f.id == id && f.fields != nil })
		id += 2
		return f
	}
	headers := make(chan []string, 1)
	go func() {
		c := bad.accept()
		for {
			f, err := c.read()
			if err != nil {
				return
			}
			if f.fields != nil {
				c.headers(f.id, false, <-headers...)
				c.fr.WriteData(f.id, false, []byte("and it goes on"))
			}
		}
	}()
	for range 5 {
		headers <- []string{":status", "503"}
		if f := call(); f.fields[":status"] != "503" {
			t.Fatalf("the client got %v", f.fields)
		}
		client.fr.WriteRSTStream(id-2, http2.ErrCodeCancel)
	}
	r.quiet()
	kind := func() health.Kind { return r.svc.View().Find(netip.MustParseAddrPort(bad.addr)).Verdict.Kind }
	r.backends(bad.addr, good.addr)
	await(t, "ejected", func() bool { return kind() == health.Ejected })
	headers <- []string{":status", "200", "x-trial", "1"}
	for call().fields["x-trial"] == "" {
	}
	await(t, "back", func() bool { return kind() == health.Up })
}

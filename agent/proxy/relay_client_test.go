package proxy

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// A client that goes takes its calls with it.
func TestClientGone(t *testing.T) {
	for _, how := range []string{"reset", "close", "protocol error"} {
		r := newRig(t, nil)
		b := newRawBackend(t)
		r.backends(b.addr)
		client := newRawClient(t, r.addr)
		client.call(1, false, "/a/b", []byte("x"))
		c := b.accept()
		c.request()
		switch how {
		case "reset":
			client.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		case "close":
			client.Close()
		case "protocol error":
			client.fr.WriteData(0, true, nil)
		}
		f := c.until(func(f frame) bool { _, ok := f.Frame.(*http2.RSTStreamFrame); return ok })
		if got := f.Frame.(*http2.RSTStreamFrame); got.ErrCode != http2.ErrCodeCancel || f.id != 1 {
			t.Errorf("%s: the backend got %v", how, got)
		}
		r.quiet()
		if s := r.state(b.addr).Snapshot(time.Now()); s.Failures != 0 {
			t.Errorf("%s: %d failures", how, s.Failures)
		}
	}
}

// Without a backend a caller of HTTP gets 503 and the reason, as its windows allow (4.5).
func TestUnusable(t *testing.T) {
	r := newRig(t, nil)
	r.backends()
	client := newRawClient(t, r.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	client.get(1, "/")
	if f := client.request(); f.fields[":status"] != "503" || f.fields["content-length"] != "36" || f.end {
		t.Errorf("got %v", f.fields)
	}
	client.fr.WriteWindowUpdate(1, 7)
	if f := client.until(func(f frame) bool { return f.data != nil }); string(f.data) != "lbagent" || f.end {
		t.Errorf("got %q", f.data)
	}
	client.fr.WriteWindowUpdate(1, 100)
	if f := client.until(func(f frame) bool { return f.data != nil }); string(f.data) != ": user: 0 backends, 0 usable\n" || !f.end {
		t.Errorf("got %q", f.data)
	}
	client.headers(3, true, ":method", "HEAD", ":scheme", "http", ":path", "/", ":authority", "a")
	if f := client.request(); f.fields[":status"] != "503" || !f.end {
		t.Errorf("got %v, end %v", f.fields, f.end)
	}
	client.call(5, false, "/a/b", nil) // answered before its request ends
	if f := client.request(); f.fields["grpc-status"] != "14" || !strings.HasPrefix(f.fields["grpc-message"], "lbagent: user: 0 backends") || !f.end {
		t.Errorf("got %v, end %v", f.fields, f.end)
	}
	if f := client.until(func(f frame) bool { return f.id == 5 }); f.Frame.(*http2.RSTStreamFrame).ErrCode != http2.ErrCodeNo {
		t.Errorf("got %v", f)
	}
	r.quiet()
	for _, s := range r.proxy.Stats().Services {
		if s.NoBackend != 3 {
			t.Errorf("%d calls counted without backend", s.NoBackend)
		}
	}
}

// More streams than were offered are refused, and a slot is free once the backend's side is over.
func TestClientStreamLimit(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	clientStreams := DefaultLimits().StreamsPerConnection
	for i := range clientStreams + 1 {
		client.get(uint32(2*i+1), "/")
	}
	c := b.accept()
	if got := client.answerOf(uint32(2*clientStreams + 1)); got != "REFUSED_STREAM" {
		t.Errorf("the client got %q", got)
	}
	for i := range clientStreams {
		c.request()
		c.headers(uint32(2*i+1), true, ":status", "200")
		client.answerOf(uint32(2*i + 1))
	}
	client.get(1001, "/")
	id := c.request().id
	c.headers(id, true, ":status", "200")
	if got := client.answerOf(1001); got != "[200]" {
		t.Errorf("the client got %q", got)
	}
	r.quiet()
}

// Idle connections of both kinds close (4.8); the client's by GOAWAY.
func TestIdle(t *testing.T) {
	r := newRig(t, func(s *Service) { s.Idle = 50 * time.Millisecond })
	r.realSilence() // whether a connection is idle is looked at when that is over
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.get(1, "/")
	c := b.accept()
	c.request()
	c.headers(1, true, ":status", "200")
	client.answerOf(1)
	c.until(func(f frame) bool { _, ok := f.Frame.(*http2.GoAwayFrame); return ok })
	if _, err := c.read(); err == nil {
		t.Error("the backend's connection goes on after GOAWAY")
	}
	last := uint32(0)
	for last != 1 {
		f := client.until(func(f frame) bool {
			if p, ok := f.Frame.(*http2.PingFrame); ok && !p.IsAck() {
				client.fr.WritePing(true, p.Data)
			}
			_, ok := f.Frame.(*http2.GoAwayFrame)
			return ok
		})
		last = f.Frame.(*http2.GoAwayFrame).LastStreamID
	}
	if _, err := client.read(); err == nil {
		t.Error("the client's connection goes on after GOAWAY")
	}
	client.Close()
	r.await("all closed", func(k *relay) bool { return len(k.clients) == 0 && len(k.pools[r.svc].backends) == 1 })
	r.quiet()
}

func TestParseTimeout(t *testing.T) {
	for v, want := range map[string]time.Duration{
		"1H": time.Hour, "2M": 2 * time.Minute, "3S": 3 * time.Second, "4m": 4 * time.Millisecond, "5u": 5 * time.Microsecond, "6n": 6,
		"99999999H": 1<<63 - 1, "": -1, "S": -1, "1": -1, "1x": -1, "123456789S": -1, "-1S": -1, " 1S": -1,
	} {
		d, ok := parseTimeout(v)
		if !ok {
			d = -1
		}
		if d != want {
			t.Errorf("%q: %v, want %v", v, d, want)
		}
	}
}

func TestPercentEncode(t *testing.T) {
	if got := percentEncode("100 %, ä\n"); got != "100 %25, %C3%A4%0A" {
		t.Error(got)
	}
}

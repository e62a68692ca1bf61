package proxy

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

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

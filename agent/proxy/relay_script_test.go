package proxy

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/h2"
	"golang.org/x/net/http2"
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

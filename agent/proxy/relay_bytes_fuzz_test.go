package proxy

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
)

// server is a backend that keeps to the rules, with a plan.
type server struct {
	e     *peerEnd
	p     *plan
	calls map[uint32]*serving
	order []uint32
	sent  int // bytes of bodies
	heads int
	gone  bool // it said GOAWAY
}

type serving struct {
	how   byte
	ended bool // the request
	left  int  // of the answer
	begun bool
	over  bool
}

// serve makes e a server that keeps to the rules.
func serve(e *peerEnd, p *plan) *server {
	s := &server{e: e, p: p, calls: map[uint32]*serving{}}
	w := e.w
	var settings []http2.Setting
	if p.chance(128) {
		settings = append(settings, http2.Setting{ID: http2.SettingInitialWindowSize, Val: pick(p, uint32(0), 1, 100, 1<<20)})
	}
	if p.chance(60) {
		settings = append(settings, http2.Setting{ID: http2.SettingHeaderTableSize, Val: pick(p, uint32(0), 60, 4096, 1<<20)})
	}
	settings = append(settings, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: pick(p, uint32(1000), 100, 101)})
	w.settings(settings...)
	w.windowUpdate(0, 1<<30)
	e.v.onPing = w.pong
	begun := false
	e.step = func() {
		if e.v.begun && !begun {
			begun = true
			w.ack()
		}
		s.step()
	}
	e.v.onHead = func(id uint32, fields []hpack.HeaderField, end bool) {
		c := s.calls[id]
		if c != nil { // trailers
			c.ended = true
			return
		}
		s.heads++
		c = &serving{how: p.next() % 16, ended: end, left: int(p.next()) * 40}
		for _, f := range fields {
			switch {
			case f.Name == ":path" && f.Value == "/good":
				c.how, c.left = 1, 4
			case f.Name == ":method" && f.Value == "HEAD":
				c.left = 0
			}
		}
		s.calls[id] = c
		s.order = append(s.order, id)
	}
	e.v.onData = func(id uint32, b []byte, end bool) {
		if c := s.calls[id]; c != nil {
			c.ended = c.ended || end
		}
		if len(b) > 0 && p.next()%4 != 1 {
			if st := e.v.streams[id]; st != nil && !st.over() && !end {
				w.windowUpdate(id, uint32(len(b)))
			}
		}
	}
	e.v.onRST = func(id uint32, _ http2.ErrCode) { delete(s.calls, id) }
	return s
}

// step answers what can be answered.
func (s *server) step() {
	w, v := s.e.w, s.e.v
	live := s.order[:0]
	for _, id := range s.order {
		c := s.calls[id]
		if c == nil || v.streams[id].over() || c.over {
			continue
		}
		live = append(live, id)
		switch c.how {
		case 2: // after the request
			if !c.ended {
				continue
			}
		case 3:
			w.rst(id, pick(s.p, http2.ErrCodeInternal, http2.ErrCodeCancel, http2.ErrCodeRefusedStream, http2.ErrCodeNo, http2.ErrCodeProtocol))
			c.over = true
			continue
		case 4: // never
			continue
		case 5:
			w.headers(id, false, ":status", "103", "link", "x")
		case 6:
			if !s.gone {
				s.gone = true
				w.goaway(pick(s.p, id, v.last, id-1, 0), pick(s.p, http2.ErrCodeNo, http2.ErrCodeEnhanceYourCalm))
			}
		}
		if !c.begun {
			c.begun = true
			fields := []string{":status", "200", "content-type", pick(s.p, "text/plain", "application/grpc"), "x-n", "answer"}
			if c.how == 7 {
				fields = append(fields, "content-length", itoa(c.left))
			}
			w.headers(id, c.left == 0 && c.how != 8, fields...)
			if c.left == 0 && c.how != 8 {
				c.over = true
			}
		}
		s.body(id, c)
	}
	s.order = live
}

func (s *server) body(id uint32, c *serving) {
	w := s.e.w
	for !c.over && !s.e.v.streams[id].over() {
		if c.left == 0 {
			w.headers(id, true, "grpc-status", "0")
			c.over = true
			break
		}
		n := min(w.room(id), c.left)
		if n == 0 {
			break
		}
		c.left -= n
		s.sent += n
		last := c.left == 0 && c.how != 8
		w.data(id, last, bytes.Repeat([]byte("g"), n))
		c.over = last
	}
	if c.over && c.how == 9 && !s.e.v.streams[id].over() { // the rest of the request is unwanted
		w.rst(id, http2.ErrCodeNo)
	}
}

func itoa(n int) string {
	if n == 0 {
		return "0"
	}
	var b []byte
	for ; n > 0; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return string(b)
}

// goodCall makes a call by a client of its own and wants its answer.
func (b *bed) goodCall(e *peerEnd, id uint32) {
	b.t.Helper()
	got, status, end := "", "", false
	e.v.onHead = func(of uint32, fields []hpack.HeaderField, last bool) {
		if of == id {
			status, end = fields[0].Value, last
			for _, f := range fields {
				if strings.HasPrefix(f.Name, "grpc-") {
					status += " " + f.Value
				}
			}
		}
	}
	e.v.onData = func(of uint32, p []byte, last bool) {
		if of == id {
			got, end = got+string(p), last
		}
	}
	if id == 1 {
		e.w.settings()
		e.w.ack()
	}
	e.w.headers(id, true, ":method", "GET", ":scheme", "http", ":path", "/good", ":authority", "a")
	for range 30 {
		b.advance(time.Millisecond)
		if end {
			break
		}
	}
	if got != "gggg" || status != "200" || e.v.goaway {
		b.t.Fatalf("a good client is answered %q %q, end %v, GOAWAY %v", status, got, end, e.v.goaway)
	}
}

// FuzzClientBytes lets a client send anything. Whatever it is: backends see a valid connection and no reason to complain, another client is served as ever,
// what the client itself is sent is valid, and nothing is left in the end.
func FuzzClientBytes(f *testing.F) {
	for i, b := range seeds(f, "h2/testdata/corpus") {
		f.Add(b, []byte{})
		f.Add(b, byChance(i, 100))
		f.Add(b, []byte{0, 40, 3, 1, 2, 3, 200, 7, 0, 1, 9, 30, 40, 8, 1, 2, 90})
	}
	var all beds
	f.Fuzz(func(t *testing.T, data, decisions []byte) {
		p := &plan{decisions[:min(len(decisions), 1000)]}
		data = data[:min(len(data), 1<<16)]
		b := all.get(t, 2)
		o := *b.rt.options()
		o.idle = 0 // the good client is silent for as long as the other one takes
		b.rt.opts.Store(&o)
		var servers []*server
		b.accept = func(e *peerEnd) { servers = append(servers, serve(e, p)) }
		good := b.client("good client")
		b.goodCall(good, 1)

		bad := b.client("bad client")
		said := bad.observe()
		if !bytes.HasPrefix(data, []byte(http2.ClientPreface)) && p.next()%8 != 1 {
			data = append([]byte(http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"), data...)
		}
		total := len(data)
		for steps := 0; len(data) > 0 && !bad.over; steps++ {
			n := len(data)
			if p.more() {
				n = min(n, int(p.next())*int(p.next()%8+1)+1)
			}
			if n = bad.write(data[:n]); n == 0 && steps > 1000 {
				break
			}
			said.sent(data[:n])
			data = data[n:]
			bad.deaf = p.chance(20)
			b.steps(3) // backends are quick: a leap in time must not pass over their SETTINGS
			b.advance(pick(p, 0, 0, time.Millisecond, 100*time.Millisecond, 1100*time.Millisecond, 11*time.Second))
		}
		b.steps(3)
		b.goodCall(good, 3)
		bad.deaf = false
		b.steps(2)

		fromServers, heads := 0, 0
		for _, s := range servers {
			fromServers += s.sent + 200*s.heads
			heads += s.heads
			if v := s.e.v; v.goaway && v.code != http2.ErrCodeNo {
				t.Fatalf("a backend that keeps to the rules gets GOAWAY %v", v.code)
			}
			if out, most := s.e.v.bytes, 1000+(65<<10)*heads+2*total; out > most {
				t.Fatalf("a backend got %d bytes for %d", out, total)
			}
		}
		if most := 2000 + 64*(total/9+1) + 3*fromServers + 500*heads; bad.v.bytes > most {
			t.Fatalf("the client got %d bytes for %d, want at most %d", bad.v.bytes, total, most)
		}
		if p.next()%2 == 1 { // FIN first
			unix.Shutdown(bad.fd, unix.SHUT_WR)
			b.steps(2)
		}
		all.end(b)
	})
}

// FuzzBackendBytes lets a backend send anything. Whatever it is: clients see a valid connection that stays, each of their calls ends, and nothing is left.
func FuzzBackendBytes(f *testing.F) {
	for i, b := range seeds(f, "h2/testdata/corpus/server") {
		f.Add(b, []byte{})
		f.Add(b, byChance(i, 100))
		f.Add(b, []byte{3, 1, 2, 3, 200, 7, 0, 1, 9, 30, 40, 8, 1, 2, 90, 17, 33, 4, 1, 1, 0, 5, 6, 7})
	}
	var all beds
	f.Fuzz(func(t *testing.T, data, decisions []byte) {
		p := &plan{decisions[:min(len(decisions), 1000)]}
		data = data[:min(len(data), 1<<16)]
		b := all.get(t, 2)
		var backends []*peerEnd
		var said *observer
		b.accept = func(e *peerEnd) {
			o := e.observe()
			if said == nil {
				said = o
			}
			if len(backends) > 0 { // only the first is the fuzzer's; the others go at once
				e.close()
			}
			backends = append(backends, e)
		}
		c := newCaller(b.client("client"), p)
		b.steps(2)
		for steps := 0; len(data) > 0 && steps < 1000; steps++ {
			n := len(data)
			if p.more() {
				n = min(n, int(p.next())*int(p.next()%8+1)+1)
			}
			if len(backends) > 0 && !backends[0].over {
				n = backends[0].write(data[:n])
				said.sent(data[:n])
			}
			data = data[n:]
			b.advance(pick(p, 0, 0, time.Millisecond, 100*time.Millisecond, 1100*time.Millisecond, 11*time.Second))
			if p.more() {
				c.act()
			}
		}
		b.steps(2)
		c.finish()
		for _, e := range backends {
			e.close()
		}
		b.accept = func(e *peerEnd) { e.close() }
		for i := 0; i < 40 && c.e.v.open > 0; i++ {
			c.grant = true
			b.advance(100 * time.Millisecond)
		}
		if c.e.over || c.e.v.goaway {
			t.Fatalf("a backend ended the client's connection: closed %v, GOAWAY %v %v", c.e.over, c.e.v.goaway, c.e.v.code)
		}
		if n := c.e.v.open; n > 0 {
			t.Fatalf("%d calls never end", n)
		}
		all.end(b)
	})
}

// caller is a client that keeps to the rules, with a plan.
type caller struct {
	e     *peerEnd
	p     *plan
	next  uint32
	ids   []uint32
	grant bool // give credit for what comes
	got   map[uint32]int
}

func newCaller(e *peerEnd, p *plan) *caller {
	c := &caller{e: e, p: p, next: 1, grant: true, got: map[uint32]int{}}
	e.w.settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: pick(p, uint32(65535), 0, 1, 1<<20)})
	e.w.ack()
	e.v.onPing = e.w.pong
	e.v.onData = func(id uint32, b []byte, end bool) {
		c.got[id] += len(b)
		c.got[0] += len(b)
	}
	e.step = func() {
		if !c.grant {
			return
		}
		if n := c.got[0]; n > 0 {
			e.w.windowUpdate(0, uint32(n))
			c.got[0] = 0
		}
		for _, id := range c.ids {
			if st := e.v.streams[id]; !st.over() && !st.ended && st.window < 1000 {
				e.w.windowUpdate(id, 100000)
			}
		}
	}
	for range 1 + p.next()%4 {
		c.call()
	}
	return c
}

// call begins one.
func (c *caller) call() {
	id := c.next
	c.next += 2
	c.ids = append(c.ids, id)
	w := c.e.w
	switch c.p.next() % 5 {
	case 0:
		w.headers(id, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a")
	case 1:
		w.headers(id, false, ":method", "POST", ":scheme", "http", ":path", "/a/b", ":authority", "a", "content-type", "application/grpc", "te", "trailers")
	case 2:
		w.headers(id, true, ":method", "HEAD", ":scheme", "http", ":path", "/", ":authority", "a")
	case 3:
		w.headers(id, false, ":method", "PUT", ":scheme", "http", ":path", "/p", ":authority", "a")
	case 4:
		w.headers(id, true, ":method", "POST", ":scheme", "http", ":path", "/a/b", ":authority", "a", "content-type", "application/grpc", "te", "trailers", "grpc-timeout", "50m")
	}
}

// act does something by the plan.
func (c *caller) act() {
	w := c.e.w
	id := c.ids[int(c.p.next())%len(c.ids)]
	st := c.e.v.streams[id]
	switch c.p.next() % 8 {
	case 0:
		if len(c.ids) < 20 {
			c.call()
		}
	case 1, 2:
		if n := min(w.room(id), int(c.p.next())*70); !st.weEnded && !st.over() {
			w.data(id, c.p.chance(80), make([]byte, n))
		}
	case 3:
		if !st.weEnded && !st.over() {
			w.headers(id, true, "x-trailer", "1")
		}
	case 4:
		if !st.over() {
			w.rst(id, http2.ErrCodeCancel)
		}
	case 5:
		w.ping([8]byte{c.p.next()})
	case 6:
		c.grant = !c.grant
	case 7:
		w.settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(c.p.next()) * 300}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: uint32(c.p.next()) * 20})
	}
}

// finish ends all requests.
func (c *caller) finish() {
	for _, id := range c.ids {
		if st := c.e.v.streams[id]; !st.weEnded && !st.over() {
			c.e.w.data(id, true, nil)
		}
	}
	c.grant = true
}

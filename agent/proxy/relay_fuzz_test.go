package proxy

import (
	"bytes"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/service"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// FuzzRelay lets clients and backends do anything that the protocol allows, in any order, while backends come and go and time passes. What arrives at the
// other side is what was sent, of the same call, from its first byte on, and whole if it ends well; nobody who keeps to the rules is told otherwise; every
// call ends; nothing is left.
func FuzzRelay(f *testing.F) {
	for seed := range 100 { // without a fuzzer, games by chance
		f.Add(byChance(seed, 600))
	}
	var all beds
	f.Fuzz(func(t *testing.T, decisions []byte) {
		b := all.get(t, 2)
		g := &game{b: b, p: &plan{decisions[:min(len(decisions), 600)]}, calls: map[string]*gameCall{}, listed: [2]bool{true, true}}
		b.accept = func(e *peerEnd) { g.servers = append(g.servers, g.newServer(e)) }
		b.refuse = func() bool { return g.p.chance(20) }
		g.clients = append(g.clients, g.newClient())
		b.steps(2)
		for g.p.more() {
			g.move()
		}
		g.finish()
		all.end(b)
	})
}

// game is a run of FuzzRelay.
type game struct {
	b       *bed
	p       *plan
	clients []*player
	servers []*player
	calls   map[string]*gameCall // by path
	listed  [2]bool
}

// player is a client or a backend with its streams.
type player struct {
	g       *game
	e       *peerEnd
	streams map[uint32]*gameStream
	order   []uint32
	next    uint32
	greedy  bool // gives no credit
	begun   bool // SETTINGS were acknowledged
	goaway  bool // it sent GOAWAY
	left    bool // it closed
	unread  int  // bytes without connection credit
}

// gameCall is what a client has said, and was told.
type gameCall struct {
	path     string
	sent     int  // bytes of the request
	ended    bool // the request
	trailers bool // by trailers
	from     *gameStream
	attempts map[string]*gameStream
}

// gameStream is one side of a call at a player.
type gameStream struct {
	id       uint32
	call     *gameCall
	number   string // of a backend's stream, which its answer names
	got      int
	sent     int
	begun    bool // the answer
	ended    bool // our side
	trailers bool // our side ended by trailers
	final    bool
	noBody   bool // the request is HEAD
	ours     bool // the answer is the relay's own
}

// bodyByte is the payload of a call in a direction.
func bodyByte(path string, answer bool, at int) byte {
	n := at*7 + at>>8 + len(path)*11 + int(path[len(path)-1])*31
	if answer {
		n = ^n
	}
	return byte(n)
}

func body(path string, answer bool, from, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = bodyByte(path, answer, from+i)
	}
	return b
}

func (g *game) newPlayer(e *peerEnd) *player {
	p := &player{g: g, e: e, streams: map[uint32]*gameStream{}, next: 1}
	e.v.onPing = e.w.pong
	e.w.settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: pick(g.p, uint32(65535), 0, 1, 1000, 1<<20)})
	e.step = p.step
	e.v.onRST = func(id uint32, code http2.ErrCode) {
		switch code {
		case http2.ErrCodeProtocol, http2.ErrCodeFlowControl, http2.ErrCodeStreamClosed, http2.ErrCodeFrameSize, http2.ErrCodeCompression:
			g.b.t.Fatalf("%s keeps to the rules, and is told %v on stream %d", e.name, code, id)
		}
	}
	return p
}

func (g *game) newClient() *player {
	e := g.b.client("client " + strconv.Itoa(len(g.clients)))
	p := g.newPlayer(e)
	e.v.onHead = p.answer
	e.v.onData = p.answerData
	return p
}

func (g *game) newServer(e *peerEnd) *player {
	p := g.newPlayer(e)
	e.name = "backend " + strconv.Itoa(len(g.servers))
	if g.p.chance(100) {
		e.w.settings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(g.p.next() % 4)})
	}
	e.v.onHead = p.request
	e.v.onData = p.requestData
	return p
}

// step gives credit for what came.
func (p *player) step() {
	w, v := p.e.w, p.e.v
	if v.begun && !p.begun {
		p.begun = true
		w.ack()
	}
	if v.goaway && v.code != http2.ErrCodeNo {
		p.g.b.t.Fatalf("%s keeps to the rules, and gets GOAWAY %v: %s", p.e.name, v.code, v.reason)
	}
	if p.greedy {
		return
	}
	if p.unread > 0 {
		w.windowUpdate(0, uint32(p.unread))
		p.unread = 0
	}
	for _, id := range p.order {
		if st := v.streams[id]; !st.over() && !st.ended && st.window < 500 {
			w.windowUpdate(id, 20000)
		}
	}
}

// request: a backend gets the beginning of a call, or its trailers.
func (p *player) request(id uint32, fields []hpack.HeaderField, end bool) {
	t := p.g.b.t
	if s := p.streams[id]; s != nil {
		if !s.call.trailers || len(fields) != 1 || fields[0].Value != s.call.path {
			t.Fatalf("%s: trailers %v of %s, which sent %v", p.e.name, fields, s.call.path, s.call.trailers)
		}
		p.requestEnd(s)
		return
	}
	path, head := "", false
	for _, f := range fields {
		switch f.Name {
		case ":path":
			path = f.Value
		case ":method":
			head = f.Value == "HEAD"
		}
	}
	c := p.g.calls[path]
	if c == nil {
		t.Fatalf("%s: a call to %q, which nobody made", p.e.name, path)
	}
	if last := fields[len(fields)-1]; last.Name != "x-last" || last.Value != path {
		t.Fatalf("%s: %s came with %v", p.e.name, path, fields)
	}
	s := &gameStream{id: id, call: c, number: fmt.Sprintf("%s/%d", p.e.name, id), noBody: head}
	c.attempts[s.number] = s
	p.streams[id] = s
	p.order = append(p.order, id)
	if end {
		p.requestEnd(s)
	}
}

func (p *player) requestData(id uint32, b []byte, end bool) {
	p.unread += len(b)
	s := p.streams[id]
	p.compare(s, b, false)
	if s.got > s.call.sent {
		p.g.b.t.Fatalf("%s: %d bytes of %s, of which %d were sent", p.e.name, s.got, s.call.path, s.call.sent)
	}
	if end {
		if s.call.trailers {
			p.g.b.t.Fatalf("%s: %s ended without its trailers", p.e.name, s.call.path)
		}
		p.requestEnd(s)
	}
}

func (p *player) requestEnd(s *gameStream) {
	if !s.call.ended || s.got != s.call.sent {
		p.g.b.t.Fatalf("%s: %s ends after %d bytes, of %d; ended %v", p.e.name, s.call.path, s.got, s.call.sent, s.call.ended)
	}
}

// compare looks at the next bytes of a stream.
func (p *player) compare(s *gameStream, b []byte, answer bool) {
	for i, c := range b {
		if want := bodyByte(s.call.path, answer, s.got+i); c != want {
			p.g.b.t.Fatalf("%s: byte %d of %s is %x, want %x", p.e.name, s.got+i, s.call.path, c, want)
		}
	}
	s.got += len(b)
}

// answer: a client gets a header list.
func (p *player) answer(id uint32, fields []hpack.HeaderField, end bool) {
	s, t := p.streams[id], p.g.b.t
	var status, number, own string
	for _, f := range fields {
		switch f.Name {
		case ":status":
			status = f.Value
		case "x-number":
			number = f.Value
		case "grpc-message":
			own = f.Value
		}
	}
	switch {
	case number != "":
		from := s.call.attempts[number]
		if from == nil || s.call.from != nil && s.call.from != from {
			t.Fatalf("%s: %s is answered by %s, before by %+v", p.e.name, s.call.path, number, s.call.from)
		}
		s.call.from = from
	case !s.final && status != "" || own != "": // the relay's
		s.ours = true
	default:
		t.Fatalf("%s: %s is answered with %v", p.e.name, s.call.path, fields)
	}
	s.final = s.final || status != "" && status[0] != '1'
	if end && !s.ours {
		p.answerEnd(s, status == "")
	}
}

func (p *player) answerData(id uint32, b []byte, end bool) {
	p.unread += len(b)
	s := p.streams[id]
	if s.ours {
		return
	}
	p.compare(s, b, true)
	if from := s.call.from; s.got > from.sent {
		p.g.b.t.Fatalf("%s: %d bytes of the answer to %s, of which %d were sent", p.e.name, s.got, s.call.path, from.sent)
	}
	if end {
		p.answerEnd(s, false)
	}
}

func (p *player) answerEnd(s *gameStream, trailers bool) {
	if from := s.call.from; !from.ended || s.got != from.sent || trailers != from.trailers {
		p.g.b.t.Fatalf("%s: the answer to %s ends after %d bytes, trailers %v; its backend: %+v", p.e.name, s.call.path, s.got, trailers, from)
	}
}

// move is one decision.
func (g *game) move() {
	if op := g.p.next() % 32; op < 16 {
		g.clients[int(g.p.next())%len(g.clients)].moveClient(op)
	} else if op < 27 {
		if len(g.servers) > 0 {
			g.servers[int(g.p.next())%len(g.servers)].moveServer(op - 16)
		}
	} else {
		g.moveWorld(op - 27)
	}
	g.b.stepOnce()
}

// stream is one of the player's that can still be written to; nil if there is none.
func (p *player) stream() *gameStream {
	if len(p.order) == 0 || p.left || p.e.over {
		return nil
	}
	s := p.streams[p.order[len(p.order)-1-int(p.g.p.next())%min(len(p.order), 8)]]
	if s.ended || p.e.v.streams[s.id].over() {
		return nil
	}
	return s
}

func (p *player) moveClient(op byte) {
	if p.left || p.e.over {
		return
	}
	w, plan := p.e.w, p.g.p
	switch op {
	case 0, 1, 2, 3:
		if p.e.v.goaway || p.e.v.open >= 30 {
			return
		}
		c := &gameCall{path: fmt.Sprintf("/%s/%d", p.e.name[len("client "):], p.next), attempts: map[string]*gameStream{}}
		s := &gameStream{id: p.next, call: c}
		p.next += 2
		p.g.calls[c.path], p.streams[s.id], p.order = c, s, append(p.order, s.id)
		how := plan.next()
		s.ended = how&1 != 0
		c.ended = s.ended
		fields := []string{":method", pick(plan, "POST", "GET", "PUT", "HEAD"), ":scheme", "http", ":path", c.path, ":authority", "a"}
		if how&2 != 0 {
			fields = append(fields, "content-type", "application/grpc", "te", "trailers")
		}
		if how&4 != 0 {
			fields = append(fields, "x-long", string(bytes.Repeat([]byte("x"), int(plan.next())*int(plan.next()%64))))
		}
		w.headers(s.id, s.ended, append(fields, "x-last", c.path)...)
	case 4, 5, 6, 7:
		if s := p.stream(); s != nil {
			p.send(s, false)
			s.call.sent, s.call.ended = s.sent, s.ended
		}
	case 8:
		if s := p.stream(); s != nil {
			s.ended, s.call.ended, s.call.trailers = true, true, true
			w.headers(s.id, true, "x-trailer", s.call.path)
		}
	case 9:
		if s := p.stream(); s != nil {
			w.rst(s.id, pick(plan, http2.ErrCodeCancel, http2.ErrCodeNo, http2.ErrCodeInternal))
		}
	case 14:
		if plan.chance(60) {
			p.left = true
			p.e.close()
			p.e.over = true
		}
	default:
		p.moveEither(op - 10)
	}
}

// send writes DATA within the credit.
func (p *player) send(s *gameStream, answer bool) {
	n := min(p.e.w.room(s.id), int(p.g.p.next())<<(p.g.p.next()%7))
	s.ended = p.g.p.chance(50)
	p.e.w.data(s.id, s.ended, body(s.call.path, answer, s.sent, n))
	s.sent += n
}

// moveEither is what both sides can do.
func (p *player) moveEither(op byte) {
	w, plan := p.e.w, p.g.p
	switch op {
	case 0:
		w.ping([8]byte{plan.next()})
	case 1:
		w.settings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(plan.next()) * 200})
	case 2:
		w.settings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: uint32(plan.next()) * 30})
	case 3:
		p.greedy = !p.greedy
	case 5:
		p.e.deaf = !p.e.deaf
	}
}

func (p *player) moveServer(op byte) {
	if p.left || p.e.over || !p.begun {
		return
	}
	w, plan := p.e.w, p.g.p
	s := p.stream()
	switch op {
	case 0, 1, 2, 3, 4:
		switch {
		case s == nil:
		case !s.begun && plan.chance(30):
			w.headers(s.id, false, ":status", "103", "x-number", s.number)
		case !s.begun:
			s.begun, s.ended = true, plan.chance(40) || s.noBody
			w.headers(s.id, s.ended, ":status", pick(plan, "200", "404", "503"), "content-type", "application/grpc", "x-number", s.number)
		default:
			p.send(s, true)
		}
	case 5:
		if s != nil && s.begun {
			s.ended, s.trailers = true, true
			w.headers(s.id, true, "grpc-status", pick(plan, "0", "14", "8"), "x-number", s.number)
		}
	case 6:
		if s != nil {
			w.rst(s.id, pick(plan, http2.ErrCodeCancel, http2.ErrCodeInternal, http2.ErrCodeRefusedStream))
		}
	case 7:
		switch {
		case plan.chance(30):
			p.left = true
			p.e.close()
			p.e.over = true
		case plan.chance(60) && !p.goaway:
			p.goaway = true
			w.goaway(p.e.v.last, http2.ErrCodeNo) // all that came is answered
		case plan.chance(60):
			w.settings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(plan.next() % 5)})
		}
	default:
		p.moveEither(op - 8)
	}
}

// moveWorld: backends come and go, time passes, a client comes.
func (g *game) moveWorld(op byte) {
	switch op {
	case 0:
		if len(g.clients) < 4 {
			g.clients = append(g.clients, g.newClient())
		}
	case 1:
		i := g.p.next() % 2
		g.listed[i] = !g.listed[i]
		l := &service.List{Service: "user", Source: service.FromStatic, Confirmed: g.b.now}
		for i, listed := range g.listed {
			if listed {
				l.Backends = append(l.Backends, g.b.backends[i])
			}
		}
		g.b.table.Apply(g.b.now, l)
		g.b.relay.viewChanged(g.b.svc)
	default:
		g.b.now = g.b.now.Add(pick(g.p, time.Millisecond, 20*time.Millisecond, 300*time.Millisecond, 1100*time.Millisecond, 11*time.Second))
	}
}

// finish ends all requests and backends; then every call has to end.
func (g *game) finish() {
	for _, c := range g.clients {
		c.greedy, c.e.deaf = false, false
		for _, id := range c.order {
			if s := c.streams[id]; !s.ended && !c.left && !c.e.over && !c.e.v.streams[id].over() {
				s.ended, s.call.ended = true, true
				c.e.w.data(id, true, nil)
			}
		}
	}
	g.b.steps(3)
	g.b.refuse = func() bool { return true }
	for _, s := range g.servers {
		s.e.close()
	}
	open := func() (n int) {
		for _, c := range g.clients {
			if !c.left && !c.e.over {
				n += c.e.v.open
			}
		}
		return n
	}
	for i := 0; i < 100 && open() > 0; i++ {
		g.b.advance(50 * time.Millisecond)
	}
	if n := open(); n > 0 {
		g.b.t.Fatalf("%d calls never end", n)
	}
	for _, c := range g.clients {
		if n := c.e.v.theirWindow; !c.left && n < connWindow/2 {
			g.b.t.Fatalf("%s has %d bytes of connection window left", c.e.name, n)
		}
	}
}

package proxy

import (
	"net/netip"
	"time"

	"github.com/lbagent/lbagent/agent/calls"
	"github.com/lbagent/lbagent/agent/proxy/loop"
	"github.com/lbagent/lbagent/agent/proxy/tcp"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"golang.org/x/sys/unix"
)

// session is one client connection that is relayed as bytes (4.8).
type session struct {
	w     *worker
	rt    *route
	opts  *options
	m     tcp.Machine
	ends  [2]end // by tcp.Side
	state *health.State
	addr  netip.AddrPort
	tried []*health.State

	began  time.Time
	picked time.Time
	first  time.Duration // from the pick to the backend's first byte
	up     bool          // the backend is connected
	failed bool          // no backend, or it broke
	over   bool

	// For its record.
	client    string // empty: nobody wanted its record when it began
	attempts  int
	connected time.Duration // from its begin until the backend was connected
	ended     bool          // by is set
	by        calls.Party
	cause     string // why it ended, if not as it should

	timer loop.Timer // of the drain, then of its end
	late  *late      // the client may still say that it speaks HTTP; nil: it's known

	// For the events of connections.
	account *account   // of the backend that is connected
	why     closeCause // what ended it, or began its end
	detail  string
	blamed  bool // why is known
}

// end is the handler of one of the two connections.
type end struct {
	s    *session
	side tcp.Side
	conn *loop.Conn
}

func (w *worker) newSession(rt *route, silent bool) *session {
	s := &session{w: w, rt: rt, opts: rt.options(), began: w.loop.Now()}
	for side := range s.ends {
		s.ends[side] = end{s: s, side: tcp.Side(side)}
	}
	if silent {
		s.late = newLate(s)
	}
	return s
}

// serveTCP relays a client connection to a backend.
func (w *worker) serveTCP(rt *route, fd int, received []byte, silent bool) {
	s := w.newSession(rt, silent)
	c, err := w.loop.Add(fd, &s.ends[tcp.Client], received)
	if err != nil {
		unix.Close(fd)
		w.clientDone(rt, protoTCP)
		return
	}
	s.begin(c)
}

// begin looks for a backend. What the client sends meanwhile stays in the kernel; a client that goes by a reset is noticed all the same. One that only
// ended its direction (FIN) may wait for what a backend has to say.
func (s *session) begin(c *loop.Conn) {
	s.ends[tcp.Client].conn = c
	c.Pause()
	w, svc := s.w, s.rt.svc
	all := w.sessions[svc]
	if all == nil {
		all = map[*session]struct{}{}
		w.sessions[svc] = all
	}
	all[s] = struct{}{}
	if w.proxy.calls.Wants(s.rt.name) {
		s.client = c.Peer()
	}
	s.connect()
}

// connect goes to the next candidate, each once, usable ones first (4.1).
func (s *session) connect() {
	now := s.w.loop.Now()
	stats := s.w.statsOf(s.rt)
	for {
		b := s.rt.svc.View().Pick(now, s.tried)
		if b == nil && s.late != nil && s.late.waiting() {
			return // it's no TCP: the client gets an answer that it can read
		}
		if b == nil {
			stats.noBackend++
			s.failed = true
			s.endedBy(calls.Agent, "no usable backend")
			s.do(s.m.NoBackend())
			return
		}
		stats.picks++
		if len(s.tried) > 0 {
			stats.retried[becauseConnect]++
		}
		s.attempts++
		s.tried = append(s.tried, b.State)
		s.state, s.addr, s.picked = b.State, b.Addr, now
		s.state.Begin()
		c, err := s.w.loop.DialPatient(b.Addr, s.opts.connect, &s.ends[tcp.Backend])
		if err == nil {
			s.ends[tcp.Backend].conn = c
			return
		}
		// This host could not try, which is nothing against the backend. Another one may be reached: local ports run out per destination.
		s.w.proxy.log.Debug("no connection could be begun", "service", s.rt.name, "backend", b.Addr, "cause", err)
		s.finish(health.Neutral, "")
	}
}

// Connected begins the relay.
func (e *end) Connected() {
	s := e.s
	s.up = true
	s.tried = nil
	now := s.w.loop.Now()
	s.connected = now.Sub(s.began)
	s.state.Connected(now)
	s.account = s.w.ledger.account(s.rt.svc, s.state, s.addr)
	s.w.ledger.up(now, s.account, protoTCP)
	s.look(s.rt.svc.View())
	s.do(s.m.Connected())
}

// Readable passes bytes on.
func (e *end) Readable(b []byte) int {
	s := e.s
	if s.m.Draining() {
		return len(b) // both directions have ended
	}
	if s.late != nil && !s.late.isTCP(e.side, b) {
		return 0
	}
	to := s.ends[e.side.Other()].conn
	to.Out = append(to.Out, b...)
	to.Flush()
	s.noteFirst(e.side)
	s.do(s.m.Received(e.side, len(b), to.Unwritten()))
	return len(b)
}

// party is whose end it is.
func (e *end) party() calls.Party {
	if e.side == tcp.Backend {
		return calls.Backend
	}
	return calls.Client
}

func (e *end) EOF() {
	if e.side == tcp.Backend && e.s.state != nil {
		e.s.state.Goodbye()
	}
	e.s.endedBy(e.party(), "")
	e.s.blame([...]closeCause{tcp.Client: closedClient, tcp.Backend: closedFIN}[e.side], "")
	if s := e.s; s.late != nil {
		s.late.ends(e.side)
	}
	e.s.do(e.s.m.EOF(e.side, e.s.ends[e.side.Other()].conn.Unwritten()))
}

func (e *end) Written(uint64) {
	e.s.noteFirst(e.side.Other())
	e.s.do(e.s.m.Written(e.side, e.conn.Unwritten()))
}

// Closed ends a dial or the relay.
func (e *end) Closed(err error) {
	s := e.s
	now := s.w.loop.Now()
	switch {
	case e.side == tcp.Client, err == loop.ErrEnded:
		if err == loop.ErrEnded {
			s.endedBy(calls.Agent, "the agent stopped")
			s.blame(closedStop, "")
		} else {
			s.endedBy(calls.Client, err.Error())
			s.blame(closedClient, "")
		}
		s.finish(health.Neutral, "")
		s.do(s.m.Lost(e.side))
	case !s.up:
		cause := err.Error()
		s.state.ConnectFailed(now, cause)
		s.w.ledger.refused(now, s.w.ledger.account(s.rt.svc, s.state, s.addr), cause)
		s.finish(health.Neutral, "")
		s.connect()
	default:
		s.blame(closedError, broken(err.Error()))
		// A reset after an answer is how many servers end a connection; one before any byte, or a peer that vanished, is a failure.
		if s.first > 0 && err != unix.ETIMEDOUT {
			s.endedBy(calls.Backend, "")
			s.finish(health.Success, "")
		} else {
			s.failed = true
			s.endedBy(calls.Backend, err.Error())
			s.finish(health.Failure, err.Error())
		}
		s.do(s.m.Lost(e.side))
	}
}

// noteFirst notes the backend's first byte.
func (s *session) noteFirst(from tcp.Side) {
	if from == tcp.Backend && s.first == 0 && s.ends[tcp.Backend].conn.Received() > 0 {
		s.first = max(1, s.w.loop.Now().Sub(s.picked))
		if s.state != nil {
			s.state.Answered() // 2.7: a trial doesn't wait for the end of the connection
		}
	}
}

// do carries out what the machine decided.
func (s *session) do(do tcp.Do) {
	client, backend := s.ends[tcp.Client].conn, s.ends[tcp.Backend].conn
	if do == 0 {
		return
	}
	if do&tcp.PauseClient != 0 {
		client.Pause()
	}
	if do&tcp.PauseBackend != 0 {
		backend.Pause()
	}
	if do&tcp.ResumeClient != 0 {
		client.Resume()
	}
	if do&tcp.ResumeBackend != 0 {
		backend.Resume()
	}
	if do&tcp.SpliceClient != 0 {
		client.Splice(backend)
	}
	if do&tcp.SpliceBackend != 0 {
		backend.Splice(client)
	}
	if do&tcp.Close != 0 {
		do &^= tcp.FinClient | tcp.FinBackend // closing sends it
	}
	if do&tcp.FinClient != 0 {
		client.CloseWrite()
	}
	if do&tcp.FinBackend != 0 {
		backend.CloseWrite()
	}
	if do&tcp.LingerTime != 0 {
		s.timer.F = func() { s.do(s.m.Expired()) }
		s.w.loop.Arm(&s.timer, tcp.Linger)
	}
	if do&(tcp.Close|tcp.Reset) != 0 {
		s.end(do&tcp.Reset != 0)
	}
}

// blame notes what ended the backend's connection: what came first.
func (s *session) blame(why closeCause, detail string) {
	if !s.blamed {
		s.why, s.detail, s.blamed = why, detail, true
	}
}

// gone notes the end of the backend's connection.
func (s *session) gone() {
	if s.account != nil {
		now := s.w.loop.Now()
		s.w.ledger.down(s.account, connEnd{at: now, protocol: protoTCP, lasted: now.Sub(s.picked), why: s.why, detail: s.detail})
		s.account = nil
	}
}

// end closes both connections and settles the accounts.
func (s *session) end(reset bool) {
	if s.over {
		return
	}
	s.over = true
	w := s.w
	w.loop.Disarm(&s.timer)
	s.gone()
	if s.late != nil {
		s.late.settle()
	}
	var in, out uint64
	client, backend := s.ends[tcp.Client].conn, s.ends[tcp.Backend].conn
	if s.up {
		in, out = client.Received(), backend.Received()
	}
	for _, c := range []*loop.Conn{client, backend} {
		switch {
		case c == nil:
		case reset:
			c.Abort()
		default:
			c.Close()
		}
	}
	if s.first > 0 {
		s.finish(health.Success, "")
	} else {
		s.finish(health.Neutral, "") // an end without a byte is right for one protocol and wrong for the next
	}
	s.tell(in, out)
	w.statsOf(s.rt).tcp(!s.failed, in, out, w.loop.Now().Sub(s.began))
	s.forget()
	w.clientDone(s.rt, protoTCP)
}

// forget takes the session out of its worker's.
func (s *session) forget() {
	all := s.w.sessions[s.rt.svc]
	delete(all, s)
	if len(all) == 0 {
		delete(s.w.sessions, s.rt.svc)
	}
}

// finish ends the attempt at the current backend, once.
func (s *session) finish(r health.Result, cause string) {
	if s.state == nil {
		return
	}
	// The time to the first byte says nothing in general: who speaks first, and when, is the protocol's (3.4).
	s.state.End(s.w.loop.Now(), r, s.first, false, cause)
	s.state = nil
}

// tcpViewChanged looks at every connection of a service that changed.
func (w *worker) tcpViewChanged(svc *table.Service) {
	v := svc.View()
	for s := range w.sessions[svc] {
		if s.up {
			s.look(v)
		}
	}
}

// look begins the drain if the backend is gone or going, and takes it back if it is there again (4.7).
func (s *session) look(v *table.View) {
	leaving := v.Leaving(s.addr)
	switch {
	case leaving && !s.timer.Armed():
		s.timer.F = s.drained
		s.w.loop.Arm(&s.timer, s.rt.options().drain)
	case !leaving && s.timer.Armed() && !s.m.Draining():
		s.w.loop.Disarm(&s.timer)
	}
}

// drained ends the connection: its backend left, and its time is over.
func (s *session) drained() {
	v := s.rt.svc.View()
	b := v.Find(s.addr)
	s.blame(closedRemoved, leaving(v, b))
	s.endedBy(calls.Agent, "backend removed, and the time of its drain is over")
	s.do(s.m.Drained())
}

// drainTCP has nothing to tell anybody: TCP knows no goodbye but the end. Run gives the connections their time.
func (w *worker) drainTCP() {}

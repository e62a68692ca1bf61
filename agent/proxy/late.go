package proxy

import (
	"github.com/lbagent/lbagent/agent/proxy/loop"
	"github.com/lbagent/lbagent/agent/proxy/tcp"
	"github.com/lbagent/lbagent/health"
)

// late stands beside a session that is one only because its client was silent for 200 ms (4.9): until one side speaks, the client may just be slow, for want of
// CPU time here or there. If it is the client, and it begins like HTTP, the connection goes to whom it should have gone in the first place; its backend, which
// has seen a connection and no byte, isn't judged by that.
type late struct {
	s     *session
	timer loop.Timer // of what began like HTTP
}

func newLate(s *session) *late {
	l := &late{s: s}
	l.timer.F = l.pass
	return l
}

// settle ends the doubt, and counts what came of it.
func (l *late) settle() {
	l.s.late = nil
	l.s.w.loop.Disarm(&l.timer)
	stats := l.s.w.statsOf(l.s.rt)
	stats.sniffed[protoTCP]++
	stats.silent++
}

// isTCP looks at the first bytes of either side, and reports whether they are to be relayed as such; else they are another's, or wait for more.
func (l *late) isTCP(from tcp.Side, b []byte) bool {
	if from == tcp.Backend || l.answered() {
		l.pass()
		return true
	}
	switch k, known := classify(b); {
	case !known:
		if !l.timer.Armed() {
			l.s.w.loop.Arm(&l.timer, sniffPatience)
		}
		return false
	case k != protoTCP:
		l.handOver(k)
		return false
	}
	l.settle()
	return true
}

// answered reports whether the backend has spoken: who waited for that isn't late.
func (l *late) answered() bool {
	b := l.s.ends[tcp.Backend].conn
	return b.Received() > 0 || b.Waiting()
}

// pass takes what began like HTTP for what it is.
func (l *late) pass() {
	client := l.s.ends[tcp.Client].conn
	l.settle()
	client.Resume() // what waited comes again
}

// ends: a side has ended. What began like HTTP is passed on before that is.
func (l *late) ends(side tcp.Side) {
	client, backend := l.s.ends[tcp.Client].conn, l.s.ends[tcp.Backend].conn
	l.settle()
	if side == tcp.Client && len(client.Kept()) > 0 {
		backend.Out = append(backend.Out, client.Kept()...)
		backend.Flush()
		l.s.do(l.s.m.Received(tcp.Client, len(client.Kept()), backend.Unwritten()))
	} else {
		client.Resume()
	}
}

// waiting hands the connection over if the client has said in the meantime that it speaks HTTP; no backend is connected.
func (l *late) waiting() bool {
	var b [len(preface)]byte
	k, known := classify(b[:l.s.ends[tcp.Client].conn.Peek(b[:])])
	if !known || k == protoTCP {
		return false
	}
	l.handOver(k)
	return true
}

// handOver ends the session and gives its client to who speaks k.
func (l *late) handOver(k protocol) {
	s := l.s
	w := s.w
	w.loop.Disarm(&l.timer)
	w.loop.Disarm(&s.timer)
	s.late, s.over = nil, true
	s.finish(health.Neutral, "")
	s.blame(closedCall, "its client turned out to speak "+k.words())
	s.gone()
	if s.up {
		s.ends[tcp.Backend].conn.Close()
	}
	s.forget()
	stats := w.statsOf(s.rt)
	stats.sniffed[k]++
	stats.active[protoTCP]--
	w.load.Add(-1)
	fd, received := s.ends[tcp.Client].conn.Detach()
	w.assign(s.rt, k, fd, received, false)
}

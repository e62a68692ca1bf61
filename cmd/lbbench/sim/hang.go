package sim

import (
	"time"

	"github.com/lbagent/lbagent/health"
)

const (
	// hangAsked is after how much silence a connection is asked by PING, and hangFound when it's known to be dead (2.11).
	hangAsked = time.Second
	hangFound = 2 * time.Second

	// connectTime is how long a connect may take, SETTINGS included (timeout.connect).
	connectTime = time.Second
)

// link is the connection of one host to one backend. Callers that only ask have their own, and nobody asks those by PING.
type link struct {
	up   bool
	dead time.Duration // when it will be known that nothing answers on it; 0 = nobody has begun to wait
	dial *dial         // under way, to a backend that stands still
}

// dial is a connect, and the calls that wait for it.
type dial struct{ waiting []*call }

func (w *world) link(h *host, i int) *link { return &w.links[h.index*len(w.backends)+i] }

// hang is an attempt at a backend that stands still; true if it waits for a connect and is planned no further.
func (c *call) hang() (waits bool) {
	w, l := c.w, c.w.link(c.host, c.to)
	c.result = health.Timeout
	if !c.host.chooser.carries() {
		return false
	}
	if l.up && (l.dead == 0 || w.clock.now < l.dead-hangFound+hangAsked) {
		c.wait(l)
		return false
	}
	// There is no connection, or it has been asked by PING and gets no new calls.
	c.result = health.Neutral // the backend never has it
	w.backends[c.to].hold(c)
	c.plan(c.deadline)
	if l.dial == nil {
		h, i := c.host, c.to
		l.dial = &dial{}
		w.clock.after(connectTime, func() { w.dialed(h, i, l) })
	}
	l.dial.waiting = append(l.dial.waiting, c)
	return true
}

// wait has the connection that c hangs on found dead in a while.
func (c *call) wait(l *link) {
	if l.dead != 0 {
		return
	}
	w, h, i := c.w, c.host, c.to
	l.dead = w.clock.now + hangFound
	at := l.dead
	w.clock.plan(at, deed(func() {
		if l.dead != at {
			return
		}
		if l.dead = 0; w.backends[i].hangs {
			l.up = false
			w.broken(h, i)
		}
	}))
}

// dialed is the end of a connect that began at a backend that stood still.
func (w *world) dialed(h *host, i int, l *link) {
	d, b := l.dial, w.backends[i]
	if d == nil { // its process died meanwhile
		return
	}
	l.dial = nil
	told := false
	for _, c := range d.waiting {
		switch {
		case c.over || c.to != i:
			continue
		case !b.hangs && !b.refuses: // it was answered at last
			l.up = true
			c.result = health.Success
			c.plan(c.serve(b))
			continue
		}
		b.release(c)
		tell := h.chooser.unanswered // of one failed connect, whatever waited for it
		if told {
			tell = func(c *call) { h.chooser.ended(c, health.Neutral, 0) }
		}
		told = true
		c.unreached(tell)
	}
}

// broken ends the calls of a host on a connection to backend i that nothing is answered on.
func (w *world) broken(h *host, i int) {
	b, told := w.backends[i], false
	for k := len(b.running) - 1; k >= 0; k-- {
		c := b.running[k]
		if c.host != h || c.result != health.Timeout { // it waits for a connect
			continue
		}
		if !told {
			told = true
			h.chooser.lost(i)
		}
		b.release(c) // the last one takes its place, and has been looked at
		c.end(health.Neutral)
	}
	h.chooser.closed(i)
}

// stop has backend i stand still, and resume go on where it was.
func (w *world) stop(i int) {
	for _, c := range w.backends[i].running {
		c.result = health.Timeout
		if c.plan(c.deadline); c.host.chooser.carries() {
			c.wait(w.link(c.host, i))
		}
	}
}

func (w *world) resume(i int) {
	for _, c := range w.backends[i].running {
		if c.result == health.Timeout {
			c.result = health.Success
			c.plan(min(c.deadline, w.clock.now+wireTime+c.work))
		}
	}
}

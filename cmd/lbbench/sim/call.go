package sim

import (
	"slices"
	"time"

	"github.com/lbagent/lbagent/health"
)

// call is one call of a host's clients, with all of its attempts: what agent/proxy does with one, as far as it concerns who gets it (4.1).
type call struct {
	w    *world
	host *host

	began    time.Duration
	work     time.Duration // what a good backend needs for it
	deadline time.Duration // of the caller
	done     func()        // of a caller who makes one call after the other

	tried  []int           // backends that it has been at
	states []*health.State // theirs, for the agent

	// The attempt that is under way.
	to     int
	picked time.Duration
	due    time.Duration // its end, as it is planned
	result health.Result
	refuse bool
	slot   int // among the backend's running calls
	over   bool
}

// dispatch sends the call to a backend, if there is one for it.
func (c *call) dispatch() {
	w := c.w
	c.to = c.host.chooser.pick(c)
	if c.to < 0 {
		w.meter.callEnded(c, false)
		c.finish()
		return
	}
	b := w.backends[c.to]
	c.picked = w.clock.now
	w.meter.attempt(c)
	at := w.clock.now + wireTime
	c.refuse, c.result = b.refuses, health.Success
	if !c.refuse && b.fail > 0 && w.chance.Float64() < b.fail {
		c.result = health.Failure
	}
	switch {
	case c.refuse:
	case b.hangs:
		if c.hang() {
			return
		}
		at = c.deadline
	case c.result == health.Failure && b.fast:
		at += fastFailure
	default:
		w.link(c.host, c.to).up = true
		at = c.serve(b)
	}
	b.hold(c)
	c.plan(at)
}

// plan has the attempt end at that time, and at no other.
func (c *call) plan(at time.Duration) {
	c.due = at
	c.w.clock.plan(at, c)
}

// serve has the call wait for a server, and served; it returns when the caller hears of it.
func (c *call) serve(b *backend) time.Duration {
	done, ok := b.serve(c.w.clock.now, c.work)
	if !ok {
		c.result = health.Failure
		return c.w.clock.now + wireTime + fastFailure
	}
	if done += wireTime; done > c.deadline {
		c.result = health.Timeout
		return c.deadline
	}
	return done
}

// act is the end of the attempt.
func (c *call) act() {
	if c.over || c.w.clock.now != c.due { // its backend died before, or stood still
		return
	}
	c.w.backends[c.to].release(c)
	switch {
	case !c.refuse:
		c.end(c.result)
	case c.host.chooser.carries():
		c.unreached(c.host.chooser.refused)
	default:
		c.end(health.Failure)
	}
}

// unreached is a connect that failed, as the chooser is told: no retry, the call goes on (4.1).
func (c *call) unreached(tell func(*call)) {
	c.w.meter.attemptFailed(c)
	c.tried = append(c.tried, c.to)
	tell(c)
	c.dispatch()
}

// end ends the attempt, and the call with it.
func (c *call) end(result health.Result) {
	if result != health.Success {
		c.w.meter.attemptFailed(c)
	}
	c.host.chooser.ended(c, result, c.w.clock.now-c.picked)
	c.w.meter.callEnded(c, result == health.Success)
	c.finish()
}

func (c *call) finish() {
	c.over = true
	if c.done != nil {
		c.done()
	}
}

// kill ends the process of a backend: its running calls fail with one lost connection per host.
func (w *world) kill(i int) {
	b := w.backends[i]
	running := slices.Clone(b.running)
	b.running = b.running[:0]
	var told []*host
	for _, c := range running {
		if !slices.Contains(told, c.host) {
			told = append(told, c.host)
			c.host.chooser.lost(i)
		}
		c.end(health.Neutral) // what hung on a lost connection says nothing more
	}
	for _, h := range w.hosts {
		*w.link(h, i) = link{}
		h.chooser.closed(i)
	}
}

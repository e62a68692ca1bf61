package health

import "time"

// putOffQuiet is how often the log says that probes can't be run.
const putOffQuiet = time.Minute

// result is how a probe of t ended; or, unasked, what came from its watch between two probes.
type result struct {
	t *target
	outcome

	unasked bool
	lost    bool          // the watch ended
	lived   time.Duration // which it was there before
}

// probed takes the end of a probe.
func (c *core) probed(now time.Time, r result) {
	t := r.t
	if r.unasked {
		c.heard(now, r)
		return
	}
	c.running--
	t.probing = false
	c.stats.results[r.kind].Add(1)
	c.stats.durations.add(now.Sub(t.probedAt), DurationBounds())
	if r.kind != probePassed && r.kind != probeLocal {
		c.stats.probeFailures.Add(1)
	}
	if t.gone || !t.probes() {
		return
	}
	switch {
	case r.kind == probePassed && r.kept:
		t.reached = t.state.at(now)
		c.passed(now, t)
	case r.kind == probePassed:
		c.probePassed(now, t)
	case r.kind == probeLocal:
		c.stats.probesPutOff.Add(1)
		if c.putOffAt.IsZero() || now.Sub(c.putOffAt) >= putOffQuiet {
			c.putOffAt = now
			c.log.Warn("this host can't run probes", "group", t.group.name, "backend", t.addr, "cause", r.cause)
		}
	default:
		c.probeFailed(now, t, r.outcome)
	}
	c.judgeAndPlan(now, t, true)
}

// heard takes what came from a watch between two probes.
func (c *core) heard(now time.Time, r result) {
	t := r.t
	if t.gone || !t.probes() {
		return
	}
	switch {
	case r.lost:
		t.state.Goodbye()
		if delay := t.delay(now); r.lived > 2*delay && !t.probeAt.IsZero() {
			// Whoever watches that backend has lost it now, too: they don't come back all at once.
			t.probeAt = earlier(t.probeAt, now.Add(time.Duration(float64(min(soon, delay))*c.random())))
			c.due.set(t)
		}
		return
	case r.kind == probePassed:
		t.reached = t.state.at(now)
		c.passed(now, t)
	default:
		c.probeFailed(now, t, r.outcome)
	}
	c.judgeAndPlan(now, t, true)
}

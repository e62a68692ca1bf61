package health

import "time"

const (
	probeJitter = 0.2              // 2.1: each interval is stretched or shrunk by up to this
	soon        = time.Second      // 2.2: how often a backend that is out is probed ...
	soonFor     = 30 * time.Second // ... in this time after it went out

	// Routine probes are due on a grid, the finer of these two, so that one wake-up starts many: the first probe of a wake-up costs several times what
	// each further one does. Higher makes bursts, lower costs processor time.
	gridMost  = paceTime
	gridShare = 20 // of an interval
)

// delay is the time between two probes of t now.
func (t *target) delay(now time.Time) time.Duration {
	interval := t.group.options.Interval
	if t.orphan.is.Load() || t.accused && t.fails > 0 {
		return min(soon, interval)
	}
	for _, p := range []*Part{t.down, t.unreachable} {
		if p != nil && now.Sub(p.Since) < soonFor {
			return min(soon, interval)
		}
	}
	return interval
}

// plan sets the time of t's next probe.
func (c *core) plan(now time.Time, t *target) {
	t.probeAt = time.Time{}
	if t.probed() && !t.probing && !t.waits {
		t.probeAt = c.onGrid(now, t, time.Duration(float64(t.delay(now))*(1-probeJitter+2*probeJitter*c.random())))
	}
	if t.orphan.suspected.Load() {
		c.planNow(now, t, orphanGap)
	}
}

// planFirst sets the time of t's first probe: at once if it is out, or another life of a known address; else somewhere in an interval (2.1).
func (c *core) planFirst(now time.Time, t *target) {
	t.probeAt = time.Time{}
	if !t.probed() || t.probing || t.waits {
		return
	}
	t.probeAt = now
	if !t.restarted && t.down == nil && t.unreachable == nil && t.ejected == nil {
		t.probeAt = c.onGrid(now, t, time.Duration(float64(t.delay(now))*c.random()))
	}
}

// onGrid is d from now, and for a probe of which nothing new is expected the next point of the grid.
func (c *core) onGrid(now time.Time, t *target, d time.Duration) time.Time {
	if t.down != nil || t.unreachable != nil || t.ejected != nil || t.fails > 0 || t.restarted || t.orphan.is.Load() {
		return now.Add(d)
	}
	if c.gridFrom.IsZero() {
		c.gridFrom = now
	}
	grid := min(gridMost, t.group.options.Interval/gridShare)
	since := now.Add(d).Sub(c.gridFrom)
	return c.gridFrom.Add((since + grid - 1) / grid * grid)
}

// planSooner brings the next probe of a backend that just went out forward: to where plan would put it now, or into the row of the urgent ones.
func (c *core) planSooner(now time.Time, t *target) {
	if t.waits {
		c.hurry(t, now) // its place among the routine ones is passed over
		return
	}
	if t.probeAt.IsZero() {
		return
	}
	planned := t.probeAt
	if c.plan(now, t); planned.Before(t.probeAt) {
		t.probeAt = planned
	}
}

// probeOptions are how t is probed: a tcp probe waits for SETTINGS where calls have shown that the backend speaks HTTP/2, since a process that is stopped
// still accepts (2.1).
func (t *target) probeOptions() Options {
	o := t.group.options
	o.HTTP2 = o.HTTP2 || t.http2.Load()
	if !o.probes() {
		o.Probe = ProbeTCP // an orphan's
	}
	return o
}

package health

import (
	"net/netip"
	"time"
)

const (
	probeJitter = 0.2              // 2.1: each interval is stretched or shrunk by up to this
	soon        = time.Second      // 2.2: how often a backend that is out is probed ...
	soonFor     = 30 * time.Second // ... in this time after it went out

	// At most 200 probes start in any second (2.3), and no more than a quarter of them at once.
	paceBurst = 50
	paceTime  = 250 * time.Millisecond

	// Routine probes are due on a grid, the finer of these two, so that one wake-up starts many: the first probe of a wake-up costs several times what
	// each further one does. Higher makes bursts, lower costs processor time.
	gridMost  = paceTime
	gridShare = 20 // of an interval

	putOffQuiet = time.Minute // the log says at most once in this time that probes can't be run

	probesAtOnce = 256 // bounds goroutines and sockets; probes that all time out at the highest rate need 200
)

// probeJob is one probe to run.
type probeJob struct {
	t       *target
	options Options
	addr    netip.AddrPort
}

// result is how a probe of t ended; or, unasked, what came from its watch between two probes.
type result struct {
	t *target
	outcome

	unasked bool
	lost    bool          // the watch ended
	lived   time.Duration // which it was there before
}

// waiting is a probe that waits for the pace; one that got into the urgent row later waits in both.
type waiting struct {
	t   *target
	due time.Time
}

// tick does what is due and returns the probes to start, until the next call.
func (c *core) tick(now time.Time) []probeJob {
	c.roll(now)
	for {
		t := c.due.first()
		if t == nil || t.dueAt.After(now) {
			break
		}
		c.fire(now, t)
	}
	if c.suspicion.on && now.Sub(c.suspicion.looked) >= trustEvery {
		c.look(now)
	}
	jobs := c.jobs[:0]
	for c.running < probesAtOnce {
		row := c.row()
		if row == nil {
			break
		}
		t := (*row)[0].t
		if t.waits && !t.gone && t.probed() {
			if !c.pace.take(c.paced(now)) {
				break
			}
			t.probing = true
			t.orphan.probing()
			t.probedAt = now
			c.running++
			c.starts++
			c.stats.probes.Add(1)
			c.stats.lateness.add(now.Sub((*row)[0].due), LatenessBounds())
			jobs = append(jobs, probeJob{t, t.probeOptions(), t.addr})
		}
		t.waits = false
		if row == &c.urgent {
			t.hurries = false
		}
		(*row)[0] = waiting{}
		*row = (*row)[1:]
	}
	c.jobs = jobs
	c.stats.running.Store(int64(c.running))
	c.stats.waiting.Store(int64(len(c.urgent) + len(c.routine)))
	return jobs
}

// next is when tick has to be called again; false if nothing is pending.
func (c *core) next(now time.Time) (time.Time, bool) {
	var at time.Time
	if t := c.due.first(); t != nil {
		at = t.dueAt
	}
	if len(c.urgent)+len(c.routine) > 0 && c.running < probesAtOnce {
		at = earlier(at, latest(now, c.pace.free()))
	}
	at = earlier(at, c.rollAt)
	if c.suspicion.on {
		at = earlier(at, c.suspicion.looked.Add(trustEvery))
	}
	return at, !at.IsZero()
}

// fire does what is due for t.
func (c *core) fire(now time.Time, t *target) {
	if !t.trialEnd.IsZero() && !t.trialEnd.After(now) {
		c.trialTimedOut(now, t)
	}
	if !t.hold.IsZero() && !t.holdOver && !t.hold.After(now) {
		c.offerTrial(now, t)
	}
	if !t.probeAt.IsZero() && !t.probeAt.After(now) {
		if !t.orphan.suspected.Load() && t.state.goodWithin(now, t.delay(now)) {
			c.stats.probesSpared.Add(1)
			c.passed(now, t)
			c.judgeAndPlan(now, t, true)
		} else {
			c.enqueue(now, t)
		}
	}
	c.due.set(t)
}

// row is where the next probe to start waits, nil if none does. What is urgent goes first, but can't keep the others waiting for good.
func (c *core) row() *[]waiting {
	const routineTurn = 4
	if len(c.routine) > 0 && (len(c.urgent) == 0 || c.starts%routineTurn == 0) {
		return &c.routine
	}
	if len(c.urgent) > 0 {
		return &c.urgent
	}
	return nil
}

// enqueue puts t's next probe among those that start as the pace allows.
func (c *core) enqueue(now time.Time, t *target) {
	due := t.probeAt
	if due.IsZero() {
		due = now // a trial
	}
	t.probeAt = time.Time{}
	switch {
	case t.waits || t.probing:
		return
	case t.down != nil || t.unreachable != nil || t.ejected != nil || t.fails > 0 || t.restarted || t.orphan.is.Load():
		c.hurry(t, due)
	default:
		c.routine = append(c.routine, waiting{t, due})
	}
	t.waits = true
}

// hurry puts t into the row of the urgent ones, once.
func (c *core) hurry(t *target, due time.Time) {
	if !t.hurries {
		t.hurries = true
		c.urgent = append(c.urgent, waiting{t, due})
	}
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

// paced is now as the pace counts: in steps of wakeGrain from where the grid begins. A wake-up is late by some of that, once more and once less, and what began at one point of the grid has
// to make room for as many at the one that is paceTime later; else 1,000 backends would have their probes in twenty wake-ups a second instead of four.
func (c *core) paced(now time.Time) time.Time {
	if c.gridFrom.IsZero() {
		return now
	}
	return now.Add(-(now.Sub(c.gridFrom) % wakeGrain))
}

// pace lets at most paceBurst things happen in any paceTime: it holds when the last of them did.
type pace struct {
	last [paceBurst]time.Time
	next int // the oldest
}

func (p *pace) take(now time.Time) bool {
	if now.Before(p.free()) {
		return false
	}
	p.last[p.next] = now
	p.next = (p.next + 1) % paceBurst
	return true
}

// free is from when on take is true.
func (p *pace) free() time.Time {
	if oldest := p.last[p.next]; !oldest.IsZero() {
		return oldest.Add(paceTime)
	}
	return time.Time{}
}

// earlier is the earlier of two times, of which zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// schedule is a heap of targets by dueAt.
type schedule struct{ heap []*target }

func (s *schedule) first() *target {
	if len(s.heap) == 0 {
		return nil
	}
	return s.heap[0]
}

// set puts t where its times say: the earliest of probe, end of the hold-down, end of the trial.
func (s *schedule) set(t *target) {
	at := earlier(t.probeAt, t.trialEnd)
	if !t.holdOver {
		at = earlier(at, t.hold)
	}
	t.dueAt = at
	switch {
	case at.IsZero() || t.gone:
		s.remove(t)
	case t.slot < 0:
		t.slot = len(s.heap)
		s.heap = append(s.heap, t)
		s.up(t.slot)
	default:
		s.down(s.up(t.slot))
	}
}

func (s *schedule) remove(t *target) {
	i := t.slot
	if i < 0 {
		return
	}
	last := len(s.heap) - 1
	s.swap(i, last)
	s.heap[last] = nil
	s.heap = s.heap[:last]
	t.slot = -1
	if i < last {
		s.down(s.up(i))
	}
}

func (s *schedule) up(i int) int {
	for i > 0 {
		parent := (i - 1) / 2
		if !s.heap[i].dueAt.Before(s.heap[parent].dueAt) {
			break
		}
		s.swap(i, parent)
		i = parent
	}
	return i
}

func (s *schedule) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(s.heap); child++ {
			if s.heap[child].dueAt.Before(s.heap[least].dueAt) {
				least = child
			}
		}
		if least == i {
			return
		}
		s.swap(i, least)
		i = least
	}
}

func (s *schedule) swap(i, j int) {
	s.heap[i], s.heap[j] = s.heap[j], s.heap[i]
	s.heap[i].slot, s.heap[j].slot = i, j
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

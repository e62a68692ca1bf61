package health

import (
	"net/netip"
	"time"
)

// probesAtOnce bounds goroutines and sockets; probes that all time out at the highest rate need 200.
const probesAtOnce = 256

// probeJob is one probe to run.
type probeJob struct {
	t       *target
	options Options
	addr    netip.AddrPort
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

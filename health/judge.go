package health

import (
	"fmt"
	"math"
	"time"
)

const (
	trialTime   = time.Second   // 2.7: a trial that took longer has failed
	trialLate   = 2 * wakeGrain // but for one that is found so late: this process was stopped, and the backend has not had its second
	quietMinute = time.Minute   // 2.7: n falls by one in this time without ejection

	// A backend that is unreachable, and that nothing probes, gets calls on trial as an ejected one does, in the times of 4.10.
	retryBase = time.Second
	retryMax  = 10 * time.Second
)

// judge looks at the streaks and the trial of t after one of them crossed a threshold, or anything else changed, and settles it.
func (c *core) judge(now time.Time, t *target) { c.judgeAndPlan(now, t, false) }

// judgeAndPlan is judge, after a probe whose end makes the next one's time depend on the verdict.
func (c *core) judgeAndPlan(now time.Time, t *target, plan bool) {
	if t.gone {
		return
	}
	if t.orphan.suspected.Load() {
		c.planNow(now, t, orphanGap)
	}
	if t.stirred.Load() {
		c.startRolling(now, t)
	}
	c.judgeTrial(now, t)
	k := streaks(t.state.streaks.Load())
	if k.unreachable() && t.unreachable == nil {
		c.suspects(now)                     // 2.10
		k = streaks(t.state.streaks.Load()) // the end of a suspicion forgets them
	}
	if c.suspicion.cut && t.withheld && !k.unreachable() {
		c.suspects(now) // it was reached: the cut is over
	}
	switch held := k.unreachable(); {
	case held && t.unreachable == nil && c.suspicion.cut:
		c.withhold(t)
	case held && t.unreachable == nil:
		cause := fmt.Sprintf("%d failed connects in a row", k.connects()+k.probes())
		t.unreachable = &Part{Kind: Unreachable, Since: now, Cause: cause}
		t.unreachable.Last, t.unreachable.At = t.lastSeen(k.connects() > 0)
		c.planSooner(now, t)
	case !held && t.unreachable != nil:
		t.unreachable = nil
		if t.window != nil {
			t.window.restart(now, t.state.totals())
		}
	}
	wasHeld := t.heldBack
	f := c.judgeEjection(now, t, k)
	c.judgeHold(now, t)
	if plan {
		c.plan(now, t)
	}
	c.judgeDoubt(now, t, k)
	wasUp, wasEjected := t.countsUp, t.countsEjected
	c.settle(now, t)
	if t.heldBack && !t.listed {
		t.listed = true
		t.group.held = append(t.group.held, t)
	}
	if t.heldBack && !wasHeld {
		c.stats.heldBack.Add(1)
		c.log.Debug("ejection held back", "group", t.group.name, "backend", t.addr, "cause", f.cause, "ejected", t.group.ejected, "of", t.group.counted)
	}
	if wasEjected && !t.countsEjected || !wasUp && t.countsUp {
		c.reconsider(now, t.group) // there may be room now
	}
}

// judgeTrial takes the end of a trial that a call was, or its beginning.
func (c *core) judgeTrial(now time.Time, t *target) {
	switch t.state.trial.Load() {
	case trialClaimed:
		if t.trialEnd.IsZero() {
			t.trialEnd = now.Add(trialTime)
		}
		return
	case trialPassed:
		t.state.trial.Store(trialNone)
		t.state.forgive()
		t.acquitted = true
	case trialFailed:
		t.state.trial.Store(trialNone)
		c.trialFailed(now, t)
	}
	t.trialEnd = time.Time{}
}

// room reports whether t may be ejected: max_percent is counted as if it were out already, and the last one that is usable stays (2.6).
func (g *group) room(t *target) bool {
	others := g.up
	if t.countsUp {
		others--
	}
	return others > 0 && (g.ejected+1)*100 <= g.options.MaxPercent*g.counted && !g.strained()
}

// strained reports whether there would be panic with one less. Panic ignores ejections (2.9), so none begins that would bring it, or in it: of few that have to carry all, one that is
// drowned looks like one that fails, and would be held down just when the others come back.
func (g *group) strained() bool { return max(0, g.up-1)*100 < g.options.PanicPercent*g.counted }

// relieve forgets what the windows hold when so many are up again that ejections begin: it was the flood.
func (c *core) relieve(now time.Time, g *group) {
	was := g.flooded
	if g.flooded = g.strained(); !was || g.flooded {
		return
	}
	for _, t := range g.targets {
		if t.window != nil {
			t.window.restart(now, t.state.totals())
		}
	}
}

// reconsider ejects backends that the cap held back before, as far as there is room now.
func (c *core) reconsider(now time.Time, g *group) {
	if len(g.held) == 0 {
		return
	}
	held := g.held
	g.held = nil
	for _, t := range held {
		t.listed = false
		switch {
		case t.gone || !t.heldBack:
		case !g.room(t):
			t.listed = true
			g.held = append(g.held, t)
		default:
			t.heldBack = false
			c.judge(now, t)
		}
	}
}

// judgeHold ends the hold-down when what it belonged to is over, and begins one for a backend that only a call can find reachable again.
func (c *core) judgeHold(now time.Time, t *target) {
	needed := t.ejected != nil || t.unreachable != nil && !t.probes()
	switch {
	case needed && t.hold.IsZero():
		c.holdDown(now, t)
	case !needed && !t.hold.IsZero():
		t.hold, t.holdOver, t.trialEnd = time.Time{}, false, time.Time{}
		t.retries = 0
		t.state.trial.Store(trialNone)
	}
}

// holdDown begins the next, longer hold-down.
func (c *core) holdDown(now time.Time, t *target) {
	base, most, n := retryBase, retryMax, &t.retries
	if t.ejected != nil { // 2.7
		base, most, n = t.group.options.EjectBase, t.group.options.EjectMax, &t.rounds
	}
	d := math.Ldexp(float64(base), *n)
	if d < float64(most) {
		*n++ // no further than the maximum, or quiet minutes would have to undo what made no difference
	}
	t.hold = now.Add(time.Duration(min(d*(0.5+c.random()), float64(most))))
	t.holdOver = false
}

// offerTrial is the end of a hold-down: a probe decides at once, or the next call that claims it.
func (c *core) offerTrial(now time.Time, t *target) {
	t.holdOver = true
	if t.probes() {
		c.enqueue(now, t)
		return
	}
	if t.unreachable == nil && t.ejected.Observed {
		c.acquit(t) // calls go there all the time: the next that fails is as good as a trial
		c.judge(now, t)
		return
	}
	t.state.trial.Store(trialReady)
}

// trialFailed begins the next hold-down after a trial.
func (c *core) trialFailed(now time.Time, t *target) {
	if t.hold.IsZero() {
		return // a success ended it all meanwhile
	}
	c.holdDown(now, t)
	for _, p := range []*Part{t.ejected, t.unreachable} {
		if p != nil {
			p.Last, p.At = t.lastSeen(true)
		}
	}
}

// trialTimedOut ends a claimed trial that was not decided in time.
func (c *core) trialTimedOut(now time.Time, t *target) {
	if now.Sub(t.trialEnd) > trialLate {
		t.trialEnd = now.Add(trialTime)
		return
	}
	t.trialEnd = time.Time{}
	if t.state.trial.CompareAndSwap(trialClaimed, trialNone) {
		t.lastError, t.lastErrorAt = "no answer to the trial within 1 s", now
		c.trialFailed(now, t)
	}
	c.judge(now, t)
}

// lastSeen is the last error as it was seen, by a probe or (if calls count) by a call.
func (t *target) lastSeen(calls bool) (string, time.Time) {
	if f := t.state.failed.Load(); calls && f != nil && f.at.After(t.lastErrorAt) {
		return f.cause, f.at
	}
	return t.lastError, t.lastErrorAt
}

// passed takes a probe that passed, or a good outcome that stands for one.
func (c *core) passed(now time.Time, t *target) {
	rise := t.group.options.Rise
	if t.restarted {
		rise = 1
		t.restarted = false
	}
	t.fails = 0
	t.passes++
	t.orphan.refused = 0
	if t.down != nil && t.passes >= rise {
		t.down = nil
	}
}

// probePassed is passed for a real probe: it found the way to the backend open, and is the trial once the hold-down is over.
func (c *core) probePassed(now time.Time, t *target) {
	t.reached = t.state.at(now)
	c.passed(now, t)
	t.state.probeConnected(now)
	if !t.hold.IsZero() && !now.Before(t.hold) {
		c.acquit(t)
	}
}

// probeFailed takes a probe that failed.
func (c *core) probeFailed(now time.Time, t *target, o outcome) {
	t.passes = 0
	t.fails++
	t.lastError, t.lastErrorAt = o.cause, now
	t.orphan.failed(o)
	switch o.kind {
	case probeUnreachable:
		t.noWatch = 0 // whoever listens there the next time may be another program
		t.missed = t.state.at(now)
		t.state.probeUnreachable(now)
	case probeAnswered:
		t.reached = t.state.at(now)
		t.http2.Store(false) // if it speaks something else by now, the next probe asks for no more than a connect
	default:
		t.missed = t.state.at(now)
	}
	// What a backend says of itself needs no second witness, and no third; nor is it this host's illness.
	suspect := o.kind != probeAnswered && c.suspects(now)
	switch enough := o.said || t.fails >= t.group.options.Fall; {
	case t.down != nil || !enough:
	case suspect: // 2.10
		c.withhold(t)
	default:
		t.down = &Part{Kind: Down, Since: now}
		c.planSooner(now, t)
	}
	if t.down != nil {
		t.down.Soft = o.kind == probeAnswered
		t.down.Last, t.down.At = o.cause, now
		t.down.Cause = "probe failed"
		if o.said {
			t.down.Cause = "its health service says so"
		} else if t.fails > 1 {
			t.down.Cause = fmt.Sprintf("probe failed %d times", t.fails)
		}
	}
	if t.unreachable != nil && o.kind == probeUnreachable {
		t.unreachable.Last, t.unreachable.At = o.cause, now
	}
	if t.ejected != nil && !now.Before(t.hold) && t.down == nil && t.unreachable == nil {
		c.trialFailed(now, t) // who is down can't show that it is well: that is no trial, and what it was ejected for goes on being tried with each probe
	}
}

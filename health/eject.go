package health

import (
	"fmt"
	"time"
)

// reporterTime is how long after a user's reports ejected a backend they eject no other one.
const reporterTime = time.Minute

// reportersMost bounds the users whose ejections are remembered: above that, reports of others eject nobody.
const reportersMost = 1024

// judgeEjection begins or ends t's ejection (2.5-2.7), and returns what speaks for one.
func (c *core) judgeEjection(now time.Time, t *target, k streaks) finding {
	o := &t.group.options
	acquitted := t.acquitted || t.ejected != nil && t.holdOver && t.succeededSince(t.hold)
	t.acquitted = false
	if !o.Eject || t.draining {
		c.endEjection(now, t)
		t.heldBack = false
		return finding{}
	}
	if t.ejected != nil && acquitted {
		c.endEjection(now, t)
	}
	f := t.find(now, k)
	if t.ejected == nil && f.found {
		if c.suspects(now) { // 2.10
			t.heldBack = false
			c.withhold(t)
			return finding{}
		}
		f = t.find(now, streaks(t.state.streaks.Load())) // the end of a suspicion forgets what was found
	}
	switch {
	case t.ejected == nil && f.found:
		c.tryEject(now, t, f)
	case t.ejected == nil:
		t.heldBack = false
	case t.ejected.By != ByStreak || k.over(o.Consecutive) || t.reported && k.overByReports(o.Consecutive):
		// It goes on. A window's ejection isn't over with a success before its trial: some calls of such a backend succeed.
	case f.found:
		// Nor is that by a streak, if the window says that such a success is an exception.
		t.ejected.By, t.ejected.Cause, t.reported = f.reason, f.cause, f.reported
	default:
		c.endEjection(now, t) // a success at any time ends it (2.7)
	}
	return f
}

// find is what speaks for t's ejection now.
func (t *target) find(now time.Time, k streaks) finding {
	o := &t.group.options
	switch {
	case k.over(o.Consecutive) && t.onParole && !t.succeededSince(t.ended):
		return finding{true, ByStreak, false, "a call failed after the trial, before any succeeded"}
	case k.over(o.Consecutive):
		return finding{true, ByStreak, false, streakWords(k.hard())}
	case k.overByReports(o.Consecutive) && t.bearsOut(now, streakTime):
		return finding{true, ByStreak, true, streakWords(k.hard() + k.reports())}
	case t.window != nil && t.unreachable == nil: // whose failed connects are in the windows, too
		return t.window.find(o.rate(), func(d time.Duration) bool { return t.bearsOut(now, d) })
	}
	return finding{}
}

func streakWords(n int) string { return fmt.Sprintf("%d failures in a row", n) }

// bearsOut reports whether a probe or a call of the agent's own has failed in the last d, or the last probe did: without that, reports eject nobody.
func (t *target) bearsOut(now time.Time, d time.Duration) bool {
	if t.fails > 0 || !t.lastErrorAt.IsZero() && now.Sub(t.lastErrorAt) < d {
		return true
	}
	y := t.state.tally.Load()
	return y != nil && y.failed.Load() != 0 && t.state.at(now)-y.failed.Load() < int64(d)
}

// succeededSince reports whether a call succeeded then or later.
func (t *target) succeededSince(then time.Time) bool {
	good := t.state.good.Load()
	return good != 0 && good >= t.state.at(then)
}

// tryEject ejects t unless the cap of 2.6 forbids it.
func (c *core) tryEject(now time.Time, t *target, f finding) {
	o := &t.group.options
	if !t.group.room(t) {
		t.heldBack = true
		return
	}
	t.heldBack = false
	if f.reported {
		if !c.mayReport(now, t) {
			return
		}
		f.cause += ", partly as reported"
	}
	if quiet := int(now.Sub(t.ended) / quietMinute); !t.ended.IsZero() {
		t.rounds = max(0, t.rounds-quiet)
	}
	t.ejected = &Part{Kind: Ejected, Soft: true, Since: now, Cause: f.cause, Observed: o.Observe, By: f.reason}
	if t.ejected.Last, t.ejected.At = t.lastSeen(true); f.reason != ByStreak && now.Sub(t.ejected.At) > 2*fewTime {
		t.ejected.Cause += ", by timeouts"
		t.ejected.Last, t.ejected.At = "", time.Time{}
	}
	t.reported = f.reported
	c.holdDown(now, t)
	t.ejected.Next = t.hold
	if !o.Observe {
		c.stats.ejections[f.reason].Add(1)
		return
	}
	c.stats.wouldEject[f.reason].Add(1)
	c.changes = append(c.changes, Change{Group: t.group.name, Addr: t.addr, State: t.state, From: orUp(t.shown), To: orUp(t.shown), Would: new(*t.ejected)})
}

// mayReport reports whether reports may eject t: those of one user at most one backend a minute. If several told of it, the last one counts.
func (c *core) mayReport(now time.Time, t *target) bool {
	uid := uint32(t.state.bad().reporter.Load() - 1)
	if last, ok := c.reporters[uid]; ok && now.Sub(last) < reporterTime {
		return false
	}
	for one, last := range c.reporters {
		if now.Sub(last) >= reporterTime {
			delete(c.reporters, one)
		}
	}
	if len(c.reporters) >= reportersMost {
		return false
	}
	if c.reporters == nil {
		c.reporters = map[uint32]time.Time{}
	}
	c.reporters[uid] = now
	return true
}

// endEjection ends an ejection, if there is one. What the windows hold has been paid for by it.
func (c *core) endEjection(now time.Time, t *target) {
	if t.ejected == nil {
		return
	}
	t.ejected, t.ended = nil, now
	t.onParole, t.paroled = t.paroled, false
	if t.window != nil {
		t.window.restart(now, t.state.totals())
	}
}

// acquit takes a probe that passed as the trial.
func (c *core) acquit(t *target) {
	t.acquitted, t.paroled = true, t.ejected != nil
	if t.paroled {
		t.state.parole()
	} else {
		t.state.forgive()
	}
}

// startRolling has t's windows roll each second from now on.
func (c *core) startRolling(now time.Time, t *target) {
	is := totals{}
	switch {
	case t.rolls:
		return
	case t.window != nil:
		is = t.window.last // what came since is new
	case t.known:
		is = t.state.totals()
	}
	if t.window == nil {
		t.window = newWindow(now, is)
	} else {
		t.window.restart(now, is)
	}
	t.rolls = true
	c.rolling = append(c.rolling, t)
	if c.rollAt.IsZero() {
		c.rollAt = now.Add(time.Second)
	}
}

// stopRolling drops t's windows: its group is in use no more.
func (c *core) stopRolling(t *target) {
	t.window, t.known = nil, true
	if y := t.state.tally.Load(); y != nil {
		y.recent.Store(0) // what it held then says nothing of now
	}
}

// roll is the tick of a second for all windows that hold something.
func (c *core) roll(now time.Time) {
	if c.rollAt.IsZero() || now.Before(c.rollAt) {
		return
	}
	if c.rollAt = c.rollAt.Add(time.Second); !c.rollAt.After(now) {
		c.rollAt = now.Add(time.Second) // late by more than a tick: a second that was slept over is none
	}
	all := c.rolling
	c.rolling = c.rolled[:0] // judging one may set others rolling
	for _, t := range all {
		if t.gone || t.window == nil || !c.rollOne(now, t) {
			t.rolls = false
			t.stirred.Store(false)
			if !t.gone && t.window != nil && t.state.totals() != t.window.last {
				c.startRolling(now, t) // a call ended meanwhile
				t.stirred.Store(true)
			}
			continue
		}
		c.rolling = append(c.rolling, t)
	}
	clear(all)
	c.rolled = all[:0]
	if len(c.rolling) == 0 {
		c.rollAt = time.Time{}
	}
}

// rollOne rolls the windows of t, and judges it if there is anything in them that could change its verdict; false if they have been empty for long.
func (c *core) rollOne(now time.Time, t *target) bool {
	w := t.window
	w.roll(now, t.state.totals())
	t.state.bad().recent.Store(w.rate.all.packed())
	if w.rate.all.bad > 0 || w.half.all.bad > 0 || t.ejected != nil || t.heldBack {
		c.judge(now, t)
	}
	return !w.idle(now)
}

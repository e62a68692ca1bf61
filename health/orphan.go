package health

import (
	"sync/atomic"
	"time"
)

// refusedMost is how many refused connects make an orphan leave (1.10). A goodbye of the backend, or a call that failed on it, is one of them: a graceful stop closes the
// listening socket first, then says GOAWAY or FIN, so that the next connect is refused. Alone it proves nothing: servers end connections for their age, too.
const refusedMost = 2

// orphanGap is the least time between two probes of an orphan, however many calls fail on it.
const orphanGap = 100 * time.Millisecond

// orphan is what a target has on top while it is one: its keys are gone, so that health is the only witness of its life. The flags are set by callers of State, the rest
// belongs to the Monitor's goroutine.
type orphan struct {
	is        atomic.Bool
	suspected atomic.Bool // by a call, since the last probe began

	was     bool // suspected, before that
	refused int  // probes in a row
	told    bool // that it is gone
}

func (o *orphan) set(is bool) {
	o.is.Store(is)
	o.suspected.Store(false)
	o.was, o.refused, o.told = false, 0, false
}

// probing notes that a probe begins: what it finds answers the suspicion up to now.
func (o *orphan) probing() { o.was = o.suspected.Swap(false) }

// failed takes a probe that failed.
func (o *orphan) failed(r outcome) {
	switch {
	case r.refused:
		o.refused++
	case r.kind != probeUnreachable:
		o.refused = 0 // it was connected to
	}
}

// gone reports whether refused connects are enough.
func (o *orphan) gone() bool {
	n := o.refused
	if n > 0 && o.was {
		n++
	}
	return n >= refusedMost
}

// letGo tells that an orphan is gone, once; not while it is this host that seems to be ill (2.10).
func (c *core) letGo(t *target) {
	if !t.orphan.is.Load() || t.orphan.told || t.down == nil && !t.orphan.gone() {
		return
	}
	if c.suspicion.on {
		c.withhold(t)
		return
	}
	t.orphan.told = true
	why := t.lastError
	if t.down != nil {
		why = t.down.Cause + ", last \"" + t.down.Last + "\""
	}
	c.changes = append(c.changes, Change{Group: t.group.name, Addr: t.addr, State: t.state, From: orUp(t.shown), To: orUp(t.shown), Gone: why})
}

// probes reports whether t is probed while it is in use: an orphan always is.
func (t *target) probes() bool { return t.group.options.probes() || t.orphan.is.Load() }

// probed reports whether t is probed now.
func (t *target) probed() bool {
	return t.group.active && t.group.options.probes() || t.orphan.is.Load()
}

// planNow has t probed as soon as the pace allows, that long after the last probe began; not while one runs: its end plans the next one.
func (c *core) planNow(now time.Time, t *target, gap time.Duration) {
	switch {
	case t.probing || !t.probed():
	case t.waits:
		c.hurry(t, now)
	default:
		t.probeAt = earlier(t.probeAt, latest(now, t.probedAt.Add(gap)))
	}
}

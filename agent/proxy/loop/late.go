package loop

import "time"

const (
	// lateMost is how late a wake-up may be for its first timer before this loop counts as one that was stopped: by a hypervisor that gave the machine no
	// processor, by SIGSTOP, by a machine that is moved.
	lateMost = 100 * time.Millisecond
	// lateGrace is how long timers wait then: what came meanwhile is still on its way through the kernel, and a peer on this machine was stopped as well.
	lateGrace = 50 * time.Millisecond
)

// lateness is what a loop knows of the times when it was stopped itself. The peers are not to blame for what passed then, so that its timers don't fire
// before what came meanwhile has been read: an answer that was there in time is no timeout, and a client that had sent its request was not silent.
type lateness struct {
	hold time.Duration // since Loop.start: no timer fires before; 0 = none is held
	at   time.Time     // when the loop last came late
	by   time.Duration // how late
}

// noticeLate is called at the beginning of each wake-up. Timers that were held fire then, however late that is: a loop that always is gets them all the same.
func (l *Loop) noticeLate(now time.Time) {
	at := now.Sub(l.start)
	if l.late.hold > 0 {
		if more := at - l.late.hold; more >= 0 {
			l.late = lateness{at: now, by: l.late.by + more} // it may have been stopped again
		}
		return
	}
	if due, ok := l.timers.next(); ok && at-due > lateMost {
		l.late = lateness{hold: at + lateGrace, at: now, by: at - due}
	}
}

// fires is when a timer that is due then does fire.
func (s *lateness) fires(due time.Duration) time.Duration { return max(due, s.hold) }

// Lost is how much of the time since then this loop is known to have been stopped, the last time it was: nothing that a peer could have answered in. It's
// known by timers that were late, so that a loop that has none armed does not know it.
func (l *Loop) Lost(since time.Time) time.Duration {
	if !l.late.at.After(since) {
		return 0
	}
	return min(l.late.by, l.late.at.Sub(since))
}

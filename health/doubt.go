package health

import "time"

// What programs report is no evidence: it takes nobody out alone (2.5) and brings nobody back. But it is reason enough to look, and not only when the next probe is due: a
// backend of which nothing but reports is known would be called in vain until then, or left alone after it came back.

// doubtGap is the least time between the beginnings of two probes of a backend that reports ask for.
const doubtGap = soon

// doubt notes that a program reports success of a backend that is out.
func (s *State) doubt() {
	if t := s.watch.Load(); t != nil && s.parts.Load() != nil && t.doubted.CompareAndSwap(false, true) {
		t.notify()
	}
}

// judgeDoubt has t probed if reports contradict what is known of it: once for each streak of failures, and for successes while it is out.
func (c *core) judgeDoubt(now time.Time, t *target, k streaks) {
	accused := k.overByReports(t.group.options.Consecutive)
	if accused && !t.accused {
		is := orUp(t.shown)
		c.changes = append(c.changes, Change{Group: t.group.name, Addr: t.addr, State: t.state, From: is, To: is, Accused: true})
	}
	t.suspected = accused && (t.suspected || !t.accused)
	t.accused = accused
	if t.probing {
		return // its end asks again
	}
	excused := t.doubted.Swap(false) && (t.down != nil || t.unreachable != nil)
	if t.suspected || excused {
		c.planNow(now, t, doubtGap)
	}
	t.suspected = false
}

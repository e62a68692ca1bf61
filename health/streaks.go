package health

// streaks counts, in one word, what went wrong in a row: hard failures of calls after their connect, failed connects of calls, failed connects of probes,
// and failures that were only reported. They are kept apart because different things end them: a success ends all, a mere connect only takes back what failed
// connects had said, a reported success what reports had. In one word, each change has one author, who alone sees that it crossed a threshold.
type streaks uint64

const (
	streakBits = 16
	streakMask = 1<<streakBits - 1
	streakTop  = 1 << (streakBits - 1) // counting stops here, far above any threshold

	probesAt   = 0
	connectsAt = streakBits
	failuresAt = 2 * streakBits
	reportsAt  = 3 * streakBits

	unreachableAfter = 3 // 2.4
)

func (k streaks) probes() int   { return int(k >> probesAt & streakMask) }
func (k streaks) connects() int { return int(k >> connectsAt & streakMask) }
func (k streaks) failures() int { return int(k >> failuresAt & streakMask) }
func (k streaks) reports() int  { return int(k >> reportsAt & streakMask) }

// hard is the streak of 2.5: hard failures of calls that this agent carried.
func (k streaks) hard() int { return k.failures() + k.connects() }

// unreachable reports whether 2.4 holds.
func (k streaks) unreachable() bool { return k.connects()+k.probes() >= unreachableAfter }

// evidence is the streak as far as it ejects. What is unreachable isn't ejected for the same failed connects once more: that would use up the cap of 2.6, and
// hold down a backend that could be reached again.
func (k streaks) evidence() int {
	if k.unreachable() {
		return k.failures()
	}
	return k.hard()
}

// over reports whether 2.5 holds with that limit (0 = never).
func (k streaks) over(limit int) bool { return limit > 0 && k.evidence() >= limit }

// overByReports reports whether it does with what was reported, too. That alone ejects nobody.
func (k streaks) overByReports(limit int) bool {
	return limit > 0 && k.reports() > 0 && k.evidence()+k.reports() >= limit
}

// crosses reports whether the Monitor has to know that k became n: a threshold was crossed in either direction, or a failure bears out enough reports.
func (k streaks) crosses(n streaks, limit int) bool {
	return k.unreachable() != n.unreachable() || k.over(limit) != n.over(limit) || k.overByReports(limit) != n.overByReports(limit) ||
		n.overByReports(limit) && !n.over(limit) && n.hard() > k.hard()
}

func (k streaks) plus(at int) streaks {
	if k>>at&streakMask >= streakTop {
		return k
	}
	return k + 1<<at
}

func (k streaks) plusProbe() streaks   { return k.plus(probesAt) }
func (k streaks) plusConnect() streaks { return k.plus(connectsAt) }
func (k streaks) plusFailure() streaks { return k.plus(failuresAt) }
func (k streaks) plusReport() streaks  { return k.plus(reportsAt) }

func (k streaks) connected() streaks { return k &^ (1<<failuresAt - 1) }
func (k streaks) unreported() streaks {
	return k &^ (streakMask << reportsAt)
}

// unfailed keeps what failed connects say.
func (k streaks) unfailed() streaks { return k & (1<<failuresAt - 1) }
func (k streaks) cleared() streaks  { return 0 }

package health

// streaks counts, in one word, what went wrong in a row: hard failures of calls after their connect, failed connects of calls, and failed
// connects of probes. They are kept apart because different things end them: a success ends all, a mere connect only takes back what failed connects had
// said. In one word, each change has one author, who alone sees that it crossed a threshold.
type streaks uint64

const (
	streakBits = 21
	streakMask = 1<<streakBits - 1
	streakTop  = 1 << (streakBits - 1) // counting stops here, far above any threshold

	unreachableAfter = 3 // 2.4
)

func (k streaks) failures() int { return int(k >> (2 * streakBits) & streakMask) }
func (k streaks) connects() int { return int(k >> streakBits & streakMask) }
func (k streaks) probes() int   { return int(k & streakMask) }

// hard is the streak of 2.5: hard failures of calls.
func (k streaks) hard() int { return k.failures() + k.connects() }

// unreachable reports whether 2.4 holds.
func (k streaks) unreachable() bool { return k.connects()+k.probes() >= unreachableAfter }

// over reports whether 2.5 does with that limit (0 = never). What is unreachable isn't ejected for the same failed connects once more: that would
// use up the cap of 2.6, and hold down a backend that could be reached again.
func (k streaks) over(limit int) bool {
	n := k.hard()
	if k.unreachable() {
		n = k.failures()
	}
	return limit > 0 && n >= limit
}

func (k streaks) plusFailure() streaks {
	if k.failures() == streakTop {
		return k
	}
	return k + 1<<(2*streakBits)
}

func (k streaks) plusConnect() streaks {
	if k.connects() == streakTop {
		return k
	}
	return k + 1<<streakBits
}

func (k streaks) plusProbe() streaks {
	if k.probes() == streakTop {
		return k
	}
	return k + 1
}

func (k streaks) connected() streaks { return k &^ (1<<(2*streakBits) - 1) }
func (k streaks) cleared() streaks   { return 0 }

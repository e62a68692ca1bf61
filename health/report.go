package health

import "time"

// summaryMost is how many calls one summary may stand for: above that the sums of the windows would be its alone for hours.
const summaryMost = 100_000

// Report notes how n calls went that this agent didn't carry, as the user with that id tells it through the API. It is hearsay, and any local user may say it. One
// call counts as such: for latency, penalty, the dynamic weight, the windows and the streak; a summary of more feeds the windows and the weight. But what was reported
// is kept apart: reported failures eject only together with a failed probe or a failed call of the agent's own, and reported successes excuse nothing
// but reported failures, so that nobody can eject a backend for everybody, or keep one in that is gone. Nothing was assigned, so nothing outstanding falls.
// elapsed is the time until the answer, or until the caller gave up; 0 if it isn't known.
func (s *State) Report(now time.Time, uid uint32, result Result, elapsed time.Duration, n int, cause string) {
	at, y := s.at(now), s.bad()
	n = min(max(n, 1), summaryMost)
	switch result {
	case Neutral:
		return
	case Success:
		y.toldSuccesses.Add(uint64(n))
	default:
		y.told.note(result, elapsed, uint64(n))
		y.remember(Outcome{At: now, Result: result, Cause: cause, Elapsed: elapsed, Calls: n, Reported: true})
		if result == Failure || result == Timeout {
			y.reporter.Store(uint64(uid) + 1)
		}
	}
	if result == Failure {
		s.failed.Store(&failure{cause, now})
	}
	if n == 1 {
		s.reportOne(at, result, elapsed)
	}
	s.stir()
}

func (s *State) reportOne(at int64, result Result, elapsed time.Duration) {
	if elapsed > 0 {
		s.addLatency(at, elapsed, result == Success)
	}
	switch result {
	case Success:
		if streaks(s.streaks.Load()).reports() > 0 {
			s.move(streaks.unreported)
		}
		s.doubt()
	case Failure:
		s.addPenalty(at)
		s.move(streaks.plusReport)
	case Overloaded:
		s.addPenalty(at)
	}
}

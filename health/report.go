package health

import "time"

// Report notes how n calls went that this agent didn't carry, as a caller tells it through the API. It is hearsay, and any local user may say it: it moves
// what a pick prefers (latency, penalty) and what is counted, but no streak and no trial, so that nobody can eject a backend for everybody, or keep one in that is
// gone. More than one call at once are only counted. Nothing was assigned, so nothing outstanding falls. firstByte is 0 if no answer came.
func (s *State) Report(now time.Time, result Result, firstByte time.Duration, n int, cause string) {
	at := s.at(now)
	switch result {
	case Success:
		s.successes.Add(uint64(n))
	case Failure:
		s.failures.Add(uint64(n))
		s.failed.Store(&failure{cause, now})
	}
	if n > 1 {
		return
	}
	if firstByte > 0 && result != Neutral {
		s.addLatency(at, firstByte, result == Success)
	}
	if result == Failure || result == Overloaded {
		s.addPenalty(at)
	}
}

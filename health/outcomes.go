package health

import (
	"slices"
	"sync/atomic"
	"time"
)

// outcomesKept is how many of the outcomes that were no success a State remembers, for a person to read.
const outcomesKept = 8

// Outcome is one call, or one connection, that did not go well.
type Outcome struct {
	At       time.Time
	Result   Result
	Cause    string        // as it was seen: "HTTP 503"; "" if nobody said more than the result
	Elapsed  time.Duration // until response headers or until the caller gave up; 0 = unknown
	Calls    int           // 1; more in a summary that was reported
	Reported bool          // by a program, through the API
}

// String is the word used in the API.
func (r Result) String() string {
	return [...]string{"success", "neutral", "timeout", "failure", "overloaded", "app_error"}[r]
}

// outcomes are the last few that were no success. Those who end calls write it in place: a slot each, so that nobody waits. A reader may miss one that is just
// being written, and sees no half of one.
type outcomes struct {
	next  atomic.Uint32
	slots [outcomesKept]atomic.Pointer[Outcome]
}

func (y *tally) remember(o Outcome) {
	ring := y.last.Load()
	if ring == nil {
		y.last.CompareAndSwap(nil, new(outcomes))
		ring = y.last.Load()
	}
	ring.slots[(ring.next.Add(1)-1)%outcomesKept].Store(&o)
}

// Outcomes are the last outcomes that were no success, at most 8, the newest first.
func (s *State) Outcomes() []Outcome {
	if s == nil {
		return nil
	}
	y := s.tally.Load()
	if y == nil {
		return nil
	}
	ring := y.last.Load()
	if ring == nil {
		return nil
	}
	var out []Outcome
	for i := range ring.slots {
		if o := ring.slots[i].Load(); o != nil {
			out = append(out, *o)
		}
	}
	slices.SortStableFunc(out, func(a, b Outcome) int { return b.At.Compare(a.At) })
	return out
}

// LastSuccess is when a call succeeded last, 50 ms exact; zero if none did.
func (s *State) LastSuccess(now time.Time) time.Time {
	good := s.good.Load()
	if good == 0 {
		return time.Time{}
	}
	return now.Add(-time.Duration(max(0, s.at(now)-good)))
}

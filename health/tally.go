package health

import (
	"sync/atomic"
	"time"
)

// callUnits is the weight of one call in the sums below: a timeout may weigh less than a failure, or more (the table of outcomes in SEMANTICS 2).
const callUnits = 100

const (
	timeoutUnit = time.Millisecond // of a timeout's length weighs one unit: 100 ms cost as much as a failure
	timeoutMost = 10 * callUnits
)

// tally counts what went otherwise than well. A state has none until then, or until its windows roll: most states of a host have known no call.
type tally struct {
	own, told counts // of calls that this agent carried, and of those that were reported to it

	toldSuccesses atomic.Uint64
	failed        atomic.Int64  // when a call that this agent carried failed last
	reporter      atomic.Uint64 // the uid that reported a failure last, + 1
	returned      atomic.Int64  // when the backend was usable again last
	recent        atomic.Uint64 // what the rate window holds, for Snapshot: units of calls in the upper half, of failures in the lower one

	last atomic.Pointer[outcomes] // nil until there is one
}

// counts only grow, each alone: whatever a reader sees between two writes of one timeout, no difference of two looks is negative.
type counts struct {
	failures  atomic.Uint64 // hard ones
	appErrors atomic.Uint64
	overloads atomic.Uint64
	timeouts  atomic.Uint64
	short     atomic.Uint64 // units of timeouts, at most a call's of each
	long      atomic.Uint64 // and what is above that
}

// note counts n outcomes other than success. elapsed is how long a timeout took, 0 if nobody knows: it weighs as a failure then.
func (c *counts) note(r Result, elapsed time.Duration, n uint64) {
	switch r {
	case Failure:
		c.failures.Add(n)
	case AppError:
		c.appErrors.Add(n)
	case Overloaded:
		c.overloads.Add(n)
	case Timeout:
		units := uint64(callUnits)
		if elapsed > 0 {
			units = uint64(min(elapsed/timeoutUnit, timeoutMost))
		}
		c.timeouts.Add(n)
		c.short.Add(n * min(units, callUnits))
		if units > callUnits {
			c.long.Add(n * (units - callUnits))
		}
	}
}

// sums is the weight of calls and of the failures among them.
type sums struct{ calls, bad uint64 }

func (s sums) plus(o sums) sums  { return sums{s.calls + o.calls, s.bad + o.bad} }
func (s sums) minus(o sums) sums { return sums{s.calls - o.calls, s.bad - o.bad} }

// sums are those for the few-calls window, where no timeout weighs more than a call, and for the rate window, where a long one does (2.5). Whatever the backend
// answered that is no hard failure is a call that did not fail: what 429 and 500 say is taken into account elsewhere.
func (c *counts) sums(successes uint64) (few, rate sums) {
	failures, timeouts, short, long := c.failures.Load(), c.timeouts.Load(), c.short.Load(), c.long.Load()
	few.calls = callUnits * (successes + failures + timeouts + c.appErrors.Load() + c.overloads.Load())
	few.bad = callUnits*failures + short
	return few, sums{few.calls + long, few.bad + long}
}

// rated is what 3.3 goes by: the calls that say how good the backend is, 429 none of them, and the good ones among them.
func (c *counts) rated(successes uint64) (calls, good float64) {
	timeouts := c.timeouts.Load()
	calls = float64(successes + c.failures.Load() + c.appErrors.Load() + timeouts)
	return calls, float64(successes) + max(0, float64(timeouts)-float64(c.short.Load())/callUnits)
}

// totals are the sums of a state since it was made: of the calls that this agent carried, and of those together with the reported ones. The difference of
// two is what came between them.
type totals struct{ few, rate sumsOf }

type sumsOf struct{ own, all sums }

func (s sumsOf) minus(o sumsOf) sumsOf { return sumsOf{s.own.minus(o.own), s.all.minus(o.all)} }

func (s *State) totals() (t totals) {
	none := new(counts)
	y := s.tally.Load()
	if y == nil {
		t.few.own, t.rate.own = none.sums(s.successes.Load())
		t.few.all, t.rate.all = t.few.own, t.rate.own
		return t
	}
	t.few.own, t.rate.own = y.own.sums(s.successes.Load())
	few, rate := y.told.sums(y.toldSuccesses.Load())
	t.few.all, t.rate.all = t.few.own.plus(few), t.rate.own.plus(rate)
	return t
}

// Calls is how many calls said how good the backend is since its state was made, reported ones included, and how many of them were good (3.3): hard failures,
// HTTP 500, gRPC UNKNOWN, INTERNAL and DATA_LOSS and timeouts were not (one shorter than 100 ms counts in part), and 429 says nothing. Neither ever falls.
func (s *State) Calls() (calls, good float64) {
	y := s.tally.Load()
	if y == nil {
		n := float64(s.successes.Load())
		return n, n
	}
	calls, good = y.own.rated(s.successes.Load())
	c, g := y.told.rated(y.toldSuccesses.Load())
	return calls + c, good + g
}

// Ended is how many calls a backend has ended, and how many of them failed: hard failures, timeouts, HTTP 500 and its like, 429 and its like. Neither ever falls.
type Ended struct{ Calls, Failed uint64 }

// Ended counts the calls that this agent carried, and those that were reported to it, since the state was made.
func (s *State) Ended() (own, told Ended) {
	own.Calls = s.successes.Load()
	y := s.tally.Load()
	if y == nil {
		return own, told
	}
	own.Failed, told.Failed = y.own.bad(), y.told.bad()
	own.Calls += own.Failed
	told.Calls = y.toldSuccesses.Load() + told.Failed
	return own, told
}

// bad is every outcome that is no success.
func (c *counts) bad() uint64 {
	return c.failures.Load() + c.appErrors.Load() + c.overloads.Load() + c.timeouts.Load()
}

// ReturnedAgo is the time since the backend was last usable again after it had been down, unreachable or ejected, a very long time if it never was (3.7).
func (s *State) ReturnedAgo(now time.Time) time.Duration {
	y := s.tally.Load()
	if y == nil || y.returned.Load() == 0 {
		return never
	}
	return time.Duration(max(0, s.at(now)-y.returned.Load()))
}

// bad is the tally, made at its first use.
func (s *State) bad() *tally {
	if y := s.tally.Load(); y != nil {
		return y
	}
	s.tally.CompareAndSwap(nil, new(tally))
	return s.tally.Load()
}

// Package health turns targets and outcomes into verdicts: who is up, and who is out, since when and why (SEMANTICS 2).
// It knows nothing of services, lists or protocols' relays; groups are opaque names.
package health

import (
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// Result is how one real call, or one attempt at it, ended (the table of outcomes in SEMANTICS 2).
type Result uint8

// Every Result. A hard failure counts in the streak of 2.5.
const (
	Success    Result = iota // response headers came, and nothing below applies
	Neutral                  // says nothing about the backend: the caller's cancel, REFUSED_STREAM, a stream that hung on a lost connection
	Timeout                  // the caller's deadline or timeout.request passed: failures in the rate window, by how long it took; none in the streak
	Failure                  // hard: HTTP 502/503/504, trailers-only gRPC 14, reset or close before response headers
	Overloaded               // 429, RESOURCE_EXHAUSTED: penalty only
	AppError                 // HTTP 500, gRPC UNKNOWN, INTERNAL, DATA_LOSS: dynamic weight only
)

const (
	penaltyHalving = 2 * time.Second // 3.6
	penaltyMax     = 10              // 3.6
	penaltyNone    = -7              // below 2^-7 a penalty is none, which spares picks the exponential

	// goodGrain is how exact the time of the last success is kept: much finer than a probe's interval, and far less
	// often written than there are calls.
	goodGrain = 50 * time.Millisecond

	never = time.Duration(math.MaxInt64)
)

// State is what is known of one (service, address). It is made once by the table, pointed to by every view and survives
// them. All methods are safe for concurrent use, wait for nobody and allocate nothing on the success path: event loops and
// API handlers write it in place. Only a crossing (a streak reached, a trial decided) wakes the Monitor.
//
// Times inside are nanoseconds since base on the monotonic clock, 0 for never: steps of the wall clock don't matter. The
// layout is two cache lines of 64 bytes, and the allocator aligns objects of 128 bytes to them.
type State struct {
	// What a pick reads.

	base        time.Time
	outstanding atomic.Int64
	latency     atomic.Uint64 // a latency
	sampled     atomic.Int64  // when that was written. The two may be of different samples for a moment: the error is one decay step.
	penalty     atomic.Int64  // when the penalty will have fallen to 1 (or had): one word holds level and time
	connFailed  atomic.Int64  // when the last connect failed; 0 once one succeeded

	// What the end of a call writes.

	streaks   atomic.Uint64 // a streaks
	successes atomic.Uint64
	tally     atomic.Pointer[tally] // of what was no success; nil while all was
	good      atomic.Int64          // the last success, goodGrain exact
	trial     atomic.Uint32
	limit     atomic.Uint32           // hard failures in a row that eject (2.5), 0 = none do; written by the Monitor
	watch     atomic.Pointer[target]  // who is woken by a crossing; nil until a Monitor has it
	failed    atomic.Pointer[failure] // the last hard failure
	parts     atomic.Pointer[[]Part]  // every verdict that applies, nil = up; written by the Monitor, never changed in place
}

// failure is one hard failure in words.
type failure struct {
	cause string
	at    time.Time
}

// The states of a trial (2.7). The Monitor makes it ready; one caller claims it; how that call ends decides it.
const (
	trialNone uint32 = iota
	trialReady
	trialClaimed
	trialPassed
	trialFailed
)

// NewState returns the state of a backend about which nothing is known: usable (2.2). now anchors its monotonic clock.
func NewState(now time.Time) *State {
	return &State{base: now.Add(-1)} // so that no time of this state is 0
}

// at is now on the state's own clock.
func (s *State) at(now time.Time) int64 { return max(1, int64(now.Sub(s.base))) }

// Begin notes that a call was assigned: outstanding rises at the pick, before any dial (3.5).
func (s *State) Begin() { s.outstanding.Add(1) }

// End notes that a call that began is over. firstByte is the time from the pick to the response headers, 0 if none came (for Neutral and Timeout: the time
// until the caller gave up, which raises the latency if it is higher, and is what a timeout weighs); sample is false if the request had not ended before them
// (3.4: such a latency says nothing about the backend). cause is a short text for a person ("HTTP 503"), used only if result isn't Success.
func (s *State) End(now time.Time, result Result, firstByte time.Duration, sample bool, cause string) {
	s.outstanding.Add(-1)
	at := s.at(now)
	if firstByte > 0 && sample {
		// What is not a success may only raise the latency: a fast failure never looks like a fast backend (3.6).
		s.addLatency(at, firstByte, result == Success)
	}
	switch result {
	case Success:
		s.successes.Add(1)
		if good := s.good.Load(); good == 0 || at-good > int64(goodGrain) {
			s.good.Store(at)
			s.stir()
		}
		if s.connFailed.Load() != 0 {
			s.connFailed.Store(0)
		}
		if s.streaks.Load() != 0 {
			s.move(streaks.cleared)
		}
	case Failure:
		s.hardFailure(now, at, cause, firstByte, streaks.plusFailure)
	case Neutral:
	default:
		if result == Overloaded {
			s.addPenalty(at)
		}
		y := s.bad()
		y.own.note(result, firstByte, 1)
		y.remember(Outcome{At: now, Result: result, Cause: cause, Elapsed: firstByte, Calls: 1})
		s.stir()
	}
	if s.trial.Load() == trialClaimed {
		s.decideTrial(result)
	}
}

// Goodbye notes that the backend ended a connection that nothing was wrong with: by GOAWAY, or by closing it. For an orphan that is a reason to look at once.
func (s *State) Goodbye() { s.suspect() }

// suspect has an orphan probed at once (1.10).
func (s *State) suspect() {
	if t := s.watch.Load(); t != nil && t.orphan.is.Load() && t.orphan.suspected.CompareAndSwap(false, true) {
		t.notify()
	}
}

// Connected notes that a connection was made and, for HTTP/2, that SETTINGS came (SpeaksHTTP2 as well then). It takes back what failed connects had said, nothing else.
func (s *State) Connected(now time.Time) {
	if s.connFailed.Load() != 0 {
		s.connFailed.Store(0)
	}
	if s.streaks.Load() != 0 {
		s.move(streaks.connected)
	}
}

// SpeaksHTTP2 notes that SETTINGS came: from now on tcp probes wait for them (2.1).
func (s *State) SpeaksHTTP2() {
	if t := s.watch.Load(); t != nil && !t.http2.Load() {
		t.http2.Store(true)
	}
}

// ConnectFailed notes one failed dial: refused, no route, timeout, no SETTINGS in time. One hard failure of the unreachable kind (2.4),
// whatever number of calls waited for it.
func (s *State) ConnectFailed(now time.Time, cause string) {
	at := s.at(now)
	s.connFailed.Store(at)
	s.hardFailure(now, at, cause, 0, streaks.plusConnect)
	s.decideTrialIfClaimed(trialFailed)
}

// ConnectionLost notes one connection that broke under running calls: one hard failure, whatever hung on it.
func (s *State) ConnectionLost(now time.Time, cause string) {
	s.hardFailure(now, s.at(now), cause, 0, streaks.plusFailure)
	s.decideTrialIfClaimed(trialFailed)
}

func (s *State) hardFailure(now time.Time, at int64, cause string, elapsed time.Duration, next func(streaks) streaks) {
	y := s.bad()
	y.own.note(Failure, 0, 1)
	y.failed.Store(at)
	y.remember(Outcome{At: now, Result: Failure, Cause: cause, Elapsed: elapsed, Calls: 1})
	s.failed.Store(&failure{cause, now}) // before the crossing, which the Monitor puts into words with it
	s.addPenalty(at)
	s.move(next)
	s.stir()
	s.suspect()
}

// probeConnected and probeUnreachable note what a probe saw of the way to the backend: a probe's connect is a connect (2.4, 2.9), but no
// call, so that it counts neither in the streak of 2.5 nor as a penalty.
func (s *State) probeConnected(now time.Time) { s.Connected(now) }

func (s *State) probeUnreachable(now time.Time) {
	s.connFailed.Store(s.at(now))
	s.move(streaks.plusProbe)
}

// forgive clears the streaks: a call on trial was answered.
func (s *State) forgive() { s.move(streaks.cleared) }

// parole ends an ejection whose trial was a probe. A probe is no call: the next of those that fails, before one succeeds, ejects again.
func (s *State) parole() {
	limit := int(s.limit.Load())
	s.move(func(streaks) streaks { return streaks(max(0, limit-1)) << failuresAt })
}

// stir has the Monitor look at the windows of 2.5 each second, for as long as calls come. While it does, this is one load.
func (s *State) stir() {
	if t := s.watch.Load(); t != nil && !t.stirred.Load() && t.stirred.CompareAndSwap(false, true) {
		t.notify()
	}
}

// goodWithin reports whether a call succeeded in the last d: such an outcome stands for a probe (2.3).
func (s *State) goodWithin(now time.Time, d time.Duration) bool {
	good := s.good.Load()
	return good != 0 && s.at(now)-good < int64(d)
}

// move changes the streaks and wakes the Monitor if that crossed a threshold, in either direction.
func (s *State) move(next func(streaks) streaks) {
	for {
		old := streaks(s.streaks.Load())
		n := next(old)
		if n == old {
			return
		}
		if s.streaks.CompareAndSwap(uint64(old), uint64(n)) {
			if old.crosses(n, int(s.limit.Load())) {
				s.notify()
			}
			return
		}
	}
}

func (s *State) notify() {
	if t := s.watch.Load(); t != nil {
		t.notify()
	}
}

// Answered notes that response headers came that are no hard failure. The call may go on for hours and End much later: a trial is decided now (2.7).
func (s *State) Answered() {
	if s.trial.Load() == trialClaimed {
		s.decideTrialIfClaimed(trialPassed)
	}
}

// TryTrial claims the one trial that ends an ejection whose hold-down has passed (2.7); true for one caller only. The claimant's next
// Answered, End or ConnectFailed decides it. (A State can't tell calls apart: another call that ends meanwhile decides it as well, which is evidence as good.)
func (s *State) TryTrial(now time.Time) bool {
	if s.trial.Load() != trialReady || !s.trial.CompareAndSwap(trialReady, trialClaimed) {
		return false
	}
	s.notify() // the Monitor ends it after 1 s
	return true
}

// decideTrial ends a claimed trial by how a call ended. An answer that isn't a hard failure passes, whatever it says to the caller; a call that said
// nothing gives the trial back.
func (s *State) decideTrial(result Result) {
	switch result {
	case Success, Overloaded, AppError:
		s.decideTrialIfClaimed(trialPassed)
	case Failure, Timeout:
		s.decideTrialIfClaimed(trialFailed)
	default:
		s.decideTrialIfClaimed(trialReady)
	}
}

func (s *State) decideTrialIfClaimed(to uint32) {
	if s.trial.CompareAndSwap(trialClaimed, to) {
		s.notify()
	}
}

// Outstanding is the number of calls assigned and not over.
func (s *State) Outstanding() int { return int(max(0, s.outstanding.Load())) }

// ConnectFailedAgo is the time since the last failed connect; a very long time if there was none, or one succeeded since (2.9).
func (s *State) ConnectFailedAgo(now time.Time) time.Duration {
	failed := s.connFailed.Load()
	if failed == 0 {
		return never
	}
	return time.Duration(max(0, s.at(now)-failed))
}

// Penalty is 0..10: +1 per failure, halving every 2 s (3.6).
func (s *State) Penalty(now time.Time) float64 { return penaltyLevel(s.penalty.Load(), s.at(now)) }

// Load is what a pick compares (3.1), with one look at the clock: outstanding calls, L by the service's median latency in nanoseconds, and the penalty.
func (s *State) Load(now time.Time, median float64) (outstanding, lag, penalty float64) {
	at := s.at(now)
	return float64(max(0, s.outstanding.Load())), s.lag(at, median), penaltyLevel(s.penalty.Load(), at)
}

func (s *State) addPenalty(at int64) {
	for {
		old := s.penalty.Load()
		level := min(penaltyLevel(old, at)+1, penaltyMax)
		if s.penalty.CompareAndSwap(old, at+int64(float64(penaltyHalving)*math.Log2(level))) {
			return
		}
	}
}

// penaltyLevel is the penalty at time at, when it falls (or fell) to 1 at time one.
func penaltyLevel(one, at int64) float64 {
	if one == 0 {
		return 0
	}
	halvings := float64(one-at) / float64(penaltyHalving)
	if halvings < penaltyNone {
		return 0
	}
	return min(math.Exp2(halvings), penaltyMax)
}

// Verdict is the weightiest part that applies, nil if the backend is up, or there is no state: nothing is known of it then. Soft in it is true if every part is soft (2.9).
func (s *State) Verdict() *Part {
	if s == nil {
		return nil
	}
	if parts := s.parts.Load(); parts != nil {
		return worst(*parts)
	}
	return nil
}

// Snapshot is a copy of what is known, for Explain and metrics.
type Snapshot struct {
	Outstanding         int
	Latency             time.Duration
	LatencyFresh        bool
	Penalty             float64
	Successes, Failures uint64 // since the state was made, reported ones included; Failures counts hard ones
	Streak              int    // hard failures in a row
	// Recent is how many calls the window of 2.5 holds, RecentFailed how many of them failed: of the last 10 s, as of the last full second. A timeout weighs by its length.
	Recent, RecentFailed float64
	LastFailure          string
	LastFailureAt        time.Time // zero if none
	Parts                []Part    // every verdict that applies, the weightiest first (2.8)
}

// Snapshot copies the state; without one, it says that nothing is known.
func (s *State) Snapshot(now time.Time) Snapshot {
	if s == nil {
		return Snapshot{}
	}
	c := Snapshot{
		Outstanding: s.Outstanding(),
		Penalty:     s.Penalty(now),
		Successes:   s.successes.Load(),
		Streak:      streaks(s.streaks.Load()).hard(),
	}
	if y := s.tally.Load(); y != nil {
		c.Successes += y.toldSuccesses.Load()
		c.Failures = y.own.failures.Load() + y.told.failures.Load()
		recent := y.recent.Load()
		c.Recent, c.RecentFailed = float64(recent>>32)/callUnits, float64(uint32(recent))/callUnits
	}
	c.Latency, c.LatencyFresh = s.Latency(now)
	if f := s.failed.Load(); f != nil {
		c.LastFailure, c.LastFailureAt = f.cause, f.at
	}
	if parts := s.parts.Load(); parts != nil {
		c.Parts = slices.Clone(*parts)
	}
	return c
}

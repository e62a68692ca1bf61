package health

import (
	"fmt"
	"math"
	"time"
)

// The windows of 2.5.
const (
	rateSeconds = 10
	rateLeast   = 20 * callUnits // calls in them

	fewTime    = 30 * time.Second
	fewLeast   = 3 * callUnits // calls in each of two in a row ...
	fewPercent = 70            // ... of which more than this failed

	// windowIdle is how long after the last outcome windows still roll: then all of them are empty.
	windowIdle = 2*fewTime + time.Second

	// streakTime is how old the agent's own evidence may be that bears out a streak of reports. For a window it is the window's own time.
	streakTime = rateSeconds * time.Second
)

// Reason is what ejects (2.5).
type Reason uint8

// Every Reason.
const (
	ByStreak Reason = iota
	ByRate
	ByFewCalls

	Reasons = 3
)

// String is the word used in metrics.
func (r Reason) String() string { return [...]string{"streak", "success_rate", "few_calls"}[r] }

// finding is what speaks for an ejection.
type finding struct {
	found    bool
	reason   Reason
	reported bool // without what was reported it would not be enough
	cause    string
}

// window is what the rate window and the few-calls window of one backend hold. The state only counts, and is looked at each second: a call's end pays nothing for it.
type window struct {
	seconds [rateSeconds]sumsOf // the sums at the end of each of the last seconds, the oldest at next
	next    int
	rate    sumsOf // what came in all of them

	from   sumsOf // the sums at since
	since  time.Time
	half   sumsOf // what came in the last full 30 s,
	before sumsOf // and in those before

	last   totals
	lastAt time.Time // when something came last
}

// newWindow begins with what t says: none of it counts.
func newWindow(now time.Time, t totals) *window {
	w := &window{}
	w.restart(now, t)
	return w
}

// restart forgets all that came before now.
func (w *window) restart(now time.Time, t totals) {
	for i := range w.seconds {
		w.seconds[i] = t.rate
	}
	w.rate, w.half, w.before = sumsOf{}, sumsOf{}, sumsOf{}
	w.from, w.since = t.few, now
	w.last, w.lastAt = t, now
}

// roll ends a second.
func (w *window) roll(now time.Time, t totals) {
	if t != w.last {
		w.last, w.lastAt = t, now
	}
	w.rate = t.rate.minus(w.seconds[w.next])
	w.seconds[w.next] = t.rate
	w.next = (w.next + 1) % rateSeconds
	if now.Sub(w.since) >= fewTime {
		w.before, w.half = w.half, t.few.minus(w.from)
		w.from, w.since = t.few, now
	}
}

// idle reports whether nothing came for so long that nothing is left in any window.
func (w *window) idle(now time.Time) bool { return now.Sub(w.lastAt) >= windowIdle }

// find looks for a reason to eject by windows; percent is the success rate below which the rate window does, 0 = never. borneOut reports whether the agent's own
// evidence, not older than that, bears out what was reported.
func (w *window) find(percent int, borneOut func(time.Duration) bool) finding {
	if percent <= 0 {
		return finding{}
	}
	switch {
	case tooLow(w.rate.own, percent):
		return finding{true, ByRate, false, rateWords(w.rate.own)}
	case tooFew(w.half.own) && tooFew(w.before.own):
		return finding{true, ByFewCalls, false, fewWords(w.half.own, w.before.own)}
	case tooLow(w.rate.all, percent) && borneOut(rateSeconds*time.Second):
		return finding{true, ByRate, true, rateWords(w.rate.all)}
	case tooFew(w.half.all) && tooFew(w.before.all) && borneOut(2*fewTime):
		return finding{true, ByFewCalls, true, fewWords(w.half.all, w.before.all)}
	}
	return finding{}
}

func tooLow(s sums, percent int) bool {
	return s.calls >= rateLeast && (s.calls-s.bad)*100 < uint64(percent)*s.calls
}

func tooFew(s sums) bool { return s.calls >= fewLeast && s.bad*100 > fewPercent*s.calls }

func rateWords(s sums) string {
	return fmt.Sprintf("success %d %% of %s in %d s", (s.calls-s.bad)*100/s.calls, callWords(s), rateSeconds)
}

func fewWords(half, before sums) string {
	seconds := int(fewTime.Seconds())
	return fmt.Sprintf("%d %% of %s failed in %d s, and %d %% of %s in the %d s before", half.bad*100/half.calls, callWords(half), seconds,
		before.bad*100/before.calls, callWords(before), seconds)
}

func callWords(s sums) string { return fmt.Sprintf("%d calls", (s.calls+callUnits/2)/callUnits) }

// packed is s in one word, as far as it has room, for tally.recent.
func (s sums) packed() uint64 { return min(s.calls, math.MaxUint32)<<32 | min(s.bad, math.MaxUint32) }

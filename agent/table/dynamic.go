package table

import (
	"fmt"
	"math"
	"time"
)

// Dynamic weight (3.3) follows how many of a backend's calls succeed, one sample after the other: cut hard, raised slowly. The numbers are those of MSEC's NLB, which
// moved Tencent's traffic like that for years.
const (
	sampleCalls = 10              // a sample has as many calls, ...
	sampleTime  = 5 * time.Second // ... or took as long
	goodRate    = 0.98            // from here on a sample is good. Lower forgives more, higher takes a stray failure for a fault
	raise       = 0.05            // a good sample's; higher is back sooner, and fails more calls if it was wrong
	raiseRun    = 4               // good samples in a row, with calls in them, after which each step is twice the one before: then it isn't chance that they are good
	floor       = 0.01            // a share that still shows when the backend is well again
	low         = 0.5             // below it, a backend counts as low: when over half of a service is, only who fails every call is cut any more
)

// dynamic is one backend's dynamic weight.
type dynamic struct {
	weight      float64
	calls, good float64   // what had been counted when the sample began
	began       time.Time // zero = none has
	run         int       // good samples in a row that had calls
	cut         bool      // the last one cut the weight
}

func newDynamic() dynamic { return dynamic{weight: 1} }

// sample is one that is whole: how many calls, and how many of them were good.
type sample struct{ calls, good float64 }

func (s sample) rate() float64 { return s.good / s.calls }

// words is the sample as evidence.
func (s sample) words() string {
	if s.calls == 0 {
		return "no call in " + sampleTime.String()
	}
	return fmt.Sprintf("%.0f of the last %.0f calls succeeded", s.good, s.calls)
}

// healthy reports whether the sample raises the weight. One without a call does: nothing has been seen that was wrong, and a backend that gets no calls could never show
// that it is well.
func (s sample) healthy() bool { return s.calls == 0 || s.rate() >= goodRate }

// cut is what the weight is multiplied by: success^2. One success is counted in that was not seen: of a sample with one call in it, one failure would else
// take all.
func (s sample) cut() float64 {
	rate := (s.good + 1) / (s.calls + 1)
	return rate * rate
}

// take ends the sample if it is whole, and begins the next: no call is in two. calls and good are all that were ever counted.
func (d *dynamic) take(now time.Time, calls, good float64) (sample, bool) {
	if d.began.IsZero() {
		d.calls, d.good, d.began = calls, good, now
		return sample{}, false
	}
	s := sample{calls - d.calls, good - d.good}
	if s.calls < sampleCalls && now.Sub(d.began) < d.lasts(s) {
		return sample{}, false
	}
	d.calls, d.good, d.began = calls, good, now
	if d.run++; s.calls == 0 || !s.healthy() {
		d.run = 0
	}
	return s, true
}

// lasts is how long a sample may take to be whole. One of a low backend in which nothing but failures came is so at once: a few points were given back for nothing.
// One without a call waits longer after a cut: it says nothing, and if it raises the weight each time, the next call is one more that fails.
func (d *dynamic) lasts(s sample) time.Duration {
	switch {
	case s.calls > 0 && s.good == 0 && d.low():
		return 0
	case s.calls == 0 && d.cut:
		return 2 * sampleTime
	}
	return sampleTime
}

// raise and lower take a sample.
func (d *dynamic) raise() {
	d.cut = false
	if d.weight += math.Ldexp(raise, min(max(0, d.run-raiseRun), 5)); d.weight > 1-1e-9 { // 20 steps of a twentieth are not quite one
		d.weight = 1
	}
}

func (d *dynamic) lower(s sample) { d.weight, d.cut = max(floor, d.weight*s.cut()), true }

// accuse takes as many failures in a row as would eject, had they not been reports.
func (d *dynamic) accuse() { d.weight, d.run, d.cut = floor, 0, true }

func (d *dynamic) low() bool { return d.weight < low }

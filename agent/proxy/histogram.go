package proxy

import (
	"math"
	"math/bits"
	"time"
)

// A histogram counts each duration in two ways, so that every Prometheus finds what it can read.
//
//   - Classic buckets double: 22 of them, from 1 << first microseconds on.
//   - Native ones are four per doubling, each 19 % wider than the one before, so that a quantile is right to 10 %: from 2^-20 s, which is 1 µs, to 2^20 s, which is
//     12 days. Their bounds are those of schema 2 of Prometheus: key k is for what is above 2^((k-1)/4) s, up to 2^(k/4) s.
//
// Eight per doubling would cost another 1.3 KB for each service, protocol and loop.
const (
	classicBuckets = 22
	nativeFirst    = -20 * 4 // keys up to this one count as nothing
	nativeLast     = 20 * 4  // and those above this one as it
)

// Where the classic buckets begin, as powers of two in microseconds.
const (
	firstOfCalls    = 6 // 64 µs ... 67 s, and everything above
	firstOfOverhead = 3 // 8 µs ... 8.4 s
)

// histogram of durations; plain, as serviceStats is.
type histogram struct {
	classic [classicBuckets]uint64
	none    uint64 // too short for a native bucket
	native  [nativeLast - nativeFirst]uint64
	sum     time.Duration
}

// add counts d; first is where the classic buckets begin.
func (h *histogram) add(d time.Duration, first int) {
	d = max(0, d)
	h.sum += d
	h.classic[min(classicBuckets-1, max(0, bits.Len64(uint64(d/time.Microsecond))-first))]++
	if k := nativeKey(d); k > nativeFirst {
		h.native[min(k, nativeLast)-nativeFirst-1]++
	} else {
		h.none++
	}
}

// nativeKey is the native bucket of d.
func nativeKey(d time.Duration) int {
	frac, exp := math.Frexp(float64(d) / float64(time.Second)) // frac is 0, or from 1/2 up to 1
	if frac == 0 {
		return nativeFirst
	}
	key := (exp - 1) * 4
	switch {
	case frac <= 0.5:
	case frac <= 0.5946035575013605: // 2^(-3/4)
		key++
	case frac <= math.Sqrt2/2:
		key += 2
	case frac <= 0.8408964152537144: // 2^(-1/4)
		key += 3
	default:
		key += 4
	}
	return key
}

// merge adds o, which may be nil, to *h.
func (h *histogram) merge(o *histogram) *histogram {
	if o == nil {
		return h
	}
	if h == nil {
		h = &histogram{}
	}
	for i, n := range o.classic {
		h.classic[i] += n
	}
	for i, n := range o.native {
		h.native[i] += n
	}
	h.none += o.none
	h.sum += o.sum
	return h
}

// clone is a copy; nil stays nil.
func (h *histogram) clone() *histogram {
	if h == nil {
		return nil
	}
	c := *h
	return &c
}

// Histogram is one of durations, in two forms.
type Histogram struct {
	// Buckets[i] counts what is up to the i-th bound, and above the one before; the last has no bound.
	Buckets []uint64
	// Native[i] is the bucket with the key -79+i of Prometheus's schema 2. None is what is too short for the first of them: up to 2^-20 s.
	Native []uint64
	None   uint64
	Sum    time.Duration
	Count  uint64
}

// export is what others see of h, which is not nil and nobody's to change any more.
func (h *histogram) export() Histogram {
	out := Histogram{Buckets: h.classic[:], Native: h.native[:], None: h.none, Sum: h.sum}
	for _, n := range h.classic {
		out.Count += n
	}
	return out
}

// bounds are the upper bounds of the classic buckets but the last, which has none.
func bounds(first int) []time.Duration {
	b := make([]time.Duration, classicBuckets-1)
	for i := range b {
		b[i] = time.Microsecond << (first + i)
	}
	return b
}

// LatencyBounds are those of calls: 2^6 to 2^26 µs, each twice the one before.
func LatencyBounds() []time.Duration { return bounds(firstOfCalls) }

// OverheadBounds are those of what the agent adds: 2^3 to 2^23 µs.
func OverheadBounds() []time.Duration { return bounds(firstOfOverhead) }

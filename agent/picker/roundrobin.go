package picker

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/health"
)

// roundRobin is smooth weighted round robin from a random start (3.10), without a lock and at the same price for any number of candidates.
//
// The integer weights lie one after the other on a circle of S = their sum slots; pick k takes the slot k x step mod S. step has no divisor in common
// with S, so that S picks in a row visit each slot exactly once: the shares are exact. step is near S over the golden ratio, which spreads
// the visits to each candidate's slots as evenly as one step can (three-distance theorem): `a a b a c a a`, never `a a a a a b c`.
type roundRobin struct {
	candidates []Candidate
	sums       []uint64 // running sums of the integer weights, nil if all are 1
	sum, step  uint64
	start      uint64

	next atomic.Uint64
}

// resolution bounds the integer weights: uneven ones are scaled so that the largest is this.
const resolution = 1 << 16

func newRoundRobin(candidates []Candidate, w weights, random Random) *roundRobin {
	r := &roundRobin{candidates: candidates, sum: uint64(len(candidates)), step: 1}
	if len(candidates) == 0 {
		return r
	}
	if !w.equal() {
		r.sums = integerWeights(candidates, w.top)
		r.sum = 0
		for i, weight := range r.sums {
			r.sum += weight
			r.sums[i] = r.sum
		}
		r.step = goldenStep(r.sum)
	}
	r.start = random.Uint64() % r.sum
	return r
}

func (r *roundRobin) Pick(_ time.Time, _ uint64, not []*health.State) int {
	if len(r.candidates) == 0 {
		return -1
	}
	i := 0
	for range tries {
		i = r.turn()
		if !excluded(not, r.candidates[i].State) {
			return i
		}
	}
	for range r.candidates {
		if i++; i == len(r.candidates) {
			i = 0
		}
		if !excluded(not, r.candidates[i].State) {
			return i
		}
	}
	return -1
}

// turn is whose turn it is.
func (r *roundRobin) turn() int {
	k := r.next.Add(1) % r.sum
	if r.sums == nil {
		return int((r.start + k) % r.sum)
	}
	hi, lo := bits.Mul64(k, r.step)
	_, slot := bits.Div64(hi, lo, r.sum) // k < sum, so the quotient fits
	return search(r.sums, (r.start+slot)%r.sum)
}

// integerWeights returns weights in the ratios of the candidates', as small as they get.
func integerWeights(candidates []Candidate, top float64) []uint64 {
	whole := true
	for i := range candidates {
		w := candidates[i].Weight
		whole = whole && w == math.Trunc(w)
	}
	scale := 1.0
	if !whole || top > resolution {
		scale = resolution / top
	}
	weights := make([]uint64, len(candidates))
	divisor := uint64(0)
	for i := range candidates {
		weights[i] = max(1, uint64(math.Round(candidates[i].Weight*scale)))
		divisor = gcd(weights[i], divisor)
	}
	for i := range weights {
		weights[i] /= divisor
	}
	return weights
}

// goldenStep is the number nearest to sum over the golden ratio that has no divisor in common with sum.
func goldenStep(sum uint64) uint64 {
	middle := uint64(math.Round(float64(sum) / math.Phi))
	for d := uint64(0); ; d++ {
		if gcd(middle+d, sum) == 1 {
			return middle + d
		}
		if d < middle && gcd(middle-d, sum) == 1 {
			return middle - d
		}
	}
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

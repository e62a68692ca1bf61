package picker

import (
	"math/rand/v2"
	"time"

	"github.com/lbagent/lbagent/health"
)

// p2c draws two candidates, each in proportion to its weight, and takes the one with the lower score (3.1).
type p2c struct {
	weighted

	median *Median
	mean   float64 // of the weights
}

func newP2C(candidates []Candidate, w weights, median *Median) *p2c {
	return &p2c{weighted: newWeighted(candidates, w), median: median, mean: w.sum / float64(max(1, len(candidates)))}
}

func (p *p2c) Pick(now time.Time, not []*health.State) int {
	a := p.draw(not)
	if a < 0 || len(p.candidates) == 1 {
		return a
	}
	b := p.draw(not)
	if a == b {
		return a
	}
	median := p.median.load()
	if p.score(now, b, median) < p.score(now, a, median) {
		return b
	}
	return a // a tie goes to the first drawn: with equal scores the shares are exactly the weights
}

const (
	deadBand = 2  // 3.4: up to this multiple of the median all latencies are the same, or equal backends would not get equal shares
	lagMax   = 10 // 3.4
)

// score is (1 + outstanding x mean(w)/w) x L x (1 + penalty).
func (p *p2c) score(now time.Time, i int, median float64) float64 {
	c := &p.candidates[i]
	outstanding, ewma, penalty := c.State.Load(now)
	score := (1 + outstanding*p.mean/c.Weight) * (1 + penalty)
	if median > 0 && ewma > deadBand*median {
		score *= min(ewma/median, lagMax)
	}
	return score
}

// weighted draws indices in proportion to weights: by rejection against the largest, which costs the same for any number of candidates; weights so uneven
// that this keeps failing are drawn from their running sums (3.11).
type weighted struct {
	candidates []Candidate
	sums       []float64 // nil if all weights are equal
	sum        float64
	grain      float64 // the largest weight / 2^32
}

func newWeighted(candidates []Candidate, w weights) weighted {
	d := weighted{candidates: candidates, sum: w.sum, grain: w.top / (1 << 32)}
	if w.equal() {
		return d
	}
	d.sums = make([]float64, len(candidates))
	sum := 0.0
	for i := range candidates {
		sum += candidates[i].Weight
		d.sums[i] = sum
	}
	return d
}

// draw returns an index whose State isn't in not, -1 if there is none.
func (w *weighted) draw(not []*health.State) int {
	n := len(w.candidates)
	if n == 0 {
		return -1
	}
	if len(not) == 0 {
		return w.any()
	}
	for range tries {
		if i := w.any(); !excluded(not, w.candidates[i].State) {
			return i
		}
	}
	return w.scan(not)
}

// any draws among all. One random word serves a try: its upper half for the index, its lower half for the rejection, whose grain of 2^-32 is far
// below what a share can show.
func (w *weighted) any() int {
	n := uint64(len(w.candidates))
	if w.sums == nil {
		return int(rand.Uint64() >> 32 * n >> 32)
	}
	for range tries {
		r := rand.Uint64()
		i := r >> 32 * n >> 32
		if float64(uint32(r))*w.grain < w.candidates[i].Weight {
			return int(i)
		}
	}
	return search(w.sums, rand.Float64()*w.sum)
}

// scan draws among those that are left, reading all: only for a call that has already been at most of the weight.
func (w *weighted) scan(not []*health.State) int {
	left, last := 0.0, -1
	for i := range w.candidates {
		if c := &w.candidates[i]; !excluded(not, c.State) {
			left += c.Weight
			last = i
		}
	}
	if last < 0 {
		return -1
	}
	x := rand.Float64() * left
	for i := range last {
		if c := &w.candidates[i]; !excluded(not, c.State) {
			if x -= c.Weight; x < 0 {
				return i
			}
		}
	}
	return last
}

// search returns the first i with sums[i] > x, the last if there is none.
func search[T uint64 | float64](sums []T, x T) int {
	lo, hi := 0, len(sums)-1
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if sums[mid] > x {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

package picker

import (
	"time"

	"github.com/lbagent/lbagent/health"
)

// weighted draws indices in proportion to weights, at the same price for any number of candidates and any weights (3.11). By itself it is the policy random.
//
// Uneven weights are drawn from their running sums, by a guide table: the sum of all is cut into as many equal parts as there are candidates, and of each part it is
// known with which candidate it begins. So a draw looks at two of them in the mean, however uneven the weights are, where rejection against the largest
// weight would draw again and again (half of a service in another zone has a fiftieth of the others' weight).
type weighted struct {
	random     Random
	candidates []Candidate
	sums       []float64 // nil if all weights are equal
	guide      []uint32  // the first candidate whose running sum is above that part's begin
	sum, parts float64   // parts is how many parts there are to 1
}

func newWeighted(candidates []Candidate, w weights, random Random) weighted {
	d := weighted{random: random, candidates: candidates, sum: w.sum}
	if w.equal() {
		return d
	}
	n := len(candidates)
	d.sums, d.guide = make([]float64, n), make([]uint32, n)
	sum := 0.0
	for i := range candidates {
		sum += candidates[i].Weight
		d.sums[i] = sum
	}
	d.sum = sum
	d.parts = float64(n) / sum
	i := 0
	for part := range d.guide {
		for begin := float64(part) / d.parts; i < n-1 && d.sums[i] <= begin; {
			i++
		}
		d.guide[part] = uint32(i)
	}
	return d
}

// Pick makes it a Picker.
func (w *weighted) Pick(_ time.Time, _ uint64, not []*health.State) int { return w.draw(not) }

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

// any draws among all.
func (w *weighted) any() int {
	if w.sums == nil {
		return w.random.IntN(len(w.candidates))
	}
	return w.find(w.random.Float64() * w.sum)
}

// find returns the first candidate whose running sum is above x.
func (w *weighted) find(x float64) int {
	part := min(int(x*w.parts), len(w.guide)-1)
	low, high := int(w.guide[part]), len(w.sums)-1
	if low > 0 && w.sums[low-1] > x {
		low = 0 // the product was rounded up into the next part
	} else if part+1 < len(w.guide) {
		high = min(high, int(w.guide[part+1])+1)
	}
	if w.sums[low] > x { // most often
		return low
	}
	return low + search(w.sums[low:high+1], x)
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
	x := w.random.Float64() * left
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

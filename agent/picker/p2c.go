package picker

import (
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
	return &p2c{weighted: newWeighted(candidates, w, median.Random), median: median, mean: w.mean(len(candidates))}
}

func (p *p2c) Pick(now time.Time, _ uint64, not []*health.State) int {
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

// score is (1 + outstanding x mean(w)/w) x L x (1 + penalty).
func (p *p2c) score(now time.Time, i int, median float64) float64 {
	c := &p.candidates[i]
	outstanding, lag, penalty := c.State.Load(now, median)
	return (1 + outstanding*p.mean/c.Weight) * lag * (1 + penalty)
}

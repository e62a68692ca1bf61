package picker

import (
	"time"

	"github.com/lbagent/lbagent/health"
)

// leastRequest draws two candidates by weight and takes the one with fewer calls outstanding for its weight (3.10): p2c that looks neither at latency nor at failures.
// Two draws, since the least of all would be found by all loops, and all hosts, at once.
type leastRequest struct {
	weighted

	mean float64 // of the weights
}

func (l *leastRequest) Pick(_ time.Time, _ uint64, not []*health.State) int {
	a := l.draw(not)
	if a < 0 || len(l.candidates) == 1 {
		return a
	}
	if b := l.draw(not); l.busy(b) < l.busy(a) {
		return b
	}
	return a // a tie goes to the first drawn, as in 3.1
}

func (l *leastRequest) busy(i int) float64 {
	c := &l.candidates[i]
	return float64(c.State.Outstanding()) * l.mean / c.Weight
}

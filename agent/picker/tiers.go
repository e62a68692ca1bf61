package picker

import (
	"time"

	"github.com/lbagent/lbagent/health"
)

// overprovision is how much of its backends a tier may lose before others share its load (3.8): 1/1.4 of them, 71 %, still take all of it. Lower spills sooner,
// higher lets those that are left carry more.
const overprovision = 1.4

// Spill divides the load over groups of backends, those first that are preferred: tiers, or zones. usable is what share of each group's backends is usable, 0 to 1.
// A group takes what it can, its share x 1.4 of all load, and what is left goes to the next; if all of them can't take it all, each takes more, in proportion. This is
// the priority load of Envoy. The loads add up to 1, unless nothing is usable; enough reports whether the groups could take it all.
func Spill(usable []float64) (loads []float64, enough bool) {
	loads = make([]float64, len(usable))
	left, sum := 1.0, 0.0
	for i, share := range usable {
		can := min(1, share*overprovision)
		loads[i] = min(can, left)
		left -= loads[i]
		sum += loads[i]
	}
	if sum == 0 {
		return loads, false
	}
	for i := range loads {
		loads[i] /= sum
	}
	return loads, left <= 1e-9
}

// Tier is a group of candidates and the share of calls that it gets.
type Tier struct {
	Candidates []Candidate
	Load       float64
}

// tiered draws a tier by its load, then one of its candidates as if there were no others.
type tiered struct {
	tiers  []tier
	random Random
}

type tier struct {
	Picker
	from int     // the number of its first candidate
	upTo float64 // the running sum of loads
}

// NewTiered returns a picker over the candidates of all tiers, numbered through. When a tier has none left, the others are asked in their order.
func NewTiered(policy Policy, tiers []Tier, median *Median) (Picker, error) {
	if median == nil {
		median = new(Median)
	}
	t := &tiered{tiers: make([]tier, len(tiers)), random: median.Random}
	from, sum := 0, 0.0
	for i, one := range tiers {
		p, err := New(policy, one.Candidates, median)
		if err != nil {
			return nil, err
		}
		sum += one.Load
		t.tiers[i] = tier{p, from, sum}
		from += len(one.Candidates)
	}
	return t, nil
}

func (t *tiered) Pick(now time.Time, key uint64, not []*health.State) int {
	drawn := 0
	for x := t.random.Float64(); drawn < len(t.tiers)-1 && x >= t.tiers[drawn].upTo; {
		drawn++
	}
	if i := t.tiers[drawn].pick(now, key, not); i >= 0 {
		return i
	}
	for k := range t.tiers {
		if k == drawn {
			continue
		}
		if i := t.tiers[k].pick(now, key, not); i >= 0 {
			return i
		}
	}
	return -1
}

func (t *tier) pick(now time.Time, key uint64, not []*health.State) int {
	if i := t.Pick(now, key, not); i >= 0 {
		return t.from + i
	}
	return -1
}

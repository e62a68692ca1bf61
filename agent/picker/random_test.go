package picker

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A seeded source makes every policy repeat itself, and the draw is even either way.
func TestSeeded(t *testing.T) {
	const n = 7
	now := time.Unix(1, 0)
	for _, policy := range []Policy{P2C, RoundRobin} {
		var first []float64
		for _, seed := range []uint64{1, 1, 2} {
			cs := candidates(now, 1, 2, 3, 1, 1, 1, 4)
			p := mustNew(t, policy, cs, &Median{Random: NewRandom(rand.NewPCG(seed, 0))})
			switch got := shares(p, now, len(cs), 99); {
			case first == nil:
				first = got
			case slices.Equal(first, got) != (seed == 1):
				t.Errorf("%s: shares %v with seed 1, %v with seed %d", policy, first, got, seed)
			}
		}
	}
	for name, r := range map[string]Random{"runtime": {}, "seeded": NewRandom(rand.NewPCG(1, 1))} {
		counts, sum := make([]int, n), 0.0
		const draws = 70_000
		for range draws {
			counts[r.IntN(n)]++
			x := r.Float64()
			if x < 0 || x >= 1 {
				t.Fatalf("%s: Float64 is %v", name, x)
			}
			sum += x
		}
		for i, c := range counts {
			if math.Abs(float64(c)-draws/n) > 600 { // six standard deviations
				t.Errorf("%s: IntN(%d) is %d in %d of %d", name, n, i, c, draws)
			}
		}
		if mean := sum / draws; math.Abs(mean-0.5) > 0.01 {
			t.Errorf("%s: the mean of Float64 is %v", name, mean)
		}
	}
}

package picker

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/lbagent/lbagent/health"
)

// The guide table finds what a look at every running sum would find, whatever the weights are, at both ends of every candidate's part too (3.11).
func TestGuide(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 11))
	for round := range 300 {
		weights := make([]float64, 2+rng.IntN(60))
		for i := range weights {
			weights[i] = math.Exp(rng.Float64()*float64(round%40) - 5) // up to e^40 apart
		}
		cs := candidates(time.Now(), weights...)
		w := newWeighted(cs, sumUp(cs), Random{})
		if w.sums == nil {
			continue
		}
		look := func(x float64) {
			want := 0
			for want < len(w.sums)-1 && w.sums[want] <= x {
				want++
			}
			if got := w.find(x); got != want {
				t.Fatalf("weights %v: %v belongs to %d, got %d", weights, x, want, got)
			}
		}
		for _, s := range w.sums {
			look(s)
			look(math.Nextafter(s, 0))
			look(math.Nextafter(s, math.Inf(1)))
		}
		for part := range w.guide {
			look(float64(part) / w.parts)
			look(math.Nextafter(float64(part)/w.parts, 0))
		}
		for range 200 {
			look(rng.Float64() * w.sum)
		}
	}
}

// least_request goes by what is outstanding for its weight, and by nothing else (3.10).
func TestLeastRequest(t *testing.T) {
	now := time.Now()
	var m Median
	m.Set(time.Millisecond)
	m.Random = NewRandom(rand.NewPCG(1, 10))
	cs := equal(now, 2)
	for range 5 { // slow, and failing
		cs[1].State.Begin()
		cs[1].State.End(now, health.Failure, time.Second, true, "HTTP 503")
	}
	within(t, "slow and failing", shares(mustNew(t, LeastRequest, cs, &m), now, 2, 50_000), []float64{1, 1}, 0.03)
	cs[1].State.Begin()
	within(t, "one call outstanding", shares(mustNew(t, LeastRequest, cs, &m), now, 2, 50_000), []float64{1.5, 0.5}, 0.03)

	cs = candidates(now, 300, 100)
	p := mustNew(t, LeastRequest, cs, &m)
	for range 20_000 {
		cs[p.Pick(now, 0, nil)].State.Begin()
	}
	if ratio := float64(cs[0].State.Outstanding()) / float64(cs[1].State.Outstanding()); math.Abs(ratio-3) > 0.02 {
		t.Errorf("outstanding %d and %d: ratio %.3f, want 3", cs[0].State.Outstanding(), cs[1].State.Outstanding(), ratio)
	}
}

// The goals of one serial connection: equal backends within 10 % of even, 2:1 within 5 %, for every policy; a backend that is somewhat slower than others (3.4: within the
// dead band) keeps its share. The draws are seeded, so that these are no odds but facts.
func TestSerialShares(t *testing.T) {
	start := time.Now()
	for _, policy := range []Policy{P2C, RoundRobin, LeastRequest, Weighted} {
		for _, tt := range []struct {
			weights   []float64
			tolerance float64
		}{{slices.Repeat([]float64{1}, 10), 0.1}, {slices.Repeat([]float64{7}, 3), 0.1}, {[]float64{2, 1}, 0.05}, {[]float64{200, 100, 100}, 0.05}} {
			var m Median
			m.Random = NewRandom(rand.NewPCG(3, 1))
			cs, now, sum := candidates(start, tt.weights...), start, 0.0
			p := mustNew(t, policy, cs, &m)
			const n = 40_000
			got := make([]float64, len(cs))
			for range n {
				i := p.Pick(now, 0, nil)
				s := cs[i].State
				s.Begin()
				took := time.Millisecond * time.Duration(10+i%2*4) / 10
				now = now.Add(took)
				s.End(now, health.Success, took, true, "")
				m.Set(time.Millisecond)
				got[i]++
			}
			for _, w := range tt.weights {
				sum += w
			}
			for i, w := range tt.weights {
				if want := n * w / sum; math.Abs(got[i]-want) > tt.tolerance*want {
					t.Errorf("%s %v: %.0f, want %.0f within %.0f %%", policy, tt.weights, got, want, tt.tolerance*100)
				}
			}
		}
	}
}

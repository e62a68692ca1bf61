package picker

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lbagent/lbagent/health"
)

// 3.8: the preferred group takes all while its usable share x 1.4 >= 100 %, beyond that the next ones take what is left; if they can't, all take more.
func TestSpill(t *testing.T) {
	for _, tt := range []struct {
		usable, want []float64
		enough       bool
	}{
		{[]float64{1}, []float64{1}, true},
		{[]float64{1, 1}, []float64{1, 0}, true},
		{[]float64{0.72, 1}, []float64{1, 0}, true},
		{[]float64{1 / 1.4, 1}, []float64{1, 0}, true},
		{[]float64{0.5, 1}, []float64{0.7, 0.3}, true},
		{[]float64{0.25, 1}, []float64{0.35, 0.65}, true},
		{[]float64{0, 1}, []float64{0, 1}, true},
		{[]float64{0, 0.5, 1}, []float64{0, 0.7, 0.3}, true},
		{[]float64{0.5, 0.1, 1}, []float64{0.7, 0.14, 0.16}, true},
		{[]float64{0.25, 0.25}, []float64{0.5, 0.5}, false},        // 35 % each of 70 %
		{[]float64{0.5, 0.1}, []float64{5. / 6, 1. / 6}, false},    // 70 % and 14 % of 84 %
		{[]float64{0, 0.1}, []float64{0, 1}, false},                //
		{[]float64{0.1}, []float64{1}, false},                      //
		{[]float64{0, 0}, []float64{0, 0}, false},                  //
		{nil, []float64{}, false},                                  //
		{[]float64{0.3, 0.3, 0.3}, []float64{.42, .42, .16}, true}, // 42 %, 42 %, and the rest
	} {
		got, enough := Spill(tt.usable)
		same := len(got) == len(tt.want) && enough == tt.enough
		for i := range got {
			same = same && math.Abs(got[i]-tt.want[i]) < 1e-9
		}
		if !same {
			t.Errorf("%v: %v, enough %v; want %v, %v", tt.usable, got, enough, tt.want, tt.enough)
		}
	}
}

// Whatever is usable, loads add up to 1, no group takes load while one before it could take more, and none takes more than 1.4 x its share if there is enough.
func TestSpillHolds(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		usable := make([]float64, 1+rng.IntN(6))
		sum := 0.0
		for i := range usable {
			usable[i] = float64(rng.IntN(11)) / 10
			sum += min(1, 1.4*usable[i])
		}
		loads, enough := Spill(usable)
		total := 0.0
		for i, l := range loads {
			total += l
			if l < 0 || l > 0 && usable[i] == 0 || enough && l > 1.4*usable[i]+1e-9 {
				t.Fatalf("%v: %v", usable, loads)
			}
			for j := range i {
				if enough && l > 1e-9 && loads[j] < min(1, 1.4*usable[j])-1e-9 {
					t.Fatalf("%v: %v: %d gets load while %d could take it", usable, loads, i, j)
				}
			}
		}
		if sum == 0 && total != 0 || sum > 0 && math.Abs(total-1) > 1e-9 || math.Abs(sum-1) > 1e-6 && enough != (sum > 1) {
			t.Fatalf("%v: %v, enough %v", usable, loads, enough)
		}
	}
}

// A tier gets its load to some calls in a thousand, its own candidates their shares of that, and one without candidates left the others', in order.
func TestTieredShares(t *testing.T) {
	for _, policy := range []Policy{P2C, RoundRobin, LeastRequest, Weighted} {
		all := candidates(time.Now(), 1, 3, 2, 2, 5)
		p, err := NewTiered(policy, []Tier{{all[:2], 0.7}, {all[2:4], 0.3}, {all[4:], 0}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		const n = 100_000
		got := make([]float64, len(all))
		now := time.Now()
		for range n {
			got[p.Pick(now, 0, nil)]++
		}
		for i, want := range []float64{0.175, 0.525, 0.15, 0.15, 0} {
			if share := got[i] / n; math.Abs(share-want) > 0.01 || want == 0 && share > 0 {
				t.Errorf("%s: %d has %.3f, want %.3f", policy, i, share, want)
			}
		}
		var not []*health.State
		for _, most := range []int{5, 5, 5, 5, 5} {
			i := p.Pick(now, 0, not)
			if i < 0 || i >= most {
				t.Fatalf("%s: %d", policy, i)
			}
			not = append(not, all[i].State)
		}
		if i := p.Pick(now, 0, not); i != -1 {
			t.Errorf("%s: %d although all are excluded", policy, i)
		}
		if i := p.Pick(now, 0, []*health.State{all[0].State, all[1].State, all[2].State, all[3].State}); i != 4 {
			t.Errorf("%s: %d, want the one that stands by", policy, i)
		}
		if allocs := testing.AllocsPerRun(100, func() { p.Pick(now, 0, not[:2]) }); allocs != 0 {
			t.Errorf("%s: %v allocations", policy, allocs)
		}
	}
}

func BenchmarkTiered(b *testing.B) {
	for _, n := range []int{2, 4} {
		b.Run(fmt.Sprint(n, " tiers"), func(b *testing.B) {
			var tiers []Tier
			for range n {
				tiers = append(tiers, Tier{candidates(time.Now(), 1, 1, 1, 1), 1 / float64(n)})
			}
			p, err := NewTiered(P2C, tiers, nil)
			if err != nil {
				b.Fatal(err)
			}
			now := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				p.Pick(now, 0, nil)
			}
		})
	}
}

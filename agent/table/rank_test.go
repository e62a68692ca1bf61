package table

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// tiered is a list with backends 0 to n-1, each of the given priority.
func tiered(name string, priorities ...uint16) *service.List {
	l := list(name, ids(len(priorities))...)
	for i := range l.Backends {
		l.Backends[i].Priority = priorities[i]
	}
	return l
}

// 2.9: health, which knows nothing of tiers, holds no ejection back because another tier is dead.
func TestTiersDontStrain(t *testing.T) {
	r := newRig(t)
	sp := spec("user")
	sp.Health.PanicPercent = 50
	r.SetSpec(r.now, sp)
	for _, l := range []struct {
		*service.List
		want int
	}{{tiered("user", 10, 10), 50}, {tiered("user", 10, 10, 20), 0}, {tiered("user", 10, 10), 50}} {
		if r.Apply(r.now, l.List); r.options["user"].PanicPercent != l.want {
			t.Errorf("%d backends: health has panic_percent %d, want %d", len(l.Backends), r.options["user"].PanicPercent, l.want)
		}
	}
}

// 3.8: the preferred tier gets all calls, spills when it has lost too much, and gets them back; what stands by has weight 0, and is there for calls that have been
// at all others.
func TestTiers(t *testing.T) {
	r := newRig(t)
	r.SetSpec(r.now, spec("user"))
	r.Apply(r.now, tiered("user", 20, 10, 20, 10, 10, 10)) // neither in the list's order, nor from 0
	s := r.Lookup("user")
	v := s.View()
	if got := picked(counts(v, r.now, 200)); !slices.Equal(got, []int{1, 3, 4, 5}) {
		t.Errorf("picked %v, want the tier of 10", got)
	}
	want := []Tier{{10, 4, 4, 1}, {20, 2, 2, 0}}
	if !slices.Equal(v.Tiers, want) || v.Usable != 6 || v.Panic {
		t.Errorf("tiers %+v, %d usable, panic %v", v.Tiers, v.Usable, v.Panic)
	}
	for i, standby := range []bool{true, false, true, false, false, false} {
		if b := v.Backend(i); b.Standby != standby || (b.Weight == 0) != standby || !standby && b.Weight != 100 {
			t.Errorf("backend %d: %+v", i, b)
		}
	}
	// A call that was everywhere goes to who stands by, before who is out.
	r.judge(s, 5, downHard)
	v = s.View()
	tried := []*health.State{v.Backend(1).State, v.Backend(3).State, v.Backend(4).State}
	if got := picked(counts(v, r.now, 200, tried...)); !slices.Equal(got, []int{0, 2}) {
		t.Errorf("picked %v, want who stands by", got)
	}
	// 2 of 4: 70 %, and 30 % spill.
	r.judge(s, 4, downHard)
	v = s.View()
	got := counts(v, r.now, 10_000)
	if share := float64(got[0]+got[2]) / 10_000; math.Abs(share-0.3) > 0.03 || got[4]+got[5] > 0 {
		t.Errorf("%.3f spills of %v, want 0.3", share, got)
	}
	if w := v.Backend(0).Weight / v.Backend(1).Weight; math.Abs(w-3./7) > 1e-9 {
		t.Errorf("weights %v and %v", v.Backend(0).Weight, v.Backend(1).Weight)
	}
	// All of the first are out: no panic, since the other can take it.
	for _, id := range []int{1, 3} {
		r.judge(s, id, downSoft)
	}
	if v = s.View(); v.Panic || !slices.Equal(picked(counts(v, r.now, 200)), []int{0, 2}) || v.Usable != 2 {
		t.Errorf("panic %v, picked %v", v.Panic, picked(counts(v, r.now, 200)))
	}
	// And of the other: panic as ever, what is only softly out is tried.
	for _, id := range []int{0, 2} {
		r.judge(s, id, downHard)
	}
	if v = s.View(); !v.Panic || !slices.Equal(picked(counts(v, r.now, 200)), []int{1, 3}) {
		t.Errorf("panic %v, picked %v", v.Panic, picked(counts(v, r.now, 200)))
	}
	for id := range 6 {
		r.judge(s, id, isUp)
	}
	if v = s.View(); !slices.Equal(v.Tiers, want) || v.Backend(1).Weight != 100 || v.Backend(0).Weight != 0 || v.Panic {
		t.Errorf("after all are back: %+v", v.Tiers)
	}
	// Draining ones are no sign that a tier is weak.
	l := tiered("user", 20, 10, 20, 10, 10, 10)
	l.Backends[4].Draining, l.Backends[5].Draining = true, true
	r.Apply(r.now, l)
	if v = s.View(); !slices.Equal(v.Tiers, []Tier{{10, 2, 2, 1}, {20, 2, 2, 0}}) {
		t.Errorf("with draining ones: %+v", v.Tiers)
	}
	// One tier is none, whatever its number.
	r.Apply(r.now, tiered("user", 20, 20, 20))
	if v = s.View(); v.Tiers != nil || v.Backend(0).Standby || v.Backend(0).Weight != 100 || len(picked(counts(v, r.now, 200))) != 3 {
		t.Errorf("of one tier: %+v", v.Tiers)
	}
}

// A change of the policy makes a view of the same backends; the old one stays as it was.
func TestTiersOfAnOldView(t *testing.T) {
	r := newRig(t)
	r.SetSpec(r.now, spec("user"))
	r.Apply(r.now, tiered("user", 1, 2))
	s := r.Lookup("user")
	old := s.View()
	r.judge(s, 0, downHard)
	sp := spec("user")
	sp.Policy = picker.RoundRobin
	r.SetSpec(r.now, sp)
	if now := s.View(); now.Backend(1).Standby || !old.Backend(1).Standby || old.Backend(0).Weight != 100 || now == old {
		t.Errorf("now %+v, before %+v", now.roster, old.roster)
	}
}

// Random priorities, weights and verdicts: who is picked, and how often, is what the formula says.
func TestTiersModel(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 3))
		r := newRig(t)
		sp := spec("user")
		sp.Policy = []picker.Policy{picker.P2C, picker.RoundRobin}[seed%2]
		r.SetSpec(r.now, sp)
		n := 2 + rng.IntN(12)
		prios := make([]uint16, n)
		for i := range prios {
			prios[i] = uint16(rng.IntN(3))
		}
		l := tiered("user", prios...)
		for i := range l.Backends {
			l.Backends[i].Weight = uint32(1 + rng.IntN(5))
			l.Backends[i].Draining = rng.IntN(8) == 0
		}
		r.Apply(r.now, l)
		s := r.Lookup("user")
		out := map[int]bool{}
		for id := range n {
			if !l.Backends[id].Draining && rng.IntN(3) == 0 {
				r.judge(s, id, unreachable)
				out[id] = true
			}
		}
		// The slow way.
		var shares []float64
		sums := map[uint16]float64{}
		for p := range uint16(3) {
			usable, all := 0.0, 0.0
			for id, q := range prios {
				if q == p && !l.Backends[id].Draining {
					all++
					if !out[id] {
						usable++
						sums[p] += float64(l.Backends[id].Weight)
					}
				}
			}
			shares = append(shares, usable/max(1, all))
		}
		loads, _ := picker.Spill(shares)
		v := s.View()
		const picks = 20_000
		got := counts(v, r.now, picks)
		any := sums[0]+sums[1]+sums[2] > 0
		for id, p := range prios {
			want := 0.0
			if any && !out[id] && !l.Backends[id].Draining {
				want = loads[p] * float64(l.Backends[id].Weight) / sums[p]
			}
			share := float64(got[id]) / picks
			if !any {
				continue // in panic: all are tried
			}
			if math.Abs(share-want) > 0.02 || want == 0 && share > 0 {
				t.Errorf("seed %d: backend %d has %.3f of the calls, want %.3f; tiers %+v", seed, id, share, want, v.Tiers)
			}
		}
	}
}

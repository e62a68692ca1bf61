package table

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// 3.7: who joins or comes back begins at 10 % and has all after 15 s; never when most of the list does, and nobody at the first list.
func TestSlowStart(t *testing.T) {
	r, s := weighing(t, 4)
	if got := weights(s); !slices.Equal(got, []float64{100, 100, 100, 100}) {
		t.Fatalf("the first list: %v", got)
	}
	r.Apply(r.now, list("user", ids(5)...))
	for second, want := range []float64{10, 16, 22, 28, 34, 40, 46, 52, 58, 64, 70, 76, 82, 88, 94, 100, 100} {
		if got := weights(s); math.Abs(got[4]-want) > 0.01 || got[0] != 100 {
			t.Fatalf("second %d: %v, want %v", second, got, want)
		}
		r.tick()
	}
	// Back from being out; the dynamic weight is whole again, since slow start leads back.
	r.calls(s, 1, 100, 100)
	r.tick()
	r.judge(s, 1, ejected)
	r.judge(s, 1, unreachable)
	r.tick()
	r.judge(s, 1, isUp)
	if b := s.View().Backend(1); math.Abs(b.Weight-10) > 0.01 || b.Factors.Dynamic != 1 {
		t.Errorf("back: %+v", b)
	}
	// Another process on a known address.
	l := list("user", ids(5)...)
	l.Backends[2].Created = 2
	r.Apply(r.now, l)
	if got := weights(s); math.Abs(got[2]-10) > 0.01 {
		t.Errorf("restarted: %v", got)
	}
	// Now 3 of 5 would be slow: the other two would carry nearly all.
	r.judge(s, 3, downHard)
	r.judge(s, 3, isUp)
	if got := weights(s); !slices.Equal(got, []float64{100, 100, 100, 100, 100}) {
		t.Errorf("most are new: %v", got)
	}
	r.tick()
	if got := weights(s); !slices.Equal(got, []float64{100, 100, 100, 100, 100}) {
		t.Errorf("a second after most were new: %v", got)
	}
	// A swap (blue/green): all are new.
	r.Apply(r.now, list("user", 10, 11, 12))
	if got := weights(s); !slices.Equal(got, []float64{100, 100, 100}) {
		t.Errorf("all are new: %v", got)
	}
	sp := *s.Spec()
	sp.SlowStart = 0
	r.SetSpec(r.now, sp)
	r.Apply(r.now, list("user", 10, 11, 12, 13))
	if got := weights(s); !slices.Equal(got, []float64{100, 100, 100, 100}) {
		t.Errorf("off: %v", got)
	}
}

// Random joins, ends and verdicts: each slow start is the line of 3.7 since its begin, and no view has more than half of its usable backends in one.
func TestSlowStartModel(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 37))
		r, s := weighing(t, 8)
		in, up := map[int]bool{}, map[int]bool{}
		began := map[int]time.Time{}
		for i := range 8 {
			in[i], up[i] = true, true
		}
		for range 150 {
			switch id := rng.IntN(12); {
			case rng.IntN(3) == 0 && (!in[id] || len(in) > 2):
				if in[id] {
					delete(in, id)
					delete(began, id)
				} else {
					in[id], began[id] = true, r.now
					up[id] = s.left[addr(id)].state == nil || up[id]
				}
				var all []int
				for i := range 12 {
					if in[i] {
						all = append(all, i)
					}
				}
				r.Apply(r.now, list("user", all...))
				if in[id] {
					up[id] = s.View().Find(addr(id)).Verdict.Usable()
				}
			case in[id]:
				if up[id] = !up[id]; up[id] {
					began[id] = r.now
					r.judge(s, id, isUp)
				} else {
					r.judge(s, id, downHard)
				}
			}
			check := func() {
				v := s.View()
				usable, slow := 0, 0
				for i := range v.Len() {
					if id := number(v.Backend(i).Backend); up[id] {
						usable++
						if at, ok := began[id]; ok && r.now.Sub(at) < 15*time.Second {
							slow++
						}
					}
				}
				if slow*2 > usable {
					clear(began)
				}
				for i := range v.Len() {
					b := v.Backend(i)
					want := 1.0
					if at, ok := began[number(b.Backend)]; ok {
						want = math.Min(1, 0.1+0.9*r.now.Sub(at).Seconds()/15)
					}
					if math.Abs(float64(b.Factors.SlowStart)-want) > 1e-5 {
						t.Fatalf("seed %d: backend %d has %v, want %v", seed, number(b.Backend), b.Factors.SlowStart, want)
					}
				}
			}
			check()
			for range rng.IntN(3) {
				r.tick()
				check()
			}
		}
	}
}

package table

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// weighing is a service "user" with n backends and the keys of section 3 as the configuration has them by default.
func weighing(t testing.TB, n int, change ...func(*Spec)) (*rig, *Service) {
	r := seeded(t)
	sp := spec("user")
	sp.DynamicWeight, sp.SlowStart, sp.Subset = true, 15*time.Second, 32
	for _, c := range change {
		c(&sp)
	}
	r.SetSpec(r.now, sp)
	r.Apply(r.now, list("user", ids(n)...))
	return r, r.Lookup("user")
}

// seeded is a rig that picks the same in every run.
func seeded(t testing.TB) *rig {
	r := newRig(t)
	r.cfg.Random = picker.NewRandom(rand.NewPCG(3, 2))
	return r
}

// tick lets a second pass.
func (r *rig) tick() {
	r.now = r.now.Add(time.Second)
	r.Second(r.now)
}

// calls has a backend answer so many calls, of which some fail.
func (r *rig) calls(s *Service, id, calls, failed int) {
	b := s.View().Find(addr(id))
	for i := range calls {
		b.State.Begin()
		result := health.Success
		if i < failed {
			result = health.Failure
		}
		b.State.End(r.now, result, time.Millisecond, true, "HTTP 503")
	}
}

func weights(s *Service) []float64 {
	var all []float64
	for _, b := range s.View().Backends() {
		all = append(all, math.Round(b.Weight*100)/100)
	}
	return all
}

// 3.3 as a table: what one sample does.
func TestDynamicSamples(t *testing.T) {
	at := time.Now()
	for _, tt := range []struct {
		name        string
		calls, good float64
		after       time.Duration
		from, to    float64
		whole       bool
	}{
		{"too few calls yet", 9, 0, 4 * time.Second, 1, 1, false},
		{"ten calls at once", 10, 10, 0, 0.5, 0.55, true},
		{"few calls in 5 s", 3, 3, 5 * time.Second, 0.5, 0.55, true},
		{"no calls in 5 s", 0, 0, 5 * time.Second, 0.5, 0.55, true},
		{"98 %", 100, 98, time.Second, 0.5, 0.55, true},
		{"below 98 %", 1000, 979, time.Second, 1, 0.9584, true},
		{"half", 1000, 500, time.Second, 1, 0.2505, true},
		{"all fail", 1000, 0, time.Second, 1, 0.01, true},
		{"all fail, at the floor", 1000, 0, time.Second, 0.01, 0.01, true},
		{"one call fails, of one", 1, 0, 5 * time.Second, 1, 0.25, true},
		{"never above 1", 10, 10, time.Second, 0.99, 1, true},
		{"one call fails of a low one", 1, 0, time.Second, 0.2, 0.05, true},
		{"one of two calls fails of a low one", 2, 1, time.Second, 0.2, 0.2, false},
		{"20 steps are the whole way", 10, 10, time.Second, 0.96, 1, true},
	} {
		d := newDynamic()
		d.take(at, 7, 5) // what came before the first sample is in none
		d.weight = tt.from
		s, whole := d.take(at.Add(tt.after), 7+tt.calls, 5+tt.good)
		switch {
		case whole && s.healthy():
			d.raise()
		case whole:
			d.lower(s)
		}
		if whole != tt.whole || math.Abs(d.weight-tt.to) > 0.0001 {
			t.Errorf("%s: %v, whole %v; want %v, %v", tt.name, d.weight, whole, tt.to, tt.whole)
		}
		if again, whole := d.take(at.Add(tt.after), 7+tt.calls, 5+tt.good); tt.whole && whole {
			t.Errorf("%s: %v was sampled twice", tt.name, again)
		}
	}
}

// After four good samples in a row with calls in them the steps double, and one that isn't good, or has no call, ends that. After a cut a sample without a call takes 10 s.
func TestDynamicRun(t *testing.T) {
	at, d := time.Now(), newDynamic()
	d.take(at, 0, 0)
	d.weight = 0.1
	var calls, good float64
	for i, tt := range []struct {
		calls, good float64
		after       time.Duration
		to          float64 // 0 = the sample isn't whole
	}{
		{10, 10, 0, 0.15}, {10, 10, 0, 0.2}, {1, 1, 5 * time.Second, 0.25}, {10, 10, 0, 0.3}, {10, 10, 0, 0.4}, {10, 10, 0, 0.6}, {10, 10, 0, 1}, {10, 10, 0, 1},
		{1000, 0, 0, 0.01}, {0, 0, 9 * time.Second, 0}, {0, 0, time.Second, 0.06}, {0, 0, 5 * time.Second, 0.11},
		{10, 10, 0, 0.16}, {10, 10, 0, 0.21}, {10, 10, 0, 0.26}, {0, 0, 5 * time.Second, 0.31}, {10, 10, 0, 0.36}, {10, 10, 0, 0.41}, {10, 10, 0, 0.46},
		{10, 9, 0, 0.3802}, {10, 10, 0, 0.4302}, {10, 10, 0, 0.4802},
	} {
		at, calls, good = at.Add(tt.after), calls+tt.calls, good+tt.good
		s, whole := d.take(at, calls, good)
		switch {
		case whole && s.healthy():
			d.raise()
		case whole:
			d.lower(s)
		}
		if whole != (tt.to != 0) || whole && math.Abs(d.weight-tt.to) > 0.0001 {
			t.Fatalf("%d: %v, whole %v; want %v", i, d.weight, whole, tt.to)
		}
	}
}

// As many reported failures in a row as eject cut a weight at once, however many are low: whoever waits for a view is told, and it isn't done again until the weight has risen.
// Not to one that is out.
func TestAccused(t *testing.T) {
	r, s := weighing(t, 4)
	r.tick()
	accuse := func(id int) bool {
		b := s.View().Find(addr(id))
		_, changed := s.Changed()
		up := health.Part{Kind: health.Up}
		r.SetVerdicts(r.now, []health.Change{{Group: "user", Addr: b.Addr, State: b.State, From: up, To: up, Accused: true}})
		select {
		case <-changed:
			return true
		default:
			return false
		}
	}
	if !accuse(1) || !slices.Equal(weights(s), []float64{100, 1, 100, 100}) {
		t.Fatalf("weights %v after backend 1 was accused", weights(s))
	}
	last := r.details(event.Weight)
	if want := "its dynamic weight is cut from 100 to 1 %: as many failures in a row were reported as eject"; len(last) != 1 || last[0] != want {
		t.Errorf("told %q, want %q", last, want)
	}
	if accuse(1) {
		t.Error("it was cut twice")
	}
	r.judge(s, 2, health.Part{Kind: health.Down})
	if accuse(2) || !accuse(0) {
		t.Error("one that is down was cut, or one that is up was not")
	}
	if !accuse(3) || !slices.Equal(weights(s), []float64{1, 1, 100, 1}) {
		t.Errorf("weights %v after all that are up were accused", weights(s))
	}
}

// Random histories of whole services: each weight is what the rule of 3.3 makes of the samples of its backend one after the other, and no call is in two samples.
func TestDynamicModel(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 33))
		n := 2 + rng.IntN(6)
		r, s := weighing(t, n)
		type backend struct {
			weight                  float64
			calls, failed, age, run int
			cut                     bool
		}
		model := make([]backend, n)
		for i := range model {
			model[i].weight = 1
		}
		r.tick() // samples begin
		for second := range 120 {
			for i := range model {
				calls := rng.IntN(25) * rng.IntN(2)
				failed := 0
				if rng.IntN(1+int(seed)%7) == 0 {
					failed = min(calls, rng.IntN(4))
				}
				r.calls(s, i, calls, failed)
				model[i].calls += calls
				model[i].failed += failed
				model[i].age++
			}
			type cut struct {
				i    int
				rate float64
			}
			var cuts []cut
			lows := 0
			for i := range model {
				m := &model[i]
				lasts := 5
				switch {
				case m.calls > 0 && m.calls == m.failed && m.weight < 0.5-1e-9:
					lasts = 0
				case m.calls == 0 && m.cut:
					lasts = 10
				}
				if m.calls >= 10 || m.age >= lasts {
					if rate := 1 - float64(m.failed)/float64(max(1, m.calls)); rate < 0.98 {
						cuts = append(cuts, cut{i, rate})
						m.run = 0
					} else {
						if m.run++; m.calls == 0 {
							m.run = 0
						}
						m.cut = false
						m.weight = math.Min(1, m.weight+0.05*float64(int(1)<<min(5, max(0, m.run-4))))
						m.calls, m.failed, m.age = 0, 0, 0
					}
				}
				if m.weight < 0.5-1e-9 {
					lows++
				}
			}
			slices.SortStableFunc(cuts, func(a, b cut) int {
				if a.rate < b.rate {
					return -1
				} else if a.rate > b.rate {
					return 1
				}
				return 0
			})
			for _, c := range cuts {
				m := &model[c.i]
				success, all := float64(m.calls-m.failed+1)/float64(m.calls+1), m.failed == m.calls
				m.calls, m.failed, m.age = 0, 0, 0
				if lows*2 > n && !all {
					continue
				}
				was := m.weight
				m.cut = true
				if m.weight = math.Max(0.01, m.weight*success*success); was >= 0.5-1e-9 && m.weight < 0.5 {
					lows++
				}
			}
			r.tick()
			for i, b := range s.View().Backends() {
				if math.Abs(float64(b.Factors.Dynamic)-model[i].weight) > 1e-3 || math.Abs(b.Weight-100*float64(b.Factors.Dynamic)) > 1e-9 {
					t.Fatalf("seed %d, second %d, backend %d: dynamic %v, weight %v; want %v", seed, second, i, b.Factors.Dynamic, b.Weight, model[i].weight)
				}
			}
		}
	}
}

// A backend that fails 30 % of its calls ends below a quarter of its fair share; one that is well again has its full share within 60 s.
func TestDynamicShares(t *testing.T) {
	r, s := weighing(t, 5)
	rng := rand.New(rand.NewPCG(30, 3))
	run := func(seconds int, failing float64) (share float64) {
		got, all := 0, 0
		for i := range seconds {
			for range 100 {
				b := s.View().Pick(r.now, nil)
				b.State.Begin()
				result := health.Success
				if number(b) == 2 && rng.Float64() < failing {
					result = health.AppError // nothing that ejects, and no penalty
					if failing > 0 {
						result = health.Failure
					}
				}
				b.State.End(r.now, result, time.Millisecond, true, "HTTP 500")
				if i >= seconds/2 {
					all++
					if number(b) == 2 {
						got++
					}
				}
			}
			r.tick()
		}
		return float64(got) / float64(all)
	}
	if share := run(60, 0.3); share > 0.05 {
		t.Errorf("a backend that fails 30 %% has %.3f of the calls, want less than a quarter of 0.2", share)
	}
	run(30, 0)
	if share := run(30, 0); math.Abs(share-0.2) > 0.03 {
		t.Errorf("well for 45 s to 60 s, it has %.3f of the calls, want 0.2", share)
	}
}

// When over half of a service is low, only who fails every call is cut any more, and the worst are cut first (3.3): not all can be bad; but if all are gone, none gets all calls.
func TestDynamicStopsAtHalf(t *testing.T) {
	r, s := weighing(t, 5)
	r.tick()
	for id, failed := range []int{20, 60, 40, 80, 100} {
		r.calls(s, id, 100, failed)
	}
	r.tick()
	if got := weights(s); got[0] != 100 || got[2] >= 50 && got[1] >= 50 || got[4] != 1 || got[3] > 5 {
		t.Errorf("weights %v: want the three worst cut, the others as they were", got)
	}
	r.calls(s, 0, 100, 99)
	r.calls(s, 2, 100, 100)
	r.tick()
	if got := weights(s); got[0] != 100 || got[2] > 1 {
		t.Errorf("weights %v: want the one cut that failed every call", got)
	}
}

// Weights move without a new view for those who wait for one; large changes wake them, and are told once, when a weight is low and when it is whole again.
func TestWeightsMoveSilently(t *testing.T) {
	r, s := weighing(t, 4)
	r.tick()
	old, changed := s.Changed()
	woken := func() bool {
		select {
		case <-changed:
			_, changed = s.Changed()
			return true
		default:
			return false
		}
	}
	marks := r.marks
	r.calls(s, 1, 100, 10)
	r.tick()
	if v := s.View(); v == old || v.Backend(1).Weight != 100*float64(v.Backend(1).Factors.Dynamic) || v.Backend(1).Weight > 83 || woken() || r.marks != marks {
		t.Errorf("weight %v, woken, or %d marks", s.View().Backend(1).Weight, r.marks-marks)
	}
	if old.Backend(1).Weight != 100 {
		t.Error("a view has changed")
	}
	same := s.View()
	r.tick()
	if s.View() != same {
		t.Error("a view was made although nothing moved")
	}
	r.calls(s, 1, 100, 90)
	r.tick()
	if !woken() || r.marks != marks+1 {
		t.Error("a large change woke nobody")
	}
	for range 25 {
		r.calls(s, 1, 10, 0)
		r.tick()
	}
	if got := weights(s); got[1] != 100 {
		t.Errorf("weights %v", got)
	}
	want := []string{
		"its dynamic weight is cut from 100 to 1 %: 10 of the last 100 calls succeeded, latency 1ms",
		"its dynamic weight is whole again, from 1 to 100 %: 10 of the last 10 calls succeeded, latency 1ms",
	}
	if told := r.details(event.Weight); !slices.Equal(told, want) {
		t.Errorf("events %q", told)
	}
	// A list or a verdict takes the weights along.
	r.calls(s, 1, 100, 50)
	r.tick()
	w := weights(s)[1]
	r.Apply(r.now, list("user", ids(3)...))
	r.judge(s, 0, ejected)
	if got := weights(s)[1]; got != w || w > 30 {
		t.Errorf("weight %v, was %v", got, w)
	}
	// Off, it is as if nothing had been.
	sp := *s.Spec()
	sp.DynamicWeight = false
	r.SetSpec(r.now, sp)
	if got := weights(s)[1]; got != 100 {
		t.Errorf("switched off: %v", got)
	}
}

// What moves a weight by a factor of 2 is told, at most once in 10 s, and nothing smaller.
func TestWeightsAreTold(t *testing.T) {
	r, s := weighing(t, 4)
	r.tick()
	told := func(want ...string) {
		t.Helper()
		got := r.details(event.Weight)
		for i := range got {
			got[i] = strings.TrimPrefix(strings.Split(got[i], ":")[0], "its dynamic weight ")
		}
		if !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	}
	sample := func(failed int) {
		r.calls(s, 1, 100, failed)
		r.tick()
	}
	sample(20)
	told() // 64 %
	sample(20)
	told("is cut from 100 to 41 %")
	sample(50)
	sample(50)
	told("is cut from 100 to 41 %") // it is at 3 % by now, and 10 s haven't passed
	for range 8 {
		sample(20)
	}
	told("is cut from 100 to 41 %", "is cut from 41 to 1 %")
	for range 5 {
		sample(0)
	}
	for range 4 {
		r.tick()
	}
	told("is cut from 100 to 41 %", "is cut from 41 to 1 %")
	r.tick() // the sample without a call is whole
	told("is cut from 100 to 41 %", "is cut from 41 to 1 %", "rose from 1 to 36 %")
}

// A backend that is out is told of by its verdict: its weight is cut for what it was taken out for, and for nothing later; no event tells of it until it is back.
func TestWeightOfABackendThatIsOut(t *testing.T) {
	for _, out := range []struct {
		name string
		do   func(r *rig, s *Service)
		back func(r *rig, s *Service)
	}{
		{"ejected", func(r *rig, s *Service) {
			p := ejected
			p.Since = r.now
			r.judge(s, 1, p)
		}, func(r *rig, s *Service) { r.judge(s, 1, isUp) }},
		{"muted", func(r *rig, s *Service) {
			r.SetMutes(r.now, []service.Mute{{Service: "user", Addr: addr(1), Since: r.now}})
		}, func(r *rig, s *Service) { r.SetMutes(r.now, nil) }},
	} {
		t.Run(out.name, func(t *testing.T) {
			r, s := weighing(t, 4)
			r.tick()
			r.calls(s, 1, 100, 50)
			out.do(r, s)
			r.tick()
			cut := s.View().Backend(1).life.dynamic.weight
			if cut > 0.3 {
				t.Errorf("the sample that it was taken out in left it %v", cut)
			}
			for range 15 {
				r.calls(s, 1, 10, 10)
				r.tick()
			}
			if w := s.View().Backend(1).life.dynamic.weight; w != cut {
				t.Errorf("cut to %v while it was out, from %v", w, cut)
			}
			for range 200 { // nobody calls it
				r.tick()
			}
			if told := r.details(event.Weight); len(told) != 0 {
				t.Errorf("told %q", told)
			}
			out.back(r, s)
			r.tick()
			r.calls(s, 1, 100, 90)
			r.tick()
			if told := r.details(event.Weight); len(told) != 1 || !strings.Contains(told[0], "10 of the last 100 calls succeeded") {
				t.Errorf("back, and bad again: told %q", told)
			}
		})
	}
}

// What another process had of weights goes on (6.3): a cut is raised as it would have been, and told when it is over; a slow start is where it was. Nobody is woken for it.
func TestWeightsGoOn(t *testing.T) {
	was, from := weighing(t, 6)
	was.calls(from, 1, 100, 40)
	was.tick() // the sample begins
	was.calls(from, 1, 100, 40)
	was.Apply(was.now, list("user", ids(7)...))
	for range 3 {
		was.tick()
	}
	known := map[netip.AddrPort]Placed{}
	for _, b := range from.View().Backends() {
		known[b.Addr] = b
	}
	if w := weights(from); w[1] > 50 || w[6] != 28 {
		t.Fatalf("before: %v", w)
	}

	is := seeded(t)
	is.now = was.now
	is.cfg.Known = func(_ time.Time, name string, epoch uint64, b *service.Backend) (*health.State, Factors) {
		k, ok := known[b.Addr]
		if !ok || name != "user" || epoch != 1 {
			return nil, Factors{}
		}
		return k.State, k.Factors
	}
	is.SetSpec(is.now, *from.Spec())
	is.Apply(is.now, list("user", ids(8)...)) // one that the other process didn't know, and that is in the first list
	to := is.Lookup("user")
	_, woken := to.Changed()
	for second := range 20 {
		got, want := weights(to), weights(from)
		for i := range want {
			if math.Abs(got[i]-want[i]) > 6 { // the sample of the cut one may end up to 5 s apart
				t.Fatalf("second %d: %v, want %v", second, got, want)
			}
		}
		if second == 0 && (!slices.Equal(got[:7], want) || got[7] != 100) {
			t.Fatalf("at once: %v, want %v and 100", got, want)
		}
		was.tick()
		is.tick()
		select {
		case <-woken:
			if second == 0 {
				t.Error("woken, though nothing is new")
			}
		default:
		}
	}
	for range 100 {
		is.tick()
	}
	if got := is.details(event.Weight); weights(to)[1] != 100 || len(got) == 0 || !strings.Contains(got[len(got)-1], "is whole again") {
		t.Errorf("in the end %v, told %q", weights(to), got)
	}
}

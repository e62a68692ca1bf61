package table

import (
	"math"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// What can't be was not: another release may say anything.
func TestStrangeFactors(t *testing.T) {
	for _, f := range []Factors{{}, plain(), {Dynamic: -1, SlowStart: -1}, {Dynamic: 7, SlowStart: 7}, {SlowStart: 0.01}} {
		r := seeded(t)
		r.cfg.Known = func(now time.Time, _ string, _ uint64, _ *service.Backend) (*health.State, Factors) {
			return health.NewState(now), f
		}
		sp := spec("user")
		sp.DynamicWeight, sp.SlowStart = true, 15*time.Second
		r.SetSpec(r.now, sp)
		r.Apply(r.now, list("user", ids(3)...))
		if got := weights(r.Lookup("user")); !slices.Equal(got, []float64{100, 100, 100}) {
			t.Errorf("%+v: %v", f, got)
		}
	}
	r, s := weighing(t, 3)
	b := *s.View().Backend(0).Backend
	s.reweighAs(r.now, &b, Factors{Dynamic: 1e-9, SlowStart: 1})
	if math.Abs(b.weight-100*floor) > 0.01 {
		t.Errorf("weight %v, want the floor", b.weight)
	}
}

// 3.12: a load that was written less than 60 s ago lowers the weight, if the service asks for it.
func TestLoad(t *testing.T) {
	r, s := weighing(t, 4, func(sp *Spec) { sp.Load = true })
	says := func(load string, at time.Time) map[string]string {
		return map[string]string{"load": load, "load_at": formatUnix(at)}
	}
	l := list("user", ids(4)...)
	l.Backends[0].Metadata = says("100", r.now)
	l.Backends[1].Metadata = says("50", r.now.Add(-10*time.Second))
	l.Backends[2].Metadata = says("50", r.now.Add(-70*time.Second))
	l.Backends[3].Metadata = says("101", r.now)
	for i := range l.Backends {
		l.Backends[i].Modified = 2
	}
	r.Apply(r.now, l)
	if got := weights(s); !slices.Equal(got, []float64{10, 55, 100, 100}) {
		t.Errorf("weights %v", got)
	}
	for range 51 {
		r.tick()
	}
	if got := weights(s); !slices.Equal(got, []float64{10, 100, 100, 100}) {
		t.Errorf("weights %v when one is 61 s old", got)
	}
	n := *l
	n.Backends = slices.Clone(l.Backends)
	n.Backends[0].Metadata, n.Backends[0].Modified = says("0", r.now), 3
	n.Backends[1].Metadata, n.Backends[1].Modified = says("20", r.now.Add(2*time.Minute)), 3 // a clock that is far ahead
	r.Apply(r.now, &n)
	if got := weights(s); !slices.Equal(got, []float64{100, 100, 100, 100}) {
		t.Errorf("weights %v", got)
	}
	sp := *s.Spec()
	sp.Load = false
	r.Apply(r.now, l)
	r.SetSpec(r.now, sp)
	if got := weights(s); !slices.Equal(got, []float64{100, 100, 100, 100}) {
		t.Errorf("weights %v although load is off", got)
	}
}

// With every factor at once the effective weight is their product (3.2), and picks follow it.
func TestFactorsMultiply(t *testing.T) {
	r, s := weighing(t, 4, func(sp *Spec) { sp.Load = true })
	r.tick()
	r.calls(s, 0, 100, 50)
	l := list("user", ids(5)...)
	l.Backends[0].Weight, l.Backends[0].Modified = 300, 2
	l.Backends[0].Metadata = map[string]string{"load": "50", "load_at": formatUnix(r.now)}
	r.Apply(r.now, l)
	r.tick()
	v := s.View()
	b := v.Backend(0)
	f := b.Factors
	if f.Load != 0.55 || f.Dynamic > 0.27 || f.Dynamic < 0.24 || f.SlowStart != 1 || math.Abs(b.Weight-300*float64(f.Load)*float64(f.Dynamic)) > 1e-6 {
		t.Fatalf("%v of %+v", b.Weight, f)
	}
	sum := 0.0
	for _, b := range v.Backends() {
		sum += b.Weight
	}
	got := counts(v, r.now.Add(time.Minute), 60_000)
	for i, b := range v.Backends() {
		if share := float64(got[i]) / 60_000; math.Abs(share-b.Weight/sum) > 0.015 {
			t.Errorf("backend %d has %.3f of the calls, want %.3f", i, share, b.Weight/sum)
		}
	}
}

func formatUnix(at time.Time) string { return strconv.FormatInt(at.Unix(), 10) }

package sim

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// defaults are what the command line's defaults are.
func defaults(scenario, contender string, seed uint64) Config {
	return Config{Scenario: scenario, Contender: contender, Seed: seed, Mean: 10 * time.Millisecond, Distribution: Exponential, Load: 0.5, Timeout: time.Second}
}

func run(t *testing.T, c Config) *Result {
	t.Helper()
	r, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Events come in the order of their times; those of one moment in the order in which they were planned.
func TestClock(t *testing.T) {
	type moment struct {
		at time.Duration
		n  int
	}
	var c clock
	var want, got []moment
	r := rand.New(rand.NewPCG(1, 1))
	plan := func(p moment) {
		want = append(want, p)
		c.plan(p.at, deed(func() { got = append(got, moment{c.now, p.n}) }))
	}
	for n := range 1000 {
		plan(moment{time.Duration(r.IntN(300)), n})
	}
	c.plan(150, deed(func() { plan(moment{150, 1000}); plan(moment{299, 1001}) }))
	never := func() bool { return false }
	if !c.run(200, never) || c.now != 200 {
		t.Fatalf("stopped at %v", c.now)
	}
	if len(got) == 0 || len(got) > 900 || got[len(got)-1].at >= 200 {
		t.Fatalf("%d events before 200, the last at %v", len(got), got[len(got)-1])
	}
	c.run(300, never)
	slices.SortStableFunc(want, func(a, b moment) int { return cmp.Compare(a.at, b.at) })
	if !slices.Equal(got, want) {
		t.Fatalf("got %v\nwant %v", got, want)
	}
	c.plan(400, deed(func() {}))
	if c.run(500, func() bool { return true }) {
		t.Error("it was not stopped")
	}
}

// The heap of servers is as good as looking at all of them.
func TestServe(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	b, naive := newBackend(5, 1), make([]time.Duration, 5)
	now, refused, waited := time.Duration(0), 0, 0
	for range 10_000 {
		now += time.Duration(r.ExpFloat64() * float64(20*time.Millisecond))
		work := time.Duration(r.ExpFloat64() * float64(100*time.Millisecond))
		first := 0
		for i := range naive {
			if naive[i] < naive[first] {
				first = i
			}
		}
		done, ok := b.serve(now, work)
		if wait := naive[first] - now; wait > full {
			refused++
			if ok {
				t.Fatalf("served after a wait of %v", wait)
			}
			continue
		} else if wait > 0 {
			waited++
		}
		if naive[first] = max(now, naive[first]) + work; !ok || done != naive[first] {
			t.Fatalf("done at %v (%v), want %v", done, ok, naive[first])
		}
	}
	if refused < 10 || waited < 1000 {
		t.Errorf("%d refused, %d waited: that is no test", refused, waited)
	}
}

// Theory: one server, exponential times, load 0.5: the mean time in the system is twice the service time.
func TestQueue(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	b := newBackend(1, 1)
	var now, sum time.Duration
	const n, mean = 200_000, 10 * time.Millisecond
	for range n {
		now += time.Duration(r.ExpFloat64() * 2 * float64(mean))
		done, _ := b.serve(now, time.Duration(r.ExpFloat64()*float64(mean)))
		sum += done - now
	}
	if got := float64(sum) / n / float64(mean); math.Abs(got-2) > 0.1 {
		t.Errorf("mean time %.2f, want 2", got)
	}
}

func TestDistributions(t *testing.T) {
	for d, tail := range map[Distribution]float64{Constant: 1, Exponential: 4.61, Lognormal: 6.21, Bimodal: 10.5} {
		r := rand.New(rand.NewPCG(1, 1))
		all, sum := make([]float64, 500_000), 0.0
		for i := range all {
			all[i] = d.draw(r)
			sum += all[i]
		}
		slices.Sort(all)
		if mean := sum / float64(len(all)); math.Abs(mean-1) > 0.02 {
			t.Errorf("%s: the mean is %.3f", d, mean)
		}
		if p99 := all[len(all)*99/100]; math.Abs(p99/tail-1) > 0.03 {
			t.Errorf("%s: p99 is %.2f, want %.2f", d, p99, tail)
		}
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	if h.at(0.5) != 0 {
		t.Error("the median of nothing")
	}
	r := rand.New(rand.NewPCG(1, 1))
	var all []time.Duration
	for range 100_000 {
		d := time.Duration(r.ExpFloat64() * float64(time.Millisecond))
		h.add(d)
		all = append(all, d)
	}
	h.add(0)
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.99, 0.999} {
		want := all[int(q*float64(len(all)))]
		if got := h.at(q); math.Abs(float64(got)/float64(want)-1) > 0.006 {
			t.Errorf("%v: %v, want %v", q, got, want)
		}
	}
}

// Every scenario runs with every contender, and one seed is one run: the same again, another with another seed.
func TestEveryScenario(t *testing.T) {
	text := func(r *Result) string {
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, s := range Scenarios() {
		for _, contender := range Contenders() {
			c := defaults(s[0], contender, 1)
			c.Hosts, c.Rate = 2, 10
			first := run(t, c)
			if first.Calls < 100 || first.P50 <= 0 || first.P99 < first.P50 || first.P999 < first.P99 || first.Fails > 60 {
				t.Errorf("%s: %+v", contender, first)
			}
			if contender != Agent && contender != Asked {
				continue
			}
			if again := run(t, c); text(again) != text(first) {
				t.Errorf("%s by %s: not the same again:\n%+v\n%+v", s[0], contender, first, again)
			}
			if c.Seed = 2; text(run(t, c)) == text(first) {
				t.Errorf("%s by %s: the seed makes no difference", s[0], contender)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	good := defaults("equal", Agent, 1)
	for name, change := range map[string]func(c *Config){
		"scenario":     func(c *Config) { c.Scenario = "bliss" },
		"contender":    func(c *Config) { c.Contender = "nginx" },
		"hosts":        func(c *Config) { c.Hosts = -1 },
		"backends":     func(c *Config) { c.Backends = 1 },
		"pairs":        func(c *Config) { c.Hosts, c.Backends = 1<<12, 1<<12 },
		"rate":         func(c *Config) { c.Rate = -1 },
		"mean":         func(c *Config) { c.Mean = 0 },
		"timeout":      func(c *Config) { c.Timeout = c.Mean / 2 },
		"load":         func(c *Config) { c.Load = 1 },
		"distribution": func(c *Config) { c.Distribution = "normal" },
		"settings":     func(c *Config) { c.Settings = "policy: best" },
	} {
		c := good
		if change(&c); c == good {
			t.Fatal(name)
		}
		if _, err := Run(t.Context(), c); err == nil {
			t.Errorf("%s: %+v runs", name, c)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, good); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// What the configuration says of the service is what is simulated.
func TestSettings(t *testing.T) {
	c := defaults("failing", Agent, 1)
	c.Hosts = 5
	on := run(t, c)
	if c.Settings = "eject: off"; run(t, c).Outs != 0 || on.Outs == 0 {
		t.Errorf("eject: off ejects, or on does not: %d", on.Outs)
	}
}

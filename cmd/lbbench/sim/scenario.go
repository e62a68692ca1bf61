package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	settle = 10 * time.Second // what is before counts in no distribution
	onset  = 20 * time.Second // when something goes wrong
	ordeal = time.Minute      // for how long

	// The method of `hasty`: more work than the others, callers with less patience.
	hastyWork     = 20
	hastyPatience = 5
)

// scenario is what happens to a fleet.
type scenario struct {
	name, what      string
	hosts, backends int // unless told otherwise
	rate            float64
	lasts           time.Duration
	weights         []float64 // nil = all the same
	serial          bool      // each host makes one call after the other
	zones           int       // 0 = there are none; else hosts and backends are in them in turn
	hasty           float64   // the share of calls of a slow method with impatient callers
	plot            func(w *world)
}

func (s *scenario) weight(i int) float64 {
	if s.weights == nil {
		return 100
	}
	return s.weights[i%len(s.weights)]
}

// few is how many of the backends a share is, one at least.
func (w *world) few(share float64) int { return max(1, int(share*float64(len(w.backends))+0.5)) }

// wrong has the first n backends in that condition for the ordeal.
func wrong(n func(w *world) int, c condition) func(w *world) {
	return func(w *world) {
		for i := range n(w) {
			w.ordeal(i, c)
		}
	}
}

func (w *world) ordeal(i int, c condition) {
	w.clock.after(onset, func() { w.turn(i, c) })
	w.clock.after(onset+ordeal, func() { w.turn(i, condition{}) })
}

func one(*world) int { return 1 }

func peace(*world) {}

// scenarios is every scenario.
func scenarios() []scenario {
	const tail = onset + ordeal + 90*time.Second // enough to see whether all is well again
	return []scenario{
		{name: "equal", what: "all backends are the same", hosts: 10, backends: 10, rate: 100, lasts: 60 * time.Second, plot: peace},
		{name: "serial", what: "all backends are the same; one connection, one call after the other", hosts: 1, backends: 10, rate: 100, lasts: 300 * time.Second, serial: true, plot: peace},
		{name: "weights", what: "two backends, one of twice the weight; one connection, one call after the other", hosts: 1, backends: 2, rate: 100, lasts: 300 * time.Second, weights: []float64{200, 100}, serial: true, plot: peace},
		{name: "hasty", what: "1 of 10 calls is of a method that takes 20x as long, with a deadline of 5x", hosts: 10, backends: 10, rate: 100, lasts: 120 * time.Second, hasty: 0.1, plot: peace},
		{name: "slow", what: "20 % of the backends are 2x slow, from the beginning", hosts: 100, backends: 20, rate: 100, lasts: 40 * time.Second, plot: func(w *world) {
			for i := range w.few(0.2) {
				w.turn(i, condition{slow: 2})
			}
		}},
		{name: "moving", what: "one backend is 4x slow, every 10 s another one", hosts: 20, backends: 10, rate: 100, lasts: 110 * time.Second, plot: func(w *world) {
			i := 0
			w.clock.every(settle, 10*time.Second, func() {
				w.turn(i, condition{})
				i = (i + 1) % len(w.backends)
				w.turn(i, condition{slow: 4})
			})
		}},
		{name: "failing", what: "one backend fails every call for 60 s", hosts: 20, backends: 10, rate: 100, lasts: tail, plot: wrong(one, condition{fail: 1})},
		{name: "fast", what: "one backend fails every call within 1 ms, for 60 s", hosts: 20, backends: 10, rate: 100, lasts: tail, plot: wrong(one, condition{fail: 1, fast: true})},
		{name: "third", what: "one backend fails 30 % of its calls for 60 s", hosts: 20, backends: 10, rate: 100, lasts: tail, plot: wrong(one, condition{fail: 0.3})},
		{name: "trickle", what: "one backend fails every call for 300 s; each gets 20 calls a minute", hosts: 1, backends: 10, rate: 20.0 / 6, lasts: 500 * time.Second, plot: func(w *world) {
			w.clock.after(onset, func() { w.turn(0, condition{fail: 1}) })
			w.clock.after(onset+300*time.Second, func() { w.turn(0, condition{}) })
		}},
		{name: "dead", what: "the process of one backend is dead for 60 s", hosts: 20, backends: 10, rate: 100, lasts: tail, plot: wrong(one, condition{refuses: true})},
		{name: "flapping", what: "the process of one backend is dead for 2 s of every 10 s", hosts: 20, backends: 10, rate: 100, lasts: 140 * time.Second, plot: func(w *world) {
			w.clock.every(onset, 10*time.Second, func() {
				w.turn(0, condition{refuses: true})
				w.clock.after(2*time.Second, func() { w.turn(0, condition{}) })
			})
		}},
		{name: "hanging", what: "the process of one backend stands still for 60 s: it takes connects, and answers nothing", hosts: 20, backends: 10, rate: 100, lasts: tail, plot: wrong(one, condition{hangs: true})},
		{name: "zones", what: "three zones; of the first one's backends two of three are dead for 60 s", hosts: 21, backends: 18, rate: 100, lasts: tail, zones: 3, plot: func(w *world) {
			for i := 0; i < 2*len(w.backends)/3; i += w.scenario.zones {
				w.ordeal(i, condition{refuses: true})
			}
		}},
		{name: "large", what: "hosts have subsets of 32 backends; a third of all is dead for 60 s", hosts: 20, backends: 200, rate: 100, lasts: tail, plot: wrong(func(w *world) int { return len(w.backends) / 3 }, condition{refuses: true})},
		{name: "overloaded", what: "one backend has a quarter of its servers for 60 s", hosts: 20, backends: 10, rate: 400, lasts: tail, plot: wrong(one, condition{capacity: 0.25})},
		{name: "outage", what: "all processes are dead for 20 s, then come back one a second", hosts: 20, backends: 10, rate: 100, lasts: onset + 120*time.Second, plot: func(w *world) {
			for i := range w.backends {
				w.clock.after(onset, func() { w.turn(i, condition{refuses: true}) })
				w.clock.after(onset+20*time.Second+time.Duration(i)*time.Second, func() { w.turn(i, condition{}) })
			}
		}},
	}
}

// Scenarios is the names of all scenarios and what happens in them.
func Scenarios() (all [][2]string) {
	for _, s := range scenarios() {
		all = append(all, [2]string{s.name, s.what})
	}
	return all
}

func find(name string) (scenario, error) {
	all := scenarios()
	i := slices.IndexFunc(all, func(s scenario) bool { return s.name == name })
	if i < 0 {
		names := make([]string, len(all))
		for k := range all {
			names[k] = all[k].name
		}
		return scenario{}, fmt.Errorf("no scenario %q; there are %s", name, strings.Join(names, ", "))
	}
	return all[i], nil
}

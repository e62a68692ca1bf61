package sim

import (
	"fmt"
	"strings"
	"testing"
)

// goal is what the agent has to be good for, in one scenario.
type goal struct {
	name     string
	scenario string
	settings string
	met      func(r *Result) bool
	figures  func(r *Result) string
}

// The goals of health and picking hold with whatever seed; three are as many as a test has time for. `lbbench sim` has more.
func TestGoals(t *testing.T) {
	for _, g := range []goal{
		{name: "equal backends get shares within 10 % of even", scenario: "equal",
			met: func(r *Result) bool { return r.Least >= 0.9 && r.Most <= 1.1 }, figures: shares},
		{name: "also from one connection with one call at a time", scenario: "serial",
			met: func(r *Result) bool { return r.Least >= 0.9 && r.Most <= 1.1 }, figures: shares},
		{name: "weights 2:1 make shares of 2:1 within 5 %", scenario: "weights",
			met: func(r *Result) bool { return r.Least >= 0.95 && r.Most <= 1.05 }, figures: shares},
		{name: "who fails every call is out after 5, and under 0.5 % of the calls fail meanwhile", scenario: "failing",
			met: func(r *Result) bool { return r.Missed == 0 && r.FailsUntil <= 5 && r.Lost < 0.5 }, figures: outs},
		{name: "who refuses connects is out after 3, and what was under way, and no call fails", scenario: "dead",
			met: func(r *Result) bool { return r.Missed == 0 && r.FailsUntil <= 5 && r.Lost == 0 }, figures: outs},
		{name: "who fails fast gets no more than its share, even if it's never ejected", scenario: "fast", settings: "eject: off",
			met: func(r *Result) bool { return r.BadShare <= 1 && r.BadSettled < 0.25 }, figures: bad},
		{name: "who fails 30 % ends below a quarter of its share", scenario: "third",
			met: func(r *Result) bool { return r.BadSettled < 0.25 }, figures: bad},
		{name: "20 calls a minute are enough to find a backend that fails", scenario: "trickle",
			met: func(r *Result) bool { return r.Missed == 0 && r.Outs == 1 }, figures: outs},
		{name: "who failed has its full share 60 s after it's well, and isn't ejected by that", scenario: "failing",
			met: func(r *Result) bool { return r.Return > 0 && r.Return <= 60 && r.Relapses == 0 }, figures: back},
		{name: "so has who was dead", scenario: "dead",
			met: func(r *Result) bool { return r.Return > 0 && r.Return <= 60 && r.Relapses == 0 }, figures: back},
		{name: "all gone and one back: every host has a success within 1 s", scenario: "outage",
			met: func(r *Result) bool { return r.FirstOK > 0 && r.FirstOK <= 1000 }, figures: back},
		{name: "who flaps is ejected 4 times a minute at most", scenario: "flapping",
			met: func(r *Result) bool { return r.Outs > 0 && r.OutsMinute <= 4 }, figures: outs},
		{name: "a slow method with impatient callers ejects nobody", scenario: "hasty",
			met: func(r *Result) bool { return r.Fails > 1 && r.Wrong == 0 }, figures: outs},
	} {
		t.Run(strings.ReplaceAll(g.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= seeds; seed++ {
				c := defaults(g.scenario, Agent, seed)
				if c.Settings = g.settings; g.scenario != "serial" && g.scenario != "weights" && g.scenario != "trickle" {
					c.Hosts = 6 // it has to be quick
				}
				r := run(t, c)
				t.Logf("seed %d: %s", seed, g.figures(r))
				if !g.met(r) {
					t.Errorf("seed %d: missed", seed)
				}
			}
		})
	}
}

func shares(r *Result) string { return fmt.Sprintf("shares from %.3f to %.3f", r.Least, r.Most) }

func bad(r *Result) string {
	return fmt.Sprintf("%.2f of its share, %.2f from 10 s on", r.BadShare, r.BadSettled)
}

func outs(r *Result) string {
	return fmt.Sprintf("out after %.1f s at last and %d failures at most, %d missed, %d wrong; %.3f %% failed meanwhile; %.1f ejections a minute",
		r.OutMax, r.FailsUntil, r.Missed, r.Wrong, r.Lost, r.OutsMinute)
}

func back(r *Result) string {
	return fmt.Sprintf("full share after %.0f s, %d ejections after that; first success after %.0f ms", r.Return, r.Relapses, r.FirstOK)
}

// With 20 % of the backends 2x slow the p99 is within 1.25 of that of who knows everything.
func TestSlow(t *testing.T) {
	for _, hosts := range []int{5, 100} {
		if hosts > 10 && racing {
			continue
		}
		t.Run(fmt.Sprintf("%d hosts", hosts), func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= seeds; seed++ {
				p99 := map[string]float64{}
				for _, contender := range Contenders() {
					c := defaults("slow", contender, seed)
					if c.Hosts = hosts; hosts > 10 {
						c.Rate = 30 // it has to be quick
					}
					p99[contender] = run(t, c).P99
				}
				t.Logf("seed %d: p99 %v", seed, p99)
				if p99[Agent] > 1.25*p99[Oracle] {
					t.Errorf("seed %d: %.2f of the oracle's", seed, p99[Agent]/p99[Oracle])
				}
				if p99[RoundRobin] < 1.25*p99[Oracle] {
					t.Errorf("seed %d: round robin is as good: that proves nothing", seed)
				}
			}
		})
	}
}

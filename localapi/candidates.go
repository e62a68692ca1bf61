package localapi

import (
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
)

// connectGrace is how long a failed connect keeps a backend out even in panic (2.9).
const connectGrace = 5 * time.Second

// usable says for each backend of v, in its order, whether new calls go there: those whose verdict is usable; in panic also those that are out by soft
// verdicts, and if that leaves none, all that may be tried (2.9).
func usable(v *table.View) []bool {
	out := make([]bool, v.Len())
	left := 0
	for i, b := range v.Backends() {
		out[i] = !b.Standby && !b.Outside && (b.Verdict.Usable() || v.Panic && mayBeTried(b.Verdict) && b.Verdict.Soft)
		if out[i] {
			left++
		}
	}
	if v.Panic && left == 0 {
		for i, b := range v.Backends() {
			out[i] = mayBeTried(b.Verdict)
		}
	}
	return out
}

// mayBeTried reports whether a call may go there when there is nobody better: never to one that an operator or its record took out.
func mayBeTried(v *health.Part) bool { return v.Kind != health.Draining && v.Kind != health.Muted }

// plan is what batches of one service are cut from: the backends that get calls and w x 1/L² of each (3.5). It is made anew for a new view, and each second for
// the latencies.
type plan struct {
	view     *table.View
	at       time.Time
	backends []*table.Backend
	weights  []float64
}

const planAge = time.Second

func newPlan(v *table.View, now time.Time) *plan {
	p := &plan{view: v, at: now}
	in := usable(v)
	if v.Panic {
		in = spared(v, in, now)
	}
	median := v.Service.Median()
	for i, b := range v.Backends() {
		if !in[i] {
			continue
		}
		p.backends = append(p.backends, b.Backend)
		w := 1.0 // the last resort goes in random order (2.9): what failed before says nothing of who is back first
		if b.Verdict.Usable() || b.Verdict.Soft {
			lag := b.State.Lag(now, median)
			w = b.Weight / (lag * lag) // squared, since a batch can't go by what is outstanding as well, which keeps p2c from who is slow
		}
		p.weights = append(p.weights, w)
	}
	return p
}

// spared leaves out those whose last connect failed just now, if others remain (2.9).
func spared(v *table.View, in []bool, now time.Time) []bool {
	out := slices.Clone(in)
	for i, b := range v.Backends() {
		out[i] = in[i] && b.State.ConnectFailedAgo(now) >= connectGrace
	}
	if !slices.Contains(out, true) {
		return in
	}
	return out
}

// without returns the plan less the backends at the addresses that the caller doesn't want.
func (p *plan) without(states []*health.State) *plan {
	if len(states) == 0 {
		return p
	}
	q := &plan{view: p.view, at: p.at}
	for i, b := range p.backends {
		if !slices.Contains(states, b.State) {
			q.backends = append(q.backends, b)
			q.weights = append(q.weights, p.weights[i])
		}
	}
	return q
}

// planOf returns the plan of v for batches at now.
func (s *Server) planOf(v *table.View, now time.Time) *plan {
	name := v.Service.Name()
	if p, ok := s.plans.get(name); ok && p.view == v && now.Sub(p.at) < planAge {
		return p
	}
	p := newPlan(v, now)
	s.plans.put(name, p, s.isFollowed)
	return p
}

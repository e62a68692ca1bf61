package table

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lbagent/lbagent/health"
)

const (
	// evidence is how long a failed connect keeps a backend out of a panic's picks (2.9).
	evidence = 5 * time.Second

	// glances bounds how many backends a pick looks at before it takes a slower way, so that its price doesn't grow with the list.
	glances = 8
)

// Pick returns a backend for one call, nil if none is left. tried holds the states of backends that this call has been at already: usable backends
// are drawn first, then the others that are neither draining nor muted (4.1); with panic off and nothing usable, none. It does not call State.Begin.
// The backend may be the one whose trial this call has become (2.7): how the call goes has to be told to its State.
func (v *View) Pick(now time.Time, tried []*health.State) *Backend {
	if len(v.trials) != 0 && len(tried) == 0 {
		if b := v.trial(now); b != nil {
			v.Service.countPick()
			return b
		}
	}
	return v.Advise(now, tried)
}

// Advise is Pick for callers who may never say how the call went, as those of the local API: it gives no trial away.
func (v *View) Advise(now time.Time, tried []*health.State) *Backend {
	if v.picker == nil {
		v.Service.table.use(now, v.Service)
		if v = v.Service.View(); v.picker == nil {
			return nil // removed before anybody used it
		}
	}
	i := v.first(now, tried)
	if i < 0 && v.desperate {
		i = v.rest(tried)
	}
	if i < 0 {
		return nil
	}
	v.Service.countPick()
	return &v.Backends[i]
}

// trial claims the trial of a backend whose hold-down is over and which nothing probes. Only a call that has been nowhere yet gets one.
func (v *View) trial(now time.Time) *Backend {
	n := len(v.trials)
	start := rand.IntN(n)
	for k := range min(n, glances) {
		if b := &v.Backends[v.trials[(start+k)%n]]; b.State.TryTrial(now) {
			return b
		}
	}
	return nil
}

// first draws among those that get new calls.
func (v *View) first(now time.Time, tried []*health.State) int {
	i := v.picker.Pick(now, tried)
	if i >= 0 && v.Panic {
		i = v.spare(now, tried, i)
	}
	if i >= 0 && v.at != nil {
		return int(v.at[i])
	}
	return i
}

// spare keeps panic from ignoring evidence: instead of candidate i whose last connect has just failed it takes another one, if there is any.
func (v *View) spare(now time.Time, tried []*health.State, i int) int {
	refused := func(i int) bool { return v.candidates[i].State.ConnectFailedAgo(now) < evidence }
	drawn := i
	for range glances {
		if !refused(drawn) {
			return drawn
		}
		drawn = v.picker.Pick(now, tried)
	}
	n := len(v.candidates)
	start := rand.IntN(n)
	for k := range n {
		if j := (start + k) % n; !refused(j) && !slices.Contains(tried, v.candidates[j].State) {
			return j
		}
	}
	return i
}

// rest draws among all that may be tried, in random order; of a fallback only while it is used.
func (v *View) rest(tried []*health.State) int {
	n := len(v.Backends)
	if n == 0 {
		return -1
	}
	left := func(i int) bool {
		return v.Backends[i].tryable() && (!v.ranked || v.Fallback || !v.Backends[i].Backend.Fallback) && !slices.Contains(tried, v.Backends[i].State)
	}
	for range glances {
		if i := rand.IntN(n); left(i) {
			return i
		}
	}
	start := rand.IntN(n)
	for k := range n {
		if i := (start + k) % n; left(i) {
			return i
		}
	}
	return -1
}

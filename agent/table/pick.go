package table

import (
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
func (v *View) Pick(now time.Time, tried []*health.State) *Backend { return v.PickFor(now, 0, tried) }

// PickFor is Pick for a call with a key (picker.KeyOf), which matters under hash (3.10); 0 = it has none.
func (v *View) PickFor(now time.Time, key uint64, tried []*health.State) *Backend {
	if len(v.trials) != 0 && len(tried) == 0 {
		if b := v.trial(now); b != nil {
			v.Service.CountPicks(1)
			return b
		}
	}
	return v.Advise(now, key, tried)
}

// Advise is PickFor for callers who may never say how the call went, as those of the local API: it gives no trial away.
func (v *View) Advise(now time.Time, key uint64, tried []*health.State) *Backend {
	if v.picker == nil {
		v.Service.table.use(now, v.Service)
		if v = v.Service.View(); v.picker == nil {
			return nil // removed before anybody used it
		}
	}
	i := v.first(now, key, tried)
	if i < 0 && v.desperate {
		i = v.rest(tried)
	}
	if i < 0 {
		return nil
	}
	v.Service.CountPicks(1)
	return v.roster.at(i)
}

// trial claims the trial of a backend whose hold-down is over and which nothing probes. Only a call that has been nowhere yet gets one.
func (v *View) trial(now time.Time) *Backend {
	n := len(v.trials)
	start := v.Service.median.Random.IntN(n)
	for k := range min(n, glances) {
		if b := v.roster.at(int(v.trials[(start+k)%n])); b.State.TryTrial(now) {
			return b
		}
	}
	return nil
}

// first draws among those that get new calls.
func (v *View) first(now time.Time, key uint64, tried []*health.State) int {
	i := v.picker.Pick(now, key, tried)
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
		drawn = v.picker.Pick(now, 0, tried)
	}
	n := len(v.candidates)
	start := v.Service.median.Random.IntN(n)
	for k := range n {
		if j := (start + k) % n; !refused(j) && !slices.Contains(tried, v.candidates[j].State) {
			return j
		}
	}
	return i
}

// rest draws among all that may be tried, in random order: first those that are well, but not in this host's subset; of a fallback only while it is used.
func (v *View) rest(tried []*health.State) int {
	if v.subset {
		if i := v.any(func(b *Backend) bool { return b.Verdict.Usable() && v.inUse(b) }, tried); i >= 0 {
			return i
		}
	}
	return v.any(func(b *Backend) bool {
		return b.tryable() && (!v.ranked || v.Fallback || !b.Fallback)
	}, tried)
}

// any draws among the backends that ok takes and tried doesn't hold.
func (v *View) any(ok func(*Backend) bool, tried []*health.State) int {
	n := v.Len()
	if n == 0 {
		return -1
	}
	left := func(i int) bool {
		b := v.roster.at(i)
		return ok(b) && !slices.Contains(tried, b.State)
	}
	random := v.Service.median.Random
	for range glances {
		if i := random.IntN(n); left(i) {
			return i
		}
	}
	start := random.IntN(n)
	for k := range n {
		if i := (start + k) % n; left(i) {
			return i
		}
	}
	return -1
}

package table

import (
	"cmp"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
)

// Tier is the backends of one priority, as a view shows them (3.8).
type Tier struct {
	Priority uint16
	Backends int // that nobody takes out
	Usable   int
	Load     float64 // share of the calls, 0 to 1; 0 = it stands by
}

// inUse reports whether the backend is one of those that the view uses: the service's own, or those of its fallback (1.16).
func (v *View) inUse(b *Backend) bool { return !v.ranked || b.Backend.Fallback == v.Fallback }

// rank orders the candidates by tier, shares the load between tiers, and reports whether they can take all of it. Those of a tier that gets none stay candidates, for
// calls that have been at all others.
func (v *View) rank() (enough bool) {
	v.order()
	v.Tiers = v.tiers()
	shares := make([]float64, len(v.Tiers))
	for i, t := range v.Tiers {
		shares[i] = float64(t.Usable) / float64(max(1, t.Backends))
	}
	loads, enough := picker.Spill(shares)
	for i := range loads {
		v.Tiers[i].Load = loads[i]
	}
	return enough
}

// order sorts the candidates by priority.
func (v *View) order() {
	slices.SortStableFunc(v.at, func(a, b int32) int { return cmp.Compare(v.Backends[a].Priority, v.Backends[b].Priority) })
}

// tiers counts the backends of each, the preferred one first.
func (v *View) tiers() (all []Tier) {
	find := func(b *Backend) *Tier {
		i, ok := slices.BinarySearchFunc(all, b.Priority, func(t Tier, p uint16) int { return cmp.Compare(t.Priority, p) })
		if !ok {
			all = slices.Insert(all, i, Tier{Priority: b.Priority})
		}
		return &all[i]
	}
	for i := range v.Backends {
		if b := &v.Backends[i]; v.inUse(b) && b.tryable() {
			find(b).Backends++
		}
	}
	for _, k := range v.at {
		find(&v.Backends[k]).Usable++
	}
	return all
}

// arrange decides how calls are shared: which of the candidates are in this host's subset of that many (3.9; 0 = all of them are), what stays in its zone (3.8), and what each
// tier gets.
func (v *View) arrange(subset int) {
	if v.Tiers == nil {
		v.at = v.arrangeTier(v.at, 0, subset)
	} else {
		at, from := v.at[:0], 0
		v.spans = make([]int, len(v.Tiers))
		for i, t := range v.Tiers {
			of := v.arrangeTier(v.at[from:from+t.Usable], t.Priority, subset)
			v.spans[i] = len(of)
			at = append(at, of...) // never past from
			from += t.Usable
		}
		v.at = at
	}
	if s := v.Service; s.narrowed && !v.subset {
		for i := range v.Backends {
			v.Backends[i].bringIn()
		}
	}
	v.Service.narrowed = v.subset
	v.candidates = make([]picker.Candidate, len(v.at))
	for i, k := range v.at {
		b := &v.Backends[k]
		v.candidates[i] = picker.Candidate{Weight: b.Weight, State: b.State}
	}
	v.weigh()
	if len(v.at) == len(v.Backends) && v.Tiers == nil {
		v.at = nil
	}
}

// arrangeTier is arrange for the candidates at of one tier; it returns those that stay.
func (v *View) arrangeTier(at []int32, priority uint16, subset int) []int32 {
	spec := v.Service.Spec()
	zones := spec.Zone != "" && spec.Policy != picker.Hash
	narrow := subset > 0 && len(at) > subset
	if !narrow && v.Service.narrowed {
		for _, k := range at {
			v.Backends[k].bringIn()
		}
	}
	if !zones && !narrow {
		return at
	}
	var all, usable zoneCounts
	for i := range v.Backends {
		if b := &v.Backends[i]; b.tryable() && v.inUse(b) && (v.Tiers == nil || b.Priority == priority) {
			all[b.zone]++
		}
	}
	for _, k := range at {
		usable[v.Backends[k].zone]++
	}
	if narrow {
		at = v.narrow(at, quotas(subset, &all, &usable))
	}
	if zones {
		v.preferZone(at, &all, &usable)
	}
	return at
}

// weigh gives each candidate the weight that makes its share of all weights its share of the calls; in the first tier with load it stays what it is.
func (v *View) weigh() {
	scale, from := 0.0, 0
	for n, t := range v.Tiers {
		sum := 0.0
		for _, c := range v.candidates[from : from+v.spans[n]] {
			sum += c.Weight
		}
		if t.Load > 0 && scale == 0 {
			scale = sum / t.Load
		}
		for i := from; i < from+v.spans[n]; i++ {
			b := &v.Backends[v.at[i]]
			b.Standby = t.Load == 0
			b.Weight = v.candidates[i].Weight * t.Load / sum * scale
		}
		from += v.spans[n]
	}
}

// newPicker is the picker of the candidates.
func (v *View) newPicker(now time.Time, policy picker.Policy) (picker.Picker, error) {
	s := v.Service
	if v.Tiers == nil && policy != picker.Hash {
		return picker.New(policy, v.candidates, &s.median)
	}
	tiers, from := []picker.Tier{{Candidates: v.candidates, Load: 1}}, 0
	if v.Tiers != nil {
		tiers = nil
	}
	for i, t := range v.Tiers {
		tiers = append(tiers, picker.Tier{Candidates: v.candidates[from : from+v.spans[i]], Load: t.Load})
		from += v.spans[i]
	}
	if policy == picker.Hash {
		ring := s.ringOf(now, v.Backends)
		return picker.NewHash(ring, v.inRing(ring), tiers, &s.median, &s.busy)
	}
	return picker.NewTiered(policy, tiers, &s.median)
}

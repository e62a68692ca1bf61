package table

import (
	"cmp"
	"slices"

	"github.com/lbagent/lbagent/agent/picker"
)

// Tier is the backends of one priority, as a view shows them (3.8).
type Tier struct {
	Priority uint16
	Backends int // that nobody takes out
	Usable   int
	Load     float64 // share of the calls, 0 to 1; 0 = it stands by
}

// prepare makes backends the view's own, for what only a list with tiers or a fallback needs: weights as the records say, and who stands by.
func (v *View) prepare(backends []Backend) {
	v.Backends = slices.Clone(backends)
	v.Total = 0
	for i := range v.Backends {
		b := &v.Backends[i]
		b.Weight, b.Standby = weight(b.Backend), !v.inUse(b)
		if !b.Standby {
			v.Total++
		}
	}
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
	v.weigh()
	return enough
}

// order sorts the candidates by priority.
func (v *View) order() {
	if v.at == nil {
		v.at = make([]int32, len(v.candidates))
		for i := range v.at {
			v.at[i] = int32(i)
		}
	}
	slices.SortStableFunc(v.at, func(a, b int32) int { return cmp.Compare(v.Backends[a].Priority, v.Backends[b].Priority) })
	for i, k := range v.at {
		b := &v.Backends[k]
		v.candidates[i] = picker.Candidate{Weight: weight(b.Backend), State: b.State}
	}
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

// weigh gives each candidate the weight that makes its share of all weights its share of the calls; in the first tier with load it stays what the record says.
func (v *View) weigh() {
	scale, from := 0.0, 0
	for _, t := range v.Tiers {
		sum := 0.0
		for _, c := range v.candidates[from : from+t.Usable] {
			sum += c.Weight
		}
		if t.Load > 0 && scale == 0 {
			scale = sum / t.Load
		}
		for _, k := range v.at[from : from+t.Usable] {
			b := &v.Backends[k]
			b.Standby = t.Load == 0
			if t.Usable > 0 {
				b.Weight = weight(b.Backend) * t.Load / sum * scale
			}
		}
		from += t.Usable
	}
}

// newPicker is the picker of the candidates.
func (v *View) newPicker(policy picker.Policy) (picker.Picker, error) {
	if v.Tiers == nil {
		return picker.New(policy, v.candidates, &v.Service.median)
	}
	var tiers []picker.Tier
	from := 0
	for _, t := range v.Tiers {
		tiers = append(tiers, picker.Tier{Candidates: v.candidates[from : from+t.Usable], Load: t.Load})
		from += t.Usable
	}
	return picker.NewTiered(policy, tiers, &v.Service.median)
}

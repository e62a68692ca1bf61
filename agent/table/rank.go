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

// share is what the calls of one tier are shared by.
type share struct {
	far   float32 // the zone factor of those that are not in this host's zone (3.8)
	times float64 // what all weights are multiplied by, so that the shares of the tiers are their loads
}

// zoneOf is the zone factor of b.
func (s *share) zoneOf(b *Backend) float32 {
	if b.zone == ownZone {
		return 1
	}
	return s.far
}

// severalPriorities reports whether the list has backends of more than one.
func (v *View) severalPriorities() bool {
	for i := range v.roster.groups {
		if v.roster.groups[i].priority() != v.roster.groups[0].priority() {
			return true
		}
	}
	return false
}

// inUse reports whether the backend is one of those that the view uses: the service's own, or those of its fallback (1.16).
func (v *View) inUse(b *Backend) bool { return !v.ranked || b.Fallback == v.Fallback }

// uses is inUse for all backends that are, or aren't, of a fallback.
func (v *View) uses(fallback bool) bool { return !v.ranked || fallback == v.Fallback }

// tierOf is the number of b's tier; 0 without tiers.
func (v *View) tierOf(b *Backend) int {
	n := 0
	for n < len(v.Tiers)-1 && v.Tiers[n].Priority < b.Priority {
		n++
	}
	return n
}

// rank shares the load between tiers, and reports whether they can take all of it. Those of a tier that gets none stay candidates, for calls that have been at all others.
func (v *View) rank() (enough bool) {
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

// tiers counts the backends of each, the preferred one first.
func (v *View) tiers() (all []Tier) {
	for i := range v.roster.groups { // by priority, of those in use
		g := &v.roster.groups[i]
		if !v.uses(g.fallback()) || g.tryable == 0 {
			continue
		}
		if len(all) == 0 || all[len(all)-1].Priority != g.priority() {
			all = append(all, Tier{Priority: g.priority()})
		}
		t := &all[len(all)-1]
		t.Backends += g.tryable
		t.Usable += g.chosen(v.Panic)
	}
	return all
}

// arrange decides how calls are shared: which of the chosen backends are in this host's subset of that many (3.9; 0 = all of them are), what stays in its zone (3.8), and
// what each tier gets.
func (v *View) arrange(subset int) {
	v.shares = make([]share, max(1, len(v.Tiers)))
	if v.Tiers == nil {
		v.at = v.arrangeTier(0, nil, subset)
	} else {
		at, from := v.collect(), 0
		slices.SortStableFunc(at, func(a, b int32) int { return cmp.Compare(v.roster.at(int(a)).Priority, v.roster.at(int(b)).Priority) })
		v.at = at[:0]
		v.spans = make([]int, len(v.Tiers))
		for n, t := range v.Tiers {
			of := v.arrangeTier(n, at[from:from+t.Usable], subset)
			v.spans[n] = len(of)
			v.at = append(v.at, of...) // never past from
			from += t.Usable
		}
	}
	v.makeCandidates()
	v.shareLoad()
}

// collect is the numbers of all chosen backends.
func (v *View) collect() []int32 {
	at := make([]int32, 0, v.roster.sums.backends)
	for k, c := range v.roster.chunks {
		for i := range c.backends {
			if v.chosen(&c.backends[i]) {
				at = append(at, v.roster.starts[k]+int32(i))
			}
		}
	}
	return at
}

// arrangeTier is arrange for tier n, whose chosen backends are at; without tiers that is nil, for all. It returns those that are candidates, nil if all backends are.
func (v *View) arrangeTier(n int, at []int32, subset int) []int32 {
	var all, chosen zoneCounts
	total, weights := 0, [2]float64{} // of the chosen: in this host's zone, and in others
	for i := range v.roster.groups {
		g := &v.roster.groups[i]
		if !v.uses(g.fallback()) || v.Tiers != nil && g.priority() != v.Tiers[n].Priority {
			continue
		}
		all[g.zone()] += g.tryable
		chosen[g.zone()] += g.chosen(v.Panic)
		total += g.chosen(v.Panic)
		weight := g.usableWeight
		if v.Panic {
			weight += g.softWeight
		}
		weights[min(g.zone(), 1)] += weight
	}
	if subset > 0 && total > subset {
		at = v.narrow(at, quotas(subset, &all, &chosen))
		weights = [2]float64{}
		for _, k := range at {
			b := v.roster.at(int(k))
			weights[min(b.zone, 1)] += b.static()
		}
	} else if at == nil && total < v.roster.sums.backends {
		at = v.collect()
	}
	v.shares[n] = share{far: 1, times: 1}
	if spec := v.Service.Spec(); spec.Zone != "" && spec.Policy != picker.Hash {
		v.shares[n].far = farFactor(weights, &all, &chosen)
	}
	return at
}

// makeCandidates makes v.candidates of v.at.
func (v *View) makeCandidates() {
	candidate := func(n int, b *Backend) picker.Candidate {
		return picker.Candidate{Weight: b.weight * float64(v.shares[n].zoneOf(b)), State: b.State}
	}
	if v.at == nil {
		v.candidates = make([]picker.Candidate, 0, v.roster.sums.backends)
		for _, c := range v.roster.chunks {
			for i := range c.backends {
				v.candidates = append(v.candidates, candidate(0, &c.backends[i]))
			}
		}
		return
	}
	v.candidates = make([]picker.Candidate, len(v.at))
	n, upTo := 0, len(v.at)
	if v.spans != nil {
		upTo = v.spans[0]
	}
	for i, k := range v.at {
		for i >= upTo {
			n++
			upTo += v.spans[n]
		}
		v.candidates[i] = candidate(n, v.roster.at(int(k)))
	}
}

// shareLoad sees to it that a weight's share of all weights is the share of the calls; in the first tier with load weights stay what they are.
func (v *View) shareLoad() {
	scale, from := 0.0, 0
	for n, t := range v.Tiers {
		sum := 0.0
		for _, c := range v.candidates[from : from+v.spans[n]] {
			sum += c.Weight
		}
		if t.Load > 0 && scale == 0 {
			scale = sum / t.Load
		}
		if v.shares[n].times = 0; sum > 0 {
			v.shares[n].times = t.Load / sum * scale
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
		ring := s.ringOf(now, v.List)
		return picker.NewHash(ring, v.inRing(ring), tiers, &s.median, &s.busy)
	}
	return picker.NewTiered(policy, tiers, &s.median)
}

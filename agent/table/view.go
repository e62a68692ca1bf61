package table

import (
	"iter"
	"net/netip"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// View is a service at one moment: list, verdicts, weights and a ready picker. It is immutable.
type View struct {
	Service  *Service
	List     *service.List // never nil; empty before the first list
	Ready    bool          // a list has come
	Gone     bool          // the service was removed
	Total    int           // backends of those in use: the service's own, or its fallback's
	Usable   int           // those of them whose verdict is usable
	Tiers    []Tier        // the preferred one first; nil if all have one priority (3.8)
	Fallback bool          // the backends of the fallback are used, not the service's own (1.16)
	Panic    bool          // too few are usable: soft verdicts are ignored (2.9)
	At       time.Time     // when it was made

	roster     roster // one per list entry, same order
	ranked     bool   // there are tiers, or a fallback
	muted      muted  // of the service; of backends that aren't in the list, too
	candidates []picker.Candidate
	at         []int32       // the number of each candidate's backend; nil = the same
	spans      []int         // how many of them are of each tier; nil without tiers
	shares     []share       // of each tier, one without
	subset     bool          // the candidates are this host's subset (3.9)
	picker     picker.Picker // nil, as are the candidates, while nobody has used the service yet
	trials     []int32       // ejected or unreachable backends that a call has to try, since nothing probes them (2.7)
	desperate  bool          // backends that are not usable may be tried after the others (4.1)
	next       chan struct{} // closed when there is a newer view
}

// Backend is what is known of one backend. Views share it until that changes; what a view makes of it, View.Backend says.
//
// It fits a cache line: a change in a list of ten thousand reads as many.
type Backend struct {
	*service.Backend
	State   *health.State // nil while nobody has used the service yet: nothing is known
	Verdict *health.Part  // the one that wins (2.8), draining included; never nil
	life    *life         // nil if State is
	weight  float64       // effective (3.2), but for its zone and its tier
	factors Factors       // what makes it, beside the static weight; Zone is 1
	rank    uint32        // in this host's order (3.9)
	zone    uint8         // Service.zoneOf
}

// Placed is a backend with what its view makes of it.
type Placed struct {
	*Backend
	Weight  float64 // effective (3.2): what the others' are is its share; 0 = it gets no calls while those in use are there
	Factors Factors // what makes Weight, beside the static one and the tier's load
	Standby bool    // others go before it: another tier, the service's own backends before its fallback, or its fallback before them
	Outside bool    // it is not in this host's subset (3.9)
}

// tryable reports whether the backend may be tried when nothing better is left: nobody takes it out, by its record or by hand. Draining and muted weigh more
// than any evidence (2.8), and panic does not ignore them (2.9).
func (b *Backend) tryable() bool { return b.Verdict.Kind > health.Muted }

// hopeful reports whether panic would try it.
func (b *Backend) hopeful() bool { return b.tryable() && b.Verdict.Soft }

// newView joins list and verdicts. e has one backend per entry of l, in its order, and is the view's from now on. It needs Table.mu.
func newView(now time.Time, s *Service, l *service.List, e *edit) *View {
	spec := s.Spec()
	if s.slow {
		s.slow = s.slowStart(now, e)
	}
	v := &View{Service: s, List: l, roster: e.roster, At: now, muted: s.muted, next: make(chan struct{})}
	tiered := v.severalPriorities()
	v.ranked, v.Fallback = tiered || s.fallback.known, s.fallback.used
	tryable := 0
	for i := range v.roster.groups {
		if g := &v.roster.groups[i]; v.uses(g.fallback()) {
			v.Total += g.all
			v.Usable += g.usable
			tryable += g.tryable
		}
	}
	if spec.Health.Probe == health.ProbeNone && v.Usable < v.Total {
		v.findTrials()
	}
	enough := tiered && v.rank()
	// What is draining or muted is out on purpose: it is no sign that something is wrong.
	v.Panic = spec.PanicPercent > 0 && !enough && v.Usable*100 < spec.PanicPercent*tryable
	v.desperate = spec.PanicPercent > 0 || v.Usable > 0
	if v.Panic && tiered {
		v.rank()
	}
	v.arrange(s.turnSubset(tryable))
	if !s.used {
		v.candidates = nil // they were for counting
		if !v.subset {
			v.at = nil
		}
		return v
	}
	p, err := v.newPicker(now, spec.Policy)
	if err != nil {
		// Spec.Policy was made sure of by SetSpec, and all weights are positive numbers.
		panic(err)
	}
	v.picker = p
	return v
}

// chosen reports whether b gets new calls: usable backends do, and in panic those of which only soft evidence is known.
func (v *View) chosen(b *Backend) bool {
	return (b.Verdict.Usable() || v.Panic && b.hopeful()) && v.inUse(b)
}

// findTrials notes the backends of which a call has to find out (2.7), since nothing probes them.
func (v *View) findTrials() {
	for k, c := range v.roster.chunks {
		if c.sums.usable == len(c.backends) {
			continue
		}
		for i := range c.backends {
			b := &c.backends[i]
			if kind := b.Verdict.Kind; v.inUse(b) && (kind == health.Ejected || kind == health.Unreachable || kind == health.Orphaned && b.Verdict.Failing) {
				v.trials = append(v.trials, v.roster.starts[k]+int32(i))
			}
		}
	}
}

// Len is the number of backends.
func (v *View) Len() int { return v.roster.sums.backends }

// Backend is the one with that number: that of its record in the list.
func (v *View) Backend(i int) Placed { return v.placed(i, v.roster.at(i)) }

// Backends goes through all, by number.
func (v *View) Backends() iter.Seq2[int, Placed] {
	return func(yield func(int, Placed) bool) {
		for i, b := range v.roster.each() {
			if !yield(i, v.placed(i, b)) {
				return
			}
		}
	}
}

// placed is b, which is the one at i, with what v makes of it.
func (v *View) placed(i int, b *Backend) Placed {
	p := Placed{Backend: b, Weight: b.weight, Factors: b.factors, Standby: !v.inUse(b)}
	if !v.chosen(b) {
		return p
	}
	n := v.tierOf(b)
	if v.subset && !v.inside(i, n) {
		p.Outside, p.Weight = true, 0
		return p
	}
	share := &v.shares[n]
	p.Factors.Zone = share.zoneOf(b)
	p.Weight *= float64(p.Factors.Zone) * share.times
	p.Standby = v.Tiers != nil && v.Tiers[n].Load == 0
	return p
}

// Orphans is the number of backends that are kept although their keys are gone (1.9).
func (v *View) Orphans() int {
	n := 0
	for _, b := range v.roster.each() {
		if !b.Orphaned.IsZero() {
			n++
		}
	}
	return n
}

// Leaving reports whether what runs on the backend with that address has only the time of a drain left: it, or the service, was removed, or its record says
// that it goes out of service (4.7). What is only muted, down, unreachable or ejected keeps its running calls: it may be back any moment.
func (v *View) Leaving(addr netip.AddrPort) bool {
	b := v.Find(addr)
	return v.Gone || b == nil || b.Verdict.Kind == health.Draining
}

// Find returns the backend with that address, nil if the view has none.
func (v *View) Find(addr netip.AddrPort) *Backend {
	if i, ok := v.roster.index(addr); ok {
		return v.roster.at(i)
	}
	return nil
}

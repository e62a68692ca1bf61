package table

import (
	"net/netip"
	"sort"
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
	Backends []Backend     // one per list entry, same order
	Total    int           // backends of those in use: the service's own, or its fallback's
	Usable   int           // those of them whose verdict is usable
	Tiers    []Tier        // the preferred one first; nil if all have one priority (3.8)
	Fallback bool          // the backends of the fallback are used, not the service's own (1.16)
	Panic    bool          // too few are usable: soft verdicts are ignored (2.9)
	At       time.Time     // when it was made

	ranked     bool  // there are tiers, or a fallback
	muted      muted // of the service; of backends that aren't in the list, too
	candidates []picker.Candidate
	at         []int32       // the index in Backends of each candidate; nil = the same
	spans      []int         // how many of them are of each tier; nil without tiers
	subset     bool          // the candidates are this host's subset (3.9)
	picker     picker.Picker // nil, as are the candidates, while nobody has used the service yet
	trials     []int32       // ejected or unreachable backends that a call has to try, since nothing probes them (2.7)
	desperate  bool          // backends that are not usable may be tried after the others (4.1)
	next       chan struct{} // closed when there is a newer view
}

// Backend is one backend in a view.
//
// It fits a cache line: a change in a list of ten thousand copies as many.
type Backend struct {
	*service.Backend
	State   *health.State // nil while nobody has used the service yet: nothing is known
	Verdict *health.Part  // the one that wins (2.8), draining included; never nil
	life    *life         // nil if State is
	Weight  float64       // effective (3.2): what the others' are is its share; 0 = it gets no calls while those in use are there
	Factors Factors       // what makes Weight, beside the static one and the tier's load
	rank    uint32        // in this host's order (3.9)
	zone    uint8         // Service.zoneOf
	Standby bool          // others go before it: another tier, the service's own backends before its fallback, or its fallback before them
	Outside bool          // it is not in this host's subset (3.9)
}

// tryable reports whether the backend may be tried when nothing better is left: nobody takes it out, by its record or by hand. Draining and muted weigh more
// than any evidence (2.8), and panic does not ignore them (2.9).
func (b *Backend) tryable() bool { return b.Verdict.Kind > health.Muted }

// newView joins list and verdicts. backends has one entry per entry of l, in its order, and is the view's from now on. It needs Table.mu.
func newView(now time.Time, s *Service, l *service.List, backends []Backend) *View {
	spec := s.Spec()
	v := &View{Service: s, List: l, Backends: backends, Total: len(backends), At: now, muted: s.muted, next: make(chan struct{})}
	v.ranked, v.Fallback = s.tiered || s.fallback.known, s.fallback.used
	if s.slow {
		s.slow = s.slowStart(now, backends)
	}
	v.prepare()
	v.choose(false)
	v.Usable = len(v.at)
	tryable := v.Usable
	if v.Usable < len(backends) {
		tryable = v.lookAtOthers(spec.Health.Probe == health.ProbeNone)
	}
	enough := s.tiered && v.rank()
	// What is draining or muted is out on purpose: it is no sign that something is wrong.
	v.Panic = spec.PanicPercent > 0 && !enough && v.Usable*100 < spec.PanicPercent*tryable
	v.desperate = spec.PanicPercent > 0 || v.Usable > 0
	if v.Panic {
		v.choose(true)
		if s.tiered {
			v.rank()
		}
	}
	v.arrange(s.turnSubset(tryable))
	if !s.used.Load() {
		v.at, v.candidates = nil, nil // they were for counting
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

// prepare undoes what belonged to the view that backends were copied of: who stands by, and which part of the weight came from the others.
func (v *View) prepare() {
	v.Total = 0
	ranked := v.ranked || v.Service.ranked // the view before, if not this one
	v.Service.ranked = v.ranked
	for i := range v.Backends {
		b := &v.Backends[i]
		in := v.inUse(b)
		if in {
			v.Total++
		}
		if ranked || b.Factors.Zone != 1 {
			b.Standby, b.Factors.Zone = !in, 1
			if !b.Outside {
				b.reweigh()
			}
		}
	}
}

// choose finds what gets new calls: the usable backends, and in panic those of which only soft evidence is known.
func (v *View) choose(panicking bool) {
	v.at = make([]int32, 0, len(v.Backends))
	for i := range v.Backends {
		b := &v.Backends[i]
		if (b.Verdict.Usable() || panicking && b.tryable() && b.Verdict.Soft) && v.inUse(b) {
			v.at = append(v.at, int32(i))
		}
	}
}

// lookAtOthers counts the backends that may be tried at all, and notes those of which a call has to find out (2.7) if nothing probes them.
func (v *View) lookAtOthers(unprobed bool) (tryable int) {
	for i := range v.Backends {
		b := &v.Backends[i]
		if !v.inUse(b) {
			continue
		}
		if b.tryable() {
			tryable++
		}
		if kind := b.Verdict.Kind; unprobed && (kind == health.Ejected || kind == health.Unreachable || kind == health.Orphaned && b.Verdict.Failing) {
			v.trials = append(v.trials, int32(i))
		}
	}
	return tryable
}

// Orphans is the number of backends that are kept although their keys are gone (1.9).
func (v *View) Orphans() int {
	n := 0
	for i := range v.Backends {
		if !v.Backends[i].Orphaned.IsZero() {
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
	if i, ok := v.index(addr); ok {
		return &v.Backends[i]
	}
	return nil
}

func (v *View) index(addr netip.AddrPort) (int, bool) {
	return sort.Find(len(v.Backends), func(i int) int { return addr.Compare(v.Backends[i].Addr) })
}

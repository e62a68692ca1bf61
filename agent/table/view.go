package table

import (
	"net/netip"
	"sort"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// View is a service at one moment: list, verdicts and a ready picker. It is immutable.
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
	picker     picker.Picker // nil, as are the candidates, while nobody has used the service yet
	trials     []int32       // ejected or unreachable backends that a call has to try, since nothing probes them (2.7)
	desperate  bool          // backends that are not usable may be tried after the others (4.1)
	next       chan struct{} // closed when there is a newer view
}

// Backend is one backend in a view.
type Backend struct {
	*service.Backend
	State   *health.State // nil while nobody has used the service yet: nothing is known
	Verdict *health.Part  // the one that wins (2.8), draining included; never nil
	Weight  float64       // effective (3.2)
	Standby bool          // others go before it: another tier, the service's own backends before its fallback, or its fallback before them
}

// tryable reports whether the backend may be tried when nothing better is left: nobody takes it out, by its record or by hand. Draining and muted weigh more
// than any evidence (2.8), and panic does not ignore them (2.9).
func (b *Backend) tryable() bool { return b.Verdict.Kind > health.Muted }

// newView joins list and verdicts. backends has one entry per entry of l, in its order.
func newView(now time.Time, s *Service, l *service.List, backends []Backend) *View {
	spec := s.Spec()
	v := &View{Service: s, List: l, Backends: backends, Total: len(backends), At: now, muted: s.muted, next: make(chan struct{})}
	if v.ranked, v.Fallback = s.tiered || s.fallback.known, s.fallback.used; v.ranked {
		v.prepare(backends)
	}
	v.choose(false)
	v.Usable = len(v.candidates)
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
	if !s.used.Load() {
		v.candidates, v.at = nil, nil // they were for counting
		return v
	}
	p, err := v.newPicker(spec.Policy)
	if err != nil {
		// Spec.Policy was made sure of by SetSpec, and weight returns positive numbers.
		panic(err)
	}
	v.picker = p
	return v
}

// choose fills the candidates with what gets new calls: the usable backends, and in panic those of which only soft evidence is known.
func (v *View) choose(panicking bool) {
	n := 0
	candidates := make([]picker.Candidate, len(v.Backends))
	var at []int32
	for i := range v.Backends {
		b := &v.Backends[i]
		if !b.Verdict.Usable() && !(panicking && b.tryable() && b.Verdict.Soft) || !v.inUse(b) {
			if at == nil {
				at = make([]int32, len(v.Backends))
				for j := range i {
					at[j] = int32(j)
				}
			}
			continue
		}
		c := &candidates[n]
		c.Weight, c.State = b.Weight, b.State
		if at != nil {
			at[n] = int32(i)
		}
		n++
	}
	v.candidates = candidates[:n]
	if v.at = at; at != nil {
		v.at = at[:n]
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
		if kind := b.Verdict.Kind; unprobed && (kind == health.Ejected || kind == health.Unreachable) {
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

// weight is the effective weight of a backend (3.2): the static one times every other factor.
func weight(b *service.Backend) float64 { return float64(max(b.Weight, 1)) }

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

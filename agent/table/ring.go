package table

import (
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
)

// ringEvery is how often a service's ring is made anew at most: it takes milliseconds, and a list may change a hundred times a second. Lower has new backends get their
// keys sooner.
const ringEvery = time.Second

// ring is a service's, under hash (3.10). Guarded by Table.mu.
type ring struct {
	*picker.Ring
	of    *service.List // whose backends its members are
	made  time.Time
	stale bool // the list is another one; it is made anew in the next second
}

// ringOf is the ring for views of that list. All its backends are in it, also who gets no calls now: a verdict moves the keys of that backend only.
func (s *Service) ringOf(now time.Time, l *service.List) *picker.Ring {
	r := &s.ring
	if r.Ring != nil && (r.of == l || slices.EqualFunc(r.Members, l.Backends, func(m picker.Member, b *service.Backend) bool {
		return m.Addr == b.Addr && m.Weight == b.Weight
	})) {
		r.of, r.stale = l, false
		return r.Ring
	}
	if r.stale = r.Ring != nil && len(r.Members) > 0 && now.Sub(r.made) < ringEvery; r.stale {
		return r.Ring
	}
	members := make([]picker.Member, len(l.Backends))
	for i := range l.Backends {
		members[i] = picker.Member{Addr: l.Backends[i].Addr, Weight: l.Backends[i].Weight}
	}
	*r = ring{Ring: picker.NewRing(members), of: l, made: now}
	return r.Ring
}

// inRing is of each member of r its number among the candidates; -1 for those that get no calls, or have left.
func (v *View) inRing(r *picker.Ring) []int32 {
	backends := v.List.Backends
	candidate := make([]int32, len(backends))
	for i := range candidate {
		candidate[i] = -1
	}
	for i := range v.candidates {
		k := i
		if v.at != nil {
			k = int(v.at[i])
		}
		candidate[k] = int32(i)
	}
	at, k := make([]int32, len(r.Members)), 0
	for i, m := range r.Members {
		for k < len(backends) && backends[k].Addr.Compare(m.Addr) < 0 {
			k++
		}
		at[i] = -1
		if k < len(backends) && backends[k].Addr == m.Addr {
			at[i] = candidate[k]
		}
	}
	return at
}

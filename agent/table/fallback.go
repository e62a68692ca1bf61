package table

import (
	"fmt"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
)

// fallbackQuiet is how long a service's own backends have to be usable before calls leave the fallback (1.16). Lower goes to and fro with a service that flaps,
// higher stays longer where callers should not be.
const fallbackQuiet = 10 * time.Second

// fallback says which backends of a service are used: its own, or those of its fallback. Guarded by Table.mu.
type fallback struct {
	known bool // the list has backends of a fallback
	used  bool
	since time.Time // it was used, or left
	well  time.Time // since when an own backend is usable while it is used; zero = none is
}

// prospects is what calls could hope for among some backends.
type prospects struct {
	usable bool // one is usable
	hope   bool // one would be tried in panic: only soft evidence is against it (2.9)
}

// turn decides about the fallback at now, and reports whether that changed. It is used when no own backend is usable and panic is exhausted: what is known of every
// one of them is hard evidence, or an operator's word. It is left when an own backend has been usable for fallbackQuiet, or at once if the fallback has nothing to
// offer.
func (f *fallback) turn(now time.Time, own, other prospects) bool {
	used := f.used
	switch {
	case !f.known:
		f.used = false
	case !f.used:
		f.used = !own.hope
	case !own.usable:
		f.well = time.Time{}
		f.used = other.hope || !own.hope
	default:
		if f.well.IsZero() {
			f.well = now
		}
		f.used = other.hope && now.Sub(f.well) < fallbackQuiet
	}
	if f.used == used {
		return false
	}
	f.since, f.well = now, time.Time{}
	return true
}

// due reports whether the time has come to leave the fallback.
func (f *fallback) due(now time.Time) bool {
	return f.used && !f.well.IsZero() && now.Sub(f.well) >= fallbackQuiet
}

// prospectsOf looks at a service's own backends and at those of its fallback.
func prospectsOf(groups []group, panics bool) (own, other prospects) {
	for i := range groups {
		g, p := &groups[i], &own
		if g.fallback() {
			p = &other
		}
		p.usable = p.usable || g.usable > 0 // an orphan that fails isn't (1.10)
		p.hope = p.hope || g.chosen(panics) > 0
	}
	return own, other
}

// turnFallback decides which backends of s are used from now on.
func (s *Service) turnFallback(now time.Time, ready bool, groups []group) bool {
	s.fallback.known = slices.ContainsFunc(groups, func(g group) bool { return g.fallback() })
	if !ready || !s.fallback.known && !s.fallback.used {
		return false
	}
	own, other := prospectsOf(groups, s.Spec().PanicPercent > 0)
	return s.fallback.turn(now, own, other)
}

// tellFallback says that the fallback is used, or no longer.
func (t *Table) tellFallback(now time.Time, s *Service, v *View) {
	if v.Fallback {
		detail := fmt.Sprintf("the fallback is used: no backend of the service is usable; %d of %s of the fallback usable", v.Usable, backends(v.Total))
		t.tell(now, event.Fallback, s, "", detail)
		t.cfg.Log.Warn("the fallback is used", "service", s.name, "usable", v.Usable, "backends", v.Total)
		return
	}
	t.tell(now, event.Fallback, s, "", fmt.Sprintf("the fallback is left: %d of %s usable", v.Usable, backends(v.Total)))
	t.cfg.Log.Info("the fallback is left", "service", s.name, "usable", v.Usable, "backends", v.Total)
}

// Source is where the backends in use are from (1.12).
func (v *View) Source() service.Source {
	if v.Fallback {
		return service.FromFallback
	}
	return v.List.Source
}

// isSpare reports whether the backend is one of a fallback that isn't used: it is probed, so that it is known whether it could be, but what health does to it counts
// for nobody.
func (v *View) isSpare(b *Backend) bool { return b.Fallback && !v.inUse(b) }

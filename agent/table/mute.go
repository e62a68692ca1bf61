package table

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// muted is the mutes of one service by address, the one that lasts longest first. It is never written once it is in the table: views share it.
type muted map[netip.AddrPort][]health.Part

// SetMutes takes every mute that holds now, of services that aren't followed too; what it doesn't name is muted no longer. An address stays muted
// whatever its backend does: leave, come back, restart (2.8).
func (t *Table) SetMutes(now time.Time, mutes []service.Mute) {
	next := byService(mutes)
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.mutes
	t.mutes = next
	for _, s := range *t.services.Load() {
		if !maps.EqualFunc(was[s.name], next[s.name], slices.Equal) {
			t.remute(now, s)
		}
	}
}

func byService(mutes []service.Mute) map[string]muted {
	out := make(map[string]muted)
	for i := range mutes {
		m := &mutes[i]
		of := out[m.Service]
		if of == nil {
			of = make(muted)
			out[m.Service] = of
		}
		of[m.Addr] = append(of[m.Addr], health.Part{Kind: health.Muted, Since: m.Since, Cause: m.Cause(), Next: m.Until})
	}
	for _, of := range out {
		for _, parts := range of {
			slices.SortStableFunc(parts, func(a, b health.Part) int { return cmp.Or(b.Next.Compare(a.Next), cmp.Compare(a.Cause, b.Cause)) })
		}
	}
	return out
}

// remute brings a service in line with the mutes of now: one new view, if it concerns any backend of the list.
func (t *Table) remute(now time.Time, s *Service) {
	was := s.muted
	s.muted = t.mutes[s.name]
	v := s.View()
	e := v.roster.edit()
	concerned := false
	for _, of := range []muted{was, s.muted} {
		for addr := range of {
			i, ok := v.roster.index(addr)
			if !ok {
				continue
			}
			concerned = true
			b := e.write(i)
			if b.Draining {
				continue // weighs more, and has a since of its own
			}
			was := b.Verdict
			b.Verdict = s.listVerdict(now, b)
			s.moved(now, b, was)
			if b.Verdict.Kind != was.Kind {
				s.entered[b.Verdict.Kind].Add(1)
			}
		}
	}
	if !concerned {
		return
	}
	t.publish(now, s, v.List, e)
	t.sendTargets(s)
}

// Parts is every verdict that applies to a backend of v, the weightiest first (2.8).
func (v *View) Parts(now time.Time, b *Backend) []health.Part {
	var parts []health.Part
	if b.Verdict.Kind < health.Down && b.Verdict.Kind != health.Muted {
		parts = append(parts, *b.Verdict) // from the list, which health doesn't know
	}
	parts = append(parts, v.muted[b.Addr]...)
	if b.Verdict.Kind == health.Muted && !b.Orphaned.IsZero() {
		parts = append(parts, *orphaned(b.Backend, &v.Service.up))
	}
	parts = append(parts, b.State.Snapshot(now).Parts...)
	if len(parts) == 0 || parts[0].Kind != b.Verdict.Kind || parts[0].Observed {
		parts = slices.Insert(parts, 0, *b.Verdict)
	}
	return parts
}

// Muted is the number of v's backends that are muted, those that drain included.
func (v *View) Muted() int {
	n := 0
	for addr := range v.muted {
		if v.Find(addr) != nil {
			n++
		}
	}
	return n
}

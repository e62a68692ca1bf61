package discovery

import (
	"fmt"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/service"
)

// death is the end of a key with its lease, at a revision of etcd's present life.
type death struct {
	lease, revision int64
}

// gone names an orphan.
type gone struct{ service, addr string }

// excuse lets orphans of a service leave without a rule that this test knows, until it is quiet.
func (w *world) excuse(name string) { w.check.excused[name] = true }

// lookAtOrphans holds them against the rule: each was in the list a moment ago, and new ones come only when the list is empty or has less than half of what it had
// in the last 10 s (1.9); some more time is allowed for, since lists are looked at after they came. One stays until its address is listed, or a rule has it leave (1.10).
func (w *world) lookAtOrphans(name string, listed *service.List, orphans []*service.Backend) {
	const window = guardWindow + 10*time.Second
	c, now := &w.check, time.Now()
	most, before := 0, map[string]bool{}
	for i, s := range c.sizes[name] {
		if i == len(c.sizes[name])-1 || now.Sub(s.at) < window {
			most = max(most, len(s.all))
			for addr := range s.all {
				before[addr] = true
			}
		}
	}
	all := map[string]bool{}
	for _, b := range listed.Backends {
		all[b.Addr.String()] = true
	}
	for _, b := range orphans {
		addr := b.Addr.String()
		switch {
		case !*randomGuard:
			w.fail("%s: %s is an orphan, and there is no guard", name, addr)
		case all[addr] || !before[addr]:
			w.fail("%s: %s is an orphan; listed: %v, was there: %v", name, addr, all[addr], before[addr])
		case c.orphans[name][addr].IsZero():
			c.orphaned++
			if n := len(listed.Backends); !mass(n, most) {
				w.fail("%s: %s was orphaned when the list had %d of %d", name, addr, n, most)
			}
		case !c.orphans[name][addr].Equal(b.Orphaned) && c.gone[gone{name, addr}].IsZero() && !c.excused[name]:
			w.fail("%s: %s is an orphan since %v, and was since %v", name, addr, b.Orphaned, c.orphans[name][addr])
		}
	}
	w.mayLeave(name, all, orphans, now)
	c.orphans[name] = map[string]time.Time{}
	for _, b := range orphans {
		all[b.Addr.String()], c.orphans[name][b.Addr.String()] = true, b.Orphaned
	}
	c.sizes[name] = append(c.sizes[name], sized{now, len(listed.Backends), all})
	if n := len(c.sizes[name]); n > 200 {
		c.sizes[name] = slices.Clone(c.sizes[name][n-100:])
	}
}

// mayLeave fails for an orphan that left without a reason (1.10): its key is back, the second witness said so, somebody accepted the list, its time is over, or it
// was the only one of its service and another took its place.
func (w *world) mayLeave(name string, listed map[string]bool, orphans []*service.Backend, now time.Time) {
	c := &w.check
	stays := map[string]bool{}
	for _, b := range orphans {
		stays[b.Addr.String()] = true
	}
	for addr, since := range c.orphans[name] {
		switch {
		case stays[addr] || listed[addr] || c.excused[name] || now.Sub(since) >= hold:
		case c.gone[gone{name, addr}].Equal(since):
			delete(c.gone, gone{name, addr})
			c.gones++
		case len(orphans) == 0 && len(listed) > 0 && w.wasEmpty(name, since):
		default:
			w.fail("%s: the orphan %s left without a reason; %d listed, %d orphans of %d left", name, addr, len(listed), len(orphans), len(c.orphans[name]))
		}
	}
}

// wasEmpty reports whether nothing was listed at some time after from: only then can the list have had one backend less those that were taken out on purpose, whose place
// any other takes.
func (w *world) wasEmpty(name string, from time.Time) bool {
	return slices.ContainsFunc(w.check.sizes[name], func(s sized) bool { return s.listed == 0 && !s.at.Before(from) })
}

// haveLeft fails for an orphan that should have left: the second witness said so before it was quiet (1.10).
func (w *world) haveLeft() {
	for g, since := range w.check.gone {
		still := func() bool {
			return slices.ContainsFunc(w.d.last(g.service).Backends, func(b *service.Backend) bool { return b.Addr.String() == g.addr && b.Orphaned.Equal(since) })
		}
		eventually(w.t, 20*time.Second, fmt.Sprintf("%s: the orphan %s leaves: it is gone (seed %d, step %d)", g.service, g.addr, w.seed, w.step), func() bool { return !still() })
	}
	w.collect()
	clear(w.check.gone)
}

// mustBeOrphans fails for a backend that had to become an orphan by 1.9 and didn't: the list lost more than half, or all, and a lease took its key. It asks for no more
// than is known for sure: whatever else left counts as taken out on purpose, and only the list before is what the new one is compared with. l has the orphans.
func (w *world) mustBeOrphans(name string, l *service.List) {
	c := &w.check
	was := c.whole[name]
	c.whole[name] = l
	if !*randomGuard || was == nil || l.Source != service.FromEtcd || refollowed(l) || refollowed(was) || was.Epoch != l.Epoch || c.former[l.Epoch] || c.excused[name] {
		return
	}
	listed, orphans := parted(l)
	before, _ := parted(was)
	has := func(list []*service.Backend, b *service.Backend) bool {
		return slices.ContainsFunc(list, func(o *service.Backend) bool { return o.Addr == b.Addr })
	}
	var must []*service.Backend
	others := 0
	for i := range before.Backends {
		b := before.Backends[i]
		if has(listed.Backends, b) {
			continue
		}
		d, died := c.died[b.Key]
		if !died || b.Lease != d.lease || b.Draining || was.Revision >= d.revision || l.Revision < d.revision {
			others++
			continue
		}
		must = append(must, b)
	}
	if !mass(len(listed.Backends), len(before.Backends)-others) {
		return
	}
	for i := range must {
		c.musts++
		if !has(orphans, must[i]) {
			w.fail("%s: %s lost its key with lease %x and is no orphan; the list has %d of %d, %d left in another way, %d orphans", name, must[i].Addr, must[i].Lease,
				len(listed.Backends), len(before.Backends), others, len(orphans))
		}
	}
}

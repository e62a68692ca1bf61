package discovery

import (
	"net/netip"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/service"
)

const (
	guardWindow = 10 * time.Second // 1.9: what left in it may turn out to have been part of a mass expiry: etcd revokes leases one after another
	guardFew    = 3                // 1.9: half of fewer than this is no mass
	guardRemind = 10 * time.Minute // 1.10: how often a person is told that orphans are kept
	guardLeft   = 10000            // backends that left in the window and are remembered
)

// guard is the first of the two witnesses of 1.9: a list that lost most of its keys, or all, at once looks like mass expiry of leases, which says nothing about the
// backends. They are kept as orphans until the second witness, health, says that they are gone, or a person does. It is pure: it has no clock and asks nobody.
type guard struct {
	hold time.Duration // 0 = off

	listed  []*service.Backend // what the keys say; sorted by address, never written
	orphans []*service.Backend // sorted by address, Orphaned set, none of them in listed; never written
	former  int                // backends that the list had before the orphans lost their keys; 0 = no orphans
	told    time.Time          // when a person was told of the orphans last
	distant bool               // listed is from so long ago that what comes next is not compared with it

	sizes []size     // of lists that were in force in the last window, falling: the first is the largest
	left  []departed // what left in the last window, believed, oldest first
}

type size struct {
	until time.Time
	n     int
}

type departed struct {
	*service.Backend

	at time.Time
}

// seed takes the list of the spool, which etcd confirmed age ago.
func (g *guard) seed(listed, orphans []*service.Backend, age time.Duration) {
	g.listed = listed
	if g.hold > 0 && len(orphans) > 0 {
		g.orphans, g.former = orphans, len(listed)+len(orphans)
	}
	g.distant = age >= g.hold // its addresses may be others' by now
}

// splitOrphans tells the backends of a spooled list apart.
func splitOrphans(all []*service.Backend) (listed, orphans []*service.Backend) {
	isOrphan := func(b *service.Backend) bool { return !b.Orphaned.IsZero() }
	if !slices.ContainsFunc(all, isOrphan) {
		return all, nil
	}
	listed = make([]*service.Backend, 0, len(all))
	for _, b := range all {
		if isOrphan(b) {
			orphans = append(orphans, b)
		} else {
			listed = append(listed, b)
		}
	}
	return listed, orphans
}

// most is the size that a list is compared with: the largest of the last window, or before orphans lost their keys.
func (g *guard) most(now time.Time) int {
	n := max(len(g.listed), g.former)
	for _, s := range g.sizes {
		if now.Sub(s.until) < guardWindow {
			return max(n, s.n)
		}
	}
	return n
}

// mass reports whether a list of n backends after one of most looks like mass expiry (1.9).
func mass(n, most int) bool { return n < most && (n == 0 || most >= guardFew && 2*n < most) }

// suspects are the backends that next leaves out and set would make orphans, unless somebody took them out on purpose, which the caller has to find out.
func (g *guard) suspects(now time.Time, next []*service.Backend) []*service.Backend {
	missing := g.missing(now, next)
	out := make([]*service.Backend, len(missing))
	for i := range missing {
		out[i] = missing[i].Backend
	}
	return out
}

// missing is suspects, with when they left; zero = with next.
func (g *guard) missing(now time.Time, next []*service.Backend) []departed {
	if g.hold == 0 || g.distant || !mass(len(next), g.most(now)) {
		return nil
	}
	var out []departed
	for _, b := range without(g.listed, next) {
		if !b.Draining {
			out = append(out, departed{Backend: b})
		}
	}
	for _, d := range g.left {
		if now.Sub(d.at) < guardWindow && !has(next, d.Addr) {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b departed) int { return byAddr(a.Backend, b.Backend) })
	return out
}

// mostBut is most when those don't count that somebody took out: so many with the list that comes now, the others at the times of before. Each counts in the lists that it
// was in, or a fleet that was replaced one by one, on purpose, would hide that the new one expires.
func (g *guard) mostBut(now time.Time, leaving int, before []time.Time) int {
	slices.SortFunc(before, time.Time.Compare)
	n := max(len(g.listed), g.former) - leaving
	for _, s := range g.sizes {
		if now.Sub(s.until) < guardWindow {
			early := slices.IndexFunc(before, func(at time.Time) bool { return !at.Before(s.until) })
			if early < 0 {
				early = len(before)
			}
			n = max(n, s.n-leaving-(len(before)-early))
		}
	}
	return n
}

// set takes the list that the keys make now, and which of the suspects somebody took out on purpose: these don't count as lost. It returns how many backends
// became orphans, how many orphans have their keys back, and which ones had to go since another took their place.
func (g *guard) set(now time.Time, next []*service.Backend, onPurpose func(netip.AddrPort) bool) (orphaned, back int, replaced []*service.Backend) {
	if g.distant || g.hold == 0 {
		*g = guard{hold: g.hold, listed: next}
		return 0, 0, nil
	}
	var lost []*service.Backend
	var tookOut []time.Time
	leaving := 0
	for _, d := range g.missing(now, next) {
		switch {
		case !onPurpose(d.Addr):
			lost = append(lost, d.Backend)
		case d.at.IsZero():
			leaving++
		default:
			tookOut = append(tookOut, d.at)
		}
	}
	most := g.mostBut(now, leaving, tookOut)
	var believed []*service.Backend
	if !mass(len(next), most) {
		lost, believed = nil, lost
	}
	g.remember(now, next, most, believed)

	kept := without(g.orphans, next)
	back = len(g.orphans) - len(kept)
	if len(lost) > 0 {
		g.former = max(g.former, most)
		if len(kept) == 0 {
			g.told = now
		}
		for i, b := range lost {
			lost[i] = new(*b)
			lost[i].Orphaned = now
		}
		kept = slices.Concat(kept, lost)
		slices.SortFunc(kept, byAddr)
	}
	if g.former == 1 && len(next) > 0 {
		// The size is kept, so this is a swap (1.9), with a moment between. There is one at a time of what elects a leader: the one before, which may well be alive, must get nothing
		// beside its successor.
		replaced, kept = kept, nil
	}
	g.listed = next
	g.keep(kept)
	return len(lost), back, replaced
}

// remember notes what set has to know of the last window. most is the largest list of it, less what was taken out on purpose; believed are suspects that turned out
// to be no mass.
func (g *guard) remember(now time.Time, next []*service.Backend, most int, believed []*service.Backend) {
	if mass(len(next), g.most(now)) {
		g.sizes, g.left = []size{{now, most}}, nil // what left is judged
		for _, b := range believed {
			g.left = append(g.left, departed{b, now})
		}
		return
	}
	for _, b := range without(g.listed, next) {
		if !b.Draining { // it is no orphan whatever comes (1.9)
			g.left = append(g.left, departed{b, now})
		}
	}
	g.left = slices.DeleteFunc(g.left, func(d departed) bool { return now.Sub(d.at) >= guardWindow || has(next, d.Addr) })
	g.left = slices.Delete(g.left, 0, max(0, len(g.left)-guardLeft))
	g.sizes = slices.DeleteFunc(g.sizes, func(s size) bool { return s.n <= len(g.listed) || now.Sub(s.until) >= guardWindow })
	g.sizes = append(g.sizes, size{now, len(g.listed)})
}

func (g *guard) keep(orphans []*service.Backend) {
	if g.orphans = orphans; len(orphans) == 0 {
		g.orphans, g.former = nil, 0
	}
}

// backends is the list: what the keys say, and the orphans.
func (g *guard) backends() []*service.Backend {
	if len(g.orphans) == 0 {
		return g.listed
	}
	all := slices.Concat(g.listed, g.orphans)
	slices.SortFunc(all, byAddr)
	return all
}

// leave removes the orphans among addrs, and returns them: a second witness says that they are gone (1.10).
func (g *guard) leave(addrs func(netip.AddrPort) bool) (gone []*service.Backend) {
	gone = g.drop(func(b *service.Backend) bool { return addrs(b.Addr) })
	for i := range g.sizes {
		g.sizes[i].n -= len(gone) // they are no sign of an expiry any more
	}
	return gone
}

// over removes the orphans whose time is over, and returns them: after hold, but only once the list has half its former size again (1.10).
func (g *guard) over(now time.Time) (gone []*service.Backend) {
	if !g.recovered() {
		return nil
	}
	return g.drop(func(b *service.Backend) bool { return now.Sub(b.Orphaned) >= g.hold })
}

func (g *guard) recovered() bool { return 2*len(g.listed) >= g.former }

// remind reports whether a person should be told again of the orphans, and notes it.
func (g *guard) remind(now time.Time) bool {
	if len(g.orphans) == 0 || now.Sub(g.told) < guardRemind {
		return false
	}
	g.told = now
	return true
}

// due is when over or remind has to be asked next; zero without orphans.
func (g *guard) due() time.Time {
	if len(g.orphans) == 0 {
		return time.Time{}
	}
	at := g.told.Add(guardRemind)
	if g.recovered() {
		for i := range g.orphans {
			if end := g.orphans[i].Orphaned.Add(g.hold); end.Before(at) {
				at = end
			}
		}
	}
	return at
}

// accept believes the keys from now on: all orphans go.
func (g *guard) accept() (gone []*service.Backend) {
	gone = g.orphans
	g.orphans, g.former, g.sizes, g.left = nil, 0, nil, nil
	return gone
}

func (g *guard) drop(which func(*service.Backend) bool) (gone []*service.Backend) {
	var kept []*service.Backend
	for i := range g.orphans {
		if which(g.orphans[i]) {
			gone = append(gone, g.orphans[i])
		} else {
			kept = append(kept, g.orphans[i])
		}
	}
	if len(gone) > 0 {
		g.keep(kept)
	}
	return gone
}

// without returns the backends of list whose addresses are not in other; both are sorted.
func without(list, other []*service.Backend) []*service.Backend {
	var out []*service.Backend
	j := 0
	for i := range list {
		for j < len(other) && other[j].Addr.Compare(list[i].Addr) < 0 {
			j++
		}
		if j == len(other) || other[j].Addr != list[i].Addr {
			out = append(out, list[i])
		}
	}
	return out
}

func has(list []*service.Backend, addr netip.AddrPort) bool {
	_, ok := slices.BinarySearchFunc(list, addr, func(b *service.Backend, a netip.AddrPort) int { return b.Addr.Compare(a) })
	return ok
}

func byAddr(a, b *service.Backend) int { return a.Addr.Compare(b.Addr) }

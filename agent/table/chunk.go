package table

import (
	"iter"
	"net/netip"
	"slices"
	"sort"
)

// chunkMost is how many backends one chunk of a roster has at most. More copies more for each change, fewer has more chunks to go through.
const chunkMost = 128

// roster is a view's backends, sorted by address, in chunks. Those that a change doesn't touch are the next view's, too: when one backend of ten thousand changes, a
// hundredth of them is copied (3.11). What counts backends reads the sums that each chunk has.
type roster struct {
	chunks []*chunk
	starts []int32 // the number of each chunk's first backend
	groups []group // of all chunks
	sums   sums
}

// chunk is one part of a roster, never empty and immutable once that is a view's.
type chunk struct {
	backends []Backend
	groups   []group
	sums     sums
}

// sums is what is counted of all backends, wherever they are.
type sums struct{ backends, usable, slow int }

// place is where a backend stands among the others, the preferred ones first: whether it is of the fallback, its priority and its zone, from the highest bit down.
type place uint32

func placeOf(b *Backend) place {
	p := place(b.Priority)<<8 | place(b.zone)
	if b.Fallback {
		p |= 1 << 24
	}
	return p
}

func (p place) fallback() bool   { return p>>24 != 0 }
func (p place) priority() uint16 { return uint16(p >> 8) }
func (p place) zone() uint8      { return uint8(p) } // Service.zoneOf

// group is the backends of one place.
type group struct {
	place

	all     int
	tryable int
	usable  int
	soft    int // neither draining nor muted, and only soft evidence against them: panic tries them (2.9)

	usableWeight, softWeight float64 // static
}

func (g *group) add(o *group) {
	g.all += o.all
	g.tryable += o.tryable
	g.usable += o.usable
	g.soft += o.soft
	g.usableWeight += o.usableWeight
	g.softWeight += o.softWeight
}

// chosen is how many get new calls.
func (g *group) chosen(panicking bool) int {
	if panicking {
		return g.usable + g.soft
	}
	return g.usable
}

// groupOf finds the group of a place in groups, which are sorted, or makes it.
func groupOf(groups []group, p place) ([]group, *group) {
	i := 0
	for i < len(groups) && groups[i].place < p { // they are few
		i++
	}
	if i == len(groups) || groups[i].place != p {
		groups = slices.Insert(groups, i, group{place: p})
	}
	return groups, &groups[i]
}

// sum counts c's backends.
func (c *chunk) sum() {
	c.groups, c.sums = nil, sums{backends: len(c.backends)}
	for i := range c.backends {
		b := &c.backends[i]
		var g *group
		c.groups, g = groupOf(c.groups, placeOf(b))
		g.all++
		if b.tryable() {
			g.tryable++
		}
		switch {
		case b.Verdict.Usable():
			c.sums.usable++
			g.usable++
			g.usableWeight += b.static()
		case b.hopeful():
			g.soft++
			g.softWeight += b.static()
		}
		if b.factors.SlowStart != 1 {
			c.sums.slow++
		}
	}
}

// at is the backend with that number.
func (r *roster) at(i int) *Backend {
	k := r.chunkOf(i)
	return &r.chunks[k].backends[i-int(r.starts[k])]
}

// chunkOf is the number of the chunk that has the backend at i. Chunks are of much the same size, so it's near where it would be if they were of one.
func (r *roster) chunkOf(i int) int {
	last := len(r.starts) - 1
	if last <= 0 {
		return 0
	}
	k := int(uint(i) * uint(last) / uint(r.sums.backends))
	for int(r.starts[k]) > i {
		k--
	}
	for k < last && int(r.starts[k+1]) <= i {
		k++
	}
	return k
}

// each goes through all backends, by number.
func (r *roster) each() iter.Seq2[int, *Backend] {
	return func(yield func(int, *Backend) bool) {
		for k, c := range r.chunks {
			for i := range c.backends {
				if !yield(int(r.starts[k])+i, &c.backends[i]) {
					return
				}
			}
		}
	}
}

// index is the number of the backend with that address.
func (r *roster) index(addr netip.AddrPort) (int, bool) {
	k := sort.Search(len(r.chunks), func(k int) bool { return r.chunks[k].backends[0].Addr.Compare(addr) > 0 }) - 1
	if k < 0 {
		return 0, false
	}
	backends := r.chunks[k].backends
	i, ok := sort.Find(len(backends), func(i int) int { return addr.Compare(backends[i].Addr) })
	return int(r.starts[k]) + i, ok
}

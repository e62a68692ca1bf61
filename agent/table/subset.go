package table

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/lbagent/lbagent/agent/picker"
)

// A host of a large service calls a part of it only (3.9), so that nobody has a connection to everybody. Which part depends on the host, so that all parts together
// are even, and hardly changes when a backend comes or goes: everybody has a rank on each host (rendezvous hashing), and the first ones that are usable are it.
const (
	subsetAbove = 100 // backends from which on there is a subset; lower splits services of which a host can well know all
	subsetBelow = 80  // and below which there is none any more: a list that grows and shrinks around one number would go to and fro
)

// rankOf is a backend's place in a host's order; the lowest are in its subset.
func rankOf(seed uint64, a netip.AddrPort) uint32 {
	ip := a.Addr().As16()
	var b [26]byte
	binary.BigEndian.PutUint64(b[:], seed)
	copy(b[8:], ip[:])
	binary.BigEndian.PutUint16(b[24:], a.Port())
	return uint32(xxhash.Sum64(b[:]))
}

// turnSubset decides whether a service of so many backends has a subset, and of how many; 0 = it has none. Never under hash, where the key says who is called.
func (s *Service) turnSubset(backends int) int {
	spec := s.Spec()
	switch {
	case spec.Subset <= 0 || spec.Policy == picker.Hash || backends < subsetBelow:
		s.subset = false
	case backends > subsetAbove:
		s.subset = true
	}
	if !s.subset {
		return 0
	}
	return spec.Subset
}

// ranked is the number of a backend, and its rank.
type ranked struct {
	rank uint32
	k    int32
}

// narrow leaves of the chosen backends at (nil = all) the first ones of each zone, as many as quota says.
func (v *View) narrow(at []int32, quota zoneCounts) []int32 {
	v.subset = true
	var first [zonesMost][]ranked // of each zone, a heap with the highest rank on top
	consider := func(k int32, b *Backend) {
		switch h := first[b.zone]; {
		case len(h) < quota[b.zone]:
			first[b.zone] = push(h, ranked{b.rank, k})
		case len(h) > 0 && b.rank < h[0].rank:
			h[0] = ranked{b.rank, k}
			sink(h)
		}
	}
	if at == nil {
		for n, c := range v.roster.chunks {
			for i := range c.backends {
				if b := &c.backends[i]; v.chosen(b) {
					consider(v.roster.starts[n]+int32(i), b)
				}
			}
		}
	}
	for _, k := range at {
		consider(k, v.roster.at(int(k)))
	}
	out := at[:0]
	for _, h := range first {
		for _, r := range h {
			out = append(out, r.k)
		}
	}
	slices.Sort(out)
	return out
}

// inside reports whether the chosen backend at i, of tier n, is in the subset.
func (v *View) inside(i, n int) bool {
	at := v.at
	if v.spans != nil {
		from := 0
		for _, span := range v.spans[:n] {
			from += span
		}
		at = at[from : from+v.spans[n]]
	}
	_, ok := slices.BinarySearch(at, int32(i))
	return ok
}

// push and sink keep a heap.
func push(h []ranked, r ranked) []ranked {
	h = append(h, r)
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if h[up].rank >= h[i].rank {
			break
		}
		h[up], h[i] = h[i], h[up]
		i = up
	}
	return h
}

func sink(h []ranked) {
	for i := 0; ; {
		top := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < len(h) && h[child].rank > h[top].rank {
				top = child
			}
		}
		if top == i {
			return
		}
		h[i], h[top] = h[top], h[i]
		i = top
	}
}

// quotas shares most out over the zones by size, to the largest remainders, and to none more than it has; what one can't take goes to the others. A zone with a usable backend
// has one at least, if there are enough. The size counts those that are out, too, so that one that fails is replaced from its own zone while that has another.
func quotas(most int, size, has *zoneCounts) (out zoneCounts) {
	type zone struct {
		i         int
		remainder float64
	}
	for left := most; left > 0; {
		sum := 0
		var open []zone
		for i := range size {
			if out[i] < has[i] {
				open = append(open, zone{i: i})
				sum += max(size[i], 1)
			}
		}
		if len(open) == 0 {
			return out
		}
		pool := left
		for k := range open {
			z := &open[k]
			part := float64(pool) * float64(max(size[z.i], 1)) / float64(sum)
			whole := min(int(part), has[z.i]-out[z.i])
			if out[z.i] == 0 && whole == 0 {
				part++ // before those that have some
			}
			z.remainder = part - float64(int(part)) + float64(int(part)-whole)
			out[z.i] += whole
			left -= whole
		}
		slices.SortStableFunc(open, func(a, b zone) int { return cmp.Compare(b.remainder, a.remainder) })
		for _, z := range open {
			if left > 0 && out[z.i] < has[z.i] {
				out[z.i]++
				left--
			}
		}
	}
	return out
}

// Subset is how many backends this host's subset of the service has; 0 = it has none (3.9).
func (v *View) Subset() int {
	if !v.subset {
		return 0
	}
	return len(v.candidates)
}

// SubsetWords is asked whether the backend at i is in this host's subset, and why; nil if the service has none.
func (v *View) SubsetWords() func(i int) (inside bool, why string) {
	if v.Subset() == 0 {
		return nil
	}
	var first zoneCounts
	for _, k := range v.at {
		first[v.roster.at(int(k)).zone]++
	}
	return func(i int) (bool, string) {
		b := v.Backend(i)
		of := "those that say no zone"
		if b.Zone != "" {
			of = "zone " + b.Zone
		}
		switch {
		case v.chosen(b.Backend) && !b.Outside:
			return true, fmt.Sprintf("one of the first %d usable backends of %s in this host's order", first[b.zone], of)
		case !b.Outside || !b.Verdict.Usable():
			return false, "a backend that is not usable is in no subset"
		}
		return false, fmt.Sprintf("the %d of %s that are inside come before it in this host's order", first[b.zone], of)
	}
}

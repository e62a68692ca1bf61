package picker

import (
	"encoding/binary"
	"net/netip"

	"github.com/cespare/xxhash/v2"
)

const (
	slots = 65537 // a prime, so that every member's walk visits every slot

	// members bounds who can be in a ring: a slot is two bytes. More backends than slots could not all have one anyway.
	maxMembers = 1<<16 - 1

	// rounds is in how many turns the slots are given out: each round, every member takes that part of its share. More are fairer when slots get scarce, and cost
	// one more look at each member.
	rounds = 32
)

// KeyOf is what a key's text means to a ring: never 0, the word of those who have none.
func KeyOf(text string) uint64 {
	if text == "" {
		return 0
	}
	return max(1, xxhash.Sum64String(text))
}

// Member is one backend of a ring.
type Member struct {
	Addr   netip.AddrPort
	Weight uint32
}

// Ring says for every key to whom it belongs: Maglev's table (Eisenbud et al., NSDI 2016, 3.4), with as many slots for each member as its static weight asks for. It
// depends on the members alone, so that all hosts that know the same list send a key to the same backend; a change of the list moves few keys but those it has to.
// It takes 128 KiB, and its making a few milliseconds whatever the weights are.
type Ring struct {
	Members []Member // never written
	slots   [slots]uint16
}

// NewRing makes the ring of members, which are sorted by address and stay as they are.
func NewRing(members []Member) *Ring {
	members = members[:min(len(members), maxMembers)]
	r := &Ring{Members: members}
	n := len(members)
	if n == 0 {
		return r
	}
	quotas := slotsOf(members)
	walks := make([]walk, n)
	for i := range members {
		h := hashOf(members[i].Addr)
		walks[i] = walk{at: uint32(h>>32) % slots, skip: uint32(h)%(slots-1) + 1, left: quotas[i]}
	}
	var taken [slots]bool
	for round := range rounds {
		for i := range walks {
			w := &walks[i]
			for share := (w.left + rounds - round - 1) / (rounds - round); share > 0; share-- {
				for taken[w.at] {
					w.at = (w.at + w.skip) % slots
				}
				taken[w.at] = true
				r.slots[w.at] = uint16(i)
				w.left--
			}
		}
	}
	return r
}

// walk is the order in which a member looks at the slots: its own permutation of all.
type walk struct {
	at, skip uint32
	left     int // slots still to be taken
}

// slotsOf is how many slots each member gets: one, and of the others by weight; they add up to all. (With ten thousand members that one is a seventh of all, so that
// weights tell somewhat less; what a backend may carry follows them in any case.)
func slotsOf(members []Member) []int {
	sum := uint64(0)
	for i := range members {
		sum += uint64(max(members[i].Weight, 1))
	}
	out := make([]int, len(members))
	// Running sums, rounded: no part of a slot is lost, and no weight is too large for 64 bits.
	free := uint64(slots - len(members))
	run, before := uint64(0), uint64(0)
	for i := range members {
		run += uint64(max(members[i].Weight, 1))
		upTo := run * free / sum // at most 2^16 x 2^32 x 2^16
		out[i] = 1 + int(upTo-before)
		before = upTo
	}
	return out
}

// hashOf is a member's own random word, the same on every host.
func hashOf(a netip.AddrPort) uint64 {
	b := a.Addr().As16()
	return xxhash.Sum64(binary.BigEndian.AppendUint16(b[:], a.Port()))
}

package registrar

import (
	"fmt"
	"slices"
)

// held is what etcd holds at a key.
type held struct {
	create, mod int64 // 0: nothing is there; mod may be unknown
	lease       int64 // 0: none
	value       string
}

// unknown is a ModRevision that no key has: a transaction that takes it for granted finds out what is there.
const unknown = -1

// slot is one key that this host wants, wrote, or must leave alone, with what etcd was last known to hold there. It decides and does no I/O; the registrar's
// one loop owns it.
type slot struct {
	key    string
	wanted bool
	value  string // if wanted
	seen   held   // what a transaction takes for granted; if it is wrong the transaction does nothing and reads
	wrote  int64  // CreateRevision of the life of the key that this host began, 0 = none
	last   int64  // the highest ModRevision that is known to be of this host, in that life
	apart  bool   // has transactions of its own: etcd refused one that it was part of
	denied string // why etcd refused it, "" if it didn't
	alien  bool   // somebody else's
	dying  bool   // and nobody keeps its lease alive
}

// move is what to do about a slot.
type move int

const (
	moveForget move = iota // it isn't wanted and nothing of ours is there
	moveCheck              // all is well, or not ours to change: only see whether it is still so
	movePut
	moveDelete
)

// mine reports whether what is at the key was written by this host (5.5): it hangs on a lease of ours, or it is the same life of the key as the one that this
// host began, whose lease somebody took off by writing to it by hand, later than the host itself: what has the revision of that life without being later is of an etcd
// restored from a backup, and a stranger's. Another lease means another owner. So is a key a stranger's that was written by this host, without its having learned of that since the
// answer was lost, and then by hand: nothing in it tells that it was ever ours.
func (s *slot) mine(leases []int64) bool {
	if s.seen.lease == 0 {
		return s.wrote != 0 && s.seen.create == s.wrote && s.seen.mod > s.last
	}
	return slices.Contains(leases, s.seen.lease)
}

// decide says what to do. leases are this host's, the one in use first.
func (s *slot) decide(leases []int64) move {
	s.alien = false
	switch {
	case s.seen.mod == unknown:
		return moveCheck
	case s.seen.mod == 0 && s.wanted:
		return movePut
	case s.seen.mod == 0:
		return moveForget
	}
	if s.mine(leases) {
		if s.seen.lease != 0 {
			s.wrote, s.last = s.seen.create, s.seen.mod
		}
		switch {
		case !s.wanted:
			return moveDelete
		case s.seen.lease == leases[0] && s.seen.value == s.value:
			return moveCheck
		}
		return movePut
	}
	switch {
	case !s.wanted:
		return moveForget
	case s.dying && s.seen.value == s.value:
		// It says what we would say, and will go with its lease, which nobody keeps alive: the rest of a former life of this host whose state was lost.
		return movePut
	}
	s.alien = true
	return moveCheck
}

// put notes that the value was written at revision rev under lease.
func (s *slot) put(rev, lease int64) {
	create := s.seen.create
	if s.seen.mod == 0 {
		create = rev
	}
	s.seen, s.wrote, s.last, s.dying = held{create: create, mod: rev, lease: lease, value: s.value}, create, rev, false
}

// read notes what a transaction found instead of what it took for granted.
func (s *slot) read(h held) {
	s.seen, s.dying = h, false
	if h.create != s.wrote {
		s.wrote, s.last = 0, 0
	}
}

// forget drops what is known: revisions of another epoch mean nothing (1.5). What hangs on a lease of ours is known again when it was read.
func (s *slot) forget() { s.seen, s.wrote, s.last, s.dying = held{mod: unknown}, 0, 0, false }

// problem says why a wanted key isn't as it should be; "" if it is.
func (s *slot) problem() string {
	switch {
	case s.denied != "":
		return s.denied
	case s.alien && s.seen.lease == 0:
		return fmt.Sprintf("key %s was not written by this agent and hangs on no lease; if it is stale, delete it", s.key)
	case s.alien:
		return fmt.Sprintf("key %s belongs to somebody else (lease %x); it is taken over if nobody keeps that alive", s.key, s.seen.lease)
	case s.seen.mod <= 0:
		return "not written yet"
	}
	return ""
}

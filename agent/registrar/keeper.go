package registrar

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
)

const (
	// chunk is how many keys one transaction holds, with two comparisons each; etcd allows 128 operations (--max-txn-ops).
	chunk = 64
	// maxRounds bounds how often a chunk is tried again at once since somebody changed its keys meanwhile; after that the next check goes on.
	maxRounds = 5
	// maxFormer bounds the leases of before that keys may still hang on: in a backup, or after a change of registration_ttl.
	maxFormer = 4
	// maxAlien bounds how many foreign leases one check looks at.
	maxAlien = 16
)

var (
	errEpoch = errors.New("etcd was replaced or restored")
	errFight = errors.New("somebody else keeps changing the keys of this host's registrations")
)

// want is a key that should be in etcd.
type want struct{ key, value string }

// keeper keeps etcd as it should be: every wanted key present, its value equal, its lease alive; nothing else of ours (5.1). It is level-triggered: it knows no
// history but the slots, and each sync ends in the same state wherever it began. One goroutine owns it.
type keeper struct {
	slots    map[string]*slot
	leases   []int64       // the one in use first, then those of before; empty = none yet
	ttl      time.Duration // that leases[0] was made for
	kept     time.Time     // when leases[0] was last kept alive; zero = by another life of this host
	cluster  uint64        // 0 = unknown
	revision int64         // the highest seen in this epoch

	changed func()                        // keys or leases changed: called before anything is written under new ones (5.3)
	note    func(format string, a ...any) // tells a person
	writes  uint64                        // keys put and deleted
	losses  uint64                        // leases that died while keys hung on them
}

// sync makes etcd hold exactly wants, of all keys that are this host's. again is when there is reason to look before the usual time, 0 = none.
func (k *keeper) sync(ctx context.Context, now time.Time, st store, wants []want, ttl time.Duration) (again time.Duration, err error) {
	order := k.merge(wants)
	for range maxRounds {
		if err = k.once(ctx, now, st, order, len(wants) > 0, ttl); !errors.Is(err, errEpoch) && !errors.Is(err, errNoLease) {
			break
		}
	}
	if err != nil {
		return 0, err
	}
	return k.aliens(ctx, st, order)
}

// merge takes wants into the slots, and returns them in order: wanted ones first, so that a key is written before the one it replaces is deleted.
func (k *keeper) merge(wants []want) []*slot {
	for _, s := range k.slots {
		s.wanted = false
	}
	order := make([]*slot, 0, len(k.slots)+len(wants))
	grown := false
	for _, w := range wants {
		s := k.slots[w.key]
		if s == nil {
			s = &slot{key: w.key}
			k.slots[w.key] = s
			grown = true
		}
		s.wanted, s.value = true, w.value
		order = append(order, s)
	}
	var rest []*slot
	for _, s := range k.slots {
		if !s.wanted {
			rest = append(rest, s)
		}
	}
	slices.SortFunc(rest, func(a, b *slot) int { return strings.Compare(a.key, b.key) })
	if grown {
		k.changed()
	}
	return append(order, rest...)
}

// once has the lease alive and the keys settled, or returns why not.
func (k *keeper) once(ctx context.Context, now time.Time, st store, order []*slot, wanted bool, ttl time.Duration) error {
	if wanted {
		if err := k.lease(ctx, now, st, ttl); err != nil {
			return err
		}
	}
	var together []*slot
	var failed error
	flush := func() {
		if len(together) > 0 && failed == nil {
			failed = k.settle(ctx, st, together)
		}
		together = together[:0]
	}
	for _, s := range order {
		if k.slots[s.key] != s {
			continue // forgotten in an earlier round
		}
		if s.apart {
			flush()
			together = append(together, s)
			flush()
			continue
		}
		if together = append(together, s); len(together) == chunk {
			flush()
		}
	}
	flush()
	return failed
}

// lease makes sure that there is a lease and that it lives.
func (k *keeper) lease(ctx context.Context, now time.Time, st store, ttl time.Duration) error {
	if len(k.leases) > 0 && k.ttl == ttl {
		if now.Sub(k.kept) < ttl/6 { // a sync between two checks: something changed here
			return nil
		}
		h, err := st.KeepAlive(ctx, k.leases[0])
		if h.cluster != 0 {
			if err := k.epoch(h); err != nil {
				return err
			}
		}
		switch {
		case err == nil:
			k.kept = now
			return nil
		case !errors.Is(err, errNoLease):
			return err
		}
		k.lost()
	}
	id, h, err := st.Grant(ctx, ttl)
	if err != nil {
		return err
	}
	k.leases = slices.Insert(k.leases, 0, id)
	k.leases = k.leases[:min(len(k.leases), 1+maxFormer)]
	k.ttl, k.kept = ttl, now
	k.changed() // before a key hangs on it
	return k.epoch(h)
}

// lost notes that the lease in use is dead: etcd has deleted what hung on it.
func (k *keeper) lost() {
	dead, n := k.leases[0], 0
	for _, s := range k.slots {
		if s.seen.lease == dead {
			// Gone, as a rule; what was changed by hand hangs on no lease any more, and wrote knows it again.
			s.seen = held{}
			if !s.wanted {
				s.seen.mod = unknown
			}
			n++
		}
	}
	k.ttl = 0 // it stays among the leases: a backup may hold keys that hang on it
	if n > 0 {
		k.losses++
		k.note("etcd had ended the lease of %d registrations, which are written anew", n)
	}
}

// epoch notes who answered. errEpoch if it isn't the etcd that the revisions in the slots are of (1.5).
func (k *keeper) epoch(h header) error {
	switch {
	case k.cluster == 0:
		k.cluster, k.revision = h.cluster, h.revision
		k.changed()
		return nil
	case k.cluster == h.cluster && (h.revision == 0 || h.revision >= k.revision):
		k.revision = max(h.revision, k.revision)
		return nil
	}
	k.cluster, k.revision = h.cluster, h.revision
	for _, s := range k.slots {
		s.forget()
	}
	// If it knows the lease, then from a backup, with keys on it that were ours then and aren't now: those end with it, and ours move to a new one.
	k.ttl = 0
	k.changed()
	k.note("etcd was replaced or restored: registrations are compared anew")
	return errEpoch
}

// settle brings slots to what they should be, in one transaction as long as nobody else changes them.
func (k *keeper) settle(ctx context.Context, st store, slots []*slot) error {
	slots = slices.Clone(slots)
	for range maxRounds {
		t, moves := k.plan(slots)
		if len(t.guards) == 0 {
			return nil
		}
		r, err := st.Txn(ctx, t)
		switch {
		case errors.Is(err, errNoLease):
			k.lost()
			return err
		case etcd.IsDenied(err):
			return k.apart(ctx, st, slots, err)
		case err != nil:
			for i, s := range slots {
				if moves[i] == movePut && s.seen.mod == 0 {
					s.seen.mod = unknown // it may be there, and only the answer lost: who deregisters now must not leave it behind
				}
			}
			return err
		}
		if err := k.epoch(r.header); err != nil {
			return err
		}
		if r.done {
			k.done(slots, moves, r.revision)
			return nil
		}
		for _, s := range slots {
			s.read(r.found[s.key])
		}
	}
	return errFight
}

// plan is the transaction for slots, and what it does about each; those that need nothing are forgotten.
func (k *keeper) plan(slots []*slot) (*txn, []move) {
	t := &txn{}
	if len(k.leases) > 0 {
		t.lease = k.leases[0]
	}
	moves := make([]move, len(slots))
	for i, s := range slots {
		moves[i] = s.decide(k.leases)
		switch moves[i] {
		case moveForget:
			delete(k.slots, s.key)
			continue
		case movePut:
			t.puts = append(t.puts, put{s.key, s.value})
		case moveDelete:
			t.deletes = append(t.deletes, s.key)
		}
		t.guards = append(t.guards, guard{s.key, s.seen.mod, s.seen.lease})
	}
	return t, moves
}

// done notes that a transaction was done at revision rev.
func (k *keeper) done(slots []*slot, moves []move, rev int64) {
	for i, s := range slots {
		switch moves[i] {
		case movePut:
			if s.seen.mod > 0 && s.seen.lease == 0 {
				k.note("key %s was changed by hand; it is as it should be again", s.key)
			}
			s.put(rev, k.leases[0])
			k.writes++
		case moveDelete:
			delete(k.slots, s.key)
			k.writes++
		}
		s.apart, s.denied = false, ""
	}
}

// apart finds out which of slots etcd refuses: the others must not suffer for it.
func (k *keeper) apart(ctx context.Context, st store, slots []*slot, denied error) error {
	if len(slots) == 1 {
		slots[0].apart, slots[0].denied = true, fmt.Sprintf("etcd refuses key %s: %v", slots[0].key, errors.Unwrap(denied))
		return nil
	}
	for _, s := range slots {
		if err := k.settle(ctx, st, []*slot{s}); err != nil {
			return err
		}
	}
	return nil
}

// aliens looks at the leases of wanted keys that somebody else holds. A lease that is kept alive never falls below two thirds of its life, as every client renews it
// by then; one in its last third is that of a process that has gone, and its key is taken over if it says what we would say.
func (k *keeper) aliens(ctx context.Context, st store, order []*slot) (again time.Duration, err error) {
	n := 0
	for _, s := range order {
		if !s.wanted || !s.alien || s.seen.lease == 0 {
			continue
		}
		if n++; n > maxAlien {
			break
		}
		granted, left, err := st.TimeToLive(ctx, s.seen.lease)
		wait := time.Second // until its key is gone
		switch {
		case errors.Is(err, errNoLease):
		case err != nil:
			return 0, err
		case left > granted/3:
			wait = left - granted/3
		default:
			s.dying = true
			if err := k.settle(ctx, st, []*slot{s}); err != nil {
				return 0, err
			}
			if !s.alien {
				continue
			}
			wait = left + time.Second
		}
		if again == 0 || wait < again {
			again = wait
		}
	}
	return again, nil
}

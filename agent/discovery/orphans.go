package discovery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
)

const (
	leaseAskFor  = time.Second // all questions about one list; until then it stays as it was
	leaseAtOnce  = 8           // questions
	leaseSamples = 8           // leases at random whose equal fate is taken for that of all: a fleet that asks for each of thousands would be one more blow to etcd
)

// errNotFollowed is the error of Accept for a service that isn't followed.
var errNotFollowed = errors.New("not followed")

// Gone notes that the second witness says of an orphan that it is gone, and why (1.10). It does not wait, and ignores what is no orphan.
func (d *Discovery) Gone(name string, addr netip.AddrPort, cause string) {
	d.notesMu.Lock()
	defer d.notesMu.Unlock()
	of := d.notes[name]
	if of == nil {
		of = make(map[netip.AddrPort]string)
		d.notes[name] = of
	}
	of[addr] = cause
	d.poke()
}

// Accept believes what the keys of a service say now: its orphans go, and are returned.
func (d *Discovery) Accept(name string) ([]netip.AddrPort, error) {
	d.mu.Lock()
	f := d.follows[name]
	d.mu.Unlock()
	if f == nil {
		return nil, fmt.Errorf("service %q: %w", name, errNotFollowed)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return nil, fmt.Errorf("service %q: %w", name, errNotFollowed)
	}
	now := time.Now()
	gone := f.guard.accept()
	f.let(now, gone, "somebody accepted the list")
	addrs := make([]netip.AddrPort, len(gone))
	for i := range gone {
		addrs[i] = gone[i].Addr
	}
	return addrs, nil
}

// poke has tend look at the orphans.
func (d *Discovery) poke() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// tend looks after the orphans of all services until ctx ends: whether etcd answers or not.
func (d *Discovery) tend(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		case <-timer.C:
		}
		d.notesMu.Lock()
		notes := d.notes
		d.notes = make(map[string]map[netip.AddrPort]string)
		d.notesMu.Unlock()

		d.mu.Lock()
		follows := make([]*follower, 0, len(d.follows))
		for _, f := range d.follows {
			if f.keeps.Load() {
				follows = append(follows, f)
			}
		}
		d.mu.Unlock()
		var next time.Time
		for _, f := range follows {
			if at := f.tend(time.Now(), notes[f.follow.Name]); !at.IsZero() && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
		if timer.Stop(); !next.IsZero() {
			timer.Reset(max(time.Until(next), 0))
		}
	}
}

// tend lets go of the orphans that are gone or whose time is over, and reminds of the others. It returns when it has to be called again.
func (f *follower) tend(now time.Time, gone map[netip.AddrPort]string) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended || len(f.guard.orphans) == 0 {
		return time.Time{}
	}
	if len(gone) > 0 {
		left := f.guard.leave(func(a netip.AddrPort) bool { _, ok := gone[a]; return ok })
		if len(left) > 0 {
			f.let(now, left, gone[left[0].Addr])
		}
	}
	f.let(now, f.guard.over(now), fmt.Sprintf("held for %v, and the list has half its former size again", f.guard.hold))
	if f.guard.remind(now) {
		f.d.log.Warn("backends without keys are kept; lbagent accept lets go of them", "service", f.follow.Name, "orphans", len(f.guard.orphans), "keys", len(f.guard.listed))
		f.tell(now, fmt.Sprintf("%s still kept, %d in etcd's list; `lbagent accept %s` lets go of them", several(len(f.guard.orphans), "orphan"), len(f.guard.listed), f.follow.Name))
	}
	return f.guard.due()
}

// let tells that orphans went, and why, and gives OnList the list without them. The caller holds f.mu.
func (f *follower) let(now time.Time, gone []*service.Backend, why string) {
	if len(gone) == 0 {
		return
	}
	f.d.log.Info("orphans left", "service", f.follow.Name, "count", len(gone), "orphans", len(f.guard.orphans), "cause", why)
	f.tell(now, fmt.Sprintf("%s left (%s): %s", several(len(gone), "orphan"), few(gone), why))
	f.setKeeps()
	if f.list == nil {
		return
	}
	l := *f.list
	l.Backends, l.Confirmed = f.guard.backends(), f.confirmed
	f.emit(now, &l)
	f.d.spool.put(f.follow, &l)
}

// tellGuard tells what a list did to the guard. The caller holds f.mu.
func (f *follower) tellGuard(now time.Time, orphaned, back int) {
	if orphaned > 0 {
		all := slices.DeleteFunc(slices.Clone(f.guard.orphans), func(b *service.Backend) bool { return !b.Orphaned.Equal(now) })
		f.d.log.Warn("most keys of a service went at once; its backends are kept while they are alive", "service", f.follow.Name, "orphans", orphaned, "keys", len(f.guard.listed))
		lost := "1 backend lost its key"
		if orphaned > 1 {
			lost = several(orphaned, "backend") + " lost their keys at once"
		}
		f.tell(now, fmt.Sprintf("%s (%s), %d left in etcd's list: kept while alive", lost, few(all), len(f.guard.listed)))
	}
	if back > 0 {
		f.d.log.Info("keys of orphans are back", "service", f.follow.Name, "count", back, "orphans", len(f.guard.orphans))
		f.tell(now, fmt.Sprintf("%s back in etcd's list, %d still kept", several(back, "orphan"), len(f.guard.orphans)))
	}
}

func (f *follower) tell(now time.Time, detail string) {
	if f.d.cfg.Events != nil {
		f.d.cfg.Events.Add(event.Event{Time: now, Kind: event.Orphan, Service: f.follow.Name, Detail: detail})
	}
}

// keep has the guard look at l, a list of what is known now, and adds the orphans to it. onPurpose finds out which of the suspects somebody took out. The caller holds
// f.mu.
func (f *follower) keep(now time.Time, l *service.List, onPurpose func(suspects []*service.Backend) func(netip.AddrPort) bool) {
	if f.spooled != nil { // etcd has not said anything yet
		f.guard.listed = l.Backends
		l.Backends = f.guard.backends()
		return
	}
	tookOut := func(netip.AddrPort) bool { return false }
	if suspects := f.guard.suspects(now, l.Backends); len(suspects) > 0 {
		tookOut = onPurpose(suspects)
	}
	orphaned, back, replaced := f.guard.set(now, l.Backends, tookOut)
	f.setKeeps()
	f.tellGuard(now, orphaned, back)
	if len(replaced) > 0 {
		f.d.log.Info("orphan left: it was the only backend, and another took its place", "service", f.follow.Name, "backend", few(replaced))
		f.tell(now, fmt.Sprintf("orphan left (%s): it was the only backend, and another took its place", few(replaced)))
	}
	l.Backends = f.guard.backends()
}

// setKeeps has tend look after f as long as it has orphans.
func (f *follower) setKeeps() {
	f.keeps.Store(len(f.guard.orphans) > 0)
	if f.keeps.Load() {
		f.d.poke()
	}
}

func several(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// few are the first few addresses.
func few(of []*service.Backend) string {
	var out []string
	for i := range of[:min(3, len(of))] {
		out = append(out, of[i].Addr.String())
	}
	if len(of) > 3 {
		out = append(out, "...")
	}
	return strings.Join(out, ", ")
}

// onPurpose finds out which of the suspects somebody took out on purpose: those whose key is still there and says something else, and those whose key had a lease that
// lives on, or none that could have expired (1.9). before is what the keys said until now, nil if that was in another life of etcd. What can't be found out counts as lost.
func (f *follower) onPurpose(ctx context.Context, l *etcd.Link, before *records, suspects []*service.Backend) func(netip.AddrPort) bool {
	there := f.onPurposeHere(suspects)
	of := make(map[netip.AddrPort]int64)
	for i := range suspects {
		if b := suspects[i]; before != nil && !there(b.Addr) {
			of[b.Addr] = before.lease(b)
		}
	}
	lives := leasesLive(ctx, l, slices.Compact(slices.Sorted(maps.Values(of))))
	lives[0] = true // none, that could have expired
	return func(a netip.AddrPort) bool {
		lease, ok := of[a]
		return there(a) || ok && lives[lease]
	}
}

// onPurposeHere is as much of onPurpose as can be told without etcd.
func (f *follower) onPurposeHere(suspects []*service.Backend) func(netip.AddrPort) bool {
	keys := f.records.keySet()
	there := make(map[netip.AddrPort]bool)
	for i := range suspects {
		if _, ok := keys[suspects[i].Key]; ok {
			there[suspects[i].Addr] = true
		}
	}
	return func(a netip.AddrPort) bool { return there[a] }
}

// leasesLive says which leases live, as far as etcd answers in time.
func leasesLive(ctx context.Context, l *etcd.Link, leases []int64) map[int64]bool {
	ctx, cancel := context.WithTimeout(ctx, leaseAskFor)
	defer cancel()
	leases = slices.DeleteFunc(leases, func(lease int64) bool { return lease == 0 })
	rand.Shuffle(len(leases), func(i, j int) { leases[i], leases[j] = leases[j], leases[i] })
	lives := make(map[int64]bool, len(leases))
	sample := leases[:min(len(leases), leaseSamples)]
	alive, known := askLeases(ctx, l, sample, lives)
	rest := leases[len(sample):]
	switch {
	case known == len(sample) && alive == 0:
	case known == len(sample) && alive == known:
		for _, lease := range rest {
			lives[lease] = true
		}
	default:
		askLeases(ctx, l, rest, lives)
	}
	return lives
}

// askLeases asks etcd of each lease and notes those that live.
func askLeases(ctx context.Context, l *etcd.Link, leases []int64, lives map[int64]bool) (alive, known int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := 0
	for range min(leaseAtOnce, len(leases)) {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i >= len(leases) || ctx.Err() != nil {
					return
				}
				live, err := l.LeaseLives(ctx, leases[i])
				mu.Lock()
				if err == nil {
					known++
				}
				if live {
					alive++
					lives[leases[i]] = true
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return alive, known
}

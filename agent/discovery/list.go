package discovery

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
)

// seed gives OnList the list that needs no etcd: the static one, or the one in the spool; the first time that it is called. It reports whether that is of the spool, and
// returns when it is given, whoever does it.
func (f *follower) seed(now time.Time) (spooled bool) {
	f.seeding.Do(func() { f.seedOnce(now) })
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.list != nil && f.list.Source == service.FromSpool
}

func (f *follower) seedOnce(now time.Time) {
	if f.fallback != nil {
		f.fallback.seed(now)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return
	}
	var orphans service.List
	if f.follow.spools() {
		if l := f.d.spool.load(f.follow, now); l != nil {
			l.Backends, orphans.Backends = splitOrphans(l.Backends)
			f.unresolve(l)
			if f.follow.keys() != "" {
				f.d.cfg.Etcd.Remember(l.Epoch, l.Revision)
				f.spooled, f.records, f.epoch, f.rev, f.confirmed = l, records{shown: l.Backends}, l.Epoch, l.Revision, l.Confirmed
			}
		} else if f.follow.keys() != "" {
			return
		}
	}
	l, pending := f.make(now)
	f.follow.Select.choose(&orphans)
	f.refuse(now, &orphans)
	f.guard.seed(l.Backends, orphans.Backends, now.Sub(l.Confirmed))
	l.Backends = f.guard.backends()
	f.setKeeps()
	switch {
	case len(l.Backends) > 0 || len(f.records.shown)+len(f.follow.Static) == 0:
		f.emit(now, l)
	case pending: // the first answers make the first list
		f.held = true
	default: // All that was spooled is of another select:, or refused by now. An empty list would be none that etcd ever had (1.4)
	}
}

// make makes a list of what is known: of records, step by step, up to the guard. pending reports whether it lacks host names that have not been asked for yet. The caller
// holds f.mu.
func (f *follower) make(now time.Time) (l *service.List, pending bool) {
	switch {
	case f.follow.keys() == "":
		l = staticList(now, f.follow)
	case f.spooled != nil:
		l = new(*f.spooled) // it may be of what select:, allow: and deny: were before
	default:
		l = &service.List{
			Service: f.follow.Name, Source: service.FromEtcd, Epoch: f.epoch, Revision: f.rev, Confirmed: f.confirmed, Backends: f.records.shown,
		}
		l.Bad, l.BadCount = f.records.bad()
	}
	f.follow.Select.choose(l)
	pending = f.resolve(now, l)
	f.refuse(now, l)
	return l, pending
}

// remake gives OnList another list if what is known makes another one by now.
func (f *follower) remake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remakeLocked(time.Now()) // under the lock: the list may have been confirmed while this waited for it
}

func (f *follower) remakeLocked(now time.Time) {
	switch {
	case f.ended: // it is no longer this follower's
		return
	case !f.held && (f.list == nil || f.list.Source == service.FromFallback): // there is none yet
		if l := f.alone(now); l != nil {
			f.emit(now, l)
		}
		return
	}
	l, pending := f.make(now)
	if f.waits(l, pending) {
		return
	}
	f.keep(now, l, f.onPurposeHere)
	same := f.list != nil && sameList(f.list, l)
	if !f.held && same && f.joined == f.spare.Load() {
		return
	}
	f.held = false
	f.emit(now, l)
	if f.follow.spools() && !same {
		f.d.spool.put(f.follow, l)
	}
}

// waits reports whether l is empty only because its host names have not been asked for yet: then it is none that its source ever had (1.4).
func (f *follower) waits(l *service.List, pending bool) bool { return pending && len(l.Backends) == 0 }

// sameList reports whether two lists of one source say the same.
func sameList(a, b *service.List) bool {
	return a.BadCount == b.BadCount && a.LeftOut == b.LeftOut && slices.Equal(a.Bad, b.Bad) && a.LostCount == b.LostCount && slices.Equal(a.Lost, b.Lost) &&
		compare(records{shown: a.Backends}, records{shown: b.Backends}) == nothing
}

// publish gives OnList the list of records, and spools it if that is not there yet. before is what the keys said until now, nil if that was in another life of etcd. The
// caller holds f.mu.
func (f *follower) publish(ctx context.Context, l *etcd.Link, now time.Time, before *records, isNew func(*service.List) bool) {
	f.confirmed = now
	list, pending := f.make(now)
	if f.held = f.waits(list, pending); f.held {
		return
	}
	f.keep(now, list, func(suspects []*service.Backend) func(netip.AddrPort) bool {
		return f.onPurpose(ctx, l, before, suspects)
	})
	f.emit(now, list)
	if isNew(list) {
		f.d.spool.put(f.follow, list)
	} else {
		f.d.spool.confirm(f.follow.Name, now)
	}
}

// emit gives OnList a list. The caller holds f.mu.
func (f *follower) emit(now time.Time, l *service.List) {
	first := f.list == nil
	f.list = l
	if f.parent == nil {
		f.d.cfg.OnList(now, f.join(l))
		if first {
			close(f.given)
		}
		return
	}
	f.parent.spare.Store(l)
	f.parent.remake()
}

// Confirm tells that the list is still so.
func (f *follower) Confirm() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.confirmLocked(time.Now())
}

func (f *follower) confirmLocked(now time.Time) {
	f.confirmed = now
	if f.parent == nil {
		f.d.cfg.OnConfirm(f.follow.Name, now)
	}
	f.d.spool.confirm(f.follow.Name, now)
}

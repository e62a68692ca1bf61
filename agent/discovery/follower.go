package discovery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	silence     = 30 * time.Second // without a word on a watch: ask (1.3). Lower costs etcd a read more often, higher finds a dead watch later
	silenceJoin = 3 * time.Second  // and up to this much more, so that the watches of a dead stream don't ask all at once
	batchEvents = 10000            // events that become one list at most; more would hold up a list while etcd is busy
	batchTries  = 3                // looks for events that are on their way already
)

// Why a watch is given up although it did not fail.
var (
	errMissed   = errors.New("the watch missed a change")
	errMute     = errors.New("etcd does not answer on the watch")
	errRestored = errors.New("etcd was replaced or restored from a backup")
	errEnded    = errors.New("the watch ended")
)

// follower keeps one service's list. Its goroutine owns all that follows the blank line.
type follower struct {
	d      *Discovery
	follow Follow
	after  <-chan struct{}    // closed when the follower before it, of the same service, has ended
	cancel context.CancelFunc // set when it is started
	done   chan struct{}      // closed when it has ended
	keeps  atomic.Bool        // the guard keeps orphans

	fallback *follower                    // of the service's fallback, nil without; its goroutine gives spare
	parent   *follower                    // whose fallback this is; nil if it is none
	spare    atomic.Pointer[service.List] // the fallback's list of now, nil before its first

	seeded   bool
	decoder  *format.Decoder
	back     etcd.Backoff
	fresh    budget
	audit    *inventory // that the watch has not yet come level with; nil = none
	level    int64      // the revision up to which the watch has told all
	watching bool       // the watch was made
	doubt    bool       // by a member with a lower revision than the list has: it is behind, or it was restored
	trouble  string     // the last error that was logged

	mu sync.Mutex // held while a list is made and OnList runs, whoever makes it. What follows is written under it, records, epoch and rev by the goroutine alone

	guard     guard
	records   records
	spooled   *service.List // what the spool had, less orphans, until etcd says what is; nil without
	cluster   uint64        // of records
	epoch     uint64        // of records
	rev       int64         // of records
	confirmed time.Time     // when the list's source last said that it is so
	list      *service.List // the last one given to OnList
	joined    *service.List // the fallback's list that went with it
	late      bool          // it is time to give the fallback's alone
	held      bool          // the list of now waits for its first host names to be asked for
	names     names
	told      map[string]bool
	ended     bool // OnList belongs to the next follower of the service
}

func newFollower(d *Discovery, of Follow) *follower {
	f := &follower{d: d, follow: of, guard: guard{hold: of.Hold}, done: make(chan struct{})}
	if of.Fallback != nil {
		f.fallback = newFollower(d, *of.Fallback)
		f.fallback.parent = f
	}
	return f
}

// become takes over a Follow that differs from f's in nothing that takes a new follower. The caller holds Discovery.mu.
func (f *follower) become(next Follow) bool {
	same := f.follow
	same.Hold = next.Hold
	if !reflect.DeepEqual(same, next) {
		return false
	}
	if f.follow.Hold == next.Hold {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.follow.Hold, f.guard.hold = next.Hold, next.Hold
	if next.Hold == 0 && !f.ended {
		f.let(time.Now(), f.guard.accept(), "guard is off")
	}
	f.d.poke()
	return true
}

// run follows until ctx ends.
func (f *follower) run(ctx context.Context) {
	defer f.end()
	defer f.stopNames()
	if f.after != nil {
		<-f.after
		f.after = nil
	}
	f.seed(time.Now())
	f.startNames(ctx)
	defer f.runFallback(ctx)()
	if f.follow.keys() == "" {
		if f.follow.named() || f.fallback != nil {
			<-ctx.Done()
		}
		return
	}
	dec, err := format.New(f.follow.Format, f.follow.Select)
	if err != nil {
		f.d.log.Error("cannot follow service", "service", f.follow.Name, "cause", err)
		return
	}
	f.decoder = dec
	for {
		l, err := f.d.cfg.Etcd.Get(ctx)
		if err != nil {
			return
		}
		both, cancel := l.Join(ctx)
		err = f.attempt(both, l)
		ended := context.Cause(l.Context())
		cancel()
		if ctx.Err() != nil {
			return
		}
		if ended == nil {
			f.report(l, err)
		}
		etcd.Sleep(ctx, f.back.Next(), nil)
	}
}

func (f *follower) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	close(f.done)
}

// seed gives OnList the list that needs no etcd: the static one, or the one in the spool.
func (f *follower) seed(now time.Time) {
	if f.seeded {
		return
	}
	f.seeded = true
	if f.fallback != nil {
		f.fallback.seed(now)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
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

// attempt reads the list and watches it until something fails; it never returns nil.
func (f *follower) attempt(ctx context.Context, l *etcd.Link) error {
	s, err := read(ctx, l, f.decoder, f.follow.keys())
	if err != nil {
		return err
	}
	f.d.reads.Add(1)
	f.install(ctx, l, s)

	wctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	guard := newWatchGuard(l, func() { cancel(errMute) })
	f.watching = false
	err = f.watch(wctx, l, guard)
	if cause := context.Cause(wctx); cause != nil {
		err = cause
	}
	switch {
	case !f.watching: // as good as a read that failed
	case f.fresh.take(time.Now()):
		f.back.Reset()
	default:
		f.back.Most()
	}
	return fmt.Errorf("watch %q: %w", f.follow.keys(), err)
}

// install takes what a whole read found.
func (f *follower) install(ctx context.Context, l *etcd.Link, s snapshot) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cluster = s.cluster
	f.d.cfg.Etcd.OK()
	if f.list != nil && f.list.Source == service.FromEtcd && s.epoch == f.epoch && s.revision >= f.rev &&
		compare(f.records, s.records) == nothing {
		f.rev = s.revision
		f.confirmLocked(now)
		return
	}
	was, before, sameEpoch := f.list, f.records, s.epoch == f.epoch
	known := &before
	if !sameEpoch {
		known = nil // what leases were in another life tells nothing
	}
	f.records, f.epoch, f.rev, f.spooled = s.records, s.epoch, s.revision, nil
	f.publish(ctx, l, now, known, func(l *service.List) bool {
		return was == nil || !sameEpoch || compare(records{shown: was.Backends}, records{shown: l.Backends}) == content
	})
}

// watch follows from the revision that was read (1.2) until the watch fails.
func (f *follower) watch(ctx context.Context, l *etcd.Link, guard *watchGuard) error {
	defer guard.stop()
	responses := l.Watch(ctx, f.follow.keys(), f.rev)
	quiet := time.NewTimer(silence + rand.N(silenceJoin))
	defer quiet.Stop()
	audit := time.NewTimer(auditEvery/2 + rand.N(auditEvery))
	defer audit.Stop()
	f.audit, f.level = nil, 0
	for {
		var batch []*mvccpb.Event
		select {
		case r, ok := <-responses:
			guard.stop()
			err := f.accept(l, r, ok, &batch)
			for tries := 0; err == nil && len(batch) > 0 && len(batch) < batchEvents && tries < batchTries; {
				// A burst comes as many responses. Take what is there or a moment away: one list for all of it.
				select {
				case r, ok := <-responses:
					err, tries = f.accept(l, r, ok, &batch), 0
				default:
					tries++
					runtime.Gosched()
				}
			}
			if merr := f.applyAudited(ctx, l, batch); merr != nil {
				return merr
			}
			if err == nil && f.doubt {
				f.doubt = false
				err = f.check(ctx, l)
			}
			if err != nil {
				return err
			}
		case <-quiet.C:
			if err := f.check(ctx, l); err != nil {
				return err
			}
		case <-audit.C:
			if err := f.startAudit(ctx, l); err != nil {
				return err
			}
			audit.Reset(auditEvery/2 + rand.N(auditEvery))
			continue // no word of the watch
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		quiet.Reset(silence + rand.N(silenceJoin))
	}
}

// accept looks at one response and adds its events to batch.
func (f *follower) accept(l *etcd.Link, r clientv3.WatchResponse, ok bool, batch *[]*mvccpb.Event) error {
	if !ok {
		return errEnded
	}
	if err := r.Err(); err != nil {
		return err
	}
	if r.Header.GetClusterId() != f.cluster {
		return errRestored
	}
	l.Saw(r.Header)
	f.doubt = r.Created && r.Header.GetRevision() < f.rev
	f.watching = true
	f.answered()
	if len(r.Events) == 0 && !r.Created {
		f.level = r.Header.GetRevision()
	}
	*batch = append(*batch, r.Events...)
	if len(*batch) == 0 && !r.Created {
		f.confirm(time.Now()) // all that happened up to now has come: etcd answers progress only on watches that are level with it
	}
	return nil
}

// apply makes one list of a batch of events.
func (f *follower) apply(ctx context.Context, l *etcd.Link, batch []*mvccpb.Event) {
	if len(batch) == 0 {
		return
	}
	changes, newest := decodeEvents(f.decoder, batch)
	rev := max(f.rev, newest)
	next, effect := f.records.apply(changes)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev = rev
	switch effect {
	case content:
		before := f.records
		f.records = next
		f.publish(ctx, l, time.Now(), &before, func(*service.List) bool { return true })
	case revisions: // written again as it was: nothing that a caller could see
		f.records = next
		f.confirmLocked(time.Now())
	case nothing:
		f.confirmLocked(time.Now())
	}
}

// check asks etcd, after a silence or in doubt, whether the list is still so (1.3).
func (f *follower) check(ctx context.Context, l *etcd.Link) error {
	theirs, err := f.ask(ctx, l)
	if err != nil {
		return err
	}
	if !theirs.is(f.records) {
		return errMissed
	}
	f.answered()
	f.confirm(time.Now())
	return nil
}

// publish gives OnList the list of records, and spools it if that is not there yet. before is what the keys said until now, nil if that was in another life of etcd. The
// caller holds f.mu.
func (f *follower) publish(ctx context.Context, l *etcd.Link, now time.Time, before *records, isNew func(*service.List) bool) {
	f.confirmed = now
	list, pending := f.make(now)
	if f.held = f.waits(list, pending); f.held {
		return
	}
	f.keep(now, list, func(suspects []service.Backend) func(netip.AddrPort) bool {
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
	f.list = l
	if f.parent == nil {
		f.d.cfg.OnList(now, f.join(l))
		return
	}
	f.parent.spare.Store(l)
	f.parent.remake()
}

// confirm tells that the list is still so.
func (f *follower) confirm(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.confirmLocked(now)
}

func (f *follower) confirmLocked(now time.Time) {
	f.confirmed = now
	if f.parent == nil {
		f.d.cfg.OnConfirm(f.follow.Name, now)
	}
	f.d.spool.confirm(f.follow.Name, now)
}

// answered notes that etcd answers, and that this service's watch is well.
func (f *follower) answered() {
	f.d.cfg.Etcd.OK()
	if f.trouble != "" {
		f.d.log.Info("service is followed again", "service", f.follow.Name)
		f.trouble = ""
	}
}

// report says why an attempt ended, to whom it concerns: the link if a new client is needed, a person if it is about this service only.
func (f *follower) report(l *etcd.Link, err error) {
	f.d.log.Debug("reading the list again", "service", f.follow.Name, "cause", err)
	switch {
	case errors.Is(err, errMute):
		f.d.cfg.Etcd.Fail(err)
		l.Fail(err)
	case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, errRestored), errors.Is(err, errEnded): // as it should be
	case errors.Is(err, errMissed):
		f.d.repairs.Add(1)
		f.d.log.Warn("a list was out of date", "service", f.follow.Name, "cause", err)
	case etcd.IsDenied(err), etcd.IsTooLarge(err), errors.Is(err, errMixed):
		if f.trouble != err.Error() {
			f.trouble = err.Error()
			f.d.log.Error("cannot follow service", "service", f.follow.Name, "cause", err)
		}
	default:
		f.d.cfg.Etcd.Fail(err)
	}
}

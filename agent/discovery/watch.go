package discovery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
	"go.etcd.io/etcd/api/v3/mvccpb"
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

// attempt reads the list and watches it until something fails; it never returns nil.
func (f *follower) attempt(ctx context.Context, l *etcd.Link) error {
	// On a stack of its own: what reading takes of it is several times what the watch needs, for days, of each of a thousand services.
	read := make(chan error, 1)
	go func() { read <- f.refresh(ctx, l) }()
	if err := <-read; err != nil {
		return err
	}

	wctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	guard := newWatchGuard(l, func() { cancel(errMute) })
	f.watching = false
	err := f.watch(wctx, l, guard)
	if cause := context.Cause(wctx); cause != nil {
		err = cause
	}
	switch {
	case !f.watching: // as good as a read that failed
	case f.fresh.Take(time.Now()):
		f.back.Reset()
	default:
		f.back.Most()
	}
	return fmt.Errorf("watch %q: %w", f.follow.keys(), err)
}

// refresh reads the list whole.
func (f *follower) refresh(ctx context.Context, l *etcd.Link) error {
	s, err := read(ctx, l, f.decoder, f.follow.keys())
	if err != nil {
		return err
	}
	f.d.reads.Add(1)
	f.install(ctx, l, s)
	return nil
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
		return was == nil || !sameEpoch || compare(records{shown: was.Backends}, records{shown: l.Backends}) == content ||
			was.BadCount != l.BadCount || !slices.Equal(was.Bad, l.Bad)
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
func (f *follower) accept(l *etcd.Link, r etcd.Response, ok bool, batch *[]*mvccpb.Event) error {
	if !ok {
		return errEnded
	}
	if r.Err != nil {
		return r.Err
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

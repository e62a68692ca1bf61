package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

const (
	silence     = 30 * time.Second // without a word on a watch: ask (1.3). Lower costs etcd a read more often, higher finds a dead watch later
	silenceJoin = 3 * time.Second  // and up to this much more, so that the watches of a dead stream don't ask all at once
	batchEvents = 10000            // events that are handed on together at most; more would hold them up while etcd is busy
	batchTries  = 3                // looks for events that are on their way already
)

// Why a watch is given up although it did not fail.
var (
	ErrMissed   = errors.New("the watch missed a change")
	ErrLook     = errors.New("it is time to look") // of keys without an inventory
	errMute     = errors.New("etcd does not answer on the watch")
	errRestored = errors.New("etcd was replaced or restored from a backup")
	errEnded    = errors.New("the watch ended")
)

// Keys is who keeps what the keys of a prefix say. A Follower calls one method at a time.
type Keys interface {
	// Read reads them all (Link.ReadAll), takes that as what there is, and says when it was so.
	Read(ctx context.Context, l *Link) (Position, error)
	// Apply takes what happened since then, in order; some of it may be known already. An error has all read anew.
	Apply(ctx context.Context, l *Link, events []*mvccpb.Event) error
	// Confirm notes that etcd said just now that all is still so.
	Confirm()
	// Inventory is how many keys are known and the newest ModRevision of them. It is not known where reading them costs no more than asking for it.
	Inventory() (count int, newest int64, known bool)
	// Well notes that etcd has made the watch.
	Well()
	// Ended is told why all will be read anew. It reports whether that is about these keys only (IsOwn), of which it tells a person, and no matter of the connection.
	Ended(err error) (own bool)
}

// IsOwn reports whether err is about one prefix and not about etcd.
func IsOwn(err error) bool { return IsDenied(err) || IsTooLarge(err) || errors.Is(err, errMixed) }

// Follower keeps Keys level with etcd (SEMANTICS 1.2 to 1.6): they are read whole at one revision, and watched from that one on until something fails, then read anew.
type Follower struct {
	Links  *Links
	Prefix string // ends in /, or is one key
	Keys   Keys
	Audits *atomic.Uint64 // counts them (1.6); nil = nobody wants to know

	back     Backoff
	fresh    Budget
	at       Position   // up to which Keys know all
	audit    *inventory // that the watch has not yet come level with; nil = none
	level    int64      // the revision up to which the watch has told all
	watching bool       // the watch was made
	doubt    bool       // by a member with a lower revision than is known: it is behind, or it was restored
}

// Run follows until ctx ends.
func (f *Follower) Run(ctx context.Context) {
	for {
		l, err := f.Links.Get(ctx)
		if err != nil {
			return
		}
		both, cancel := l.Join(ctx)
		err = f.attempt(both, l)
		ended := l.ctx.Err() != nil
		cancel()
		if ctx.Err() != nil {
			return
		}
		wait := rand.N(MinBackoff) // that all use another link needs no more patience than that takes
		switch own := f.Keys.Ended(err); {
		case ended:
		case own: // it did answer
			f.Links.OK()
			wait = f.back.Next()
		default:
			f.report(l, err)
			wait = f.back.Next()
		}
		Sleep(ctx, wait, f.Links.well())
	}
}

// report says why an attempt ended, if that concerns the connection: a new client is needed, or etcd is lost.
func (f *Follower) report(l *Link, err error) {
	switch {
	case errors.Is(err, errMute):
		f.Links.Fail(err)
		l.Fail(err)
	case errors.Is(err, ErrMissed), errors.Is(err, ErrLook), errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, errRestored), errors.Is(err, errEnded): // as it should be
	default:
		f.Links.Fail(err)
	}
}

// attempt reads and watches until something fails; it never returns nil.
func (f *Follower) attempt(ctx context.Context, l *Link) (err error) {
	// On a stack of its own: what reading takes of it is several times what the watch needs, for days, of each of a thousand services.
	read := make(chan struct{})
	go func() {
		defer close(read)
		f.at, err = f.Keys.Read(ctx, l)
	}()
	if <-read; err != nil {
		return err
	}
	f.Links.OK()

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
	case l.ctx.Err() != nil, f.fresh.Take(time.Now()): // links have a budget of their own
		f.back.Reset()
	default:
		f.back.Most()
	}
	return fmt.Errorf("watch %q: %w", f.Prefix, err)
}

// watch follows from the revision that was read (1.2) until the watch fails.
func (f *Follower) watch(ctx context.Context, l *Link, guard *watchGuard) error {
	defer guard.stop()
	responses := l.Watch(ctx, f.Prefix, f.at.Revision)
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
				// A burst comes as many responses. Take what is there or a moment away: one change for all of it.
				select {
				case r, ok := <-responses:
					err, tries = f.accept(l, r, ok, &batch), 0
				default:
					tries++
					runtime.Gosched()
				}
			}
			if aerr := f.applyAudited(ctx, l, batch); aerr != nil {
				return aerr
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
func (f *Follower) accept(l *Link, r Response, ok bool, batch *[]*mvccpb.Event) error {
	if !ok {
		return errEnded
	}
	if r.Err != nil {
		return r.Err
	}
	if r.Header.GetClusterId() != f.at.Cluster {
		return errRestored
	}
	l.Saw(r.Header)
	f.Links.OK()
	if r.Created {
		f.watching, f.doubt = true, r.Header.GetRevision() < f.at.Revision
		f.Keys.Well()
	} else if len(r.Events) == 0 {
		f.level = r.Header.GetRevision()
		if len(*batch) == 0 {
			f.Keys.Confirm() // all that happened up to now has come: etcd answers progress only on watches that are level with it
		}
	}
	*batch = append(*batch, r.Events...)
	return nil
}

// FollowWhere follows the prefix that where names with the Keys of it, "" = none, and another one once that is closed which where returns; until ctx ends.
func FollowWhere(ctx context.Context, k *Links, where func() (prefix string, changed <-chan struct{}), keys func(prefix string) Keys) {
	for ctx.Err() == nil {
		prefix, changed := where()
		here, cancel := context.WithCancel(ctx)
		go func() {
			defer cancel()
			select {
			case <-changed:
			case <-here.Done():
			}
		}()
		if prefix != "" {
			f := Follower{Links: k, Prefix: prefix, Keys: keys(prefix)}
			f.Run(here)
		}
		<-here.Done()
		cancel()
	}
}

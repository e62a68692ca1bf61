package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// How keys are followed; the rules are those of lists (SEMANTICS 1.2 to 1.5).
const (
	pageSize    = 500
	readTimeout = 10 * time.Second // of one page
	silence     = 30 * time.Second
	silenceJoin = 3 * time.Second
	settled     = 10 * time.Second // a watch that lived this long was a good one: after it the waits begin anew

	maxItems = 5000     // more are no configuration that anybody wrote
	maxBytes = 16 << 20 // of all texts
)

var (
	errMissed   = errors.New("the watch missed a change")
	errMute     = errors.New("etcd does not answer on the watch")
	errRestored = errors.New("etcd was replaced or restored from a backup")
	errEnded    = errors.New("the watch ended")
	errTooMuch  = fmt.Errorf("there are more than %d items, or they have more than %d MiB: is the prefix right?", maxItems, maxBytes>>20)
	errOther    = errors.New("fleet.prefix changed")
)

// follower is one look at a prefix: read whole at a revision, then watched from that revision on.
type follower struct {
	f      *Fleet
	prefix string
	read   map[string]Entry // what etcd has, the mark of removals included
	bytes  int
	epoch  uint64
	rev    int64
}

// follow keeps the entries level with etcd until ctx ends.
func (f *Fleet) follow(ctx context.Context) {
	var back etcd.Backoff
	for ctx.Err() == nil {
		f.mu.Lock()
		prefix, changed := f.prefix, f.changed
		f.mu.Unlock()
		if prefix == "" {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		here, cancel := context.WithCancelCause(ctx)
		stop := make(chan struct{})
		go func() {
			select {
			case <-changed:
				cancel(errOther)
			case <-stop:
			}
		}()
		l, err := f.cfg.Etcd.Get(here)
		if err == nil {
			both, leave := l.Join(here)
			began := time.Now()
			one := &follower{f: f, prefix: prefix, read: make(map[string]Entry)}
			err = one.attempt(both, l)
			ended := context.Cause(l.Context())
			leave()
			if time.Since(began) >= settled {
				back.Reset()
			}
			if here.Err() == nil && ended == nil {
				f.report(l, err)
			}
		}
		close(stop)
		cancel(nil)
		if ctx.Err() == nil && !errors.Is(err, errOther) {
			etcd.Sleep(ctx, back.Next(), changed)
		}
	}
}

// attempt reads and watches until something fails; it never returns nil.
func (w *follower) attempt(ctx context.Context, l *etcd.Link) error {
	if err := w.readAll(ctx, l); err != nil {
		return err
	}
	w.publish(true)
	wctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	made := time.AfterFunc(silence, func() { cancel(errMute) }) // until etcd has made the watch nobody else sets a limit
	defer made.Stop()
	err := w.watch(wctx, l, made)
	if cause := context.Cause(wctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("watch %q: %w", w.prefix, err)
}

// readAll reads the prefix at one revision, in pages (1.2).
func (w *follower) readAll(ctx context.Context, l *etcd.Link) error {
	release, err := l.Acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	for from, limit, more := w.prefix, pageSize, true; more; {
		pctx, cancel := context.WithTimeout(ctx, readTimeout)
		r, err := l.Page(pctx, w.prefix, from, w.rev, limit)
		cancel()
		if etcd.IsTooLarge(err) && limit > 1 {
			limit = max(1, limit/8)
			continue
		}
		if err != nil {
			return fmt.Errorf("read %q: %w", w.prefix, err)
		}
		switch {
		case w.rev == 0:
			w.epoch, w.rev = r.Header.ClusterId, r.Header.Revision
		case r.Header.ClusterId != w.epoch:
			return fmt.Errorf("read %q: %w", w.prefix, errRestored)
		}
		for _, kv := range r.Kvs {
			w.put(kv)
		}
		if w.tooMuch() {
			return fmt.Errorf("read %q: %w", w.prefix, errTooMuch)
		}
		if more = r.More && len(r.Kvs) > 0; more {
			from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
		}
	}
	return nil
}

func (w *follower) put(kv *mvccpb.KeyValue) {
	key := strings.TrimPrefix(string(kv.Key), w.prefix)
	w.bytes += len(kv.Value) - len(w.read[key].Now)
	w.read[key] = Entry{Key: key, Now: string(kv.Value), Modified: kv.ModRevision}
}

func (w *follower) tooMuch() bool { return len(w.read) > maxItems || w.bytes > maxBytes }

// watch follows from the revision that was read until the watch fails.
func (w *follower) watch(ctx context.Context, l *etcd.Link, made *time.Timer) error {
	responses := l.Watch(ctx, w.prefix, w.rev)
	quiet := time.NewTimer(silence + rand.N(silenceJoin))
	defer quiet.Stop()
	for {
		select {
		case r, ok := <-responses:
			made.Stop()
			if err := w.accept(ctx, l, r, ok); err != nil {
				return err
			}
		case <-quiet.C:
			if err := w.check(ctx, l); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		quiet.Reset(silence + rand.N(silenceJoin))
	}
}

func (w *follower) accept(ctx context.Context, l *etcd.Link, r etcd.Response, ok bool) error {
	if !ok {
		return errEnded
	}
	if r.Err != nil {
		return r.Err
	}
	if r.Header.GetClusterId() != w.epoch {
		return errRestored
	}
	w.f.cfg.Etcd.OK()
	if r.Created && r.Header.GetRevision() < w.rev {
		return w.check(ctx, l) // a member that is behind, or an etcd that was restored
	}
	changed := false
	for _, e := range r.Events {
		key := strings.TrimPrefix(string(e.Kv.Key), w.prefix)
		old, there := w.read[key]
		w.rev = max(w.rev, e.Kv.ModRevision)
		if e.Type == clientv3.EventTypeDelete {
			w.bytes -= len(old.Now)
			delete(w.read, key)
			changed = changed || there
		} else {
			w.put(e.Kv)
			changed = true
		}
	}
	if w.tooMuch() {
		return errTooMuch
	}
	if changed || !r.Created {
		w.publish(changed)
	}
	return nil
}

// check asks etcd, after a silence or in doubt, whether all is still so (1.3).
func (w *follower) check(ctx context.Context, l *etcd.Link) error {
	rctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	r, err := l.Newest(rctx, w.prefix)
	if err != nil {
		return err
	}
	if r.Header.ClusterId != w.epoch || r.Header.Revision < w.rev {
		return errRestored
	}
	var ours, theirs int64
	for _, e := range w.read {
		ours = max(ours, e.Modified)
	}
	if len(r.Kvs) > 0 {
		theirs = r.Kvs[0].ModRevision
	}
	if r.Count != int64(len(w.read)) || ours != theirs {
		return errMissed
	}
	w.f.cfg.Etcd.OK()
	w.publish(false)
	return nil
}

// removedKey names what was removed on purpose. No service's name is empty, so no item has this key.
const removedKey = "/removed"

// removals is the value of removedKey.
type removals struct {
	Keys []string `json:"keys"` // the latest last
}

// publish gives what was read to f, or confirms it.
func (w *follower) publish(changed bool) {
	f, now := w.f, time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.prefix != w.prefix {
		return
	}
	f.confirmed = now
	if f.trouble != "" {
		f.trouble = ""
		f.log.Info("the fleet's items are followed again", "prefix", w.prefix)
	}
	if !changed {
		return
	}
	f.epoch, f.revision, f.source = w.epoch, w.rev, "etcd"
	items, removed := make(map[string]Entry, len(w.read)), make(map[string]bool)
	for key, e := range w.read {
		if key != removedKey {
			items[key] = e
			continue
		}
		var r removals
		if err := json.Unmarshal([]byte(e.Now), &r); err != nil {
			f.log.Warn("the mark of removed items can't be read", "key", w.prefix+removedKey, "cause", err)
		}
		for _, k := range r.Keys {
			removed[k] = true
		}
	}
	if !f.known {
		f.set = newSet()
	}
	if different := f.set.install(now, items, removed); different || !f.known {
		f.known, f.dirty = true, true
		f.poke()
	}
}

// report says why an attempt ended, to whom it concerns.
func (f *Fleet) report(l *etcd.Link, err error) {
	f.log.Debug("reading the fleet's items again", "cause", err)
	switch {
	case etcd.IsAuth(err):
		l.Fail(err)
	case errors.Is(err, errMute):
		f.cfg.Etcd.Fail(err)
		l.Fail(err)
	case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, errRestored), errors.Is(err, errEnded): // as it should be
	case errors.Is(err, errMissed):
		f.log.Warn("the fleet's items were out of date", "cause", err)
	case etcd.IsDenied(err), errors.Is(err, errTooMuch), etcd.IsTooLarge(err):
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.trouble != err.Error() {
			f.trouble = err.Error()
			f.log.Error("cannot follow the fleet's items; those known stay in force", "error", err)
		}
	default:
		f.cfg.Etcd.Fail(err)
	}
}

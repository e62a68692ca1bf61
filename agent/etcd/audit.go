package etcd

import (
	"context"
	"errors"
	"sort"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// auditEvery is how often what is known is compared with etcd's, give or take half of it (1.6): a notice that was lost would never be repaired otherwise. Lower finds it
// earlier, and costs etcd a look at all keys of the prefix more often.
const auditEvery = 10 * time.Minute

// inventory is what etcd says that a prefix holds.
type inventory struct {
	revision int64 // at which it is so
	count    int
	newest   int64 // ModRevision
}

// compare says what is wrong with k, of which etcd has that.
func (v inventory) compare(k Keys) error {
	switch count, newest, known := k.Inventory(); {
	case !known:
		return ErrLook
	case count != v.count || newest != v.newest:
		return ErrMissed
	}
	return nil
}

// ask takes the inventory of now.
func (f *Follower) ask(ctx context.Context, l *Link) (inventory, error) {
	release, err := l.Acquire(ctx)
	if err != nil {
		return inventory{}, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	asked := l.Seen()
	r, err := l.Newest(ctx, f.Prefix)
	if err != nil {
		return inventory{}, err
	}
	epoch, err := l.See(r.Header, asked)
	if err != nil {
		return inventory{}, err
	}
	if epoch != f.at.Epoch {
		return inventory{}, errRestored
	}
	v := inventory{revision: r.Header.Revision, count: int(r.Count)}
	if len(r.Kvs) > 0 {
		v.newest = r.Kvs[0].ModRevision
	}
	return v, nil
}

// check asks etcd, after a silence or in doubt, whether all is still so (1.3).
func (f *Follower) check(ctx context.Context, l *Link) error {
	theirs, err := f.ask(ctx, l)
	if err != nil {
		return err
	}
	if err := theirs.compare(f.Keys); err != nil {
		return err
	}
	f.Links.OK()
	f.Keys.Confirm()
	return nil
}

// startAudit compares what is known with etcd's (1.6). On a busy prefix they differ by what is on its way: then applyAudited compares once the watch is level.
func (f *Follower) startAudit(ctx context.Context, l *Link) error {
	v, err := f.ask(ctx, l)
	if err != nil {
		return err
	}
	if f.Audits != nil {
		f.Audits.Add(1)
	}
	if err := v.compare(f.Keys); !errors.Is(err, ErrMissed) {
		return err
	}
	f.audit = &v
	return nil
}

// applyAudited applies a batch of events, which are in the order of their revisions. Where they come level with an audit's, what is known must be what that found.
func (f *Follower) applyAudited(ctx context.Context, l *Link, batch []*mvccpb.Event) error {
	if f.audit == nil {
		return f.apply(ctx, l, batch)
	}
	n := sort.Search(len(batch), func(i int) bool { return batch[i].Kv.ModRevision > f.audit.revision })
	if err := f.apply(ctx, l, batch[:n]); err != nil {
		return err
	}
	if n == len(batch) && f.at.Revision < f.audit.revision && f.level < f.audit.revision {
		return nil // more may come
	}
	v := *f.audit
	f.audit = nil
	if err := v.compare(f.Keys); err != nil {
		return err
	}
	return f.apply(ctx, l, batch[n:])
}

// apply hands on what happened.
func (f *Follower) apply(ctx context.Context, l *Link, batch []*mvccpb.Event) error {
	if len(batch) == 0 {
		return nil
	}
	f.at.Revision = max(f.at.Revision, batch[len(batch)-1].Kv.ModRevision)
	return f.Keys.Apply(ctx, l, batch)
}

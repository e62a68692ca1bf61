package discovery

import (
	"context"
	"sort"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// auditEvery is how often a list is compared with etcd's, give or take half of it (1.6): a notice that was lost would never be repaired otherwise. Lower finds it
// earlier, and costs etcd a look at all keys of the prefix more often.
const auditEvery = 10 * time.Minute

// inventory is what etcd says that a prefix holds.
type inventory struct {
	revision int64 // at which it is so
	count    int
	newest   int64 // ModRevision
}

// is reports whether r is that.
func (v inventory) is(r records) bool {
	count, newest := r.keys()
	return v.count == count && v.newest == newest
}

// ask takes the inventory of now.
func (f *follower) ask(ctx context.Context, l *etcd.Link) (inventory, error) {
	release, err := l.Acquire(ctx)
	if err != nil {
		return inventory{}, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	asked := l.Seen()
	r, err := l.Newest(ctx, f.follow.keys())
	if err != nil {
		return inventory{}, err
	}
	epoch, err := l.See(r.Header, asked)
	if err != nil {
		return inventory{}, err
	}
	if epoch != f.epoch {
		return inventory{}, errRestored
	}
	v := inventory{revision: r.Header.Revision, count: int(r.Count)}
	if len(r.Kvs) > 0 {
		v.newest = r.Kvs[0].ModRevision
	}
	return v, nil
}

// startAudit compares the list with etcd's (1.6). On a busy prefix they differ by what is on its way: then applyAudited compares once the watch is level.
func (f *follower) startAudit(ctx context.Context, l *etcd.Link) error {
	v, err := f.ask(ctx, l)
	if err != nil {
		return err
	}
	f.d.audits.Add(1)
	if !v.is(f.records) {
		f.audit = &v
	}
	return nil
}

// applyAudited applies a batch of events, which are in the order of their revisions. Where they come level with an audit's, the list must be what that found.
func (f *follower) applyAudited(ctx context.Context, l *etcd.Link, batch []*mvccpb.Event) error {
	if f.audit == nil {
		f.apply(ctx, l, batch)
		return nil
	}
	n := sort.Search(len(batch), func(i int) bool { return batch[i].Kv.ModRevision > f.audit.revision })
	f.apply(ctx, l, batch[:n])
	if n == len(batch) && f.rev < f.audit.revision && f.level < f.audit.revision {
		return nil // more may come
	}
	v := *f.audit
	f.audit = nil
	if !v.is(f.records) {
		return errMissed
	}
	f.apply(ctx, l, batch[n:])
	return nil
}

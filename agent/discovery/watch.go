package discovery

import (
	"context"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Read reads the list whole.
func (f *follower) Read(ctx context.Context, l *etcd.Link) (etcd.Position, error) {
	s, err := read(ctx, l, f.decoder, f.follow.keys())
	if err != nil {
		return s.at, err
	}
	f.d.reads.Add(1)
	f.install(ctx, l, s)
	return s.at, nil
}

// install takes what a whole read found.
func (f *follower) install(ctx context.Context, l *etcd.Link, s snapshot) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.list != nil && f.list.Source == service.FromEtcd && s.at.Epoch == f.epoch && s.at.Revision >= f.rev &&
		compare(f.records, s.records) == nothing {
		f.rev = s.at.Revision
		f.confirmLocked(now)
		return
	}
	was, before, sameEpoch := f.list, f.records, s.at.Epoch == f.epoch
	known := &before
	if !sameEpoch {
		known = nil // what leases were in another life tells nothing
	}
	f.records, f.epoch, f.rev, f.spooled = s.records, s.at.Epoch, s.at.Revision, nil
	f.publish(ctx, l, now, known, func(l *service.List) bool {
		return was == nil || !sameEpoch || compare(records{shown: was.Backends}, records{shown: l.Backends}) == content ||
			was.BadCount != l.BadCount || !slices.Equal(was.Bad, l.Bad)
	})
}

// Apply makes one list of a batch of events.
func (f *follower) Apply(ctx context.Context, l *etcd.Link, events []*mvccpb.Event) error {
	changes, newest := decodeEvents(f.decoder, events)
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
	return nil
}

// Inventory: see etcd.Keys.
func (f *follower) Inventory() (count int, newest int64, known bool) {
	count, newest = f.records.keys()
	return count, newest, true
}

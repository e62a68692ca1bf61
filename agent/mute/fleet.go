package mute

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	etcdTimeout = 3 * time.Second // of a change in etcd as a whole: the verb's patience is 5 s
	linkTimeout = time.Second     // until there is a connection, of that
	seenTimeout = time.Second     // until this agent itself honours it
	tries       = 5               // of a transaction whose ground others change
)

// raw is the client of etcd to write with, and the prefix.
func (m *Mutes) raw(ctx context.Context) (c *clientv3.Client, prefix string, err error) {
	m.mu.Lock()
	prefix = m.prefix
	m.mu.Unlock()
	switch {
	case m.cfg.Etcd == nil || !m.cfg.Etcd.Status().Configured:
		return nil, "", refuse(ErrNoFleet, "there is no etcd in this agent's configuration, so it has no fleet")
	case prefix == "":
		return nil, "", refuse(ErrNoFleet, "fleet-wide mutes are turned off in this agent's configuration (mute.prefix)")
	}
	ctx, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	l, err := m.cfg.Etcd.Get(ctx)
	if err != nil {
		why := m.cfg.Etcd.Status().LastError
		if why == "" {
			why = "no connection"
		}
		return nil, "", refuse(ErrEtcd, "etcd can't be reached, so nothing fleet-wide can be changed now: %s", why)
	}
	return l.Raw(), prefix, nil
}

// failed is err of etcd for a person.
func failed(what, prefix string, err error) error {
	if _, ok := errors.AsType[*refusal](err); ok {
		return err
	}
	if etcd.IsDenied(err) {
		return refuse(ErrEtcd, "%s: etcd does not let this agent's user write below %s: grant its role readwrite there", what, prefix)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return refuse(ErrEtcd, "%s: etcd did not answer within %v; it may or may not have happened, ask again", what, etcdTimeout)
	}
	return refuse(ErrEtcd, "%s: %v", what, etcd.Plain(err))
}

// muteFleet writes the key, with a lease that ends with the mute, and waits until this agent honours it.
func (m *Mutes) muteFleet(ctx context.Context, now time.Time, one *service.Mute, force bool) ([]string, error) {
	wctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	c, prefix, err := m.raw(wctx)
	if err != nil {
		return nil, err
	}
	rev, err := m.put(wctx, c, prefix, now, one, force)
	if err != nil {
		return nil, failed("mute fleet-wide", prefix, err)
	}
	sctx, cancel := context.WithTimeout(ctx, seenTimeout)
	defer cancel()
	if !m.await(sctx, keyOf(one), func(is fleetMute, ok bool) bool { return ok && is.modified >= rev }) {
		return []string{"the key is written, but this agent has not heard of it from etcd yet; \"lbagent mute\" shows when it has"}, nil
	}
	return nil, nil
}

// put writes the key unless that takes too much of the service: who else mutes at the same moment makes one of the two look again.
func (m *Mutes) put(ctx context.Context, c *clientv3.Client, prefix string, now time.Time, one *service.Mute, force bool) (rev int64, err error) {
	value, err := encodeValue(one)
	if err != nil {
		return 0, err
	}
	var lease clientv3.LeaseID
	defer func() {
		if err != nil && lease != 0 {
			m.revoke(ctx, c, lease)
		}
	}()
	name, services := encodeKey(prefix, one), prefix+one.Service+"/"
	for range tries {
		r, err := c.Get(ctx, services, clientv3.WithPrefix(), clientv3.WithLimit(maxFleet))
		if err != nil {
			return 0, err
		}
		if err := m.mayTake(now, one, holding(prefix, r.Kvs, now), force); err != nil {
			return 0, err
		}
		all, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return 0, err
		}
		var before clientv3.LeaseID // of the mute that this one takes the place of
		known := false
		for _, kv := range r.Kvs {
			if string(kv.Key) == name {
				before, known = clientv3.LeaseID(kv.Lease), true
			}
		}
		if all.Count >= maxFleet && !known {
			return 0, refuse(ErrTooMany, "%d backends are muted fleet-wide, which is the most; unmute others first", all.Count)
		}
		if lease == 0 {
			granted, err := c.Grant(ctx, int64(math.Ceil(one.Until.Sub(one.Since).Seconds())))
			if err != nil {
				return 0, err
			}
			lease = granted.ID
		}
		done, err := c.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(services), "<", r.Header.Revision+1).WithPrefix()).
			Then(clientv3.OpPut(name, value, clientv3.WithLease(lease))).
			Commit()
		if err != nil {
			return 0, err
		}
		if done.Succeeded {
			m.dropLease(ctx, c, before)
			return done.Header.Revision, nil
		}
	}
	return 0, refuse(ErrEtcd, "others mute backends of %s at the same moment; ask again", one.Service)
}

// mayTake is the limit for safety: half of a service or more is muted fleet-wide only by somebody who says that it is meant. Backends that drain are none that
// could be taken.
func (m *Mutes) mayTake(now time.Time, one *service.Mute, others []service.Mute, force bool) error {
	if force {
		return nil
	}
	backends, ok := m.cfg.Backends(one.Service)
	if !ok {
		return refuse(ErrNeedsForce, "no list of %s here, so how much of it that would take out isn't known; --force says that it is meant", one.Service)
	}
	out := map[netip.AddrPort]bool{one.Addr: true}
	for i := range others {
		if now.Before(others[i].Until) {
			out[others[i].Addr] = true
		}
	}
	muted, all, listed := 0, 0, false
	for _, b := range backends {
		listed = listed || b.Addr == one.Addr
		if b.Draining {
			continue
		}
		all++
		if out[b.Addr] {
			muted++
		}
	}
	if !listed || muted*2 < all {
		return nil
	}
	return refuse(ErrNeedsForce, "%d of the %d backends of %s would be muted on every host; --force says that it is meant", muted, all, one.Service)
}

// unmuteFleet deletes the key, and waits until this agent has seen it go.
func (m *Mutes) unmuteFleet(ctx context.Context, one *service.Mute) (was bool, warnings []string, err error) {
	wctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	c, prefix, err := m.raw(wctx)
	if err != nil {
		return false, nil, err
	}
	r, err := c.Delete(wctx, encodeKey(prefix, one), clientv3.WithPrevKV())
	if err != nil {
		return false, nil, failed("unmute fleet-wide", prefix, err)
	}
	if r.Deleted > 0 {
		m.log.Info("unmuted fleet-wide", "service", one.Service, "backend", one.Addr, "author", one.Author)
		m.event(one.Since, one.Service, one.Addr.String(), fmt.Sprintf("unmuted fleet-wide by %s here", one.Author))
		for _, kv := range r.PrevKvs {
			m.dropLease(wctx, c, clientv3.LeaseID(kv.Lease))
		}
	}
	sctx, cancel := context.WithTimeout(ctx, seenTimeout)
	defer cancel()
	if !m.await(sctx, keyOf(one), func(is fleetMute, ok bool) bool { return !ok || is.modified > r.Header.Revision }) {
		warnings = append(warnings, "the key is gone, but this agent has not heard of that from etcd yet")
	}
	return r.Deleted > 0, warnings, nil
}

// dropLease ends the lease of a mute that is over, unless something else hangs on it: then it ends by itself.
func (m *Mutes) dropLease(ctx context.Context, c *clientv3.Client, id clientv3.LeaseID) {
	if id == 0 {
		return
	}
	r, err := c.TimeToLive(ctx, id, clientv3.WithAttachedKeys())
	if err != nil || len(r.Keys) > 0 {
		return
	}
	m.revoke(ctx, c, id)
}

// revoke ends a lease on which nothing hangs; if it can't, the lease ends by itself.
func (m *Mutes) revoke(ctx context.Context, c *clientv3.Client, id clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if _, err := c.Revoke(ctx, id); err != nil {
		m.log.Debug("a lease was not revoked", "cause", err)
	}
}

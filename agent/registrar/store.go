package registrar

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// errNoLease says that etcd doesn't know the lease, or not any more.
var errNoLease = errors.New("the lease is dead")

// store is what the registrar asks of etcd. The real one is tested against a real etcd; where time matters a fake stands in.
type store interface {
	Grant(ctx context.Context, ttl time.Duration) (lease int64, h header, err error)
	// KeepAlive gives the lease its whole life again; errNoLease if it has none any more.
	KeepAlive(ctx context.Context, lease int64) (header, error)
	// TimeToLive says how long a lease was made for and how much of that is left; errNoLease if it is dead.
	TimeToLive(ctx context.Context, lease int64) (granted, left time.Duration, err error)
	// Txn does everything, or nothing and reads.
	Txn(ctx context.Context, t *txn) (result, error)
}

// header says which etcd answered, and at which revision; 0 = it doesn't say.
type header struct {
	cluster  uint64
	revision int64
}

// txn is done if every key of guards has the ModRevision and the lease that it names. Only such keys are written.
type txn struct {
	guards  []guard
	puts    []put
	lease   int64 // of puts
	deletes []string
}

// guard names the lease too: in an etcd restored from a backup a stranger's key may have come to the very revision that ours had, but never to our lease.
type guard struct {
	key   string
	mod   int64
	lease int64
}

type put struct{ key, value string }

// result of a txn; found is what is at the keys of its guards if it was not done.
type result struct {
	header
	done  bool
	found map[string]held
}

// callTimeout bounds one question: a slow etcd may take its second, a member that hangs must not use up the time that the lease has left.
const callTimeout = 5 * time.Second

// etcdStore is the real store.
type etcdStore struct{ c *clientv3.Client }

// call bounds a call. A member without a leader says so instead of letting it hang.
func call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(clientv3.WithRequireLeader(ctx), callTimeout)
}

func headerOf(h *pb.ResponseHeader) header {
	return header{cluster: h.GetClusterId(), revision: h.GetRevision()}
}

func (e etcdStore) Grant(ctx context.Context, ttl time.Duration) (int64, header, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	r, err := e.c.Grant(ctx, int64(ttl/time.Second))
	if err != nil {
		return 0, header{}, fmt.Errorf("make a lease: %w", err)
	}
	return int64(r.ID), headerOf(r.ResponseHeader), nil
}

// KeepAlive speaks to etcd directly: clientv3's KeepAliveOnce tries again in a loop without a pause while there is no connection. The revision of the answer is
// that of the member asked, which may lag behind.
func (e etcdStore) KeepAlive(ctx context.Context, lease int64) (header, error) {
	h, err := e.keepAlive(ctx, lease)
	if etcd.IsAuth(err) { // its token had expired, and there is another by now: no reason to make a new client, and end all watches
		return e.keepAlive(ctx, lease)
	}
	return h, err
}

func (e etcdStore) keepAlive(ctx context.Context, lease int64) (header, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	s, err := pb.NewLeaseClient(e.c.ActiveConnection()).LeaseKeepAlive(ctx)
	if err == nil {
		err = s.Send(&pb.LeaseKeepAliveRequest{ID: lease})
	}
	var r *pb.LeaseKeepAliveResponse
	if err == nil {
		r, err = s.Recv()
	}
	switch {
	case err != nil:
		return header{}, leaseError("keep the lease alive", err)
	case r.TTL <= 0:
		return header{cluster: r.Header.GetClusterId()}, errNoLease
	}
	return header{cluster: r.Header.GetClusterId()}, nil
}

func (e etcdStore) TimeToLive(ctx context.Context, lease int64) (granted, left time.Duration, err error) {
	ctx, cancel := call(ctx)
	defer cancel()
	r, err := e.c.TimeToLive(ctx, clientv3.LeaseID(lease))
	switch {
	case err != nil:
		return 0, 0, leaseError("look at a lease", err)
	case r.TTL <= 0:
		return 0, 0, errNoLease
	}
	return time.Duration(r.GrantedTTL) * time.Second, time.Duration(r.TTL) * time.Second, nil
}

func (e etcdStore) Txn(ctx context.Context, t *txn) (result, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	compares := make([]clientv3.Cmp, 0, len(t.guards))
	reads := make([]clientv3.Op, 0, len(t.guards))
	for _, g := range t.guards {
		compares = append(compares, clientv3.Compare(clientv3.ModRevision(g.key), "=", g.mod))
		if g.mod > 0 {
			compares = append(compares, clientv3.Compare(clientv3.LeaseValue(g.key), "=", g.lease))
		}
		reads = append(reads, clientv3.OpGet(g.key))
	}
	writes := make([]clientv3.Op, 0, len(t.puts)+len(t.deletes))
	for _, p := range t.puts {
		writes = append(writes, clientv3.OpPut(p.key, p.value, clientv3.WithLease(clientv3.LeaseID(t.lease))))
	}
	for _, key := range t.deletes {
		writes = append(writes, clientv3.OpDelete(key))
	}
	r, err := e.c.Txn(ctx).If(compares...).Then(writes...).Else(reads...).Commit()
	if err != nil {
		return result{}, leaseError("write registrations", err)
	}
	out := result{header: headerOf(r.Header), done: r.Succeeded}
	if out.done {
		return out, nil
	}
	out.found = make(map[string]held, len(t.guards))
	for _, one := range r.Responses {
		for _, kv := range one.GetResponseRange().GetKvs() {
			out.found[string(kv.Key)] = held{create: kv.CreateRevision, mod: kv.ModRevision, lease: kv.Lease, value: string(kv.Value)}
		}
	}
	return out, nil
}

// leaseError tells a dead lease from other errors.
func leaseError(what string, err error) error {
	if errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound) {
		return errNoLease
	}
	return fmt.Errorf("%s: %w", what, err)
}

package discovery

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// advance lets d pass in a bubble, and all that is due then happen.
func advance(t *testing.T, d time.Duration) {
	t.Helper()
	time.Sleep(d)
	synctest.Wait()
}

// fakeEtcd is an etcd in memory for tests of time; what it does is held against the real one by the tests that use that.
type fakeEtcd struct {
	mu sync.Mutex

	cluster  uint64
	revision int64
	keys     map[string]*mvccpb.KeyValue
	watches  map[*fakeWatch]struct{}
	down     chan struct{} // closed when there is a connection again; nil while there is one

	heard  time.Time   // what Heard says
	failed func(error) // what the last client tells of endpoints that can't be reached

	// Faults.
	pageErr   func(rev int64) error // of each page
	newestErr error
	watchErr  error  // refuses each new watch
	shortErr  error  // ends each new watch as soon as it is made
	onWatch   func() // before a watch is made
	behind    int64  // how far the revision in the first response of a watch is below the real one
	mute      bool   // watches say nothing more
	uncreated bool   // watches are not even created
	holdPages chan struct{}
	maxKeys   int // of a page, above which it is too large

	leases    map[int64]bool // those that live
	leaseErr  error
	leaseHang bool

	saw fakeSaw
}

// fakeSaw is what a fake etcd was asked.
type fakeSaw struct {
	dials, moves, reading, mostReading int
	leases                             int         // questions of leases
	reads                              []time.Time // first pages
	checks                             []time.Time
	limits                             []int
}

// seen is what e was asked up to now.
func (e *fakeEtcd) seen() fakeSaw {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.saw
	s.reads, s.checks, s.limits = slices.Clone(s.reads), slices.Clone(s.checks), slices.Clone(s.limits)
	return s
}

type fakeWatch struct {
	prefix string
	ch     chan etcd.Response
	ctx    context.Context
}

func newFakeEtcd() *fakeEtcd {
	return &fakeEtcd{cluster: 7, revision: 1, keys: map[string]*mvccpb.KeyValue{}, watches: map[*fakeWatch]struct{}{}}
}

// set changes the fake under its lock.
func (e *fakeEtcd) set(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

func (e *fakeEtcd) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: e.cluster, Revision: e.revision}
}

func (e *fakeEtcd) put(key, value string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.revision++
	kv := &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: e.revision, ModRevision: e.revision}
	if old := e.keys[key]; old != nil {
		kv.CreateRevision = old.CreateRevision
	}
	e.keys[key] = kv
	e.tellLocked(key, &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: kv})
}

func (e *fakeEtcd) tellLocked(key string, ev *mvccpb.Event) {
	for w := range e.watches {
		if within(key, w.prefix) && !e.mute {
			w.send(etcd.Response{Header: e.header(), Events: []*mvccpb.Event{ev}})
		}
	}
}

// within reports whether key is meant by what: a prefix, which ends in /, or one key.
func within(key, what string) bool {
	return key == what || strings.HasSuffix(what, "/") && strings.HasPrefix(key, what)
}

func (w *fakeWatch) send(r etcd.Response) {
	select {
	case w.ch <- r:
	case <-w.ctx.Done():
	}
}

// breakWatches ends all watches, as a broken stream does.
func (e *fakeEtcd) breakWatches(reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for w := range e.watches {
		w.send(etcd.Response{Err: rpctypes.Error(errors.New(reason))})
		close(w.ch)
		delete(e.watches, w)
	}
}

// disconnect breaks the watches and lets nobody in until connect.
func (e *fakeEtcd) disconnect() {
	e.set(func() { e.down = make(chan struct{}) })
	e.breakWatches("the stream broke: EOF")
}

func (e *fakeEtcd) connect() {
	e.set(func() { close(e.down); e.down = nil })
}

func (e *fakeEtcd) dial(_ context.Context, _ etcd.Config, failed func(error)) (etcd.Client, error) {
	e.set(func() { e.saw.dials++; e.failed = failed })
	return &fakeClient{e}, nil
}

type fakeClient struct{ e *fakeEtcd }

func (c *fakeClient) Close() {}

func (c *fakeClient) Heard() time.Time {
	c.e.mu.Lock()
	defer c.e.mu.Unlock()
	return c.e.heard
}

func (c *fakeClient) Elsewhere() { c.e.set(func() { c.e.saw.moves++ }) }

func (c *fakeClient) Everywhere() {}

func (c *fakeClient) Raw() *clientv3.Client { return nil }

func (c *fakeClient) Ready(ctx context.Context) error {
	c.e.mu.Lock()
	down := c.e.down
	c.e.mu.Unlock()
	if down == nil {
		return nil
	}
	select {
	case <-down:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *fakeClient) Page(ctx context.Context, prefix, from string, rev int64, limit int) (*clientv3.GetResponse, error) {
	e := c.e
	e.mu.Lock()
	if rev == 0 {
		e.saw.reads = append(e.saw.reads, time.Now())
	}
	e.saw.limits = append(e.saw.limits, limit)
	e.saw.reading++
	e.saw.mostReading = max(e.saw.mostReading, e.saw.reading)
	hold := e.holdPages
	e.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.saw.reading--
	if e.pageErr != nil {
		if err := e.pageErr(rev); err != nil {
			return nil, err
		}
	}
	out := &clientv3.GetResponse{Header: e.header()}
	for _, k := range e.sortedLocked(prefix) {
		if k < from {
			continue
		}
		if len(out.Kvs) == limit {
			out.More = true
			break
		}
		out.Kvs = append(out.Kvs, e.keys[k])
	}
	if e.maxKeys > 0 && len(out.Kvs) > e.maxKeys {
		return nil, errors.New("rpc error: code = ResourceExhausted desc = grpc: received message larger than max (2 vs. 1)")
	}
	return out, nil
}

func (e *fakeEtcd) sortedLocked(prefix string) []string {
	var keys []string
	for k := range e.keys {
		if within(k, prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func (c *fakeClient) Newest(_ context.Context, prefix string) (*clientv3.GetResponse, error) {
	e := c.e
	e.mu.Lock()
	defer e.mu.Unlock()
	e.saw.checks = append(e.saw.checks, time.Now())
	if e.newestErr != nil {
		return nil, e.newestErr
	}
	out := &clientv3.GetResponse{Header: e.header()}
	for _, k := range e.sortedLocked(prefix) {
		out.Count++
		if kv := e.keys[k]; len(out.Kvs) == 0 || kv.ModRevision > out.Kvs[0].ModRevision {
			out.Kvs = []*mvccpb.KeyValue{kv}
		}
	}
	return out, nil
}

func (c *fakeClient) Watch(ctx context.Context, prefix string, rev int64) <-chan etcd.Response {
	e := c.e
	e.mu.Lock()
	defer e.mu.Unlock()
	w := &fakeWatch{prefix: prefix, ch: make(chan etcd.Response, 10000), ctx: ctx}
	if e.uncreated {
		return w.ch
	}
	if e.watchErr != nil {
		w.send(etcd.Response{Err: e.watchErr})
		close(w.ch)
		return w.ch
	}
	if e.onWatch != nil {
		e.onWatch()
	}
	h := e.header()
	h.Revision -= e.behind
	w.send(etcd.Response{Header: h, Created: true})
	if e.shortErr != nil {
		w.send(etcd.Response{Err: e.shortErr})
		close(w.ch)
		return w.ch
	}
	for _, k := range e.sortedLocked(prefix) {
		if kv := e.keys[k]; kv.ModRevision >= rev && !e.mute {
			w.send(etcd.Response{Header: e.header(), Events: []*mvccpb.Event{{Type: mvccpb.Event_PUT, Kv: kv}}})
		}
	}
	e.watches[w] = struct{}{}
	context.AfterFunc(ctx, func() { e.set(func() { delete(e.watches, w) }) })
	return w.ch
}

func (c *fakeClient) LeaseLives(ctx context.Context, lease int64) (bool, error) {
	e := c.e
	e.mu.Lock()
	e.saw.leases++
	hang, err, live := e.leaseHang, e.leaseErr, e.leases[lease]
	e.mu.Unlock()
	if hang {
		<-ctx.Done()
		return false, ctx.Err()
	}
	return live, err
}

func (c *fakeClient) Progress(context.Context) error {
	e := c.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.down != nil {
		return errors.New("no connection to etcd")
	}
	for w := range e.watches {
		if !e.mute {
			w.send(etcd.Response{Header: e.header()})
		}
	}
	return nil
}

// startFake runs discovery on a fake etcd, in a bubble.
func startFake(t *testing.T, e *fakeEtcd, s setup, follows ...Follow) *running {
	t.Helper()
	s.Etcd = &etcd.Config{Endpoints: []string{"fake"}}
	d := startWith(t, s, e.dial, follows...)
	synctest.Wait()
	return d
}

var errCompacted = rpctypes.ErrCompacted

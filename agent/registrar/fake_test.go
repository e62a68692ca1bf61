package registrar

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/health"
)

var errDown = errors.New("etcd is down")

// fake is an etcd in memory, in the time of the bubble that it is used in.
type fake struct {
	mu sync.Mutex

	cluster  uint64
	revision int64
	keys     map[string]held
	leases   map[int64]fakeLease
	nextID   int64
	down     bool
	mute     bool // transactions are done, and the answers are lost

	calls, txns, keepalives int
	history                 []string // "put k", "del k"
}

type fakeLease struct {
	ttl time.Duration
	end time.Time
}

func newFake() *fake {
	return &fake{cluster: 7, revision: 1, keys: make(map[string]held), leases: make(map[int64]fakeLease), nextID: 100}
}

// enter begins a call: it fails if etcd is down, and ends the leases that are over.
func (f *fake) enter() (func(), error) {
	f.mu.Lock()
	f.calls++
	f.expire()
	if f.down {
		f.mu.Unlock()
		return nil, errDown
	}
	return f.mu.Unlock, nil
}

func (f *fake) expire() {
	for id, l := range f.leases {
		if !time.Now().Before(l.end) {
			f.revoke(id)
		}
	}
}

// revoke ends a lease and deletes what hangs on it.
func (f *fake) revoke(id int64) {
	delete(f.leases, id)
	for k, h := range f.keys {
		if h.lease == id {
			f.del(k)
		}
	}
}

func (f *fake) put(key, value string, lease int64) {
	f.revision++
	h := f.keys[key]
	if h.mod == 0 {
		h.create = f.revision
	}
	h.mod, h.value, h.lease = f.revision, value, lease
	f.keys[key] = h
	f.history = append(f.history, "put "+key)
}

func (f *fake) del(key string) {
	if _, ok := f.keys[key]; ok {
		f.revision++
		delete(f.keys, key)
		f.history = append(f.history, "del "+key)
	}
}

func (f *fake) header() header { return header{f.cluster, f.revision} }

func (f *fake) Grant(_ context.Context, ttl time.Duration) (int64, header, error) {
	done, err := f.enter()
	if err != nil {
		return 0, header{}, err
	}
	defer done()
	f.nextID++
	f.leases[f.nextID] = fakeLease{ttl, time.Now().Add(ttl)}
	return f.nextID, f.header(), nil
}

func (f *fake) KeepAlive(_ context.Context, id int64) (header, error) {
	done, err := f.enter()
	if err != nil {
		return header{}, err
	}
	defer done()
	f.keepalives++
	l, ok := f.leases[id]
	if !ok {
		return header{cluster: f.cluster}, errNoLease
	}
	l.end = time.Now().Add(l.ttl)
	f.leases[id] = l
	return header{cluster: f.cluster}, nil
}

func (f *fake) TimeToLive(_ context.Context, id int64) (time.Duration, time.Duration, error) {
	done, err := f.enter()
	if err != nil {
		return 0, 0, err
	}
	defer done()
	l, ok := f.leases[id]
	if !ok {
		return 0, 0, errNoLease
	}
	return l.ttl, time.Until(l.end), nil
}

func (f *fake) Txn(_ context.Context, t *txn) (result, error) {
	done, err := f.enter()
	if err != nil {
		return result{}, err
	}
	defer done()
	f.txns++
	for _, g := range t.guards {
		if h := f.keys[g.key]; h.mod != g.mod || g.mod > 0 && h.lease != g.lease {
			found := make(map[string]held)
			for _, g := range t.guards {
				if h, ok := f.keys[g.key]; ok {
					found[g.key] = h
				}
			}
			return result{header: f.header(), found: found}, nil
		}
	}
	if _, ok := f.leases[t.lease]; !ok && len(t.puts) > 0 {
		return result{}, errNoLease
	}
	rev := f.revision
	for _, p := range t.puts {
		f.revision = rev // one transaction, one revision
		f.put(p.key, p.value, t.lease)
	}
	for _, k := range t.deletes {
		f.revision = rev
		f.del(k)
	}
	if f.mute {
		return result{}, errDown
	}
	return result{header: f.header(), done: true}, nil
}

// with runs do on the etcd from outside.
func (f *fake) with(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire()
	do()
}

// values is what etcd holds.
func (f *fake) values() map[string]string {
	out := make(map[string]string)
	f.with(func() {
		for k, h := range f.keys {
			out[k] = h.value
		}
	})
	return out
}

// names are its keys, sorted.
func (f *fake) names() []string { return slices.Sorted(maps.Keys(f.values())) }

// changes is what happened since the last call.
func (f *fake) changes() []string {
	var out []string
	f.with(func() { out, f.history = f.history, nil })
	return out
}

// rig is a registrar on a fake, with services that pass and fail as the test says. It lives in a bubble.
type rig struct {
	t      *testing.T
	etcd   *fake
	dir    string
	r      *Registrar
	cancel context.CancelFunc
	done   chan struct{}

	mu sync.Mutex

	failing map[string]health.Check // by address; absent = passes
	own     netip.Addr
}

const rigTTL = 60 * time.Second

var web = Registration{Service: "user", Address: ":8080"}

const webKey = "services/user/10.0.0.1:8080"

func newRig(t *testing.T, regs ...Registration) *rig {
	g := &rig{t: t, etcd: newFake(), dir: t.TempDir(), failing: make(map[string]health.Check), own: netip.MustParseAddr("10.0.0.1")}
	g.start(regs...)
	return g
}

// start begins a life of the agent, with the registrations of its configuration.
func (g *rig) start(regs ...Registration) {
	g.t.Helper()
	r, err := New(Config{
		Log: hclog.NewNullLogger(), Events: event.NewLog(1000), Etcd: etcd.New(etcd.Options{}), Dir: g.dir,
		Place: func(service, name string) (Place, error) {
			name = cmp.Or(name, format.GRPCNaming)
			return Place{format.Home(name, service), name}, CheckFormat(name)
		},
	})
	if err != nil {
		g.t.Fatal(err)
	}
	r.probe = func(_ context.Context, _ health.Options, a netip.AddrPort) health.Check {
		g.mu.Lock()
		defer g.mu.Unlock()
		if c, ok := g.failing[a.String()]; ok {
			return c
		}
		return health.Check{Passed: true}
	}
	r.own = func(context.Context) (netip.Addr, error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.own, nil
	}
	r.open = func(ctx context.Context) (conn, error) {
		return conn{store: g.etcd, ctx: ctx, fail: func(error) {}, done: func() {}}, nil
	}
	r.Set(regs, rigTTL)
	ctx, cancel := context.WithCancel(g.t.Context())
	g.r, g.cancel, g.done = r, cancel, make(chan struct{})
	go func() {
		defer close(g.done)
		_ = r.Run(ctx)
	}()
}

// stop ends the agent's life, as kill -9 does it no differently: nothing is written at the end.
func (g *rig) stop() {
	g.cancel()
	<-g.done
}

func (g *rig) fails(addr string, c health.Check) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.failing[addr] = c
}

func (g *rig) passes(addr string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.failing, addr)
}

// advance lets time pass, and everything that is due happen.
func advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// holds wants etcd to have exactly these keys.
func (g *rig) holds(when string, keys ...string) {
	g.t.Helper()
	if got := g.etcd.names(); !slices.Equal(got, keys) {
		g.t.Errorf("%s: etcd has %q, want %q", when, got, keys)
	}
}

// story runs f in a bubble, with a rig that ends with it.
func story(t *testing.T, f func(t *testing.T, g *rig), regs ...Registration) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, regs...)
		defer func() { g.stop() }()
		f(t, g)
	})
}

package discovery

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

// What package etcd does, in numbers.
const (
	readsAtOnce = 8
	linkSettles = 10 * time.Second
	errorShown  = time.Minute
	silence     = 30 * time.Second
	silenceJoin = 3 * time.Second
	auditEvery  = 10 * time.Minute
	pageSize    = 1000
)

// eventually fails the test unless ok is true within d.
func eventually(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within %v: %s", d, what)
		case <-tick.C:
		}
	}
}

// recorder is what a table would be: it gets lists, and holds discovery to its promises.
type recorder struct {
	t    testing.TB
	slow atomic.Int64 // how long OnList takes, for tests in a bubble

	mu sync.Mutex

	running   map[string]bool // OnList, by service
	lists     map[string][]*service.List
	confirmed map[string]time.Time
}

func newRecorder(t testing.TB) *recorder {
	return &recorder{t: t, running: map[string]bool{}, lists: map[string][]*service.List{}, confirmed: map[string]time.Time{}}
}

func (r *recorder) onList(now time.Time, l *service.List) {
	r.enter(l.Service)
	defer r.leave(l)
	if d := time.Duration(r.slow.Load()); d > 0 {
		<-time.After(d)
	}
	for i := range l.Backends {
		if i > 0 && l.Backends[i-1].Addr.Compare(l.Backends[i].Addr) >= 0 {
			r.t.Errorf("%s: not sorted, or an address twice: %v", l.Service, addrs(l))
		}
		if l.Backends[i].Weight == 0 {
			r.t.Errorf("%s: weight 0: %+v", l.Service, l.Backends[i])
		}
	}
	if l.Confirmed.IsZero() || l.Confirmed.After(now) {
		r.t.Errorf("%s: confirmed %v at %v", l.Service, l.Confirmed, now)
	}
}

func (r *recorder) enter(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running[name] {
		r.t.Errorf("%s: two calls of OnList at one time", name)
	}
	r.running[name] = true
}

func (r *recorder) leave(l *service.List) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running[l.Service] = false
	r.lists[l.Service] = append(r.lists[l.Service], l)
	r.confirmed[l.Service] = l.Confirmed
}

func (r *recorder) onConfirm(name string, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.confirmed[name] = at
}

// last is the newest list of name, nil if there is none.
func (r *recorder) last(name string) *service.List {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.lists[name]); n > 0 {
		return r.lists[name][n-1]
	}
	return nil
}

func (r *recorder) all(name string) []*service.List {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lists[name])
}

func (r *recorder) confirmedAt(name string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.confirmed[name]
}

// addrs are the addresses of l, as text; "none" without a list.
func addrs(l *service.List) string {
	if l == nil {
		return "none"
	}
	var out []string
	for _, b := range l.Backends {
		out = append(out, b.Addr.String())
	}
	return strings.Join(out, " ")
}

// waitAddrs waits until the list of name has exactly these addresses.
func (r *recorder) waitAddrs(t *testing.T, name string, want ...string) *service.List {
	t.Helper()
	joined := strings.Join(want, " ")
	var l *service.List
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if l = r.last(name); l != nil && addrs(l) == joined {
			return l
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: the list is %q, not %q", name, addrs(l), joined)
		case <-tick.C:
		}
	}
}

// running is a Discovery that runs in a test.
type running struct {
	*Discovery
	*recorder
	events *event.Log
	log    *logBuffer
	links  *etcd.Links
	stop   func()
}

type etcdStatus = etcd.Status

// known is what both know.
type known struct {
	Status
	etcdStatus
}

func (r *running) Status() known { return known{r.Discovery.Status(), r.links.Status()} }

// setup is what differs between tests.
type setup struct {
	Etcd     *etcd.Config
	SpoolDir string

	dial   etcd.DialFunc
	own    func(netip.AddrPort) bool
	lookup LookupFunc
}

// start runs discovery with s until the test ends or stop is called; follows are set, and the spool is loaded, before.
func start(t *testing.T, s setup, follows ...Follow) *running {
	t.Helper()
	return startWith(t, s, etcd.Dial, follows...)
}

// startWith is start with another way to make clients.
func startWith(t *testing.T, s setup, dial etcd.DialFunc, follows ...Follow) *running {
	t.Helper()
	s.dial = dial
	return s.start(t, follows...)
}

// startOwn is start of an agent that listens somewhere.
func startOwn(t *testing.T, s setup, own func(netip.AddrPort) bool, follows ...Follow) *running {
	t.Helper()
	s.own = own
	return startWith(t, s, etcd.Dial, follows...)
}

func (s setup) start(t *testing.T, follows ...Follow) *running {
	t.Helper()
	rec := newRecorder(t)
	out := &logBuffer{}
	events, log := event.NewLog(1000), hclog.New(&hclog.LoggerOptions{Output: out, Level: hclog.Debug})
	links := etcd.New(etcd.Options{Log: log, Events: events, Etcd: s.Etcd, Dial: s.dial})
	cfg := Config{Log: log, Events: events, SpoolDir: s.SpoolDir, Etcd: links, OnList: rec.onList, OnConfirm: rec.onConfirm, Own: s.own, Lookup: s.lookup}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range follows {
		d.Set(f)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- d.Run(ctx) }()
	<-d.Loaded()
	go func() { ended <- links.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			for range cap(ended) {
				if err := <-ended; err != nil {
					t.Errorf("Run: %v", err)
				}
			}
		})
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("log:\n%s", out.String())
		}
	})
	return &running{Discovery: d, links: links, recorder: rec, events: events, log: out, stop: stop}
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Len()
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// mustAddr is a literal address.
func mustAddr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func naming(name string) Follow {
	return Follow{Name: name, Prefix: "services/" + name + "/", Format: "grpc-naming"}
}

func etcdAt(s *etcdtest.Server) *etcd.Config { return &etcd.Config{Endpoints: s.Endpoints()} }

func record(addr string, weight int) string {
	return fmt.Sprintf(`{"Op":0,"Addr":%q,"Metadata":{"weight":%d}}`, addr, weight)
}

func put(t testing.TB, c *clientv3.Client, key, value string, opts ...clientv3.OpOption) int64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := c.Put(ctx, key, value, opts...)
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return r.Header.Revision
}

func del(t testing.TB, c *clientv3.Client, key string, opts ...clientv3.OpOption) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := c.Delete(ctx, key, opts...); err != nil {
		t.Fatalf("delete %s: %v", key, err)
	}
}

// fill puts n backends under prefix, in transactions, and returns them by address.
func fill(t testing.TB, c *clientv3.Client, prefix string, n int) map[string]string {
	t.Helper()
	all := make(map[string]string, n)
	var ops []clientv3.Op
	flush := func() {
		if _, err := c.Txn(context.Background()).Then(ops...).Commit(); err != nil {
			t.Fatalf("fill %s: %v", prefix, err)
		}
		ops = nil
	}
	for i := range n {
		addr := fmt.Sprintf("10.%d.%d.%d:80", i>>16, i>>8&255, i&255)
		all[addr] = prefix + addr
		ops = append(ops, clientv3.OpPut(prefix+addr, record(addr, 100)))
		if len(ops) == 100 {
			flush()
		}
	}
	if len(ops) > 0 {
		flush()
	}
	return all
}

// cpuTime is what this process has used; on a busy machine it says more than the clock.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

package registrar

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/health"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const patience = time.Minute

// life is an agent's registrar on a real etcd.
type life struct {
	t      *testing.T
	r      *Registrar
	links  *etcd.Links
	events *event.Log
	cancel context.CancelFunc
	done   chan struct{}
	alive  atomic.Bool // what probes find
}

// live begins one; c names the etcd. The lease lives for ttl.
func live(t *testing.T, c etcd.Config, dir string, ttl time.Duration, regs ...Registration) *life {
	t.Helper()
	l := prepared(t, c, dir, ttl, regs...)
	l.run()
	return l
}

// prepared is live that doesn't run yet.
func prepared(t *testing.T, c etcd.Config, dir string, ttl time.Duration, regs ...Registration) *life {
	t.Helper()
	l := &life{t: t, events: event.NewLog(1000), done: make(chan struct{})}
	l.alive.Store(true)
	links := etcd.New(etcd.Options{Events: l.events, Etcd: &c})
	r, err := New(Config{
		Log: hclog.NewNullLogger(), Events: l.events, Etcd: links, Dir: dir,
		Place: func(service, format string) (Place, error) {
			return Place{"services/" + service + "/", "grpc-naming"}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.probe = func(context.Context, health.Options, netip.AddrPort) health.Check {
		if !l.alive.Load() {
			return health.Check{Refused: true, Cause: "connection refused"}
		}
		return health.Check{Passed: true}
	}
	for i := range regs {
		regs[i].Probe.Interval = 100 * time.Millisecond
	}
	r.Set(regs, ttl)
	l.r, l.links = r, links
	return l
}

func (l *life) run() {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	go func() { _ = l.links.Run(ctx) }()
	go func() {
		defer close(l.done)
		_ = l.r.Run(ctx)
	}()
	l.t.Cleanup(l.stop)
}

func (l *life) stop() {
	l.cancel()
	<-l.done
}

// await waits until cond holds.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func reg(n int) Registration {
	return Registration{Service: "user", Address: fmt.Sprintf("10.0.0.1:%d", n)}
}

func keyOf(n int) string { return fmt.Sprintf("services/user/10.0.0.1:%d", n) }

// get is what etcd has at a key; nil if nothing.
func get(t *testing.T, c *clientv3.Client, key string) (value string, lease int64, create int64) {
	t.Helper()
	r, err := c.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kvs) == 0 {
		return "", 0, 0
	}
	return string(r.Kvs[0].Value), r.Kvs[0].Lease, r.Kvs[0].CreateRevision
}

func has(t *testing.T, c *clientv3.Client, key string) bool {
	v, _, _ := get(t, c, key)
	return strings.Contains(v, "10.0.0.1")
}

// watcher counts the deletions under services/ until the test ends.
func watcher(t *testing.T, c *clientv3.Client) *atomic.Int64 {
	t.Helper()
	n := new(atomic.Int64)
	watch := c.Watch(t.Context(), "services/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-watch
	go func() {
		for r := range watch {
			for _, e := range r.Events {
				if e.Type == clientv3.EventTypeDelete {
					n.Add(1)
				}
			}
		}
	}()
	return n
}

// What people and accidents do to keys and leases, on a real etcd (5.1, 5.5).
func TestRealEtcd(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	// Of somebody else, there before us.
	if _, err := c.Put(t.Context(), keyOf(9), "theirs"); err != nil {
		t.Fatal(err)
	}
	var regs []Registration
	for n := 1; n <= 250; n++ { // more than one transaction holds
		regs = append(regs, reg(n))
	}
	l := live(t, etcd.Config{Endpoints: s.Endpoints()}, t.TempDir(), time.Minute, regs...)
	await(t, "all are announced", func() bool { return l.r.Stats().Announced == 249 })

	lease := func() int64 {
		_, id, _ := get(t, c, keyOf(1))
		return id
	}
	first := lease()
	if r, err := c.TimeToLive(t.Context(), clientv3.LeaseID(first), clientv3.WithAttachedKeys()); err != nil || len(r.Keys) != 249 || r.GrantedTTL != 60 {
		t.Errorf("the lease has %d keys, ttl %d: %v; want one for all", len(r.Keys), r.GrantedTTL, err)
	}
	if _, err := c.Delete(t.Context(), keyOf(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(t.Context(), keyOf(2), "by hand"); err != nil {
		t.Fatal(err)
	}
	// The lease is long, so that it outlives a machine that stands still, and the checks are asked for.
	checked := func(what string, cond func() bool) {
		t.Helper()
		await(t, what, func() bool { l.r.poke(); return cond() })
	}
	checked("a deleted key is back", func() bool { return has(t, c, keyOf(1)) })
	checked("a changed key is as it was", func() bool { return has(t, c, keyOf(2)) })
	if _, id, _ := get(t, c, keyOf(2)); id != first {
		t.Errorf("the changed key hangs on %x, want %x", id, first)
	}

	if err := s.Compact(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Revoke(t.Context(), clientv3.LeaseID(first)); err != nil {
		t.Fatal(err)
	}
	checked("all are back after the lease was revoked", func() bool { return has(t, c, keyOf(1)) && has(t, c, keyOf(250)) })
	await(t, "one lost lease is counted", func() bool { return l.r.Stats().LeaseLosses == 1 })
	if v, _, _ := get(t, c, keyOf(9)); v != "theirs" {
		t.Errorf("somebody else's key became %q", v)
	}

	// A restart of etcd: its leases begin anew, no key goes.
	_, second, create := get(t, c, keyOf(1))
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	failures := l.r.Stats().LastOK
	checked("the registrar has spoken with the etcd that is back", func() bool { return l.r.Stats().LastOK.After(failures) })
	if v, id, again := get(t, c, keyOf(1)); v == "" || id != second || again != create {
		t.Errorf("after a restart of etcd: %q on %x, created at %d; want %x and %d", v, id, again, second, create)
	}
	l.alive.Store(false)
	await(t, "the key of a dead service goes", func() bool { return !has(t, c, keyOf(3)) })
	if r, err := c.TimeToLive(t.Context(), clientv3.LeaseID(second)); err != nil || r.TTL <= 0 {
		t.Errorf("the lease died with it: readers would take that for the death of the host: %v %v", r, err)
	}
}

// 5.3: a new life of the agent takes over what the old one left, and a watcher sees nothing of it. Nothing is done at the end of a life, so that kill -9 is no different.
func TestTakeOver(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	dir := t.TempDir()
	l := live(t, etcd.Config{Endpoints: s.Endpoints()}, dir, 20*time.Second, reg(1), reg(2))
	if err := l.r.Register(reg(3), Who{}); err != nil {
		t.Fatal(err)
	}
	await(t, "three are announced", func() bool { return l.r.Stats().Announced == 3 })
	gone := watcher(t, c)
	_, lease, create := get(t, c, keyOf(1))
	for range 3 {
		l.stop()
		l = live(t, etcd.Config{Endpoints: s.Endpoints()}, dir, 20*time.Second, reg(1), reg(2))
		await(t, "taken over", func() bool { return l.r.Stats().Announced == 3 })
		if n := l.r.Stats().Writes; n != 0 {
			t.Errorf("%d keys written anew", n)
		}
	}
	if _, id, again := get(t, c, keyOf(1)); id != lease || again != create {
		t.Errorf("lease %x, created at %d; want %x and %d", id, again, lease, create)
	}
	l.stop()
	if gone.Load() != 0 {
		t.Errorf("a watcher saw %d keys go", gone.Load())
	}
	// Another etcd takes its place, on which nothing is ours yet, but for a namesake of a key.
	other := etcdtest.Start(t, etcdtest.Config{Token: "another"})
	oc := etcdtest.NewClient(t, other)
	if _, err := oc.Put(t.Context(), keyOf(2), "theirs"); err != nil {
		t.Fatal(err)
	}
	l = live(t, etcd.Config{Endpoints: other.Endpoints()}, dir, 20*time.Second, reg(1), reg(2))
	await(t, "announced in another etcd", func() bool { return l.r.Stats().Announced == 2 })
	if v, _, _ := get(t, oc, keyOf(2)); v != "theirs" {
		t.Errorf("the namesake became %q", v)
	}
}

// 6.3: a process takes over from one that still lives: with all that changed there since it began, and nothing that changes there from then on. A watcher sees nothing of it.
func TestHandOn(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	dir := t.TempDir()
	config := etcd.Config{Endpoints: s.Endpoints()}
	old := live(t, config, dir, 20*time.Second, reg(1))
	fast := func(n int) Registration {
		r := reg(n)
		r.Probe.Interval = 100 * time.Millisecond
		return r
	}
	held, err := old.r.Hold(fast(2), Who{})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "two are announced", func() bool { return old.r.Stats().Announced == 2 })
	next := prepared(t, config, dir, 20*time.Second, reg(1)) // reads the file
	if err := old.r.Register(fast(3), Who{}); err != nil {
		t.Fatal(err)
	}
	if err := old.r.Drain("user", false); err != nil {
		t.Fatal(err)
	}
	await(t, "three are drained", func() bool {
		return old.r.Stats().Announced == 3 && !slices.ContainsFunc(old.r.Status(), func(s Status) bool { return !s.Draining })
	})
	gone := watcher(t, c)
	_, lease, create := get(t, c, keyOf(3))

	old.stop()
	old.r.HandOn()
	next.r.TakeOver()
	next.run()
	next.r.Ready()
	next.r.mu.Lock()
	next.r.claimBy = time.Now().Add(time.Hour) // a machine that stands still could make this test last longer than a claim
	next.r.mu.Unlock()
	for what, err := range map[string]error{
		"register":   old.r.Register(reg(4), Who{}),
		"drain":      old.r.Drain("user", true),
		"withdraw":   old.r.Withdraw(),
		"deregister": func() error { _, err := old.r.Deregister("user", "", Who{Admin: true}); return err }(),
		"undrain":    func() error { _, err := old.r.Undrain("user"); return err }(),
	} {
		if !errors.Is(err, ErrHandedOn) {
			t.Errorf("%s at the process of before: %v", what, err)
		}
	}
	await(t, "taken over", func() bool { return next.r.Stats().Announced == 3 })
	held.Release()
	if n := len(prepared(t, config, dir, 20*time.Second, reg(1)).r.Status()); n != 3 {
		t.Errorf("the file has %d registrations after the end of one at the process of before", n)
	}
	if _, id, again := get(t, c, keyOf(3)); id != lease || again != create || next.r.Stats().Writes != 0 || gone.Load() != 0 {
		t.Errorf("lease %x, created at %d, want %x and %d; %d keys written anew, %d gone", id, again, lease, create, next.r.Stats().Writes, gone.Load())
	}

	// What the file says now is the next process's: a start after its end finds all of it, the held one too.
	if err := next.r.Withdraw(); err != nil {
		t.Fatal(err)
	}
	await(t, "withdrawn", func() bool { return !has(t, c, keyOf(3)) })
	last := prepared(t, config, dir, 20*time.Second, reg(1))
	next.stop()
	next.r.HandOn()
	last.r.TakeOver()
	last.run()
	await(t, "it has looked", func() bool { return !last.r.Stats().LastOK.IsZero() })
	if n := len(last.r.Status()); n != 3 || last.r.Stats().Announced != 0 || has(t, c, keyOf(1)) {
		t.Errorf("an upgrade of a host that was withdrawn: %d registrations, %d announced", n, last.r.Stats().Announced)
	}
	last.stop()
	started := live(t, config, dir, 20*time.Second, reg(1))
	await(t, "a start announces again", func() bool { return started.r.Stats().Announced == 3 })
}

// A successor that fails leaves everything to the process of before.
func TestTakeBack(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	dir := t.TempDir()
	l := prepared(t, etcd.Config{Endpoints: s.Endpoints()}, dir, 20*time.Second, reg(1))
	l.r.HandOn()
	if err := l.r.Register(reg(2), Who{}); !errors.Is(err, ErrHandedOn) {
		t.Errorf("register: %v", err)
	}
	l.r.TakeBack()
	if err := l.r.Register(reg(2), Who{}); err != nil {
		t.Error(err)
	}
	l.run()
	await(t, "both are announced", func() bool { return l.r.Stats().Announced == 2 })
}

// Users: a token that expired costs nothing, least of all the client that all of the agent's watches hang on, and a key that the user may not write only itself.
func TestUser(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{TokenTTL: time.Second})
	c := etcdtest.NewClient(t, s)
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	must(c.UserAdd(ctx, "root", "root"))
	must(c.UserGrantRole(ctx, "root", "root"))
	must(c.RoleAdd(ctx, "registrar"))
	must(c.RoleGrantPermission(ctx, "registrar", "services/user/", clientv3.GetPrefixRangeEnd("services/user/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	must(c.UserAdd(ctx, "lbagent", "secret"))
	must(c.UserGrantRole(ctx, "lbagent", "registrar"))
	must(c.AuthEnable(ctx))
	root, err := clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), Username: "root", Password: "root"})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()

	l := live(t, etcd.Config{Endpoints: s.Endpoints(), Username: "lbagent", PasswordFile: password}, t.TempDir(), time.Minute,
		reg(1), reg(2), Registration{Service: "forbidden", Address: "10.0.0.1:1"})
	await(t, "those that the user may write are announced", func() bool { return l.r.Stats().Announced == 2 })
	await(t, "the other says why not", func() bool {
		return slices.ContainsFunc(l.r.Status(), func(st Status) bool {
			return st.Service == "forbidden" && !st.Announced && strings.Contains(st.Why, "permission denied")
		})
	})
	await(t, "etcd isn't lost because it refuses a key", func() bool { return l.links.Status().Connected })
	_, lease, _ := get(t, root, keyOf(1))
	gone := watcher(t, root)
	link, err := l.links.Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// Each check finds its token expired: simple tokens live for a second here, and etcd looks for old ones once a second.
	for range 3 {
		<-time.After(2200 * time.Millisecond)
		expired := time.Now()
		l.r.poke()
		await(t, "a check with an expired token", func() bool { return l.r.Stats().LastOK.After(expired) })
	}
	if _, id, _ := get(t, root, keyOf(1)); id != lease || gone.Load() != 0 {
		t.Errorf("lease %x, was %x; %d keys went", id, lease, gone.Load())
	}
	if err := context.Cause(link.Context()); err != nil {
		t.Errorf("an expired token ended the client: %v", err)
	}
}

// The way to etcd is cut for longer than the lease lives: the keys go, and are back within a third of its life after the way is whole, though the connection's own
// back-off has grown beyond that.
func TestPartition(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	p := etcdtest.StartProxy(t, s.Addr())
	l := live(t, etcd.Config{Endpoints: []string{"http://" + p.Addr()}}, t.TempDir(), 3*time.Second, reg(1))
	await(t, "announced", func() bool { return l.r.Stats().Announced == 1 })
	p.Cut()
	await(t, "the lease ends", func() bool { return !has(t, c, keyOf(1)) })
	await(t, "the status says so", func() bool { return !l.r.Status()[0].Announced })
	p.Heal()
	await(t, "it is back", func() bool { return has(t, c, keyOf(1)) })
	await(t, "and known to be", func() bool { return l.r.Status()[0].Announced })
	if n := l.r.Stats().LeaseLosses; n == 0 { // more where the machine stood still for as long as the lease lives
		t.Error("no lease was lost")
	}
}

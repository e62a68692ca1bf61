package discovery

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// guarded is a service with the guard on.
func guarded(name string) Follow {
	f := naming(name)
	f.Hold = 10 * time.Minute
	return f
}

// stars are the addresses of l, orphans with a star.
func stars(l *service.List) string {
	var out []string
	for i := range l.Backends {
		star := ""
		if !l.Backends[i].Orphaned.IsZero() {
			star = "*"
		}
		out = append(out, l.Backends[i].Addr.Addr().String()+star)
	}
	return strings.Join(out, " ")
}

func (r *recorder) waitStars(t *testing.T, name, want string) *service.List {
	t.Helper()
	var l *service.List
	eventually(t, time.Minute, name+": "+want, func() bool {
		l = r.last(name)
		return l != nil && stars(l) == want
	})
	return l
}

// leased puts n backends, each with a lease of its own.
func leased(t *testing.T, c *clientv3.Client, name string, n int) (leases []clientv3.LeaseID) {
	t.Helper()
	for i := range n {
		l, err := c.Grant(t.Context(), 600)
		if err != nil {
			t.Fatal(err)
		}
		put(t, c, fmt.Sprintf("services/%s/%d", name, i+1), record(fmt.Sprintf("10.0.0.%d:80", i+1), 1), clientv3.WithLease(l.ID))
		leases = append(leases, l.ID)
	}
	return leases
}

func revoke(t *testing.T, c *clientv3.Client, leases ...clientv3.LeaseID) {
	t.Helper()
	for _, l := range leases {
		if _, err := c.Revoke(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
}

func event1(d *running, part string) bool {
	all, _ := d.events.Since(0)
	for _, e := range all {
		if strings.Contains(e.Detail, part) {
			return true
		}
	}
	return false
}

// Leases that end one after another look like expiry: all that they took is kept, also what went before the list had shrunk enough to be suspicious (1.9). A word of the
// second witness, of a person, or the key itself ends it (1.10).
func TestMassExpiry(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	leases := leased(t, c, "user", 5)
	d := start(t, setup{Etcd: etcdAt(s)}, guarded("user"))
	d.waitStars(t, "user", "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5")
	revoke(t, c, leases[:4]...)
	d.waitStars(t, "user", "10.0.0.1* 10.0.0.2* 10.0.0.3* 10.0.0.4* 10.0.0.5")
	if !event1(d, "lost their keys at once (") {
		t.Error("no event")
	}
	put(t, c, "services/user/1", record("10.0.0.1:80", 1))
	d.waitStars(t, "user", "10.0.0.1 10.0.0.2* 10.0.0.3* 10.0.0.4* 10.0.0.5")
	d.Gone("user", mustAddr("10.0.0.2:80"), "connection refused")
	d.Gone("user", mustAddr("10.0.0.5:80"), "connection refused") // no orphan
	d.Gone("nobody", mustAddr("10.0.0.5:80"), "connection refused")
	d.waitStars(t, "user", "10.0.0.1 10.0.0.3* 10.0.0.4* 10.0.0.5")
	if !event1(d, "1 orphan left (10.0.0.2:80): connection refused") {
		t.Error("no event")
	}
	gone, err := d.Accept("user")
	if want := []netip.AddrPort{mustAddr("10.0.0.3:80"), mustAddr("10.0.0.4:80")}; err != nil || !slices.Equal(gone, want) {
		t.Errorf("accepted %v, error %v", gone, err)
	}
	d.waitStars(t, "user", "10.0.0.1 10.0.0.5")
	if gone, err := d.Accept("user"); err != nil || len(gone) != 0 {
		t.Errorf("accepted %v, error %v", gone, err)
	}
	if _, err := d.Accept("nobody"); !errors.Is(err, errNotFollowed) {
		t.Errorf("error %v", err)
	}
}

// Keys that somebody deletes while their leases live on, or that have no lease, were taken out on purpose: the list is believed at once (1.9).
func TestDeletedOnPurpose(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	leases := leased(t, c, "user", 20)
	put(t, c, "services/plain/1", record("10.0.0.1:80", 1))
	put(t, c, "services/plain/2", record("10.0.0.2:80", 1))
	d := start(t, setup{Etcd: etcdAt(s)}, guarded("user"), guarded("plain"))
	eventually(t, time.Minute, "both lists", func() bool {
		return d.last("plain") != nil && d.last("user") != nil && len(d.last("user").Backends) == 20
	})
	del(t, c, "services/", clientv3.WithPrefix())
	d.waitStars(t, "user", "")
	d.waitStars(t, "plain", "")

	// Two on purpose, the others not, and no key to tell the one from the other but its lease.
	d.Remove("user")
	put(t, c, "services/some/1", record("10.0.0.1:80", 1), clientv3.WithLease(leases[0]))
	put(t, c, "services/some/2", record("10.0.0.2:80", 1), clientv3.WithLease(leases[1]))
	var short []clientv3.LeaseID
	for i := 3; i <= 9; i++ {
		put(t, c, fmt.Sprintf("services/some/%d", i), record(fmt.Sprintf("10.0.0.%d:80", i), 1), clientv3.WithLease(leases[i]))
		if i > 3 {
			short = append(short, leases[i])
		}
	}
	d.Set(guarded("some"))
	eventually(t, time.Minute, "the list", func() bool { return d.last("some") != nil && len(d.last("some").Backends) == 9 })
	del(t, c, "services/some/1")
	del(t, c, "services/some/2")
	revoke(t, c, short...)
	d.waitStars(t, "some", "10.0.0.3 10.0.0.4* 10.0.0.5* 10.0.0.6* 10.0.0.7* 10.0.0.8* 10.0.0.9*")
}

// A key that was written again under another lease, with the same value, makes no list; but its new lease is the one that counts (1.9).
func TestLeaseOfLastWrite(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	leases := leased(t, c, "user", 2)
	d := start(t, setup{Etcd: etcdAt(s)}, guarded("user"))
	d.waitStars(t, "user", "10.0.0.1 10.0.0.2")
	for i := range 2 {
		l, err := c.Grant(t.Context(), 600)
		if err != nil {
			t.Fatal(err)
		}
		put(t, c, fmt.Sprintf("services/user/%d", i+1), record(fmt.Sprintf("10.0.0.%d:80", i+1), 1), clientv3.WithLease(l.ID))
	}
	revoke(t, c, leases...)
	put(t, c, "services/user/3", record("10.0.0.3:80", 1))
	d.waitStars(t, "user", "10.0.0.1 10.0.0.2 10.0.0.3")
	if n := len(d.all("user")); n != 2 {
		t.Fatalf("%d lists", n)
	}
	del(t, c, "services/user/", clientv3.WithPrefix())
	d.waitStars(t, "user", "")
}

// Orphans outlive the agent, with their since; and the first list is compared with the spool (1.10).
func TestOrphansInSpool(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	leases := leased(t, c, "user", 4)
	dir := t.TempDir()
	first := start(t, setup{Etcd: etcdAt(s), SpoolDir: dir}, guarded("user"))
	first.waitStars(t, "user", "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4")
	revoke(t, c, leases[:3]...)
	was := first.waitStars(t, "user", "10.0.0.1* 10.0.0.2* 10.0.0.3* 10.0.0.4")
	first.stop()

	second := start(t, setup{Etcd: etcdAt(s), SpoolDir: dir}, guarded("user"))
	if l := second.last("user"); stars(l) != stars(was) || !l.Backends[0].Orphaned.Equal(was.Backends[0].Orphaned) { // before Run has done anything
		t.Fatalf("list %+v", l)
	}
	eventually(t, time.Minute, "the list from etcd", func() bool { return second.last("user").Source == service.FromEtcd })
	if l := second.last("user"); stars(l) != stars(was) || !l.Backends[0].Orphaned.Equal(was.Backends[0].Orphaned) {
		t.Errorf("list %+v", l)
	}
	second.stop()
	revoke(t, c, leases[3])

	third := start(t, setup{Etcd: etcdAt(s), SpoolDir: dir}, guarded("user"))
	third.waitStars(t, "user", "10.0.0.1* 10.0.0.2* 10.0.0.3* 10.0.0.4*")
	// Without etcd they leave all the same.
	eventually(t, time.Minute, "the list from etcd", func() bool { return third.last("user").Source == service.FromEtcd })
	s.Stop()
	third.Gone("user", mustAddr("10.0.0.2:80"), "connection refused")
	third.waitStars(t, "user", "10.0.0.1* 10.0.0.3* 10.0.0.4*")
	third.stop()
	fourth := start(t, setup{Etcd: etcdAt(s), SpoolDir: dir}, guarded("user"))
	fourth.waitStars(t, "user", "10.0.0.1* 10.0.0.3* 10.0.0.4*")

	// The guard is turned off by a reload.
	fourth.Set(naming("user"))
	fourth.waitStars(t, "user", "")
}

// An etcd that came back without its data: nobody is believed to be gone (1.5, 1.9), in any service, and all watches are made anew, in the new epoch.
func TestRestoredEmpty(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	leased(t, c, "user", 3)
	put(t, c, "services/plain/1", record("10.0.0.9:80", 1)) // without a lease: but in another life that says nothing
	d := start(t, setup{Etcd: etcdAt(s)}, guarded("user"), guarded("plain"))
	was := d.waitStars(t, "user", "10.0.0.1 10.0.0.2 10.0.0.3")
	d.waitStars(t, "plain", "10.0.0.9")
	s.Stop()
	other := etcdtest.Start(t, etcdtest.Config{Addr: s.Addr()})
	l := d.waitStars(t, "user", "10.0.0.1* 10.0.0.2* 10.0.0.3*")
	p := d.waitStars(t, "plain", "10.0.0.9*")
	if l.Epoch != was.Epoch+1 || p.Epoch != l.Epoch || d.Status().Epochs != 1 {
		t.Errorf("epochs %d and %d after %d, %d changes", l.Epoch, p.Epoch, was.Epoch, d.Status().Epochs)
	}
	oc := etcdtest.NewClient(t, other)
	put(t, oc, "services/user/2", record("10.0.0.2:80", 1))
	put(t, oc, "services/plain/1", record("10.0.0.9:80", 1))
	d.waitStars(t, "user", "10.0.0.1* 10.0.0.2 10.0.0.3*")
	d.waitStars(t, "plain", "10.0.0.9")
}

// remove deletes keys from a fake etcd, as one transaction.
func (e *fakeEtcd) remove(keys ...string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.revision++
	var events []*mvccpb.Event
	for _, k := range keys {
		delete(e.keys, k)
		events = append(events, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(k), ModRevision: e.revision}})
	}
	for w := range e.watches {
		w.send(etcd.Response{Header: e.header(), Events: events})
	}
}

// fakeLeased is a fake etcd with n backends of a service, each with a lease.
func fakeLeased(n int) (e *fakeEtcd, keys []string) {
	e = newFakeEtcd()
	e.leases = map[int64]bool{}
	for i := range n {
		k := fmt.Sprintf("services/user/%d", i+1)
		e.put(k, record(fmt.Sprintf("10.0.%d.%d:80", i>>8, i&255), 1))
		e.keys[k].Lease = int64(i + 1)
		keys = append(keys, k)
	}
	return e, keys
}

// Leases are asked for within a second in all; who isn't answered for is kept (1.9). The list that there was goes on meanwhile.
func TestLeasesHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, keys := fakeLeased(50)
		e.leaseHang = true
		d := startFake(t, e, setup{}, guarded("user"))
		e.remove(keys[:40]...)
		advance(t, leaseAskFor-time.Millisecond)
		if n := len(d.all("user")); n != 1 {
			t.Errorf("%d lists", n)
		}
		advance(t, time.Millisecond)
		if got := strings.Count(stars(d.last("user")), "*"); got != 40 {
			t.Errorf("%d orphans", got)
		}
	})
}

// Of thousands of leases a few are asked for, if they agree: each agent of a fleet asks (1.9).
func TestLeasesSampled(t *testing.T) {
	for name, c := range map[string]struct {
		live          func(i int) bool
		orphans, most int
	}{
		"all dead":   {func(int) bool { return false }, 900, leaseSamples},
		"all live":   {func(int) bool { return true }, 0, leaseSamples},
		"some live":  {func(i int) bool { return i%2 == 0 }, 450, 900},
		"no answers": {nil, 900, 900},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e, keys := fakeLeased(1000)
				if c.live == nil {
					e.leaseErr = errors.New("etcdserver: permission denied")
				}
				for i := range keys {
					e.leases[int64(i+1)] = c.live != nil && c.live(i)
				}
				d := startFake(t, e, setup{}, guarded("user"))
				e.remove(keys[:900]...)
				advance(t, leaseAskFor)
				if got := strings.Count(stars(d.last("user")), "*"); got != c.orphans {
					t.Errorf("%d orphans, want %d", got, c.orphans)
				}
				if n := e.seen().leases; n > c.most {
					t.Errorf("%d questions", n)
				}
			})
		})
	}
}

// hold ends once the list has half its size again; until then a person is told every 10 min (1.10), whether etcd answers or not.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, keys := fakeLeased(4)
		d := startFake(t, e, setup{}, guarded("user"))
		e.remove(keys[:3]...)
		synctest.Wait()
		e.disconnect()
		advance(t, 31*time.Minute)
		if got := stars(d.last("user")); got != "10.0.0.0* 10.0.0.1* 10.0.0.2* 10.0.0.3" {
			t.Errorf("list %q", got)
		}
		reminders := 0
		all, _ := d.events.Since(0)
		for _, ev := range all {
			if strings.Contains(ev.Detail, "`lbagent accept user`") {
				reminders++
			}
		}
		if reminders != 3 {
			t.Errorf("%d reminders", reminders)
		}
		e.connect()
		e.put(keys[0], record("10.0.0.0:80", 1))
		advance(t, time.Minute)
		if got := stars(d.last("user")); got != "10.0.0.0 10.0.0.3" { // 31 min are more than hold
			t.Errorf("list %q", got)
		}
	})
}

// What an audit finds (1.6), on a watch that gets its progress, so that no silence would show it (1.3).
func TestAudit(t *testing.T) {
	for name, lose := range map[string]func(e *fakeEtcd){
		"put": func(e *fakeEtcd) {
			e.revision++
			e.keys["services/user/b"] = fakeKey(e, "services/user/b", "10.0.0.2:80")
		},
		"delete": func(e *fakeEtcd) { e.revision++; delete(e.keys, "services/user/a") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newFakeEtcd()
				e.put("services/user/a", record("10.0.0.1:80", 1))
				d := startFake(t, e, setup{}, naming("user"))
				e.set(func() { lose(e) })
				want := map[string]string{"put": "10.0.0.1:80 10.0.0.2:80", "delete": ""}[name]
				advance(t, auditEvery*3/2+20*time.Second)
				s := d.Status()
				if got := addrs(d.last("user")); got != want || s.Repairs != 1 || s.Audits < 1 {
					t.Errorf("list %q, want %q; %d audits, %d repairs", got, want, s.Audits, s.Repairs)
				}
				advance(t, time.Hour)
				if n := d.Status(); n.Repairs != 1 || n.Audits < 4 || len(e.seen().reads) != 2 {
					t.Errorf("%d audits, %d repairs, %d reads", n.Audits, n.Repairs, len(e.seen().reads))
				}
			})
		})
	}
}

func fakeKey(e *fakeEtcd, key, addr string) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{Key: []byte(key), Value: []byte(record(addr, 1)), CreateRevision: e.revision, ModRevision: e.revision}
}

package discovery

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Put, replace and delete arrive; garbage hides only itself (1.7); a record that is out of service is draining (1.11).
func TestFollow(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("10.0.0.1:80", 5))
	put(t, c, "services/user2/a", record("10.0.0.9:80", 5)) // a neighbour whose name begins the same
	d := start(t, setup{Etcd: etcdAt(s)}, naming("user"))

	l := d.waitAddrs(t, "user", "10.0.0.1:80")
	if l.Source != service.FromEtcd || l.Epoch == 0 || l.Revision < 2 || l.Backends[0].Weight != 5 || l.Backends[0].Key != "services/user/a" {
		t.Errorf("list %+v", l)
	}
	rev := put(t, c, "services/user/b", record("[2001:db8::1]:80", 100))
	if l = d.waitAddrs(t, "user", "10.0.0.1:80", "[2001:db8::1]:80"); l.Revision != rev || l.Backends[1].Created != rev || l.Backends[1].Modified != rev {
		t.Errorf("revision %d, want %d: %+v", l.Revision, rev, l)
	}
	put(t, c, "services/user/bad", "garbage")
	eventually(t, time.Minute, "the bad record is counted", func() bool { return d.last("user").BadCount == 1 })
	if l = d.last("user"); len(l.Backends) != 2 || l.Bad[0].Key != "services/user/bad" || !strings.Contains(l.Bad[0].Reason, "not JSON") {
		t.Errorf("with a bad record: %+v", l)
	}
	put(t, c, "services/user/bad", record("10.0.0.3:80", 0))
	if l = d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.3:80", "[2001:db8::1]:80"); l.BadCount != 0 || !l.Backends[1].Draining {
		t.Errorf("after the bad record was put right: %+v", l)
	}
	del(t, c, "services/user/b")
	d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.3:80")
	put(t, c, "services/user/a", record("10.0.0.4:80", 1)) // the key names another address
	d.waitAddrs(t, "user", "10.0.0.3:80", "10.0.0.4:80")
	del(t, c, "services/user/", clientv3.WithPrefix())
	d.waitAddrs(t, "user")

	st := d.Status()
	if !st.Configured || !st.Connected || st.LastError != "" || st.Reads != 1 || st.LastContact.IsZero() {
		t.Errorf("status %+v", st)
	}
}

// A backend leaves with its last key; its data is that of the key written last (1.1).
func TestSameAddressTwice(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("10.0.0.1:80", 1))
	put(t, c, "services/user/b", record("10.0.0.1:80", 2))
	d := start(t, setup{Etcd: etcdAt(s)}, naming("user"))
	weight := func(want uint32) func() bool {
		return func() bool {
			l := d.last("user")
			return l != nil && len(l.Backends) == 1 && l.Backends[0].Weight == want
		}
	}
	eventually(t, time.Minute, "the data of b", weight(2))
	put(t, c, "services/user/a", record("10.0.0.1:80", 3))
	eventually(t, time.Minute, "the data of a", weight(3))
	del(t, c, "services/user/a")
	eventually(t, time.Minute, "the data of b again", weight(2))
	del(t, c, "services/user/b")
	d.waitAddrs(t, "user")
}

// A process that was restarted has the same address and another CreateRevision (1.1), also when delete and put come as one.
func TestRestartedBackend(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("10.0.0.1:80", 1))
	d := start(t, setup{Etcd: etcdAt(s)}, naming("user"))
	before := d.waitAddrs(t, "user", "10.0.0.1:80").Backends[0].Created
	del(t, c, "services/user/a")
	rev := put(t, c, "services/user/a", record("10.0.0.1:80", 1))
	eventually(t, time.Minute, "the new CreateRevision", func() bool {
		l := d.last("user")
		return len(l.Backends) == 1 && l.Backends[0].Created == rev
	})
	if before == rev {
		t.Error("the test has no restart")
	}
}

// The same value put again is nothing that a caller sees.
func TestWrittenAgain(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("10.0.0.1:80", 1))
	d := start(t, setup{Etcd: etcdAt(s)}, naming("user"))
	d.waitAddrs(t, "user", "10.0.0.1:80")
	for range 10 {
		put(t, c, "services/user/a", record("10.0.0.1:80", 1))
	}
	put(t, c, "services/user/b", record("10.0.0.2:80", 1))
	d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80")
	if n := len(d.all("user")); n != 2 {
		t.Errorf("%d lists, want 2", n)
	}
}

func TestLeaseExpires(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	lease, err := c.Grant(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	put(t, c, "services/user/a", record("10.0.0.1:80", 1), clientv3.WithLease(lease.ID))
	d := start(t, setup{Etcd: etcdAt(s)}, naming("user"))
	d.waitAddrs(t, "user", "10.0.0.1:80")
	d.waitAddrs(t, "user")
}

// Pages: more keys than one has, read at one revision while others are written.
func TestPages(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	all := fill(t, c, "services/user/", 2*pageSize+7)
	d := start(t, setup{Etcd: etcdAt(s)}, naming("user"))
	put(t, c, "services/user/0", record("10.99.0.1:80", 1))
	del(t, c, "services/user/10.0.0.0:80")
	eventually(t, time.Minute, "all backends", func() bool {
		l := d.last("user")
		return l != nil && len(l.Backends) == len(all) && l.Backends[0].Addr.String() == "10.0.0.1:80" && l.Backends[len(all)-1].Addr.String() == "10.99.0.1:80"
	})
}

// A burst becomes few lists, not one per event: here 1,000 puts that come at once, since the network was held up.
func TestBurst(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	proxy := etcdtest.StartProxy(t, s.Addr())
	d := start(t, setup{Etcd: &etcd.Config{Endpoints: []string{proxy.Addr()}}}, naming("user"))
	d.waitAddrs(t, "user")
	proxy.Pause()
	const n = 300
	for i := range n {
		put(t, c, fmt.Sprintf("services/user/%d", i), record(fmt.Sprintf("10.0.%d.%d:80", i>>8, i&255), 1))
	}
	proxy.Resume()
	eventually(t, time.Minute, "all backends", func() bool { return len(d.last("user").Backends) == n })
	lists := len(d.all("user"))
	t.Logf("%d lists for %d events", lists, n)
	if lists > n/4 {
		t.Errorf("%d lists for %d events", lists, n)
	}
}

// A change reaches OnList in milliseconds.
func TestLatency(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	d := start(t, setup{Etcd: etcdAt(s)}, naming("user"))
	d.waitAddrs(t, "user")
	best := time.Hour
	for i := range 20 {
		addr := fmt.Sprintf("10.0.0.%d:80", i+1)
		begin := time.Now()
		put(t, c, "services/user/a", record(addr, 1))
		d.waitAddrs(t, "user", addr)
		best = min(best, time.Since(begin))
	}
	t.Logf("put to OnList: %v at best", best)
	if best > 200*time.Millisecond {
		t.Errorf("put to OnList takes %v at best", best)
	}
}

// 50,000 keys: read whole, and one change after that.
func TestLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	n := 50000
	if raced {
		n = 8000 // nine pages; the detector makes the others cost the most of this package's time, and they show nothing new
	}
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	fill(t, c, "services/user/", n)
	begin := time.Now()
	d := start(t, setup{Etcd: etcdAt(s), SpoolDir: t.TempDir()}, naming("user"))
	eventually(t, 60*time.Second, "all backends", func() bool { l := d.last("user"); return l != nil && len(l.Backends) == n })
	t.Logf("read %d keys in %v", n, time.Since(begin))
	begin = time.Now()
	put(t, c, "services/user/one", record("192.0.2.1:80", 1))
	eventually(t, time.Minute, "the change", func() bool { return len(d.last("user").Backends) == n+1 })
	t.Logf("one change in %v", time.Since(begin))
	d.stop()
	again := start(t, setup{SpoolDir: d.cfg.SpoolDir}, naming("user"))
	if l := again.last("user"); l == nil || len(l.Backends) != n+1 {
		t.Error("the spool has not all")
	}
}

// On an etcd where nothing happens, watches from the revision of the read answer progress (1.2), all of one stream together. etcd drops a request that comes before
// it has caught up with a new watch, which takes it up to 100 ms, so one is not enough here.
func TestProgressOnQuietEtcd(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	rev := put(t, c, "services/user/a", record("10.0.0.1:80", 1))
	cl, err := etcd.Dial(t.Context(), *etcdAt(s), func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var watches []<-chan etcd.Response
	for _, prefix := range []string{"services/a/", "services/b/", "services/c/"} {
		w := cl.Watch(ctx, prefix, rev)
		if r := <-w; !r.Created {
			t.Fatalf("first response %+v", r)
		}
		watches = append(watches, w)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for i := 0; i < len(watches); {
		select {
		case r, ok := <-watches[i]:
			if !ok || r.Err != nil || r.Created || len(r.Events) > 0 || r.Header.Revision != rev {
				t.Fatalf("watch %d: %+v", i, r)
			}
			i++
		case <-tick.C:
			if err := cl.Progress(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A page that is too large for one message is read in smaller ones: the real client says so in the words that isTooLarge looks for.
func TestPageTooLarge(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	fill(t, c, "services/user/", 400)
	small, err := clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), Logger: zap.NewNop(), MaxCallRecvMsgSize: 8 << 10, MaxCallSendMsgSize: 8 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	l := etcd.NewLink(t.Context(), etcd.Wrap(small))
	dec, err := format.New("grpc-naming", nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := read(t.Context(), l, dec, "services/user/")
	if err != nil || len(got.records.shown) != 400 {
		t.Errorf("%d backends, error %v", len(got.records.shown), err)
	}
}

// What a whole read found is what the cheap read after a silence says (1.3), whatever has happened to the keys.
func TestNewestAgreesWithRead(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	cl, err := etcd.Dial(t.Context(), *etcdAt(s), func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	l := etcd.NewLink(t.Context(), cl)
	dec, err := format.New("grpc-naming", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		switch i % 5 {
		case 1:
			put(t, c, fmt.Sprintf("services/user/%d", i%7), "garbage")
		case 4:
			del(t, c, fmt.Sprintf("services/user/%d", i%6))
		default:
			put(t, c, fmt.Sprintf("services/user/%d", i), record(fmt.Sprintf("10.0.0.%d:80", i%4), 1))
		}
		put(t, c, "services/user2/a", "x")
		snap, err := read(t.Context(), l, dec, "services/user/")
		if err != nil {
			t.Fatal(err)
		}
		r, err := cl.Newest(t.Context(), "services/user/")
		if err != nil {
			t.Fatal(err)
		}
		count, newest := snap.records.keys()
		if r.Count != int64(count) || len(r.Kvs) != 1 || r.Kvs[0].ModRevision != newest || r.Header.Revision != snap.at.Revision || r.Header.ClusterId != snap.at.Epoch {
			t.Fatalf("step %d: newest says %v, the read %d keys, newest %d, revision %d", i, r, count, newest, snap.at.Revision)
		}
	}
}

// etcd stands still without closing anything, as a host that lost its network: keepalive finds out, and all goes on when it is back (1.3).
func TestEtcdStandsStill(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for keepalive")
	}
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("10.0.0.1:80", 1))
	proxy := etcdtest.StartProxy(t, s.Addr())
	d := start(t, setup{Etcd: &etcd.Config{Endpoints: []string{proxy.Addr()}}}, naming("user"))
	d.waitAddrs(t, "user", "10.0.0.1:80")
	proxy.Pause()
	eventually(t, etcd.KeepaliveTime+etcd.KeepaliveTimeout+10*time.Second, "the loss is seen", func() bool { return !d.Status().Connected })
	put(t, c, "services/user/b", record("10.0.0.2:80", 1))
	proxy.Resume()
	d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80")
	d.never(t, "user", 1)
}

// Nothing is left of services that came and went, nor of a Discovery that ended.
func TestNoGoroutineIsLeft(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	d := start(t, setup{Etcd: etcdAt(s)}, naming("user"))
	d.waitAddrs(t, "user")
	put(t, c, "services/user/a", record("10.0.0.1:80", 1))
	d.waitAddrs(t, "user", "10.0.0.1:80")
	put(t, c, "services/user/b", record("10.0.0.2:80", 1)) // the second for certain by the watch
	d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80")
	before := goroutines()
	for i := range 100 {
		name := fmt.Sprintf("s%d", i)
		put(t, c, "services/"+name+"/a", record("10.0.0.1:80", 1))
		d.Set(naming(name))
		if i%2 == 0 {
			d.waitAddrs(t, name, "10.0.0.1:80")
		}
		d.Remove(name)
	}
	eventually(t, time.Minute, "no more goroutines than before", func() bool { return goroutines() <= before })
	d.Discovery.mu.Lock()
	left := len(d.ending) + len(d.follows)
	d.Discovery.mu.Unlock()
	if left != 1 {
		t.Errorf("%d services are left", left)
	}
	d.stop()
	eventually(t, time.Minute, "none", func() bool { return goroutines() == 0 })
}

// goroutines counts those of this package and of etcd's client, without the tests themselves (parallel ones wait for the others to end); etcd itself starts
// and ends others as it likes.
func goroutines() (n int) {
	buf := make([]byte, 16<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, "testing.tRunner(") {
			continue
		}
		if strings.Contains(stack, "agent/discovery.(") || strings.Contains(stack, "agent/discovery.Test") || strings.Contains(stack, "clientv3.(*watch") {
			n++
		}
	}
	return n
}

// 200 services over one client: one connection, one watch stream.
func TestManyServices(t *testing.T) {
	const n = 200
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	proxy := etcdtest.StartProxy(t, s.Addr())
	var follows []Follow
	for i := range n {
		name := fmt.Sprintf("s%d", i)
		put(t, c, "services/"+name+"/a", record("10.0.0.1:80", 1))
		follows = append(follows, naming(name))
	}
	d := start(t, setup{Etcd: &etcd.Config{Endpoints: []string{"http://" + proxy.Addr()}}}, follows...)
	for _, f := range follows {
		d.waitAddrs(t, f.Name, "10.0.0.1:80")
	}
	for _, f := range follows {
		put(t, c, f.Prefix+"b", record("10.0.0.2:80", 1))
	}
	for _, f := range follows {
		d.waitAddrs(t, f.Name, "10.0.0.1:80", "10.0.0.2:80")
	}
	if got := proxy.Accepted(); got != 1 {
		t.Errorf("%d connections, want 1", got)
	}
}

// Set and Remove at runtime (1.15).
func TestSetAndRemove(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("10.0.0.1:80", 1))
	put(t, c, "other/user/a", "10.0.0.2:80")
	d := start(t, setup{Etcd: etcdAt(s)})
	d.Set(naming("user"))
	d.waitAddrs(t, "user", "10.0.0.1:80")
	reads := d.Status().Reads
	d.Set(naming("user"))
	d.Set(Follow{Name: "user", Prefix: "other/user", Format: "plain"}) // a prefix ends in / (1.2)
	d.waitAddrs(t, "user", "10.0.0.2:80")
	if got := d.Status().Reads; got != reads+1 {
		t.Errorf("%d reads, want %d: Set of the same again must do nothing", got, reads+1)
	}
	d.Set(Follow{Name: "user", Static: []service.Backend{{Addr: d.last("user").Backends[0].Addr}}})
	eventually(t, time.Minute, "the static list", func() bool { return d.last("user").Source == service.FromStatic })
	d.Set(naming("user"))
	d.waitAddrs(t, "user", "10.0.0.1:80")
	d.Remove("user")
	d.Remove("user")
	n := len(d.all("user"))
	d.Set(naming("last"))
	put(t, c, "services/user/b", record("10.0.0.3:80", 1))
	put(t, c, "services/last/a", record("10.0.0.1:80", 1))
	d.waitAddrs(t, "last", "10.0.0.1:80")
	if got := len(d.all("user")); got != n {
		t.Errorf("%d lists after Remove", got-n)
	}
	d.Set(Follow{Name: "no/name", Prefix: "x/", Format: "plain"})
	if d.Discovery.follows["no/name"] != nil {
		t.Error("a service with a bad name is followed")
	}
}

// SetEtcd moves to another cluster, and to none; lists stay until there is a better one.
func TestSetEtcd(t *testing.T) {
	one := etcdtest.Start(t, etcdtest.Config{Token: "one"})
	two := etcdtest.Start(t, etcdtest.Config{Token: "two"})
	put(t, etcdtest.NewClient(t, one), "services/user/a", record("10.0.0.1:80", 1))
	put(t, etcdtest.NewClient(t, two), "services/user/a", record("10.0.0.2:80", 1))
	d := start(t, setup{Etcd: etcdAt(one)}, naming("user"))
	first := d.waitAddrs(t, "user", "10.0.0.1:80")
	d.links.Set(etcdAt(two)) // another cluster, as after a move (1.5): another epoch, the new list whole
	second := d.waitAddrs(t, "user", "10.0.0.2:80")
	if first.Epoch == second.Epoch {
		t.Error("two clusters, one epoch")
	}
	d.links.Set(nil)
	eventually(t, time.Minute, "no etcd", func() bool { s := d.Status(); return !s.Configured && !s.Connected })
	if got := addrs(d.last("user")); got != "10.0.0.2:80" {
		t.Errorf("without etcd the list became %q", got)
	}
	for _, l := range d.all("user") {
		if len(l.Backends) == 0 {
			t.Error("an empty list passed")
		}
	}
}

// compact compacts etcd now.
func compact(t testing.TB, s *etcdtest.Server, c *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Compact(ctx, c); err != nil {
		t.Fatal(err)
	}
}

package discovery

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// never fails the test if a list of name had fewer backends than least, after the first list.
func (r *recorder) never(t *testing.T, name string, least int) {
	t.Helper()
	for i, l := range r.all(name) {
		if i > 0 && len(l.Backends) < least {
			t.Errorf("list %d of %s had %d backends: %s", i, name, len(l.Backends), addrs(l))
		}
	}
}

// etcd stops and starts: lists stay, then follow again; etcd being lost and back is told once each (1.4, 1.12).
func TestEtcdRestarts(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("10.0.0.1:80", 1))
	put(t, c, "services/idle/a", record("10.0.1.1:80", 1))
	d := start(t, setup{Etcd: etcdAt(s)}, naming("user"), naming("idle"))
	d.waitAddrs(t, "idle", "10.0.1.1:80")
	d.waitAddrs(t, "user", "10.0.0.1:80")
	for round := range 3 {
		s.Stop()
		eventually(t, time.Minute, "the loss is seen", func() bool { return !d.Status().Connected && d.Status().LastError != "" })
		if got := addrs(d.last("user")); !strings.HasPrefix(got, "10.0.0.1:80") {
			t.Errorf("without etcd: %q", got)
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		put(t, c, "services/user/b", record(fmt.Sprintf("10.0.0.%d:80", round+2), 1))
		d.waitAddrs(t, "user", "10.0.0.1:80", fmt.Sprintf("10.0.0.%d:80", round+2))
		eventually(t, time.Minute, "etcd is back", func() bool { return d.Status().Connected })
	}
	d.never(t, "user", 1)
	if n := len(d.all("idle")); n != 1 {
		t.Errorf("%d lists of a service that nothing happened to", n)
	}
	if st := d.Status(); st.Reconnects < 3 || st.LastError != "" {
		t.Errorf("status %+v", st)
	}
}

// etcd is not there at first.
func TestEtcdComesLate(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("10.0.0.1:80", 1))
	s.Stop()
	d := start(t, setup{Etcd: etcdAt(s)}, naming("user"))
	eventually(t, time.Minute, "the reason", func() bool { return strings.Contains(d.Status().LastError, "refused") })
	if st := d.Status(); st.Connected || d.last("user") != nil {
		t.Errorf("status %+v, list %q", st, addrs(d.last("user")))
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	d.waitAddrs(t, "user", "10.0.0.1:80")
}

// Changes and a compaction while the agent is cut off: the list is read again, and goes from the old to the new one in one step (1.4).
func TestCompactedWhileDisconnected(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	proxy := etcdtest.StartProxy(t, s.Addr())
	for i := range 5 {
		put(t, c, fmt.Sprintf("services/user/%d", i), record(fmt.Sprintf("10.0.0.%d:80", i), 1))
	}
	d := start(t, setup{Etcd: &etcd.Config{Endpoints: []string{proxy.Addr()}}}, naming("user"))
	d.waitAddrs(t, "user", "10.0.0.0:80", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80")
	proxy.Cut()
	eventually(t, time.Minute, "the loss is seen", func() bool { return !d.Status().Connected })
	del(t, c, "services/user/", clientv3.WithPrefix())
	for i := range 4 {
		put(t, c, fmt.Sprintf("services/user/%d", i), record(fmt.Sprintf("10.0.1.%d:80", i), 1))
	}
	compact(t, s, c)
	proxy.Heal()
	d.waitAddrs(t, "user", "10.0.1.0:80", "10.0.1.1:80", "10.0.1.2:80", "10.0.1.3:80")
	if n := len(d.all("user")); n != 2 {
		t.Errorf("%d lists, want 2", n)
	}
}

// The watch of a service that fell behind a compaction ends, and the list is read again.
func TestCompactedWatch(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("10.0.0.1:80", 1))
	put(t, c, "services/user/a", record("10.0.0.2:80", 1))
	compact(t, s, c)
	cl, err := etcd.Dial(t.Context(), *etcdAt(s), func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var last error
	for r := range cl.Watch(t.Context(), "services/user/", 1) {
		last = r.Err
	}
	if last == nil || !strings.Contains(last.Error(), "compacted") {
		t.Errorf("the watch ended with %v", last)
	}
}

// An etcd restored from nothing has other data, lower revisions, and the same cluster id: what it has is the list, in one step, in another epoch (1.5).
func TestEtcdReplaced(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	for i := range 50 {
		put(t, c, "services/user/a", record(fmt.Sprintf("10.0.0.%d:80", i), 1))
	}
	d := start(t, setup{Etcd: etcdAt(s)}, naming("user"))
	first := d.waitAddrs(t, "user", "10.0.0.49:80")
	s.Stop()
	other := etcdtest.Start(t, etcdtest.Config{Addr: s.Addr()})
	put(t, etcdtest.NewClient(t, other), "services/user/b", record("10.0.1.1:80", 1))
	// Its first reads may come before the put: an empty list is what etcd had then.
	l := d.waitAddrs(t, "user", "10.0.1.1:80")
	if l.Revision >= first.Revision || l.Epoch != first.Epoch+1 {
		t.Errorf("revision %d after %d, epoch %d after %d", l.Revision, first.Revision, l.Epoch, first.Epoch)
	}
}

// A restart while etcd is down begins with the spool, and goes on with etcd when it is back (1.8, 1.12).
func TestStartFromSpool(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("10.0.0.1:80", 7))
	put(t, c, "services/user/b", "garbage")
	dir := t.TempDir()
	first := start(t, setup{Etcd: etcdAt(s), SpoolDir: dir}, naming("user"))
	was := first.waitAddrs(t, "user", "10.0.0.1:80")
	first.stop()
	s.Stop()

	second := start(t, setup{Etcd: etcdAt(s), SpoolDir: dir}, naming("user"))
	l := second.last("user") // before Run has done anything
	if addrs(l) != "10.0.0.1:80" || l.Source != service.FromSpool || l.Revision != was.Revision || l.Epoch != was.Epoch || l.Backends[0].Weight != 7 ||
		l.BadCount != 1 || l.Backends[0].Created != was.Backends[0].Created {
		t.Fatalf("list %+v", l)
	}
	if age := time.Since(l.Confirmed); age <= 0 || age > time.Minute {
		t.Errorf("age %v", age)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the list from etcd", func() bool { return second.last("user").Source == service.FromEtcd })
	if l = second.last("user"); addrs(l) != "10.0.0.1:80" || len(second.all("user")) != 2 {
		t.Errorf("%d lists, the last %+v", len(second.all("user")), l)
	}
}

// A service that is asked for while the agent runs gets its spooled list at once, without etcd.
func TestSetReadsSpool(t *testing.T) {
	dir := t.TempDir()
	follows := spoolFull(t, dir, 2, 3)
	d := start(t, setup{Etcd: &etcd.Config{Endpoints: []string{"127.0.0.1:1"}}, SpoolDir: dir}, follows[0])
	d.Set(follows[1])
	eventually(t, time.Minute, "the list", func() bool { return d.last(follows[1].Name) != nil })
	if l := d.last(follows[1].Name); l.Source != service.FromSpool || len(l.Backends) != 3 {
		t.Errorf("list %+v", l)
	}
	if all, _ := d.events.Since(0); len(all) == 0 || !strings.Contains(all[0].Detail, "spool") {
		t.Errorf("events %+v", all)
	}
}

// Random puts, deletes, compactions, cuts and restarts: whenever it is quiet, the list becomes what etcd has. How soon is for TestRandom to judge, which
// knows what the machine is capable of.
func TestModel(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	proxy := etcdtest.StartProxy(t, s.Addr())
	d := start(t, setup{Etcd: &etcd.Config{Endpoints: []string{"http://" + proxy.Addr()}}, SpoolDir: t.TempDir()}, naming("user"))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	steps, slowest := 60, time.Duration(0)
	if raced {
		steps = 30
	}
	for step := range steps {
		for range 1 + rng.IntN(10) {
			key := fmt.Sprintf("services/user/%d", rng.IntN(20))
			switch rng.IntN(4) {
			case 0:
				del(t, c, key)
			case 1:
				put(t, c, key, "garbage")
			default:
				put(t, c, key, record(fmt.Sprintf("10.0.0.%d:80", rng.IntN(12)), 1+rng.IntN(3)))
			}
		}
		switch rng.IntN(8) {
		case 0:
			compact(t, s, c)
		case 1:
			if err := s.Restart(); err != nil {
				t.Fatal(err)
			}
		case 2:
			proxy.Cut()
			put(t, c, "services/user/0", record("10.0.0.99:80", 1))
			compact(t, s, c)
			proxy.Heal()
		case 3:
			d.Set(Follow{Name: "user", Prefix: "services/user/", Format: []string{"grpc-naming", "plain"}[rng.IntN(2)]})
			d.Set(naming("user"))
		}
		want := truth(t, c)
		begin := time.Now()
		eventually(t, time.Minute, fmt.Sprintf("step %d: %s", step, want), func() bool { return describe(d.last("user")) == want })
		slowest = max(slowest, time.Since(begin))
	}
	t.Logf("right after %v at most", slowest)
}

// truth is what the list should say, worked out from a plain read.
func truth(t *testing.T, c *clientv3.Client) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := c.Get(ctx, "services/user/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	return describeKeys(t, r.Kvs)
}

// describeKeys is the list that keys say, worked out in another way than discovery does.
func describeKeys(t *testing.T, keys []*mvccpb.KeyValue) string {
	t.Helper()
	best := map[string]*service.Backend{}
	bad := 0
	for _, kv := range keys {
		var r struct {
			Op       int
			Addr     string
			Metadata struct{ Weight uint32 }
		}
		if err := json.Unmarshal(kv.Value, &r); err != nil {
			bad++
			continue
		}
		b := &service.Backend{Key: string(kv.Key), Created: kv.CreateRevision, Modified: kv.ModRevision, Addr: mustAddr(r.Addr), Weight: r.Metadata.Weight, Draining: r.Op == 1}
		if o := best[r.Addr]; o == nil || b.Modified > o.Modified {
			best[r.Addr] = b
		}
	}
	l := &service.List{BadCount: bad}
	for _, b := range best {
		l.Backends = append(l.Backends, b)
	}
	slices.SortFunc(l.Backends, func(a, b *service.Backend) int { return a.Addr.Compare(b.Addr) })
	return describe(l)
}

// describe is all of a list that etcd decides.
func describe(l *service.List) string {
	if l == nil {
		return "none"
	}
	var out []string
	for _, b := range l.Backends {
		out = append(out, fmt.Sprint(b.Addr, " ", b.Weight, " ", b.Draining, " ", b.Key, " ", b.Created, slices.Sorted(maps.Keys(b.Metadata))))
	}
	return fmt.Sprint(out, " bad ", l.BadCount)
}

package discovery

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/service"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// signs are the addresses of l: orphans with a star, those of the fallback in brackets, draining ones with a d.
func signs(l *service.List) string {
	if l == nil {
		return "none"
	}
	var out []string
	for i := range l.Backends {
		b := l.Backends[i]
		sign := b.Addr.Addr().String()
		if b.Draining {
			sign += "d"
		}
		if !b.Orphaned.IsZero() {
			sign += "*"
		}
		if b.Fallback {
			sign = "(" + sign + ")"
		}
		out = append(out, sign)
	}
	return strings.Join(out, " ")
}

func (r *recorder) waitSigns(t *testing.T, name, want string) *service.List {
	t.Helper()
	ctx := time.After(time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		l := r.last(name)
		if signs(l) == want {
			return l
		}
		select {
		case <-ctx:
			t.Fatalf("%s is %q, not %q", name, signs(l), want)
		case <-tick.C:
		}
	}
}

// 1.9, 1.10 and 1.16: orphans are the service's own, beside its fallback and in the spool; one that is also the fallback's becomes that when it leaves. Those of the
// fallback never are orphans: nothing is lost with them.
func TestOrphansWithFallback(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	leases := leased(t, c, "user", 3)
	far, err := c.Grant(t.Context(), 600)
	if err != nil {
		t.Fatal(err)
	}
	put(t, c, "far/user/a", record("10.0.0.1:80", 5), clientv3.WithLease(far.ID)) // its own, too
	put(t, c, "far/user/b", record("10.0.0.8:80", 5), clientv3.WithLease(far.ID))
	put(t, c, "far/user/c", record("10.0.0.9:80", 5), clientv3.WithLease(far.ID))
	f := guarded("user")
	f.Fallback = &Follow{Prefix: "far/user", Format: "grpc-naming"}
	dir := t.TempDir()
	d := start(t, setup{Etcd: etcdAt(s), SpoolDir: dir}, f)
	d.waitSigns(t, "user", "10.0.0.1 10.0.0.2 10.0.0.3 (10.0.0.8) (10.0.0.9)")
	revoke(t, c, leases...)
	d.waitSigns(t, "user", "10.0.0.1* 10.0.0.2* 10.0.0.3* (10.0.0.8) (10.0.0.9)")
	put(t, c, "far/user/d", record("10.0.0.2:80", 5))
	put(t, c, "far/user/e", record("10.0.0.4:80", 5))
	d.waitSigns(t, "user", "10.0.0.1* 10.0.0.2* 10.0.0.3* (10.0.0.4) (10.0.0.8) (10.0.0.9)")
	d.stop()

	d = start(t, setup{Etcd: etcdAt(s), SpoolDir: dir}, f)
	if got := signs(d.last("user")); got != "10.0.0.1* 10.0.0.2* 10.0.0.3* (10.0.0.4) (10.0.0.8) (10.0.0.9)" {
		t.Errorf("from the spool: %s", got)
	}
	d.Gone("user", mustAddr("10.0.0.1:80"), "connection refused")
	d.waitSigns(t, "user", "(10.0.0.1) 10.0.0.2* 10.0.0.3* (10.0.0.4) (10.0.0.8) (10.0.0.9)")
	revoke(t, c, far.ID)
	d.waitSigns(t, "user", "10.0.0.2* 10.0.0.3* (10.0.0.4)")
	if _, err := d.Accept("user"); err != nil {
		t.Fatal(err)
	}
	d.waitSigns(t, "user", "(10.0.0.2) (10.0.0.4)")
	put(t, c, "services/user/3", record("10.0.0.3:80", 1))
	d.waitSigns(t, "user", "(10.0.0.2) 10.0.0.3 (10.0.0.4)")
}

// 1.9 and 1.11: what drained before a mass expiry isn't kept. An orphan whose key comes back with the mark is listed, and drains; gone again, it is gone.
func TestDrainAndOrphans(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	leases := leased(t, c, "user", 6)
	mark := func(key, addr string, lease clientv3.LeaseID) {
		put(t, c, "services/user/"+key, strings.Replace(record(addr, 1), `"Op":0`, `"Op":1`, 1), clientv3.WithLease(lease))
	}
	mark("1", "10.0.0.1:80", leases[0])
	d := start(t, setup{Etcd: etcdAt(s)}, guarded("user"))
	d.waitSigns(t, "user", "10.0.0.1d 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6")
	revoke(t, c, leases...)
	d.waitSigns(t, "user", "10.0.0.2* 10.0.0.3* 10.0.0.4* 10.0.0.5* 10.0.0.6*")
	l, err := c.Grant(t.Context(), 600)
	if err != nil {
		t.Fatal(err)
	}
	mark("2", "10.0.0.2:80", l.ID)
	d.waitSigns(t, "user", "10.0.0.2d 10.0.0.3* 10.0.0.4* 10.0.0.5* 10.0.0.6*")
	revoke(t, c, l.ID)
	d.waitSigns(t, "user", "10.0.0.3* 10.0.0.4* 10.0.0.5* 10.0.0.6*")
}

// 1.10 and 1.16 without etcd: a service whose fallback was given alone has no orphans, and its first list is no loss.
func TestFallbackAloneIsNoList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, keys := fakeLeased(1)
		e.disconnect()
		f := guarded("user")
		f.Fallback = &Follow{Static: []service.Backend{{Addr: mustAddr("10.9.0.1:80")}, {Addr: mustAddr("10.9.0.2:80")}, {Addr: mustAddr("10.9.0.3:80")}}}
		d := startFake(t, e, setup{}, f)
		advance(t, fallbackAfter)
		if got := signs(d.last("user")); got != "(10.9.0.1) (10.9.0.2) (10.9.0.3)" {
			t.Errorf("alone: %s", got)
		}
		e.connect()
		advance(t, time.Minute)
		if got := signs(d.last("user")); got != "10.0.0.0 (10.9.0.1) (10.9.0.2) (10.9.0.3)" {
			t.Errorf("with etcd: %s", got)
		}
		e.remove(keys...)
		advance(t, time.Minute)
		if got := signs(d.last("user")); got != "10.0.0.0* (10.9.0.1) (10.9.0.2) (10.9.0.3)" {
			t.Errorf("its key is gone: %s", got)
		}
		d.stop()
	})
}

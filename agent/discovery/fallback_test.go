package discovery

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/service"
)

// marked are the addresses of l, those of the fallback in brackets.
func marked(l *service.List) string {
	if l == nil {
		return "none"
	}
	var out []string
	for _, b := range l.Backends {
		if b.Fallback {
			out = append(out, "("+b.Addr.String()+")")
		} else {
			out = append(out, b.Addr.String())
		}
	}
	return strings.Join(out, " ")
}

func (r *running) waitMarked(t *testing.T, name, want string) *service.List {
	t.Helper()
	eventually(t, time.Minute, want, func() bool { return marked(r.last(name)) == want })
	return r.last(name)
}

// 1.16: a fallback's backends come with the list, marked; an address of both is the service's own; both follow etcd, and both are spooled.
func TestFallbackList(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("10.0.0.2:80", 5))
	put(t, c, "far/user/a", record("10.0.0.1:80", 5))
	put(t, c, "far/user/b", record("127.0.0.1:80", 5)) // refused like any other
	f := naming("user")
	f.Fallback = &Follow{Prefix: "far/user", Format: "grpc-naming"}
	static := Follow{Name: "static", Static: []service.Backend{{Addr: mustAddr("10.0.0.5:80")}}, Fallback: &Follow{Static: []service.Backend{{Addr: mustAddr("10.0.0.5:80")}, {Addr: mustAddr("10.0.0.4:80")}}}}
	dir := t.TempDir()
	d := start(t, setup{Etcd: etcdAt(s), SpoolDir: dir}, f, static)
	if l := d.waitMarked(t, "user", "(10.0.0.1:80) 10.0.0.2:80"); l.BadCount != 1 || l.Source != service.FromEtcd {
		t.Errorf("%s, %d bad", l.Source, l.BadCount)
	}
	d.waitMarked(t, "static", "(10.0.0.4:80) 10.0.0.5:80")
	put(t, c, "far/user/c", record("10.0.0.3:80", 5))
	d.waitMarked(t, "user", "(10.0.0.1:80) 10.0.0.2:80 (10.0.0.3:80)")
	put(t, c, "services/user/b", record("10.0.0.3:80", 5))
	d.waitMarked(t, "user", "(10.0.0.1:80) 10.0.0.2:80 10.0.0.3:80")
	del(t, c, "services/user/a")
	d.waitMarked(t, "user", "(10.0.0.1:80) 10.0.0.3:80")
	d.stop()

	d = start(t, setup{SpoolDir: dir}, f)
	if l := d.waitMarked(t, "user", "(10.0.0.1:80) 10.0.0.3:80"); l.Source != service.FromSpool || l.Service != "user" {
		t.Errorf("from the spool: %+v", l)
	}
	d.Set(naming("user")) // without a fallback
	d.waitMarked(t, "user", "10.0.0.3:80")
	d.Set(f)
	d.waitMarked(t, "user", "(10.0.0.1:80) 10.0.0.3:80") // what is wanted again before its file was removed is there again
	for _, l := range d.all("user") {
		if l.Service != "user" {
			t.Errorf("a list of %q", l.Service)
		}
	}
	d.stop()
}

// Without etcd and spool the fallback is given alone, but not at once: a list may be on its way.
func TestFallbackAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, dns := newFakeEtcd(), newFakeDNS()
		dns.set("far.svc", "10.0.0.8")
		e.put("services/user/a", record("10.0.0.2:80", 5))
		e.disconnect()
		f := naming("user")
		f.Fallback = &Follow{Static: []service.Backend{{Addr: mustAddr("10.0.0.1:80")}, {Host: "far.svc", Addr: netip.AddrPortFrom(netip.Addr{}, 80)}}}
		d := startFake(t, e, setup{lookup: dns.lookup}, f)
		advance(t, fallbackAfter-time.Second)
		if l := d.last("user"); l != nil {
			t.Errorf("a list at once: %s", marked(l))
		}
		advance(t, time.Second)
		if l := d.last("user"); marked(l) != "(10.0.0.1:80) (10.0.0.8:80)" || l.Source != service.FromFallback || l.Service != "user" {
			t.Errorf("after 2 s: %s", marked(l))
		}
		dns.set("far.svc", "10.0.0.9")
		advance(t, time.Minute)
		if l := d.last("user"); marked(l) != "(10.0.0.1:80) (10.0.0.9:80)" || l.Source != service.FromFallback {
			t.Errorf("after DNS has changed: %s", marked(l))
		}
		if n := len(d.all("user")); n != 2 {
			t.Errorf("%d lists, want 2", n)
		}
		e.connect()
		advance(t, time.Minute)
		if l := d.last("user"); marked(l) != "(10.0.0.1:80) 10.0.0.2:80 (10.0.0.9:80)" || l.Source != service.FromEtcd {
			t.Errorf("with etcd: %s", marked(l))
		}
		d.stop()
	})
}

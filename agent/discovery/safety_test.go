package discovery

import (
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
)

func ranges(all ...string) (out []netip.Prefix) {
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// 1.14: what is refused by itself, and the narrowest range decides.
func TestRefused(t *testing.T) {
	own := func(a netip.AddrPort) bool { return a == mustAddr("10.0.0.7:9902") || a == mustAddr("127.0.0.1:7001") }
	for _, tt := range []struct {
		addr        string
		allow, deny []netip.Prefix
		want        string
	}{
		{"10.0.0.1:80", nil, nil, ""},
		{"[2001:db8::1]:80", nil, nil, ""},
		{"[fd00::1]:80", nil, nil, ""},
		{"127.0.0.1:80", nil, nil, isLoopback},
		{"127.255.0.1:80", nil, nil, isLoopback},
		{"[::1]:80", nil, nil, isLoopback},
		{"169.254.169.254:80", nil, nil, isLinkLocal},
		{"[fe80::1]:80", nil, nil, isLinkLocal},
		{"[febf::1]:80", nil, nil, isLinkLocal},
		{"[fec0::1]:80", nil, nil, ""},
		{"224.0.0.1:80", nil, nil, isMulticast},
		{"239.1.2.3:80", nil, nil, isMulticast},
		{"[ff02::1]:80", nil, nil, isMulticast},
		{"0.0.0.0:80", nil, nil, isUnspecified},
		{"0.1.2.3:80", nil, nil, isUnspecified},
		{"[::]:80", nil, nil, isUnspecified},
		{"255.255.255.255:80", nil, nil, isUnspecified},
		{"10.0.0.7:9902", nil, nil, isOwnListener},
		{"10.0.0.7:9903", nil, nil, ""},

		{"127.0.0.1:80", ranges("127.0.0.0/8"), nil, ""},
		{"127.0.0.1:80", ranges("127.0.0.1/32"), nil, ""},
		{"127.0.0.2:80", ranges("127.0.0.1/32"), nil, isLoopback},
		{"127.0.0.1:80", ranges("0.0.0.0/0"), nil, isLoopback}, // it names no loopback
		{"[::1]:80", ranges("::/0"), nil, isLoopback},
		{"[::1]:80", ranges("::1/128"), nil, ""},
		{"[::1]:80", ranges("127.0.0.0/8"), nil, isLoopback},
		{"169.254.169.254:80", ranges("169.254.0.0/16"), nil, ""},
		{"[fe80::1]:80", ranges("fe80::/10"), nil, ""},
		{"224.0.0.1:80", ranges("224.0.0.0/4"), nil, ""},
		{"127.0.0.1:7001", ranges("127.0.0.0/8"), nil, isOwnListener}, // a range doesn't name a listener
		{"127.0.0.1:7001", ranges("127.0.0.1/32"), nil, ""},

		{"10.0.0.1:80", nil, ranges("10.0.0.0/8"), isDenied},
		{"11.0.0.1:80", nil, ranges("10.0.0.0/8"), ""},
		{"10.1.0.1:80", ranges("10.1.0.0/16"), ranges("10.0.0.0/8"), ""},
		{"10.1.2.3:80", ranges("10.1.0.0/16"), ranges("10.0.0.0/8", "10.1.2.0/24"), isDenied},
		{"10.0.0.1:80", ranges("10.0.0.0/8"), ranges("10.0.0.0/8"), isDenied},
		{"10.1.0.1:80", ranges("10.1.0.0/16"), ranges("0.0.0.0/0", "::/0"), ""},
		{"10.2.0.1:80", ranges("10.1.0.0/16"), ranges("0.0.0.0/0", "::/0"), isDenied},
		{"[2001:db8::1]:80", ranges("10.1.0.0/16"), ranges("0.0.0.0/0", "::/0"), isDenied},
		{"127.0.0.1:80", nil, ranges("0.0.0.0/0"), isLoopback},
	} {
		f := Follow{Allow: tt.allow, Deny: tt.deny}
		if got := f.refused(mustAddr(tt.addr), own); got != tt.want {
			t.Errorf("%s, allow %v, deny %v: %q, want %q", tt.addr, tt.allow, tt.deny, got, tt.want)
		}
	}
}

// Refused addresses are not in the list but among the bad records; of each kind the first is told, however often lists change.
func TestRefusedIsShown(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("10.0.0.1:80", 5))
	put(t, c, "services/user/b", record("127.0.0.1:80", 5))
	put(t, c, "services/user/c", "garbage")
	f := naming("user")
	f.Deny = ranges("10.9.0.0/16")
	dir := t.TempDir()
	d := start(t, setup{Etcd: etcdAt(s), SpoolDir: dir}, f)
	l := d.waitAddrs(t, "user", "10.0.0.1:80")
	if l.BadCount != 2 || len(l.Bad) != 2 || l.Bad[1].Key != "services/user/b" ||
		l.Bad[1].Reason != "127.0.0.1:80 is refused: a loopback address; allow: says which are meant" {
		t.Errorf("bad records %d %+v", l.BadCount, l.Bad)
	}
	for range 5 {
		put(t, c, "services/user/d", record("127.0.0.2:80", 5))
		put(t, c, "services/user/d", record("10.9.0.1:80", 5))
	}
	put(t, c, "services/user/e", record("10.0.0.2:80", 5))
	if l = d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80"); l.BadCount != 3 || l.Bad[1].Reason != "10.9.0.1:80: denied by deny:" {
		t.Errorf("bad records %d %+v", l.BadCount, l.Bad)
	}
	if told := addressEvents(d.events); len(told) != 2 || !strings.Contains(told[0], "loopback") || !strings.Contains(told[1], "deny") {
		t.Errorf("told %q", told)
	}
	d.stop()

	// The spool is no way around: it had these addresses when they were allowed.
	f.Deny = ranges("10.0.0.1/32")
	d = start(t, setup{SpoolDir: dir}, f)
	if l := d.waitAddrs(t, "user", "10.0.0.2:80"); l.Source != service.FromSpool || l.BadCount != 4 {
		t.Errorf("from the spool: %s, %d bad %+v", l.Source, l.BadCount, l.Bad)
	}
	d.stop()
	f.Deny, f.Allow = nil, ranges("127.0.0.0/8")
	d = start(t, setup{Etcd: etcdAt(s), SpoolDir: dir}, f)
	d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80", "10.9.0.1:80", "127.0.0.1:80")
}

func addressEvents(l *event.Log) (details []string) {
	all, _ := l.Since(0)
	for _, e := range all {
		if e.Kind == event.Address {
			details = append(details, e.Detail)
		}
	}
	return details
}

// Where the agent listens may change while lists stay (a reload): Remake makes them anew, and only those that are others by then.
func TestOwnListeners(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("10.0.0.1:80", 5))
	put(t, c, "services/user/b", record("10.0.0.2:80", 5))
	put(t, c, "services/cart/a", record("10.0.0.1:81", 5))
	var listens atomic.Pointer[netip.AddrPort]
	d := startOwn(t, setup{Etcd: etcdAt(s)}, func(a netip.AddrPort) bool { l := listens.Load(); return l != nil && a == *l }, naming("user"), naming("cart"))
	before := d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80")
	d.waitAddrs(t, "cart", "10.0.0.1:81")
	listens.Store(new(mustAddr("10.0.0.2:80")))
	d.Remake()
	if l := d.last("user"); addrs(l) != "10.0.0.1:80" || l.BadCount != 1 || l.Revision != before.Revision || l.Confirmed.Before(before.Confirmed) {
		t.Errorf("the list %+v", l)
	}
	listens.Store(nil)
	d.Remake()
	d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80")
	if n := len(d.all("cart")); n != 1 {
		t.Errorf("%d lists of a service without change", n)
	}
}

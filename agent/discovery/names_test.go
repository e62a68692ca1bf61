package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
)

// fakeDNS answers lookups in a bubble.
type fakeDNS struct {
	mu sync.Mutex

	hosts   map[string]string // addresses with blanks between them; no entry: no such host
	asked   map[string]int
	running int
	most    int
	delay   time.Duration
}

func newFakeDNS() *fakeDNS { return &fakeDNS{hosts: map[string]string{}, asked: map[string]int{}} }

func (d *fakeDNS) set(host, addrs string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hosts[host] = addrs
}

func (d *fakeDNS) times(host string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[host]
}

func (d *fakeDNS) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	d.mu.Lock()
	d.asked[host]++
	d.running++
	d.most = max(d.most, d.running)
	addrs, delay := d.hosts[host], d.delay
	d.mu.Unlock()
	defer func() { d.mu.Lock(); d.running--; d.mu.Unlock() }()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if addrs == "" {
		return nil, &net.DNSError{Err: "no such host", Name: host, Server: "192.0.2.53:53", IsNotFound: true}
	}
	var out []netip.Addr
	for _, a := range strings.Fields(addrs) {
		out = append(out, netip.MustParseAddr(a))
	}
	return out, nil
}

func nameEvents(l *event.Log) (details []string) {
	all, _ := l.Since(0)
	for _, e := range all {
		if e.Kind == event.Name {
			details = append(details, e.Detail)
		}
	}
	return details
}

// 1.13: every address of a name is a backend that keeps the name, beside literal ones; an address that is there twice has the data of the newest key; a change of
// DNS is a change of the list.
func TestHostNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, dns := newFakeEtcd(), newFakeDNS()
		dns.set("db.svc", "10.0.0.2 10.0.0.1 2001:db8::1 ::ffff:10.0.0.2")
		dns.set("other.svc", "10.0.0.3")
		e.put("services/user/a", record("db.svc:80", 5))
		e.put("services/user/b", record("db.svc:81", 6))
		e.put("services/user/c", record("10.0.0.1:80", 7)) // newer than a
		e.put("services/user/d", record("other.svc:80", 8))
		e.put("services/user/e", record("db.svc:80", 9)) // newer than all
		d := startFake(t, e, setup{lookup: dns.lookup}, naming("user"))
		l := d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.1:81", "10.0.0.2:80", "10.0.0.2:81", "10.0.0.3:80", "[2001:db8::1]:80", "[2001:db8::1]:81")
		for i, want := range []string{"9 db.svc", "6 db.svc", "9 db.svc", "6 db.svc", "8 other.svc", "9 db.svc", "6 db.svc"} {
			if b := l.Backends[i]; fmt.Sprint(b.Weight, " ", b.Host) != want {
				t.Errorf("%s: %d %s, want %s", b.Addr, b.Weight, b.Host, want)
			}
		}
		if n := dns.times("db.svc"); n != 1 {
			t.Errorf("asked %d times for one name", n)
		}
		e.put("services/user/e", record("10.0.0.9:80", 9)) // the name is a's again, and c is newer
		advance(t, nameGather)
		if l = d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.1:81", "10.0.0.2:80", "10.0.0.2:81", "10.0.0.3:80", "10.0.0.9:80", "[2001:db8::1]:80", "[2001:db8::1]:81"); l.Backends[0].Weight != 7 ||
			l.Backends[0].Host != "" || l.Backends[2].Weight != 5 {
			t.Errorf("%+v", l.Backends)
		}
		before := len(d.all("user"))
		dns.set("db.svc", "10.0.0.2")
		advance(t, nameEvery*6/5+time.Second)
		d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.2:81", "10.0.0.3:80", "10.0.0.9:80")
		if n := len(d.all("user")) - before; n != 1 {
			t.Errorf("%d lists for one change of DNS", n)
		}
		advance(t, time.Hour)
		if n := len(d.all("user")) - before; n != 1 {
			t.Errorf("%d lists although DNS says the same", n)
		}
		if n := dns.times("db.svc"); n < 95 || n > 155 { // in 1 h and 37 s
			t.Errorf("asked %d times in an hour", n)
		}
		asked := dns.times("other.svc")
		e.put("services/user/d", record("10.0.0.3:80", 8))
		advance(t, time.Hour)
		if n := dns.times("other.svc"); n != asked {
			t.Error("asked for a name that no record has")
		}
		d.stop()
	})
}

// The last good answer stays when DNS fails, with one event, and what is wrong is in the list; a name that never was resolved leaves the others alone.
func TestNameCannotBeResolved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, dns := newFakeEtcd(), newFakeDNS()
		dns.set("db.svc", "10.0.0.1")
		e.put("services/user/a", record("db.svc:80", 5))
		d := startFake(t, e, setup{lookup: dns.lookup}, naming("user"))
		if l := d.waitAddrs(t, "user", "10.0.0.1:80"); l.LostCount != 0 {
			t.Errorf("lost: %+v", l.Lost)
		}
		answered := time.Now()
		dns.set("db.svc", "")
		advance(t, 10*time.Minute)
		l := d.waitAddrs(t, "user", "10.0.0.1:80")
		if l.LostCount != 1 || l.Lost[0].Host != "db.svc" || l.Lost[0].Cause != "no such host (192.0.2.53:53)" || answered.Sub(l.Lost[0].Answered) > time.Second || time.Since(l.Lost[0].Since) < 9*time.Minute {
			t.Errorf("lost: %d %+v", l.LostCount, l.Lost)
		}
		if n := dns.times("db.svc"); n < 90 {
			t.Errorf("asked %d times in ten minutes of failure", n)
		}
		if n := len(d.all("user")); n != 2 {
			t.Errorf("%d lists, want 2", n)
		}
		e.put("services/user/b", record("never.svc:80", 5))
		advance(t, time.Second)
		if l = d.waitAddrs(t, "user", "10.0.0.1:80"); l.LostCount != 2 {
			t.Errorf("lost: %d %+v", l.LostCount, l.Lost)
		}
		dns.set("db.svc", "10.0.0.2")
		dns.set("never.svc", "10.0.0.3")
		advance(t, 2*nameTellMost)
		if l = d.waitAddrs(t, "user", "10.0.0.2:80", "10.0.0.3:80"); l.LostCount != 0 {
			t.Errorf("lost: %+v", l.Lost)
		}
		told := nameEvents(d.events)
		if len(told) != 2 || !strings.HasPrefix(told[0], "host name db.svc can't be resolved: no such host (192.0.2.53:53); its last answer is kept, addresses: 1, ") ||
			told[1] != "all host names are resolved again" {
			t.Errorf("told %q", told)
		}
		d.stop()
	})
}

// A list of names only waits for the first answers: it is never passed through empty (1.4). If there are none, it is empty, and says why.
func TestFirstListWaitsForNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, dns := newFakeEtcd(), newFakeDNS()
		dns.delay = time.Second
		dns.set("db.svc", "10.0.0.1")
		e.put("services/user/a", record("db.svc:80", 5))
		e.put("services/none/a", record("gone.svc:80", 5))
		d := startFake(t, e, setup{lookup: dns.lookup}, naming("user"), naming("none"))
		if l := d.last("user"); l != nil {
			t.Fatalf("a list before DNS has answered: %s", addrs(l))
		}
		advance(t, 2*time.Second)
		d.waitAddrs(t, "user", "10.0.0.1:80")
		if l := d.waitAddrs(t, "none"); l.LostCount != 1 {
			t.Errorf("lost: %+v", l.Lost)
		}
		// All records move to a name that is new: the old list stays until its answer is there.
		dns.set("new.svc", "10.0.0.2")
		e.put("services/user/a", record("new.svc:80", 5))
		advance(t, 2*time.Second)
		d.waitAddrs(t, "user", "10.0.0.2:80")
		for _, l := range d.all("user") {
			if len(l.Backends) == 0 {
				t.Error("an empty list")
			}
		}
		d.stop()
	})
}

// What DNS says is checked like what etcd says (1.14), for names of the configuration too.
func TestNamesAreChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, dns := newFakeEtcd(), newFakeDNS()
		dns.set("evil.svc", "127.0.0.1 10.0.0.1 169.254.169.254")
		e.put("services/user/a", record("evil.svc:80", 5))
		static := Follow{Name: "static", Static: []service.Backend{{Host: "evil.svc", Addr: netip.AddrPortFrom(netip.Addr{}, 81)}, {Addr: mustAddr("127.0.0.1:82")}}}
		d := startFake(t, e, setup{lookup: dns.lookup}, naming("user"), static)
		if l := d.waitAddrs(t, "user", "10.0.0.1:80"); l.BadCount != 2 || !strings.HasPrefix(l.Bad[0].Reason, `127.0.0.1:80 of "evil.svc" is refused: a loopback address`) {
			t.Errorf("bad: %d %+v", l.BadCount, l.Bad)
		}
		if l := d.waitAddrs(t, "static", "10.0.0.1:81", "127.0.0.1:82"); l.BadCount != 2 || l.Bad[0].Key != "dns:evil.svc" || l.Source != service.FromStatic {
			t.Errorf("bad: %d %+v, source %s", l.BadCount, l.Bad, l.Source)
		}
		d.stop()
	})
}

// After a restart without DNS the addresses are those of the spool, for names of the configuration too, and DNS is asked although etcd is away.
func TestNamesAndSpool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, dns, dir := newFakeEtcd(), newFakeDNS(), t.TempDir()
		dns.set("db.svc", "10.0.0.1 10.0.0.2")
		e.put("services/user/a", record("db.svc:80", 5))
		e.put("services/user/b", record("10.0.0.3:80", 5))
		static := Follow{Name: "static", Static: []service.Backend{{Host: "db.svc", Addr: netip.AddrPortFrom(netip.Addr{}, 81)}}}
		d := startFake(t, e, setup{lookup: dns.lookup, SpoolDir: dir}, naming("user"), static)
		d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
		d.waitAddrs(t, "static", "10.0.0.1:81", "10.0.0.2:81")
		d.stop()

		dns.set("db.svc", "")
		e.disconnect()
		d = startFake(t, e, setup{lookup: dns.lookup, SpoolDir: dir}, naming("user"), static)
		if l := d.all("user"); len(l) == 0 || addrs(l[0]) != "10.0.0.1:80 10.0.0.2:80 10.0.0.3:80" {
			t.Errorf("the spool gave %v", l)
		}
		advance(t, time.Second)
		l := d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
		if l.Source != service.FromSpool || l.LostCount != 1 || l.Lost[0].Answered.IsZero() || l.Backends[0].Host != "db.svc" {
			t.Errorf("from the spool: %s %+v", l.Source, l.Lost)
		}
		if l := d.waitAddrs(t, "static", "10.0.0.1:81", "10.0.0.2:81"); l.Source != service.FromStatic || l.LostCount != 1 {
			t.Errorf("static: %s %+v", l.Source, l.Lost)
		}
		dns.set("db.svc", "10.0.0.4")
		advance(t, time.Minute)
		if l := d.waitAddrs(t, "user", "10.0.0.3:80", "10.0.0.4:80"); l.Source != service.FromSpool || l.LostCount != 0 {
			t.Errorf("from the spool and DNS: %s %+v", l.Source, l.Lost)
		}
		e.connect()
		advance(t, time.Minute)
		if l := d.waitAddrs(t, "user", "10.0.0.3:80", "10.0.0.4:80"); l.Source != service.FromEtcd {
			t.Errorf("source %s", l.Source)
		}
		d.stop()
	})
}

// Whatever records and DNS say: names per service, addresses per name, lookups at once are bounded.
func TestNamesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, dns := newFakeEtcd(), newFakeDNS()
		dns.delay = time.Second
		var many strings.Builder
		for i := range 3 * maxNameAddrs {
			fmt.Fprintf(&many, "10.1.0.%d ", i+1)
		}
		for i := range maxNames + 10 {
			host := fmt.Sprintf("h%d.svc", i)
			dns.set(host, "10.2.0.1")
			if i < 2 {
				dns.set(host, many.String())
			}
			e.put(fmt.Sprintf("services/user/%d", i), record(fmt.Sprintf("%s:%d", host, i+1), 5))
		}
		d := startFake(t, e, setup{lookup: dns.lookup}, naming("user"))
		advance(t, time.Minute)
		l := d.last("user")
		if len(l.Backends) != maxNames-2+2*maxNameAddrs || l.LostCount != 10 || len(l.Lost) != 10 || !strings.Contains(l.Lost[0].Cause, "more than 256") {
			t.Errorf("%d backends, %d lost %+v", len(l.Backends), l.LostCount, l.Lost)
		}
		if dns.most != namesAtOnce {
			t.Errorf("%d lookups at once, want %d", dns.most, namesAtOnce)
		}
		if n := d.names.Load(); n != maxNames {
			t.Errorf("%d names are asked for", n)
		}
		d.Remove("user")
		advance(t, time.Minute)
		if n := d.names.Load(); n != 0 {
			t.Errorf("%d names are asked for without a service", n)
		}
		d.stop()
	})
}

func TestLookupCause(t *testing.T) {
	for want, err := range map[string]error{
		"no such host (192.0.2.1:53)": &net.DNSError{Err: "no such host", Server: "192.0.2.1:53"},
		"no such host":                &net.DNSError{Err: "no such host"},
		"no answer from DNS":          &net.DNSError{Err: "i/o timeout", Server: "192.0.2.1:53", IsTimeout: true},
		"broken":                      errors.New("broken"),
	} {
		if got := lookupCause(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
	if got := lookupCause(fmt.Errorf("x: %w", context.DeadlineExceeded)); got != "no answer from DNS" {
		t.Error(got)
	}
}

// With a real DNS server and a real etcd.
func TestHostNamesForReal(t *testing.T) {
	dns := startDNS(t)
	dns.set("db.lbagent.test.", "10.0.0.1", "10.0.0.2", "2001:db8::1")
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/user/a", record("DB.lbagent.test.:80", 5))
	put(t, c, "services/user/b", record("nosuch.lbagent.test:80", 5))
	d := start(t, setup{Etcd: etcdAt(s), lookup: lookupBy(dns.resolver())}, naming("user"))
	l := d.waitAddrs(t, "user", "10.0.0.1:80", "10.0.0.2:80", "[2001:db8::1]:80")
	if l.Backends[0].Host != "db.lbagent.test" {
		t.Errorf("host %q", l.Backends[0].Host)
	}
	eventually(t, time.Minute, "the name that isn't there is told", func() bool {
		l := d.last("user")
		return l.LostCount == 1 && strings.HasPrefix(l.Lost[0].Cause, "no such host") && len(nameEvents(d.events)) == 1
	})
}

// A name for which the agent had no room is asked for with the next list that is made while there is.
func TestNameFindsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, dns := newFakeEtcd(), newFakeDNS()
		dns.set("db.svc", "10.2.0.1")
		e.put("services/user/a", record("db.svc:80", 5))
		e.put("services/user/b", record("10.2.0.9:80", 5))
		d := startFake(t, e, setup{lookup: dns.lookup}, Follow{Name: "other", Static: []service.Backend{{Addr: mustAddr("10.0.0.5:80")}}})
		d.names.Store(maxAllNames) // other services have them
		d.Set(naming("user"))
		advance(t, time.Minute)
		if l := d.last("user"); l.LostCount != 1 || !strings.Contains(l.Lost[0].Cause, "more than 4096") {
			t.Errorf("without room: %+v", l)
		}
		d.names.Store(0)
		e.put("services/user/b", record("10.2.0.9:80", 6))
		advance(t, time.Minute)
		if l := d.last("user"); l.LostCount != 0 || len(l.Backends) != 2 || dns.times("db.svc") == 0 {
			t.Errorf("with room: %+v", l)
		}
		d.stop()
	})
}

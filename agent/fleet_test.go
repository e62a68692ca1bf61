package agent

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/testneed"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// fleetTest is an etcd with items, and hosts that follow them.
type fleetTest struct {
	t      *testing.T
	server *etcdtest.Server
	client *clientv3.Client
}

func newFleetTest(t *testing.T) *fleetTest {
	t.Helper()
	server := etcdtest.Start(t, etcdtest.Config{})
	return &fleetTest{t, server, etcdtest.NewClient(t, server)}
}

// put writes an item; listen is the port, 0 = none.
func (f *fleetTest) put(key string, port int, backend, more string) {
	f.t.Helper()
	name, _, _ := strings.Cut(key, "/")
	listen := ""
	if port > 0 {
		listen = fmt.Sprintf(", listen: [%d]", port)
	}
	f.raw(key, fmt.Sprintf("{name: %s, backends: [%q]%s%s}", name, backend, listen, more))
}

func (f *fleetTest) raw(key, text string) {
	f.t.Helper()
	if _, err := f.client.Put(f.t.Context(), "/test/fleet/"+key, text); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleetTest) remove(key string) {
	f.t.Helper()
	if _, err := f.client.Delete(f.t.Context(), "/test/fleet/"+key); err != nil {
		f.t.Fatal(err)
	}
}

// host is a host in zone that isn't started.
func (f *fleetTest) host(zone, services string) *daemon {
	f.t.Helper()
	d := &daemon{t: f.t, dir: f.t.TempDir()}
	f.configure(d, zone, services)
	return d
}

func (f *fleetTest) configure(d *daemon, zone, services string) {
	f.t.Helper()
	text := fmt.Sprintf("api: {socket: %[1]s/api.sock, admin_socket: %[1]s/admin/admin.sock}\nadmin: {listen: \"\"}\nstate_dir: %[1]s/state\n"+
		"etcd: {endpoints: [%[2]q], namespace: /test/}\nfleet: {prefix: fleet/}\nnode: {zone: %[3]s}\nservices:\n%[4]s", d.dir, f.server.Endpoint(), zone, services)
	if err := os.WriteFile(d.path(), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// until waits for what the fleet's items do on d.
func (d *daemon) until(what string, ok func() bool) {
	t := d.t
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("never: %s\n%v\n%v", what, d.status().GetFleet(), d.status().GetWarnings())
		}
	}
}

func (d *daemon) warned(text string) bool {
	return strings.Contains(strings.Join(d.status().GetWarnings(), "\n"), text)
}

// TestFleetOnTwoHosts: items come, change and go on all hosts; a variant with only: is on those that it names, and a host's own file wins.
func TestFleetOnTwoHosts(t *testing.T) {
	f := newFleetTest(t)
	one, two, three := backend(t, "one"), backend(t, "two"), backend(t, "three")
	user, own := testneed.Port(t), testneed.Port(t)
	// Two hosts on one machine can't both listen on one port: the second has its own file say so, and is asked by the API's table.
	a := f.host("a", "")
	b := f.host("b", entry("own", own, three))
	f.put("user", user, one, ", only: {zone: [a, c]}")
	f.put("mail", 0, one, "")
	f.put("own", 0, one, "")
	a.open()
	b.open()
	prefix := func(d *daemon, name string) string {
		if e := d.table.Lookup(name); e != nil {
			if v := e.View(); v.Len() > 0 {
				return v.Backend(0).Addr.String()
			}
		}
		return ""
	}
	a.until("user on a", func() bool { return get(user) == "one" })
	a.until("mail on both", func() bool { return prefix(a, "mail") == one && prefix(b, "mail") == one })
	if b.table.Lookup("user") != nil {
		t.Error("user is on b, which only: does not name")
	}
	a.until("own on a", func() bool { return prefix(a, "own") == one })
	hints := func(name, text string) {
		t.Helper()
		b.until("b's hint on "+name, func() bool { return strings.Contains(strings.Join(b.hints(name), ""), text) })
	}
	hints("own", "overridden by this host's own configuration, "+b.path())
	hints("user", "is only for zone a or c")
	if prefix(b, "own") != three {
		t.Errorf("own is %s on b: the file of the host has to win", prefix(b, "own"))
	}

	// A canary beside the item, then everywhere.
	f.put("mail/new", 0, two, ", only: {zone: b}")
	b.until("the canary on b", func() bool { return prefix(b, "mail") == two })
	if prefix(a, "mail") != one {
		t.Error("the canary is on a")
	}
	f.put("mail", 0, two, "")
	f.remove("mail/new")
	a.until("mail changed on a", func() bool { return prefix(a, "mail") == two })
	if prefix(b, "mail") != two {
		t.Error("b went back to the old item")
	}
	f.remove("user")
	a.until("user gone from a", func() bool { return strings.Contains(get(user), "refused") && a.table.Lookup("user") == nil })

	// A reload leaves the fleet's services alone, and the one that the file no longer has is the fleet's then.
	f.configure(b, "b", "")
	lines, err := b.Reload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want(t, "b's reload", strings.Join(lines, "; "), "service own: changed")
	if len(lines) != 1 || prefix(b, "mail") != two {
		t.Errorf("%q; mail %s", lines, prefix(b, "mail"))
	}
	if got := prefix(b, "own"); got != one {
		t.Errorf("own is %s on b after the reload, want the fleet's %s", got, one)
	}
}

// TestFleetBadItems: each item stands for itself: a mistake, or a port that another program of this host has, keeps its last good form, and holds up nobody.
func TestFleetBadItems(t *testing.T) {
	f := newFleetTest(t)
	one, two := backend(t, "one"), backend(t, "two")
	user, mail, more := testneed.Port(t), testneed.Port(t), testneed.Port(t)
	taken := testneed.Port(t)
	other, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", taken))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	d := f.host("a", "")
	f.put("user", user, one, "")
	f.put("never", taken, one, "")
	d.open()
	d.until("user", func() bool { return get(user) == "one" })
	d.until("the warning", func() bool {
		return d.warned(fmt.Sprintf("fleet item never can't be used: service %q: listen on 127.0.0.1:%d", "never", taken))
	})

	d.reload.Lock()
	p, err := d.prepare(d.applied.Load().files)
	d.reload.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	p.change.Abort()
	for _, o := range p.outcomes {
		if o.Again != (o.Key == "never") {
			t.Errorf("%s is tried again: %v", o.Key, o.Again)
		}
	}

	// user moves to the port that is taken: it stays on its own, and mail comes all the same.
	f.put("user", taken, two, "")
	f.put("mail", mail, two, "")
	f.raw("odd", "{name: odd, prefix: odd/, listne: [1]}")
	d.until("mail", func() bool { return get(mail) == "two" })
	d.until("user's warning", func() bool { return d.warned("fleet item user can't be used, its last good form is in force") })
	want(t, "user", get(user), "one")
	d.until("the hint on one that isn't there", func() bool {
		return strings.Contains(strings.Join(d.hints("odd"), ""), `etcd:/test/fleet/odd:1: services[odd].listne: unknown key (did you mean "listen"?)`)
	})

	// A reload of the file goes on with all of it, and is not refused because of it.
	f.configure(d, "a", entry("file", more, one))
	if _, err := d.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "all together", get(user)+get(mail)+get(more), "onetwoone")
	if s := d.status(); !s.GetConfigOk() {
		t.Error("a bad item of the fleet makes the file look bad:", s.GetConfigError())
	}

	// The port is free: the next look finds it so.
	other.Close()
	f.put("never", 0, one, "")
	d.until("user on its new port", func() bool { return get(taken) == "two" })
	d.until("its old port is closed", func() bool { return strings.Contains(get(user), "refused") })
	d.until("nobody is warned of it any more", func() bool { return !d.warned("fleet item user") })

	// What etcd no longer has, all at once, is kept (1.9), and said.
	if _, err := f.client.Delete(t.Context(), "/test/fleet/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	d.until("the warning", func() bool { return d.warned("fleet item mail is no longer in etcd and stays in force") })
	want(t, "mail, held", get(mail), "two")
}

// TestFleetWithoutEtcd: a start without etcd serves what was spooled, bad items in their last good form (1.8).
func TestFleetWithoutEtcd(t *testing.T) {
	f := newFleetTest(t)
	one := backend(t, "one")
	user := testneed.Port(t)
	d := f.host("a", "")
	f.put("user", user, one, "")
	t.Run("first life", func(t *testing.T) {
		life := &daemon{t: t, dir: d.dir}
		life.open()
		life.until("user", func() bool { return get(user) == "one" })
		f.raw("user", "nonsense")
		life.until("the warning", func() bool { return life.warned("its last good form is in force") })
	})
	want(t, "after its end", get(user), "refused")
	f.server.Stop()
	d.open()
	want(t, "at once, without etcd", get(user), "one")
	if s := d.status().GetFleet(); s.GetSource() != "spool" || len(s.GetItems()) != 1 || !s.GetItems()[0].GetLastGood() {
		t.Errorf("status %v", s)
	}
	if err := f.server.Start(); err != nil {
		t.Fatal(err)
	}
	two := backend(t, "two")
	f.put("user", user, two, "")
	d.until("etcd is back, and so are changes", func() bool { return get(user) == "two" })
}

// TestReadyWithTheFleet: 6.4 counts the fleet's services: who waits for readiness finds them.
func TestReadyWithTheFleet(t *testing.T) {
	f := newFleetTest(t)
	one := backend(t, "one")
	user := testneed.Port(t)
	f.put("user", user, one, "")
	d := f.host("a", "")
	d.open()
	d.until("ready", d.ready.Load)
	want(t, "when ready", get(user), "one")
}

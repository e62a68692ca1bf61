package discovery

import (
	"testing"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/service"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestSelectMatches(t *testing.T) {
	b := service.Backend{Zone: "a", Metadata: map[string]string{"role": "primary", "region": "eu", "zone": "hidden", "empty": ""}}
	for _, tt := range []struct {
		name string
		sel  Select
		want bool
	}{
		{"nothing is asked for", nil, true},
		{"one key", Select{"role": {"primary"}}, true},
		{"another value", Select{"role": {"replica"}}, false},
		{"any of two", Select{"role": {"primary", "replica"}}, true},
		{"all of two keys", Select{"role": {"primary"}, "zone": {"a"}}, true},
		{"one of two keys", Select{"role": {"primary"}, "zone": {"b"}}, false},
		{"zone as the format read it, not the metadata of that name", Select{"zone": {"hidden"}}, false},
		{"region of the metadata", Select{"region": {"eu"}}, true},
		{"without the key", Select{"canary": {""}}, true},
		{"with the key", Select{"role": {""}}, false},
		{"with it or without", Select{"role": {"", "primary"}}, true},
		{"no such key", Select{"canary": {"true"}}, false},
		{"case counts", Select{"role": {"Primary"}}, false},
	} {
		if got := tt.sel.matches(&b); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func role(addr, role string) string {
	return `{"Addr":"` + addr + `","Metadata":{"role":"` + role + `"}}`
}

// What select: doesn't want is not in the list, but counted; a record that changes comes and goes; the spool has what was wanted (1.8).
func TestSelect(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "services/db/a", role("10.0.0.1:80", "primary"))
	put(t, c, "services/db/b", role("10.0.0.2:80", "replica"))
	put(t, c, "services/db/c", role("10.0.0.3:80", "replica"))
	f := naming("db")
	f.Select = Select{"role": {"primary"}}
	dir := t.TempDir()
	d := start(t, setup{Etcd: etcdAt(s), SpoolDir: dir}, f)
	if l := d.waitAddrs(t, "db", "10.0.0.1:80"); l.LeftOut != 2 {
		t.Errorf("%d left out, want 2", l.LeftOut)
	}
	// A switch-over: one list.
	if _, err := c.Txn(t.Context()).Then(clientv3.OpPut("services/db/a", role("10.0.0.1:80", "replica")),
		clientv3.OpPut("services/db/b", role("10.0.0.2:80", "primary"))).Commit(); err != nil {
		t.Fatal(err)
	}
	d.waitAddrs(t, "db", "10.0.0.2:80")
	for _, l := range d.all("db") {
		if len(l.Backends) != 1 {
			t.Errorf("a list with %s", addrs(l))
		}
	}
	// The newest key of an address says what it is (1.1).
	put(t, c, "services/db/b2", role("10.0.0.2:80", "replica"))
	if l := d.waitAddrs(t, "db"); l.LeftOut != 3 {
		t.Errorf("%d left out, want 3", l.LeftOut)
	}
	del(t, c, "services/db/b2")
	d.waitAddrs(t, "db", "10.0.0.2:80")
	d.stop()

	// From the spool alone; and with another select, of which the spool has nothing, no list: neither the old backends nor an empty one (1.4).
	d = start(t, setup{SpoolDir: dir}, f)
	if l := d.waitAddrs(t, "db", "10.0.0.2:80"); l.Source != service.FromSpool || l.LeftOut != 2 {
		t.Errorf("from the spool: %+v", l)
	}
	d.stop()
	f.Select = Select{"role": {"replica"}}
	d = start(t, setup{SpoolDir: dir}, f)
	if l := d.last("db"); l != nil {
		t.Errorf("of the spool of another select: %s", addrs(l))
	}
	d.stop()
	d = start(t, setup{Etcd: etcdAt(s), SpoolDir: dir}, f)
	d.waitAddrs(t, "db", "10.0.0.1:80", "10.0.0.3:80")
}

// key: is one key and not what its name begins (1.2), through put, delete, silence and a restart.
func TestOneKey(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	put(t, c, "lists/user", "10.0.0.1:80")
	put(t, c, "lists/user2", "10.0.0.9:80")
	put(t, c, "lists/user/a", "10.0.0.8:80")
	dir := t.TempDir()
	f := Follow{Name: "user", Key: "lists/user", Format: "plain"}
	d := start(t, setup{Etcd: etcdAt(s), SpoolDir: dir}, f)
	d.waitAddrs(t, "user", "10.0.0.1:80")
	put(t, c, "lists/user/b", "10.0.0.7:80")
	put(t, c, "lists/use", "10.0.0.6:80")
	put(t, c, "lists/user", "10.0.0.2:80")
	d.waitAddrs(t, "user", "10.0.0.2:80")
	del(t, c, "lists/user")
	d.waitAddrs(t, "user")
	put(t, c, "lists/user", "10.0.0.3:80")
	d.waitAddrs(t, "user", "10.0.0.3:80")
	for _, l := range d.all("user") {
		if len(l.Backends) > 1 {
			t.Errorf("a list with %s", addrs(l))
		}
	}
	d.stop()

	d = start(t, setup{SpoolDir: dir}, f)
	if l := d.waitAddrs(t, "user", "10.0.0.3:80"); l.Source != service.FromSpool {
		t.Errorf("source %s", l.Source)
	}
	d.stop()
	d = start(t, setup{SpoolDir: dir}, Follow{Name: "user", Prefix: "lists/user/", Format: "plain"})
	if l := d.last("user"); l != nil {
		t.Errorf("the spool of the key is taken for that of the prefix: %s", addrs(l))
	}
}

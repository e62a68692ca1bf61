package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/testneed"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Twelve faults of hosts, backends, etcd and people: each is named, in words that a person finds, by each place where that person looks first. The twelfth, a host that is cut off from
// everything, is TestCutOff; what breakages do to calls is TestBrokenBackends.

// told waits until the agent says all of the words in some place.
func (a *agent) told(where string, says func() string, words ...string) {
	a.t.Helper()
	last := ""
	defer func() {
		if a.t.Failed() {
			a.t.Logf("%s says last:\n%s", where, last)
		}
	}()
	poll(a.t, fmt.Sprintf("%s says %q", where, words), func() bool {
		last = says()
		text := strings.Join(strings.Fields(last), " ") // lines are broken for a terminal
		for _, w := range words {
			if !strings.Contains(text, w) {
				return false
			}
		}
		return true
	})
}

// explains, doctors, tells, warns and logs want words in the places where a person looks: explain SERVICE, doctor, events, status and the log, which is the journal.
func (a *agent) explains(service string, words ...string) {
	a.t.Helper()
	a.told("explain "+service, func() string { out, errs, _ := a.cli("explain", service); return out + errs }, words...)
}

func (a *agent) doctors(words ...string) {
	a.t.Helper()
	a.told("doctor", func() string { out, errs, _ := a.cli("doctor", "--config", a.config); return out + errs }, words...)
}

func (a *agent) tells(words ...string) {
	a.t.Helper()
	a.told("events", func() string { out, errs, _ := a.cli("events"); return out + errs }, words...)
}

func (a *agent) warns(words ...string) {
	a.t.Helper()
	a.told("status", func() string { out, errs, _ := a.cli("status"); return out + errs }, words...)
}

func (a *agent) logs(words ...string) {
	a.t.Helper()
	a.told("the log", func() string { return a.logTail(1 << 20) }, words...)
}

// silent accepts and says nothing.
func silent(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) // the kernel accepts
	return l.Addr().String()
}

// Backends that hang, refuse, or are another program; a zone that is gone; keys that expire at once; a prefix that somebody mistyped, and a mute that somebody forgot.
func TestFaultsOfServices(t *testing.T) {
	t.Parallel()
	c := etcdClient(t, etcd.Endpoints()...)
	put := func(key, value string) {
		t.Helper()
		if _, err := c.Put(t.Context(), namespace(t)+key, value); err != nil {
			t.Fatal(err)
		}
	}
	hang, refused := silent(t), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	other, _ := httpBackend(t, "web")
	near, far := fmt.Sprintf("127.0.0.1:%d", freePort(t)), newBackend(t, "far", "127.0.0.1", 0)
	for addr, zone := range map[string]string{near: "eu-1a", far.addr: "eu-1b"} {
		put("services/zoned/"+addr, fmt.Sprintf(`{"Op":0,"Addr":%q,"Metadata":{"zone":%q}}`, addr, zone))
	}
	bs := backends(t, 5, 0)
	leases := announce(t, c, "leased", bs)
	muted := newBackend(t, "muted", "127.0.0.1", 0)
	put("services/muted/"+muted.addr, fmt.Sprintf(`{"Op":0,"Addr":%q}`, muted.addr))
	put("lbagent/mutes/muted/"+muted.addr, fmt.Sprintf(`{"author":"ann","host":"web-3","reason":"disk","since":%q,"until":%q}`,
		time.Now().Add(-30*time.Hour).UTC().Format(time.RFC3339), time.Now().Add(30*time.Hour).UTC().Format(time.RFC3339)))
	a := newAgent(t, fmt.Sprintf(`
- {name: hanging, backends: [%q], listen: [%d], protocol: h2, probe: {interval: 200ms}}
- {name: refusing, backends: [%q], listen: [%d], probe: {interval: 200ms}}
- {name: elsewhere, backends: [%q], listen: [%d], protocol: h2, probe: {interval: 200ms}}
- {name: zoned, prefix: services/zoned/, listen: [%d], probe: {interval: 200ms}}
- {name: mistyped, prefix: servcies/leased/, listen: [%d]}
- {name: leased, prefix: services/leased/, listen: [%d]}
- {name: muted, prefix: services/muted/, listen: [%d]}
`, hang, freePort(t), refused, freePort(t), other, freePort(t), freePort(t), freePort(t), freePort(t), freePort(t)), etcd.Endpoints()...)
	a.zone = "eu-1a"
	a.writeConfig()
	a.start()

	for _, f := range []struct{ service, cause string }{
		{"hanging", "no SETTINGS within"},
		{"refusing", "connection refused"},
		{"elsewhere", "not an HTTP/2 answer"},
	} {
		a.explains(f.service, "0 of 1 backends usable", f.cause)
		a.tells(f.service, f.cause)
		a.logs(f.service, f.cause)
		a.doctors(f.service + ": none of 1 backend is usable")
	}

	a.explains("zoned", "this host's zone eu-1a has no usable backend (of 1): all calls go to other zones", "connection refused")
	a.warns("zoned: this host's zone eu-1a has no usable backend")
	a.doctors("zoned: this host's zone eu-1a has no usable backend")

	a.explains("mistyped", "etcd has no keys at "+namespace(t)+"servcies/leased/", "lbagent scan")
	a.doctors("service mistyped: there are no keys at "+namespace(t)+"servcies/leased/", "lbagent scan")

	a.explains("muted", "muted: by ann", "disk")
	a.doctors("muted "+muted.addr+" has been muted by ann for", "forgotten?", "lbagent unmute muted "+muted.addr+" --fleet")

	expire(t, c, leases, bs[:4]...)
	a.explains("leased", "orphaned for ", ": its key went away")
	a.tells("leased", "orphan")
	a.doctors("leased: 4 of 5 backends are orphans", "lbagent accept leased")
	a.logs("leased", "orphan")
}

// The password in etcd was changed, and a role lacks a prefix.
func TestFaultsOfEtcd(t *testing.T) {
	t.Parallel()
	s, err := etcdtest.Run(etcdtest.Config{Dir: filepath.Join(t.TempDir(), "etcd")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	b := newBackend(t, "one", "127.0.0.1", 0)
	c := etcdClient(t, s.Endpoints()...)
	for _, service := range []string{"services/user/", "secrets/other/"} {
		if _, err := c.Put(t.Context(), service+"a", fmt.Sprintf(`{"Op":0,"Addr":%q}`, b.addr)); err != nil {
			t.Fatal(err)
		}
	}
	enableAuth(t, s)
	a := newAgent(t, "- {name: user, prefix: services/user/}\n- {name: other, prefix: secrets/other/}")
	password := filepath.Join(a.dir, "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.extra = fmt.Sprintf("etcd: {endpoints: [%q], username: lbagent, password_file: %s}\n", s.Endpoint(), password)
	a.writeConfig()
	a.start()
	poll(t, "the list", func() bool { return len(a.addresses("user")) == 1 })

	a.explains("other", "secrets/other/ can't be read", "permission denied", "lbagent doctor")
	a.tells("other", "secrets/other/ can't be read", "permission denied")
	a.warns("other: secrets/other/ can't be read")
	a.doctors("service other: user lbagent may not read secrets/other/", "etcdctl role grant-permission ROLE read --prefix=true secrets/other/")
	a.logs("cannot follow service", "other", "permission denied")

	root, err := clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), Username: "root", Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if _, err := root.UserChangePassword(t.Context(), "lbagent", "other"); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	a.warns("log in to etcd as lbagent", "authentication failed")
	a.tells("etcd refuses the login", "authentication failed")
	a.doctors("log in to etcd as lbagent", "authentication failed")
	a.logs("etcd refuses the login", "authentication failed")
	if got := a.addresses("user"); len(got) != 1 {
		t.Errorf("the list is %v", got)
	}
}

// A port that another program has: at a start, and at a reload.
func TestFaultOfPort(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, taken, _ := net.SplitHostPort(l.Addr().String())
	service := fmt.Sprintf("- {name: user, backends: [\"10.0.0.1:80\"], probe: off, listen: [%s]}", taken)
	me := fmt.Sprintf("(pid %d)", os.Getpid())

	a := newAgent(t, service)
	a.launch()
	<-a.exited
	a.cmd = nil
	a.logs("the agent can't start", taken, "address already in use")
	a.doctors("port "+taken+" (service user) is taken by", me)

	a.services = ""
	a.writeConfig()
	a.start()
	a.services = service
	a.writeConfig()
	if out, errs, code := a.cli("reload"); code != 1 || !strings.Contains(errs, taken) || !strings.Contains(errs, "address already in use") {
		t.Errorf("reload: %d %s%s", code, out, errs)
	}
	a.warns(taken, "address already in use")
	a.tells("config", taken, "address already in use")
	a.logs(taken, "address already in use")
	a.doctors("port "+taken+" (service user) is taken by", me)
}

// The disk of state_dir is full.
func TestFaultOfDisk(t *testing.T) {
	t.Parallel()
	testneed.Root(t)
	c := etcdClient(t, etcd.Endpoints()...)
	bs := backends(t, 2, 0)
	register(t, c, "user", bs[0].addr)
	a := newAgent(t, "- {name: user, prefix: services/user/}", etcd.Endpoints()...)
	state := filepath.Join(a.dir, "state")
	if err := os.Mkdir(state, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, "size=1m"); err != nil {
		testneed.Unmet(t, "mount a small disk: %v: this container may not mount", err)
	}
	t.Cleanup(func() { a.stop(); _ = syscall.Unmount(state, 0) })
	a.start()
	f, err := os.Create(filepath.Join(state, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	register(t, c, "user", bs[1].addr)
	a.warns("the spool can't be written", "no space left on device")
	a.doctors("the disk of " + state + " is full")
	a.logs("cannot write the spool", "no space left on device")
	if got := a.addresses("user"); len(got) != 2 {
		t.Errorf("the list is %v", got)
	}
}

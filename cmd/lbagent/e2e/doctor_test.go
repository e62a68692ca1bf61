package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/testneed"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// doctorSays runs doctor and returns each finding as "state check: what".
func doctorSays(a *agent) (findings []string, code int) {
	a.t.Helper()
	stdout, stderr, code := a.cli("doctor", "--json", "--config", a.config)
	var said struct {
		OK       bool
		Findings []struct{ Check, State, What, Mend string }
	}
	if err := json.Unmarshal([]byte(stdout), &said); err != nil {
		a.t.Fatalf("doctor: %v: %s%s", err, stdout, stderr)
	}
	if said.OK != (code == 0) {
		a.t.Errorf("doctor says ok: %v and ends with %d", said.OK, code)
	}
	for _, f := range said.Findings {
		if f.State == "bad" && f.Mend == "" && f.Check != "configuration" {
			a.t.Errorf("how to mend it isn't said: %+v", f)
		}
		findings = append(findings, f.State+" "+f.Check+": "+f.What)
	}
	return findings, code
}

// one looks for the only finding that begins with prefix and has all words.
func one(t *testing.T, findings []string, prefix string, words ...string) {
	t.Helper()
	for _, f := range findings {
		ok := strings.HasPrefix(f, prefix)
		for _, w := range words {
			ok = ok && strings.Contains(f, w)
		}
		if ok {
			return
		}
	}
	t.Errorf("no %q with %q among\n%s", prefix, words, strings.Join(findings, "\n"))
}

// A host on which all is well, with an agent and without; then what breaks on hosts.
func TestDoctor(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	a := newAgent(t, fmt.Sprintf(`- {name: user, backends: ["127.0.0.1:%d"], listen: [%d], probe: {type: none}}`, freePort(t), port))
	findings, code := doctorSays(a)
	if code != 1 {
		t.Errorf("before the first start: %d\n%s", code, strings.Join(findings, "\n"))
	}
	one(t, findings, "bad agent: no agent is running here")
	a.start()
	findings, code = doctorSays(a)
	if code != 0 {
		t.Errorf("a healthy host: %d\n%s", code, strings.Join(findings, "\n"))
	}
	for _, check := range []string{"configuration", "agent", "node", "etcd", "ports", "sockets", "state", "services"} {
		one(t, findings, "ok "+check)
	}
	if stdout, _, code := a.cli("doctor", "--config", a.config); code != 0 || !strings.Contains(stdout, "ok    services") {
		t.Errorf("for people: %d\n%s", code, stdout)
	}

	// The agent is killed, so that its sockets stay; somebody takes its port. Its configuration has proved good by then: that is noted within a second.
	poll(t, "config.good", func() bool {
		_, err := os.Stat(filepath.Join(a.dir, "state", "config.good"))
		return err == nil
	})
	a.signal(9)
	<-a.exited
	a.cmd = nil
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	findings, code = doctorSays(a)
	if code != 1 {
		t.Errorf("after kill -9: %d", code)
	}
	one(t, findings, "bad agent: no agent answers on "+a.socket)
	one(t, findings, "bad ports: port", fmt.Sprint(port), "service user", "is taken by", fmt.Sprintf("(pid %d)", os.Getpid()))

	// A broken file: each mistake with its line, and the rest about the last good one.
	text, err := os.ReadFile(a.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.config, append(text, "nosuch: 1\nlog: {level: loud}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	findings, code = doctorSays(a)
	if code != 1 {
		t.Errorf("with a broken file: %d", code)
	}
	line := strings.Count(string(text), "\n") + 1
	one(t, findings, fmt.Sprintf("bad configuration: %s:%d: nosuch", a.config, line))
	one(t, findings, fmt.Sprintf("bad configuration: %s:%d: log.level", a.config, line+1))
	one(t, findings, "warn configuration: what follows is about the last configuration that worked")
	one(t, findings, "bad ports: port", fmt.Sprint(port))
}

// What goes wrong between an agent and etcd: an endpoint that is gone, a password, a role.
func TestDoctorAndEtcd(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	must(c.Put(ctx, "services/user/a", "10.0.0.1:80"))
	must(c.UserAdd(ctx, "root", "root"))
	must(c.UserGrantRole(ctx, "root", "root"))
	must(c.RoleAdd(ctx, "reader"))
	must(c.RoleGrantPermission(ctx, "reader", "services/", clientv3.GetPrefixRangeEnd("services/"), clientv3.PermissionType(clientv3.PermRead)))
	must(c.UserAdd(ctx, "lbagent", "secret"))
	must(c.UserGrantRole(ctx, "lbagent", "reader"))
	must(c.AuthEnable(ctx))

	dead := fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
	a := newAgent(t, `- {name: user, prefix: services/user/, format: plain}`)
	password := filepath.Join(a.dir, "password")
	write := func(secret, more string) {
		t.Helper()
		if err := os.WriteFile(password, []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("etcd: {endpoints: [%q, %q], username: lbagent, password_file: %s}\napi: {socket: %s, admin_socket: %s}\nadmin: {listen: \"\"}\nstate_dir: %s/state\n%s",
			s.Endpoint(), dead, password, a.socket, a.admin, a.dir, more)
		if err := os.WriteFile(a.config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("wrong", "")
	findings, code := doctorSays(a)
	if code != 1 {
		t.Errorf("it ended with %d", code)
	}
	one(t, findings, "bad etcd: "+dead+":", "connection refused")
	one(t, findings, "ok etcd: 1 of 2 endpoints answer")
	one(t, findings, "bad etcd: ", "log in to etcd as lbagent", "authentication failed")

	write("secret", "services: [{name: user, prefix: services/user/, format: plain}, {name: other, prefix: secrets/other/}, {name: none, prefix: services/none/}]\n"+
		`register: [{name: user, address: "10.0.0.9:80", format: plain}]`)
	findings, _ = doctorSays(a)
	one(t, findings, "bad etcd rights: service other: user lbagent may not read secrets/other/")
	one(t, findings, "warn etcd rights: service none: there are no keys at services/none/")
	one(t, findings, "warn etcd rights: mute.prefix: user lbagent may not read lbagent/mutes/")
	one(t, findings, "bad etcd rights: register user: user lbagent may not write services/user/")
	for _, f := range findings {
		if strings.Contains(f, "service user:") {
			t.Errorf("nothing is wrong with user: %s", f)
		}
	}

	must(rootOf(t, s).RoleGrantPermission(ctx, "reader", "a", "z", clientv3.PermissionType(clientv3.PermReadWrite)))
	findings, _ = doctorSays(a)
	one(t, findings, "warn etcd rights: service none")
	for _, f := range findings {
		if strings.HasPrefix(f, "bad etcd rights") {
			t.Errorf("with all rights: %s", f)
		}
	}
	if r, err := rootOf(t, s).Get(ctx, "", clientv3.WithPrefix(), clientv3.WithKeysOnly()); err != nil || r.Count != 1 {
		t.Errorf("doctor left %d keys in etcd, of which 1 was there (%v)", r.Count, err)
	}
}

func rootOf(t *testing.T, s *etcdtest.Server) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), Username: "root", Password: "root"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// What an agent of another user can't do with its folder, its files and its sockets.
func TestDoctorAndPermissions(t *testing.T) {
	t.Parallel()
	testneed.Root(t)
	a := newAgent(t, `- {name: user, backends: ["10.0.0.1:80"]}`)
	state := filepath.Join(a.dir, "state-of-root")
	if err := os.Mkdir(state, 0o755); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(a.dir, "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("etcd: {endpoints: [\"http://127.0.0.1:%d\"], username: u, password_file: %s}\napi: {socket: %s, admin_socket: %s}\nadmin: {listen: \"\"}\nstate_dir: %s\n",
		freePort(t), secret, a.socket, a.admin, state)
	if err := os.WriteFile(a.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, code := a.asNobody(nil, binary, "doctor", "--config", a.config)
	out = strings.Join(strings.Fields(out), " ")
	for _, want := range []string{"bad state", "may not write to " + state, "warn secrets", "every user of this host may read " + secret} {
		if code != 1 || !strings.Contains(out, want) {
			t.Errorf("%d, without %q: %s", code, want, out)
		}
	}
	if err := os.Chmod(secret, 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ = a.asNobody(nil, binary, "doctor", "--config", a.config)
	if out = strings.Join(strings.Fields(out), " "); !strings.Contains(out, "bad secrets etcd.password_file: nobody may not read "+secret) {
		t.Errorf("a file that only root may read: %s", out)
	}
}

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
)

const fleetKeys = "fleet: {prefix: lbagent/config/}\n"

// operator is a person without an agent: a configuration that says where etcd is, and the verbs.
type operator struct {
	t   *testing.T
	dir string

	config string
	flags  []string
}

func newOperator(t *testing.T, endpoint, namespace string) *operator {
	t.Helper()
	o := &operator{t: t, dir: t.TempDir()}
	o.config = o.file("lbagent.yaml", fmt.Sprintf("etcd: {endpoints: [%q], namespace: %q}\n%s", endpoint, namespace, fleetKeys))
	return o
}

func (o *operator) file(name, text string) string {
	o.t.Helper()
	path := filepath.Join(o.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		o.t.Fatal(err)
	}
	return path
}

// run runs lbagent config with text as its standard input.
func (o *operator) run(stdin string, args ...string) (stdout, stderr string, code int) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(append([]string{"config"}, args...), append(o.flags, "--config", o.config)...)...)
	cmd.Env = append(os.Environ(), raceOptions, "LBAGENT_SOCKET="+filepath.Join(o.dir, "nosuch.sock"), "SUDO_USER=", "USER=ann")
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		o.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// does runs a verb that has to end with code, and to say all of want: on stdout, or on stderr if it fails.
func (o *operator) does(code int, stdin, args string, want ...string) string {
	o.t.Helper()
	stdout, stderr, got := o.run(stdin, strings.Fields(args)...)
	text := stdout
	if code != 0 {
		text = stderr
	}
	if got != code {
		o.t.Errorf("config %s: exit code %d, want %d\n%s%s", args, got, code, stdout, stderr)
	}
	for _, w := range want {
		if !strings.Contains(text, w) {
			o.t.Errorf("config %s: no %q in\n%s", args, w, text)
		}
	}
	return text
}

// From the first service to a rollback, as a person types it; an agent follows.
func TestFleet(t *testing.T) {
	t.Parallel()
	bs := backends(t, 2, 0)
	user, mail := freePort(t), freePort(t)
	a := newAgent(t, "", etcd.Endpoint())
	a.extra = fleetKeys
	a.writeConfig()
	a.start()
	o := newOperator(t, etcd.Endpoint(), namespace(t))
	item := func(name string, b *backend, port int, more string) string {
		return fmt.Sprintf("# of the team\nname: %s\nbackends: [%q]\nlisten: [%d]\n%s", name, b.addr, port, more)
	}
	reaches := func(port int, b *backend) bool {
		c := newCaller(t, fmt.Sprintf("127.0.0.1:%d", port))
		got, err := c.echo(t.Context(), 1)
		return err == nil && got == b.name
	}
	list := func(want ...string) func() bool {
		return func() bool {
			stdout, _, _ := a.cli("config", "list", "--config", a.config)
			for _, w := range want {
				if !strings.Contains(strings.Join(strings.Fields(stdout), " "), w) {
					return false
				}
			}
			return true
		}
	}

	o.does(0, "", "list", "no items below")
	o.does(3, "", "get user", "no item user in etcd below "+namespace(t)+"lbagent/config/")
	o.does(0, item("user", bs[0], user, ""), "put - --dry-run", "user: would be put", "+ name: user")
	o.does(0, item("user", bs[0], user, ""), "put - --dry-run --json", `"revision": 0`, `"key": "user"`)
	o.does(0, "", "list", "no items below")
	o.does(0, item("user", bs[0], user, ""), "put - --reason first", "user: put, version 1", "agents that follow")
	poll(t, "the service is there", func() bool { return reaches(user, bs[0]) })
	if got := o.does(0, "", "get user"); got != item("user", bs[0], user, "") {
		t.Errorf("get: %q", got)
	}

	// What can't be is refused before it is written, with file and line.
	port := fmt.Sprintf("127.0.0.1:%d", user)
	o.does(1, "", "put "+o.file("mail.yaml", item("mail", bs[0], user, "")), "nothing was put", "mail.yaml:4: services[mail].listen: "+port+" is used by service \"user\" at etcd:")
	o.does(1, "", "put "+o.file("typo.yaml", "name: mail\nprefx: a/\n"), `typo.yaml:2: services[mail].prefx: unknown key (did you mean "prefix"?)`)
	o.does(1, "", "put "+filepath.Join(o.dir, "nosuch.yaml"), "no such file")
	o.does(2, "", "put a b", "one argument too many")
	o.does(2, "", "histroy", `no verb "histroy"; did you mean history?`)
	o.does(1, item("mail", bs[0], mail, ""), "put - --variant canary", "the variant has no only:")

	// Several at once, and a canary beside one.
	o.does(0, fmt.Sprintf("services:\n  - {name: mail, backends: [%q], listen: [%d]}\n  - {name: web, backends: [%q]}\n", bs[0].addr, mail, bs[0].addr), "put -", "mail: put, version 1", "web: put, version 1")
	poll(t, "mail is there", func() bool { return reaches(mail, bs[0]) })
	o.does(0, item("mail", bs[1], mail, "only: {node: [e2e, other]}"), "put - --variant canary", "mail/canary: put, version 1")
	poll(t, "the canary is here", func() bool { return reaches(mail, bs[1]) })
	poll(t, "the list says so", list(fmt.Sprintf("mail all %d 1 static backend hidden by mail/canary", mail), fmt.Sprintf("mail/canary node e2e or other %d 1 static backend in force", mail)))
	if stdout, _, code := a.cli("explain", "mail"); code != 0 || !strings.Contains(strings.Join(strings.Fields(stdout), " "), "fleet item mail/canary is in force, which is only for node e2e or other") {
		t.Errorf("explain: %d\n%s", code, stdout)
	}
	o.does(0, "", "rm mail/canary", "mail/canary: removed, version 2", "- only:")
	poll(t, "mail is as it was", func() bool { return reaches(mail, bs[0]) })

	// History, and back.
	o.does(0, item("user", bs[1], user, ""), "put - --over 1", "user: put, version 2", "- backends", "+ backends")
	o.does(1, item("user", bs[0], user, "drain: 1s\n"), "put - --over 1", "version 1 is not the latest any more, 2 is")
	poll(t, "user changed", func() bool { return reaches(user, bs[1]) })
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	o.does(0, "", "history user", "VERSION", "ann@"+host, "first")
	o.does(0, "", "history user --diff", "user version 2, put", "- backends: [\""+bs[0].addr+"\"]", "+ backends: [\""+bs[1].addr+"\"]")
	o.does(0, "", "put user --version 1", "user: put, version 3")
	poll(t, "user is back", func() bool { return reaches(user, bs[0]) })
	o.does(0, "", "put user --version 1", "nothing was written")
	o.does(3, "", "put user --version 9", "user has no version 9, there are 3, 2, 1")
	o.does(3, "", "history nobody", "nobody has no history")

	// A person with etcdctl writes nonsense: the agent goes on, and says so wherever somebody looks.
	c := etcdClient(t, etcd.Endpoint())
	if _, err := c.Put(t.Context(), namespace(t)+"lbagent/config/user", "name: user\nbackends: [x]\n"); err != nil {
		t.Fatal(err)
	}
	poll(t, "the list says so", list("last good form in force", "user: etcd:"+namespace(t)+"lbagent/config/user:2: services[user].backends[0]:"))
	if !reaches(user, bs[0]) {
		t.Error("user is gone")
	}
	if v, ok := a.metric(`lbagent_fleet_items{state="bad"}`); !ok || v != 1 {
		t.Errorf("bad items: %v %v", v, ok)
	}
	for _, verb := range []string{"status", "events", "explain user"} {
		if stdout, _, _ := a.cli(strings.Fields(verb)...); !strings.Contains(strings.Join(strings.Fields(stdout), " "), "fleet item user can't be used") {
			t.Errorf("%s:\n%s", verb, stdout)
		}
	}
	o.does(0, "", "history user", "was written without lbagent config")
	o.does(0, "", "put user --version 3", "user: put, version 5")
	poll(t, "all is well", func() bool {
		bad, _ := a.metric(`lbagent_fleet_items{state="bad"}`)
		good, _ := a.metric(`lbagent_fleet_items{state="in_force"}`)
		return bad == 0 && good == 3
	})

	// Everything vanishes (1.9), and comes again.
	if _, err := c.Delete(t.Context(), namespace(t)+"lbagent/config/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	poll(t, "they are held", list("web all - held", "lbagent config rm --vanished web"))
	if !reaches(user, bs[0]) || !reaches(mail, bs[0]) {
		t.Error("services are gone because etcd was emptied")
	}
	o.does(3, "", "rm web", "no item web in etcd", "--vanished")
	o.does(0, "", "rm web --vanished --reason cleanup", "web: removed")
	poll(t, "web is gone", func() bool { return len(a.addresses("web")) == 0 })
	o.does(0, "", "put user --version 5", "user: put")
	o.does(0, "", "rm user", "user: removed")
	poll(t, "user is gone", func() bool { return !reaches(user, bs[0]) })

	// Programs.
	var listed struct{ Items []struct{ Key string } }
	if err := json.Unmarshal([]byte(o.does(0, "", "list --json")), &listed); err != nil || len(listed.Items) != 0 {
		t.Errorf("list --json: %v, %v", listed, err)
	}
	var past struct {
		Versions []struct{ Author, Text string }
	}
	if err := json.Unmarshal([]byte(o.does(0, "", "history web --json")), &past); err != nil || len(past.Versions) != 2 {
		t.Errorf("history --json: %v, %v", past, err)
	}
}

// Two people put at once, from two hosts, and want one port: one of them gets it, and the other is told who has it.
func TestFleetRace(t *testing.T) {
	t.Parallel()
	o := newOperator(t, etcd.Endpoint(), namespace(t))
	for round := range 3 {
		var wg sync.WaitGroup
		codes, texts := make([]int, 3), make([]string, 3)
		for i := range codes {
			wg.Go(func() {
				_, texts[i], codes[i] = o.run(fmt.Sprintf("name: s%d-%d\nprefix: s%d-%d/\nlisten: [%d]\n", round, i, round, i, 8000+round), "put", "-")
			})
		}
		wg.Wait()
		won := 0
		for i, code := range codes {
			if code == 0 {
				won++
			} else if !strings.Contains(texts[i], fmt.Sprintf("127.0.0.1:%d is used by service", 8000+round)) {
				t.Errorf("round %d: code %d, %s", round, code, texts[i])
			}
		}
		if won != 1 {
			t.Errorf("round %d: %d have the port", round, won)
		}
	}
}

// The roles that the guide to etcd gives suffice, and no more: with auth on, the agent's user follows and can't write, the other one can.
func TestFleetRoles(t *testing.T) {
	t.Parallel()
	own, err := etcdtest.Run(etcdtest.Config{Dir: filepath.Join(t.TempDir(), "etcd")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	enableAuth(t, own, "user add ann:secret", "user grant-role ann lbagent-fleet")

	o := newOperator(t, own.Endpoint(), "")
	password := func(name string) []string {
		return []string{"--user", name, "--password-file", o.file(name, "secret\n")}
	}
	b := newBackend(t, "one", "127.0.0.1", 0)
	port := freePort(t)
	text := fmt.Sprintf("{name: user, backends: [%q], listen: [%d]}", b.addr, port)
	o.does(1, text, "put -", "user name is empty")
	o.flags = password("ann")
	o.does(0, text, "put -", "user: put, version 1")
	o.does(0, text+" # again", "put -", "user: put, version 2")

	a := newAgent(t, "")
	a.extra = fmt.Sprintf("etcd: {endpoints: [%q], username: lbagent, password_file: %s}\n%s", own.Endpoint(), filepath.Join(o.dir, "lbagent"), fleetKeys)
	o.flags = password("lbagent")
	a.writeConfig()
	a.start()
	caller := newCaller(t, fmt.Sprintf("127.0.0.1:%d", port))
	if _, err := caller.echo(t.Context(), 1); err != nil {
		t.Errorf("when ready: %v", err)
	}
	o.does(0, "", "get user", text)
	o.does(1, text, "put -", "etcd does not let user lbagent do that", "readwrite on both")
	o.does(1, "", "rm user", "etcd does not let user lbagent do that")
	o.flags = password("ann")
	o.does(0, "", "history user", "ann@")
	o.does(0, "", "rm user", "user: removed, version 3")
	o.flags = []string{"--user", "ann", "--password-file", o.file("wrong", "wrong")}
	o.does(1, "", "list", "authentication failed")
}

// Without etcd, or a configuration, the verbs say what to do.
func TestFleetVerbsWithoutEtcd(t *testing.T) {
	t.Parallel()
	o := newOperator(t, fmt.Sprintf("http://127.0.0.1:%d", freePort(t)), "")
	o.does(1, "", "list", "can't be used", "connection refused", "The agents go on with what they have")
	o.config = o.file("none.yaml", "services: []\n")
	o.does(1, "", "list", "etcd: is not configured in "+o.config, "--etcd URL")
	o.does(1, "", "list --etcd "+etcd.Endpoint(), "fleet: is not configured", "--prefix lbagent/config/")
	o.does(0, "", "list --prefix a/b/ --etcd "+etcd.Endpoint(), "no items below a/b/")
	o.does(2, "", "list --prefix a --etcd "+etcd.Endpoint(), "does not end in /")
	o.does(2, "", "list --user ann --prefix a/ --etcd "+etcd.Endpoint(), "belong together")
	o.config = filepath.Join(o.dir, "nosuch.yaml")
	o.does(1, "", "list", "no such file", "--config FILE")
	o.does(0, "", "list --prefix a/b/ --etcd "+etcd.Endpoint(), "no items below a/b/")
	o.config = o.file("bad.yaml", "servces: []\n")
	o.does(1, "", "list", "the configuration is invalid", "1 mistake to mend")
}

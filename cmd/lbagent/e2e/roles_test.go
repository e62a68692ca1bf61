package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/testneed"
)

// enableAuth runs the guide's commands for rights in etcd, with etcd's own tool, then more of them, and turns authentication on. All passwords are "secret".
func enableAuth(t *testing.T, s *etcdtest.Server, more ...string) {
	t.Helper()
	_, section, _ := strings.Cut(document(t, "packaging/doc/etcd.md"), "## Rights in etcd")
	var commands []string
	for line := range strings.Lines(blocks(section, "sh")[0]) {
		command, ok := strings.CutPrefix(strings.TrimSpace(line), "etcdctl ")
		if !ok {
			t.Fatalf("%q is no command of etcdctl", line)
		}
		commands = append(commands, strings.ReplaceAll(command, "PASSWORD", "secret"))
	}
	if len(commands) < 10 {
		t.Fatalf("only %d commands in the guide", len(commands))
	}
	for _, command := range append(append(commands, more...), "user add root:secret", "user grant-role root root", "auth enable") {
		etcdctl(t, s, strings.Fields(command)...)
	}
}

func etcdctl(t *testing.T, s *etcdtest.Server, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testneed.Program(t, "etcdctl", "etcd-client"), args...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3", "ETCDCTL_ENDPOINTS="+s.Endpoint())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("etcdctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// The roles of the guide suffice for what they are for, and for no more; what is missing is said where somebody looks.
func TestRoles(t *testing.T) {
	t.Parallel()
	s, err := etcdtest.Run(etcdtest.Config{Dir: filepath.Join(t.TempDir(), "etcd")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	b := newBackend(t, "one", "127.0.0.1", 0)
	c := etcdClient(t, s.Endpoints()...)
	if _, err := c.Put(t.Context(), "services/user/a", fmt.Sprintf(`{"Op":0,"Addr":%q}`, b.addr)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(t.Context(), "secrets/user/a", fmt.Sprintf(`{"Op":0,"Addr":%q}`, b.addr)); err != nil {
		t.Fatal(err)
	}
	enableAuth(t, s, "user add web:secret", "user grant-role web lbagent-consumer", "user grant-role web lbagent-registrar", "user grant-role web lbagent-fleet")
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	as := func(user string) *agent {
		a := newAgent(t, "- {name: user, prefix: services/user/}\n- {name: secret, prefix: secrets/user/}")
		a.extra = fmt.Sprintf("etcd: {endpoints: [%q], username: %s, password_file: %s}\n%s", s.Endpoint(), user, password, fleetKeys)
		a.writeConfig()
		a.start()
		return a
	}
	consumer, web := as("lbagent"), as("web")
	for _, a := range []*agent{consumer, web} {
		poll(t, "the list", func() bool { return strings.Join(a.addresses("user"), " ") == b.addr })
		if got := a.addresses("secret"); len(got) != 0 {
			t.Errorf("what nobody granted: %v", got)
		}
	}

	// Mutes of the whole fleet: the consumer honours them, and may make none.
	if _, errs, code := consumer.cli("mute", "user", b.addr, "--fleet", "--force", "--reason", "disk"); code == 0 || !strings.Contains(errs, "grant its role readwrite") {
		t.Errorf("the consumer mutes: exit %d, %s", code, errs)
	}
	if _, errs, code := web.cli("mute", "user", b.addr, "--fleet", "--force", "--reason", "disk"); code != 0 {
		t.Errorf("web mutes: exit %d, %s", code, errs)
	}
	poll(t, "the mute everywhere", func() bool {
		out, _, _ := consumer.cli("list", "user")
		return strings.Contains(out, "muted") && strings.Contains(out, "disk")
	})

	// Registrations: the other host finds what web registers; the consumer is refused.
	mine := newBackend(t, "mine", hostIP(t), 0)
	if _, errs, code := consumer.cli("register", "shop", mine.addr); code == 0 {
		poll(t, "the refusal in the status", func() bool {
			out, _, _ := consumer.cli("status")
			return strings.Contains(out, "shop") && strings.Contains(out, "permission denied")
		})
	} else if !strings.Contains(errs, "permission denied") {
		t.Errorf("the consumer registers: exit %d, %s", code, errs)
	}
	if got := consumer.addresses("shop"); len(got) != 0 {
		t.Errorf("the consumer registered %v", got)
	}
	if _, errs, code := web.cli("register", "shop", mine.addr); code != 0 {
		t.Errorf("web registers: exit %d, %s", code, errs)
	}
	poll(t, "the registration", func() bool {
		consumer.cli("lookup", "shop") // followed on demand
		return strings.Join(consumer.addresses("shop"), " ") == mine.addr
	})
}

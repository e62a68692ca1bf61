package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// A reload, by signal and by verb, changes what changed and touches nothing else; a bad file is refused with file and line, and the old one stays (6.1).
func TestReload(t *testing.T) {
	t.Parallel()
	bs := backends(t, 2, 0)
	first, second := freePort(t), freePort(t)
	a := startAgent(t, fmt.Sprintf("- {name: user, backends: [%q], listen: [%d]}", bs[0].addr, first))
	c := newCaller(t, fmt.Sprintf("127.0.0.1:%d", first))
	stop := c.keepCalling(2)

	// SIGHUP: a service more.
	a.services = fmt.Sprintf("- {name: user, backends: [%q], listen: [%d]}\n- {name: other, backends: [%q], listen: [%d]}", bs[0].addr, first, bs[1].addr, second)
	a.writeConfig()
	a.signal(syscall.SIGHUP)
	c2 := newCaller(t, fmt.Sprintf("127.0.0.1:%d", second))
	if got, err := c2.echo(t.Context(), 1); err != nil || got != "b1" {
		t.Errorf("the new service: %q, %v", got, err)
	}

	// A mistake: refused, with its place; all goes on.
	good, err := os.ReadFile(a.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.config, []byte(string(good)+"    polcy: p2c\n- {name: third, prefix: services/third}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := a.cli("reload")
	if code != 1 || !strings.Contains(stderr, fmt.Sprintf("%s:%d", a.config, strings.Count(string(good), "\n")+1)) {
		t.Errorf("reload of a bad file: %d %q", code, stderr)
	}
	poll(t, "the status says so", func() bool {
		st, err := a.status().Status(t.Context(), &lbagentv1.StatusRequest{})
		return err == nil && !st.GetConfigOk() && strings.Contains(st.GetConfigError(), a.config)
	})
	if v, ok := a.metric("lbagent_config_ok"); !ok || v != 0 {
		t.Errorf("lbagent_config_ok %v %v, want 0", v, ok)
	}
	if _, err := c2.echo(t.Context(), 1); err != nil {
		t.Errorf("after a refused reload: %v", err)
	}

	// The verb: the backends of one change, the other service goes.
	a.services = fmt.Sprintf("- {name: user, backends: [%q], listen: [%d]}", bs[1].addr, first)
	a.writeConfig()
	stdout, stderr, code := a.cli("reload")
	if code != 0 || !strings.Contains(stdout, "other") || !strings.Contains(stdout, "user") {
		t.Errorf("reload: %d %q %q", code, stdout, stderr)
	}
	poll(t, "calls go to the new backend", func() bool { got, err := c.echo(t.Context(), 1); return err == nil && got == "b1" })
	poll(t, "the port of the service that went is closed", func() bool {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", second))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if v, _ := a.metric("lbagent_config_ok"); v != 1 {
		t.Errorf("lbagent_config_ok %v, want 1", v)
	}
	stop()
	c.wantNoFailures()
	if n := c.dials.Load(); n != 1 {
		t.Errorf("the caller connected %d times, want 1", n)
	}
}

// A port that cannot be bound refuses the whole reload (6.1).
func TestReloadBindsAllOrNothing(t *testing.T) {
	t.Parallel()
	bs := backends(t, 1, 0)
	first, free := freePort(t), freePort(t)
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", freePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := startAgent(t, fmt.Sprintf("- {name: user, backends: [%q], listen: [%d]}", bs[0].addr, first))
	_, taken, _ := net.SplitHostPort(l.Addr().String())
	a.services = fmt.Sprintf("- {name: user, backends: [%q], listen: [%d]}\n- {name: more, backends: [%q], listen: [%d, %s]}", bs[0].addr, first, bs[0].addr, free, taken)
	a.writeConfig()
	_, stderr, code := a.cli("reload")
	if code != 1 || !strings.Contains(stderr, taken) {
		t.Errorf("reload: %d %q, want 1 and the port %s", code, stderr, taken)
	}
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", free)); err == nil {
		c.Close()
		t.Error("a listener of the refused configuration is open")
	}
	if got, err := newCaller(t, fmt.Sprintf("127.0.0.1:%d", first)).echo(t.Context(), 1); err != nil {
		t.Errorf("the old service: %q, %v", got, err)
	}
}

// With an invalid file the agent starts on the last configuration that worked, and says so; --strict ends instead (6.5).
func TestStartWithAnInvalidFile(t *testing.T) {
	t.Parallel()
	bs := backends(t, 1, 0)
	port := freePort(t)
	a := startAgent(t, fmt.Sprintf("- {name: user, backends: [%q], listen: [%d]}", bs[0].addr, port))
	a.stop()
	if _, err := os.Stat(filepath.Join(a.dir, "state", "config.good")); err != nil {
		t.Error(err)
	}
	good := a.services
	a.services = "- {name: user, nonsense: 1}"
	a.writeConfig()

	a.args = []string{"--strict"}
	a.launch()
	a.wait(1)
	if text := a.logTail(10); !strings.Contains(text, "nonsense") {
		t.Errorf("--strict says %q", text)
	}

	a.args = nil
	a.start()
	if _, err := newCaller(t, fmt.Sprintf("127.0.0.1:%d", port)).echo(t.Context(), 1); err != nil {
		t.Error(err)
	}
	if v, ok := a.metric("lbagent_config_ok"); !ok || v != 0 {
		t.Errorf("lbagent_config_ok %v %v, want 0", v, ok)
	}
	if out, _, _ := a.cli("status"); !strings.Contains(out, "nonsense") {
		t.Errorf("status does not name the mistake:\n%s", out)
	}
	a.services = good
	a.writeConfig()
	if _, stderr, code := a.cli("reload"); code != 0 {
		t.Errorf("reload of the repaired file: %d %s", code, stderr)
	}
	if v, _ := a.metric("lbagent_config_ok"); v != 1 {
		t.Errorf("lbagent_config_ok %v, want 1", v)
	}
}

// Nothing to fall back to: the agent ends and names the mistake.
func TestStartWithAnInvalidFirstFile(t *testing.T) {
	t.Parallel()
	a := newAgent(t, "- {name: user, nonsense: 1}")
	a.launch()
	a.wait(1)
	if text := a.logTail(10); !strings.Contains(text, a.config+":") || !strings.Contains(text, "nonsense") {
		t.Errorf("the agent says %q", text)
	}
	stdout, stderr, code := a.cli("check", a.config)
	if code != 1 || !strings.Contains(stdout+stderr, "nonsense") {
		t.Errorf("check: %d %q %q", code, stdout, stderr)
	}
}

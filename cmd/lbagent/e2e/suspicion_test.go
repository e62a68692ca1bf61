package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/lbagent/lbagent/agent/testneed"
)

// cutOff holds the path of the built binary in the run of a test that has a network namespace to itself.
const cutOff = "LBAGENT_E2E_CUT_OFF"

// The host's own network is cut: nothing says so but that everything fails at once. Nobody goes out for it, operators are told, and when it is over all is as before; two
// of twelve backends that die then go out as ever (2.10).
func TestCutOff(t *testing.T) {
	t.Parallel()
	if !inOwnNetwork(t) {
		return
	}

	var services strings.Builder
	var bs []*backend
	for i, kind := range []struct{ protocol, probe string }{{"auto", "tcp"}, {"h2", "grpc"}, {"h2", "tcp"}} {
		var addrs []string
		for j := range 4 {
			b := newBackend(t, fmt.Sprintf("b%d%d", i, j), fmt.Sprintf("127.9.%d.%d", i, j+1), 0)
			bs, addrs = append(bs, b), append(addrs, b.addr)
		}
		fmt.Fprintf(&services, "  - {name: s%d, backends: [%s], listen: [%d], protocol: %s, probe: {type: %s, interval: 500ms, timeout: 2s}}\n",
			i, join(addrs), freePort(t), kind.protocol, kind.probe)
	}
	a := startAgent(t, services.String())
	a.probesEnd(36, "passed")

	network(t, "nft", "add rule inet cut in ip daddr 127.9.0.0/16 drop; add rule inet cut in ip saddr 127.9.0.0/16 drop")
	poll(t, "the host suspects itself", func() bool { return a.suspicion() == 1 })
	a.probesEnd(72, "unreachable", "silent")
	a.allUp(3, 4)
	const says = "this host's own network seems to be ill"
	if s := a.must("status"); !strings.Contains(s, says) {
		t.Errorf("status doesn't say so:\n%s", s)
	}
	findings, code := doctorSays(a)
	one(t, findings, "warn services: "+says, "backends of 3 services")
	if code != 0 {
		t.Errorf("doctor ends with %d", code)
	}
	a.must("lookup", "s1")

	network(t, "nft", "flush chain inet cut in")
	poll(t, "the host trusts itself", func() bool { return a.suspicion() == 0 })
	a.probesEnd(36, "passed")
	a.allUp(3, 4)
	events := a.must("events")
	if strings.Count(events, "suspicion") != 2 || strings.Contains(events, "now ") {
		t.Errorf("want two events of suspicion, and none of verdicts:\n%s", events)
	}

	bs[0].kill()
	bs[5].kill()
	poll(t, "two dead backends are out", func() bool {
		return a.verdict("s0", bs[0].addr) != "up" && a.verdict("s1", bs[5].addr) != "up"
	})
	for i, b := range bs {
		if v := a.verdict(fmt.Sprint("s", i/4), b.addr); i != 0 && i != 5 && v != "up" {
			t.Errorf("%s is %s", b.addr, v)
		}
	}
	if a.suspicion() != 0 {
		t.Error("two of twelve make a host suspect itself")
	}
}

// inOwnNetwork runs the test once more, in a network namespace of its own where nft's chain "inet cut in" says what is lost, and reports whether this is that run.
func inOwnNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(cutOff) != "" {
		network(t, "ip", "link", "set", "lo", "up")
		network(t, "nft", "add table inet cut; add chain inet cut in { type filter hook input priority 0; }")
		return true
	}
	testneed.Root(t)
	testneed.Program(t, "nft", "nftables")
	testneed.Program(t, "ip", "iproute2")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=10m")
	c.Env = append(os.Environ(), cutOff+"="+binary)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWNET}
	out, err := c.CombinedOutput()
	switch {
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("%s", out)
	default:
		t.Logf("%s", out)
	}
	return false
}

// network changes the test's own namespace.
func network(t *testing.T, name string, args ...string) {
	t.Helper()
	path := testneed.Program(t, name, "nftables, iproute2")
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		testneed.Unmet(t, "%s %s: %v: %s; this kernel or container has no nftables in a network namespace", name, strings.Join(args, " "), err, out)
	}
}

func (a *agent) suspicion() float64 {
	v, ok := a.metric("lbagent_health_self_suspicion")
	if !ok {
		return -1
	}
	return v
}

// probesEnd waits until n more probes have ended in one of these ways.
func (a *agent) probesEnd(n float64, results ...string) {
	a.t.Helper()
	count := func() (sum float64) {
		for _, r := range results {
			v, _ := a.metric(fmt.Sprintf("lbagent_health_probe_results_total{result=%q}", r))
			sum += v
		}
		return sum
	}
	from := count()
	poll(a.t, fmt.Sprintf("%v more probes are %s", n, strings.Join(results, " or ")), func() bool { return count() >= from+n })
}

// allUp wants every backend of services s0, s1, ... to be up.
func (a *agent) allUp(services, backends int) {
	a.t.Helper()
	for i := range services {
		if v := a.verdicts(fmt.Sprint("s", i)); v["up"] != backends {
			a.t.Errorf("s%d: %v", i, v)
		}
	}
}

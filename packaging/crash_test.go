package packaging

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// testCrashes: what becomes of systemd's units when the agent dies. It begins and ends with a running agent.
func testCrashes(t *testing.T, m *machine) {
	pid := func() string { return m.run(t, "systemctl show -P MainPID lbagent") }
	another := func(before string) {
		t.Helper()
		eventually(t, "another process", func() error {
			if out, err := m.try("systemctl is-active lbagent && lbagent status"); err != nil {
				return errors.New(out)
			}
			if pid() == before {
				return errors.New("the same process")
			}
			return nil
		})
	}

	// The socket units don't notice a crash or a restart: nobody is refused (6.2, 6.6).
	const since = "systemctl show -P ActiveEnterTimestampMonotonic lbagent.socket lbagent-admin.socket"
	before := m.run(t, since)
	for _, end := range []string{"systemctl kill -s KILL lbagent", "systemctl kill -s ABRT lbagent", "systemctl restart lbagent"} {
		was := pid()
		m.run(t, end)
		another(was)
		m.want(t, since, before)
	}

	// A program that ends at its start can't count its starts. systemd does: callers are refused, and it is started again once it can be (6.6).
	const ask = "curl -sS -m 5 -o /dev/null --unix-socket /run/lbagent/lbagent.sock http://lbagent/v1/services"
	install := func(program string) {
		t.Helper()
		m.run(t, "cp "+program+" /usr/bin/lbagent.new && mv /usr/bin/lbagent.new /usr/bin/lbagent")
	}
	count := func(command string) int {
		t.Helper()
		n, err := strconv.Atoi(m.run(t, command))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	gaveUp := func() int {
		return count("journalctl --no-pager -q -o cat -u lbagent | grep -c 'repeated too quickly' || true")
	}
	// fails has the program end and wants callers refused. A machine that is too slow to start it as often as systemd puts up with shows nothing.
	fails := func() {
		t.Helper()
		before, began := gaveUp(), time.Now()
		restarts := func() int { return count("systemctl show -P NRestarts lbagent") }
		m.run(t, "systemctl kill -s KILL lbagent")
		first := restarts()
		eventually(t, "a refusal", func() error {
			out, err := m.try(ask)
			if err != nil && strings.Contains(out, "curl: (7)") {
				return nil
			}
			took := time.Since(began)
			if rate := float64(restarts()-first) / took.Seconds(); took > 30*time.Second && rate < 8./5 && gaveUp() == before {
				t.Logf("%.1f starts a second are too few for systemd to give up", rate)
				return nil
			}
			return fmt.Errorf("%w: %s", err, out)
		})
	}
	const good = "/root/lbagent.good"
	m.run(t, "cp /usr/bin/lbagent "+good)
	install("/bin/false")
	fails()
	install(good)
	another("0")
	m.run(t, ask)

	// Stopped, it stays so: nothing is left that would start it, whether it runs, is started again and again while somebody waits for it, or is given up.
	stop := func() {
		t.Helper()
		m.run(t, "systemctl stop lbagent")
		eventually(t, "the end of all units", func() error {
			if out, _ := m.try("systemctl list-units --no-legend --plain --state=active,activating 'lbagent*'"); out != "" {
				return errors.New(out)
			}
			return nil
		})
	}
	started := func() {
		t.Helper()
		install(good)
		_, _ = m.try("systemctl reset-failed lbagent") // without it systemd may refuse the start, while it still counts (StartLimitIntervalSec=); it fails if nothing did
		m.run(t, "systemctl start lbagent")
		m.run(t, ask)
	}
	install("/bin/false")
	m.run(t, "systemctl kill -s KILL lbagent && ("+ask+" >/dev/null 2>&1 &)")
	stop()
	started()
	install("/bin/false")
	fails()
	stop()
	started()
	stop()
	m.run(t, "systemctl start lbagent && rm "+good)
}

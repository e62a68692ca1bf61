package packaging

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lbagent/lbagent/agent/testneed"
)

// patience bounds every wait; on an idle machine each is over in a second, but where 20 others want each core two upgrades of a package took more than a minute.
const patience = 3 * time.Minute

// suite is whose systemd is booted: bookworm has 252, trixie 257.
var suite = flag.String("suite", "bookworm", "the Debian release of the machines that the tests boot")

// newRoot returns a fresh root tree of a small Debian with systemd. The tree that it is copied from is made once and kept in the user's cache.
func newRoot(t *testing.T) string {
	t.Helper()
	testneed.Root(t)
	mmdebstrap := testneed.Program(t, "mmdebstrap", "mmdebstrap")
	args := []string{"--variant=minbase", "--include=systemd,systemd-sysv,dbus,libnss-systemd,curl,iproute2,rpm", *suite}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	sum := sha256.Sum256([]byte(strings.Join(args, " ")))
	kept := filepath.Join(cache, fmt.Sprintf("lbagent-test-root-%x", sum[:6]))
	if _, err := os.Stat(kept); err != nil {
		if err := os.MkdirAll(cache, 0o755); err != nil {
			t.Fatal(err)
		}
		fresh, err := os.MkdirTemp(cache, "lbagent-test-new-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(fresh)
		if err := os.Chmod(fresh, 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), mmdebstrap, append(args, fresh)...).CombinedOutput(); err != nil {
			testneed.Unmet(t, "mmdebstrap can't make a root tree (no network?): %v\n%s", err, out)
		}
		if err := os.Rename(fresh, kept); err != nil {
			if _, err := os.Stat(kept); err != nil { // else another test was faster
				t.Fatal(err)
			}
		}
	}
	root := filepath.Join(t.TempDir(), "root")
	output(t, "cp", "-a", "--reflink=auto", kept, root)
	return root
}

// machine is a booted systemd in a container.
type machine struct {
	root   string
	leader string // its process 1, as seen from outside
	stop   func() // asks it to shut down
	ended  <-chan struct{}
}

// powerOff shuts the machine down and waits for that.
func (m *machine) powerOff(t *testing.T) {
	t.Helper()
	m.stop()
	select {
	case <-m.ended:
	case <-time.After(patience):
		t.Fatal("it doesn't shut down")
	}
}

// boot starts systemd in root; it ends with the test.
func boot(t *testing.T, root string) *machine {
	t.Helper()
	nspawn := testneed.Program(t, "systemd-nspawn", "systemd-container")
	testneed.Program(t, "nsenter", "util-linux")
	if err := os.WriteFile(filepath.Join(root, "etc/machine-id"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	groups := ownGroups(t)
	// The shell joins the groups before it becomes nspawn, so that the container's tree begins there.
	var join strings.Builder
	for _, g := range groups {
		fmt.Fprintf(&join, "echo $$ >'%s/cgroup.procs' && ", g)
	}
	cmd := exec.Command("/bin/sh", "-c", join.String()+`exec "$0" "$@"`, nspawn, "--quiet", "--register=no", "--keep-unit", "--private-network",
		"--console=pipe", "--directory="+root, "--boot")
	cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &console, &console
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("console:\n%s", console.String())
		}
	})
	m := &machine{root: root, ended: ended, stop: func() { _ = cmd.Process.Signal(syscall.SIGTERM) }} // nspawn makes it a shutdown
	eventually(t, "boot", func() error {
		select {
		case <-ended:
			t.Fatalf("systemd-nspawn ended:\n%s", console.String())
		default:
		}
		if m.leader == "" {
			pid := strconv.Itoa(cmd.Process.Pid)
			children, err := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
			if err != nil || len(bytes.Fields(children)) == 0 {
				return errors.New("no process 1 yet")
			}
			m.leader = string(bytes.Fields(children)[0])
		}
		out, err := m.try("systemctl is-active multi-user.target")
		if err != nil {
			m.leader = "" // it may have been a helper of nspawn's
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return m
}

// ownGroups makes a control group for the container in each hierarchy that systemd uses; nobody else has it.
func ownGroups(t *testing.T) []string {
	t.Helper()
	var groups []string
	for _, base := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"} {
		if _, err := os.Stat(base + "/cgroup.procs"); err != nil {
			continue
		}
		// Another test may have had this process's id, here or in another container, and have left its group behind.
		group, err := os.MkdirTemp(base, fmt.Sprintf("lbagent-test-%d-", os.Getpid()))
		if err != nil {
			testneed.Unmet(t, "no control group for a container: %v", err)
		}
		groups = append(groups, group)
		t.Cleanup(func() { removeGroups(group) })
	}
	if len(groups) == 0 {
		testneed.Unmet(t, "no control groups in /sys/fs/cgroup")
	}
	return groups
}

// removeGroups removes a group and those below it, innermost first.
func removeGroups(group string) {
	entries, _ := os.ReadDir(group)
	for _, e := range entries {
		if e.IsDir() {
			removeGroups(filepath.Join(group, e.Name()))
		}
	}
	_ = syscall.Rmdir(group)
}

// try runs a shell command in the machine.
func (m *machine) try(command string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "-t", m.leader, "-a", "--", "/usr/bin/env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0", "/bin/sh", "-c", command)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// run is try that must work.
func (m *machine) run(t *testing.T, command string) string {
	t.Helper()
	out, err := m.try(command)
	if err != nil {
		t.Fatalf("%s: %v\n%s\n%s", command, err, out, m.journal())
	}
	return out
}

// want runs a command and compares what it says.
func (m *machine) want(t *testing.T, command, want string) {
	t.Helper()
	if got := m.run(t, command); got != want {
		t.Errorf("%s: got\n%s\nwant\n%s", command, got, want)
	}
}

// fails runs a command that must not work and returns what it says.
func (m *machine) fails(t *testing.T, command string) string {
	t.Helper()
	out, err := m.try(command)
	if err == nil {
		t.Errorf("%s: works, should not\n%s", command, out)
	}
	return out
}

// well: doctor finds nothing, as root and as nobody. Where this test itself may open too few files, so may all in the machine, and doctor is right to say so.
func (m *machine) well(t *testing.T) {
	t.Helper()
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	for _, as := range []string{"", "runuser -u nobody -- "} {
		var said struct {
			Findings []struct{ Check, State, What, Mend string }
		}
		out := m.run(t, as+"lbagent doctor --json")
		if err := json.Unmarshal([]byte(out), &said); err != nil || len(said.Findings) < 5 {
			t.Fatalf("%slbagent doctor says %v\n%s", as, err, out)
		}
		for _, f := range said.Findings {
			if f.State != "ok" && (f.Check != "open files" || files.Max > 1<<16) {
				t.Errorf("%slbagent doctor: %+v", as, f)
			}
			if as != "" && strings.Contains(f.What, "no list in the spool") {
				t.Errorf("%slbagent doctor can't know that: %+v", as, f)
			}
		}
	}
}

func (m *machine) journal() string {
	out, _ := m.try("journalctl --no-pager -b -u lbagent | tail -40")
	return out
}

// write writes a file in the machine.
func (m *machine) write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.root, path), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// copyIn copies a package into the machine and returns its path there.
func (m *machine) copyIn(t *testing.T, path string) string {
	t.Helper()
	to := "/root/" + filepath.Base(path) // nspawn covers /tmp and /run
	output(t, "cp", path, filepath.Join(m.root, to))
	return to
}

// eventually tries until f is content.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("%s: %v", what, err)
		case <-again.C:
		}
	}
}

package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/testneed"
)

// life is a run of the built binary whose output a test reads.
type life struct {
	t    *testing.T
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex
	out bytes.Buffer
}

// begin starts cmd, which ends with the test at the latest.
func begin(t *testing.T, cmd *exec.Cmd) *life {
	t.Helper()
	l := &life{t: t, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout = &lockedWriter{mu: &l.mu, w: &l.out}
	cmd.Stderr = cmd.Stdout
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { defer close(l.done); _ = cmd.Wait() }()
	t.Cleanup(func() { l.end() })
	return l
}

func (l *life) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.String()
}

// says waits for text in the output.
func (l *life) says(text string) {
	l.t.Helper()
	poll(l.t, fmt.Sprintf("the agent says %q", text), func() bool {
		select {
		case <-l.done:
			if !strings.Contains(l.text(), text) {
				l.t.Fatalf("the agent ended:\n%s", l.text())
			}
		default:
		}
		return strings.Contains(l.text(), text)
	})
}

// end stops it in peace and returns its exit code.
func (l *life) end() int {
	_ = l.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-l.done:
	case <-time.After(patience):
		_ = l.cmd.Process.Kill()
		<-l.done
	}
	return l.cmd.ProcessState.ExitCode()
}

// On a laptop or in CI: no file, no root, no /run/lbagent, and nothing is left behind.
func TestStaticAsAnybody(t *testing.T) {
	t.Parallel()
	testneed.Root(t) // to become somebody else
	backends := []*httptest.Server{}
	for _, name := range []string{"one", "two"} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
		defer s.Close()
		backends = append(backends, s)
	}
	temp, err := os.MkdirTemp("", "lbagent-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(temp)
	if err := os.Chmod(temp, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) *exec.Cmd {
		cmd := exec.Command(binary, args...)
		cmd.Env = []string{"PATH=/usr/bin:/bin", "TMPDIR=" + temp, raceOptions}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		return cmd
	}
	port := freePort(t)
	address := func(i int) string { return strings.TrimPrefix(backends[i].URL, "http://") }
	l := begin(t, run("run", "--static", "user="+address(0)+","+address(1), "--listen", fmt.Sprint(port)))
	l.says("ready: services=1")

	seen := map[string]int{}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for range 40 {
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			t.Fatal(err)
		}
		var body bytes.Buffer
		_, err = body.ReadFrom(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		seen[body.String()]++
	}
	if seen["one"] == 0 || seen["two"] == 0 || seen["one"]+seen["two"] != 40 {
		t.Errorf("40 calls: %v", seen)
	}

	// The line that it prints first is all that the other verbs need.
	_, export, _ := strings.Cut(l.text(), "to ask it: export ")
	export, _, _ = strings.Cut(export, "\n")
	ask := run("lookup", "user")
	ask.Env = append(ask.Env, strings.Fields(export)...)
	if out, err := ask.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "127.0.0.1:") {
		t.Errorf("lookup with %q: %v: %s", export, err, out)
	}
	for _, args := range [][]string{{"mute", "user", address(0)}, {"reload"}} {
		change := run(args...)
		change.Env = append(change.Env, strings.Fields(export)...)
		if out, err := change.CombinedOutput(); err != nil {
			t.Errorf("%q with %q: %v: %s", args, export, err, out)
		}
	}
	if other, _ := run("run", "--static", "user="+address(0)).CombinedOutput(); !strings.Contains(string(other), "another process") {
		t.Errorf("a second agent on the same socket: %s", other)
	}

	if code := l.end(); code != 0 {
		t.Errorf("it ended with %d\n%s", code, l.text())
	}
	for _, bad := range []string{"[WARN]", "[ERROR]", "DATA RACE", "no services yet"} {
		if strings.Contains(l.text(), bad) {
			t.Errorf("%s in the log:\n%s", bad, l.text())
		}
	}
	if left, err := filepath.Glob(temp + "/*state*"); err != nil || len(left) > 0 {
		t.Errorf("it left %q behind (%v)", left, err)
	}
	if left, err := filepath.Glob(temp + "/*/*.sock"); err != nil || len(left) > 0 {
		t.Errorf("it left %q behind (%v)", left, err)
	}
}

// What somebody sees who has just installed the package, without a network: nothing to worry about, and what to do next.
func TestFirstMinutes(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "lbagent-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	packaged, err := os.ReadFile("../../../packaging/etc/lbagent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "lbagent.yaml")
	here := fmt.Sprintf("\napi: {socket: %[1]s/a.sock, admin_socket: %[1]s/b.sock}\nstate_dir: %[1]s/state\nadmin: {listen: %[2]d}\n", dir, freePort(t))
	if err := os.WriteFile(file, append(packaged, here...), 0o600); err != nil {
		t.Fatal(err)
	}
	l := begin(t, exec.Command(binary, "run", "--config", file))
	l.says("no services yet")
	lines := strings.Split(strings.TrimSpace(l.text()), "\n")
	for _, want := range []string{file, "lbagent scan --etcd URL", "[INFO]"} {
		if last := lines[len(lines)-1]; !strings.Contains(last, want) {
			t.Errorf("the last line of the log is\n  %s\nwithout %q", last, want)
		}
	}
	for _, line := range lines {
		if !strings.Contains(line, "[INFO]") {
			t.Errorf("in the log of a fresh install: %s", line)
		}
	}
}

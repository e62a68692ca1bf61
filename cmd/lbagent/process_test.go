package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mainVariable makes the test's own binary be lbagent: the real process, with its exit code, streams and signals, built with the race detector.
const mainVariable = "LBAGENT_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainVariable) == "1" {
		os.Exit(run())
	}
	os.Exit(m.Run())
}

// command is lbagent with args as a process that ends with the test.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), mainVariable+"=1", "LBAGENT_SOCKET=", "LBAGENT_ADMIN_SOCKET=")
	return cmd
}

func exitCode(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return 0
}

func TestProcessExitCodes(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("nosuch: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   []string
		code   int
		stdout bool // the text is there, not on stderr
	}{
		{[]string{"--help"}, 0, true},
		{[]string{"version"}, 0, true},
		{[]string{"nosuch"}, 2, false},
		{[]string{"services", "--socket", "/nonexistent/a.sock"}, 1, false},
		{[]string{"check", bad}, 1, false},
		{[]string{"run", "--strict", "--config", bad}, 1, false},
	} {
		var stdout, stderr bytes.Buffer
		cmd := command(t, tt.args...)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if code := exitCode(cmd.Run()); code != tt.code {
			t.Errorf("%q: exit code %d, want %d", tt.args, code, tt.code)
		}
		if (stdout.Len() > 0) != tt.stdout || (stderr.Len() > 0) == tt.stdout {
			t.Errorf("%q: %d bytes on stdout, stderr: %s", tt.args, stdout.Len(), stderr.String())
		}
	}
}

// daemon is a running `lbagent run`.
type daemon struct {
	cmd         *exec.Cmd
	dir, config string
	ended       chan error

	lines chan string // of stderr
	log   io.Closer   // the other end of stderr
}

// startDaemon runs the agent with one static service, everything it touches in a folder of its own.
func startDaemon(t *testing.T) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "lbagent") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &daemon{dir: dir, config: filepath.Join(dir, "lbagent.yaml"), ended: make(chan error, 1), lines: make(chan string, 1000)}
	d.configure(t, `services: [{name: user, backends: ["127.0.0.1:9"]}]`)
	d.cmd = command(t, "run", "--strict", "--config", d.config)
	stderr, err := d.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.log = stderr
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for s := bufio.NewScanner(stderr); s.Scan(); {
			d.lines <- s.Text()
		}
		close(d.lines)
		d.ended <- d.cmd.Wait()
	}()
	d.await(t, "ready")
	return d
}

// configure writes the configuration; services is its last part.
func (d *daemon) configure(t *testing.T, services string) {
	t.Helper()
	text := fmt.Sprintf("api: {socket: %[1]s/a.sock, admin_socket: %[1]s/adm.sock}\nadmin: {listen: \"\"}\nstate_dir: %[1]s\non_demand: off\n%s\n", d.dir, services)
	if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// await waits for a line of the log with that text.
func (d *daemon) await(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	var seen []string
	for {
		select {
		case line, ok := <-d.lines:
			if !ok {
				t.Fatalf("the agent ended; its log:\n%s", strings.Join(seen, "\n"))
			}
			if seen = append(seen, line); strings.Contains(line, text) {
				return
			}
		case <-deadline:
			t.Fatalf("no %q in the log:\n%s", text, strings.Join(seen, "\n"))
		}
	}
}

// rest is what is left of the log of an agent that has ended.
func (d *daemon) rest() string {
	var out strings.Builder
	for line := range d.lines {
		out.WriteString(line + "\n")
	}
	return out.String()
}

func (d *daemon) call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return call(t, map[string]string{"LBAGENT_SOCKET": d.dir + "/a.sock", "LBAGENT_ADMIN_SOCKET": d.dir + "/adm.sock"}, args...)
}

// TestDaemon is the life of an agent as its operator sees it.
func TestDaemon(t *testing.T) {
	d := startDaemon(t)
	if code, stdout, stderr := d.call(t, "lookup", "user"); code != 0 || stdout != "127.0.0.1:9\n" {
		t.Errorf("lookup: exit code %d: %s%s", code, stdout, stderr)
	}
	if code, _, stderr := d.call(t, "lookup", "nosuch"); code != 3 || !strings.Contains(stderr, "nosuch") {
		t.Errorf("lookup nosuch: exit code %d: %s", code, stderr)
	}
	for _, args := range [][]string{{"services"}, {"status"}, {"list", "user"}, {"explain", "user"}, {"events", "user"}} {
		if code, stdout, stderr := d.call(t, args...); code != 0 || !strings.Contains(stdout, "user") {
			t.Errorf("%q: exit code %d: %s%s", args, code, stdout, stderr)
		} else {
			checkForm(t, false, stdout, stderr)
		}
	}

	d.configure(t, `services: [{name: user, backends: ["127.0.0.1:9"]}, {name: cart, backends: ["127.0.0.1:10"]}]`)
	if code, stdout, stderr := d.call(t, "reload"); code != 0 || !strings.Contains(stdout, "cart") {
		t.Errorf("reload: exit code %d: %s%s", code, stdout, stderr)
	}
	if code, stdout, _ := d.call(t, "lookup", "cart"); code != 0 || stdout != "127.0.0.1:10\n" {
		t.Errorf("lookup cart: exit code %d: %s", code, stdout)
	}

	d.configure(t, `services: [{name: user, bakends: []}]`)
	if code, stdout, stderr := d.call(t, "reload"); code != 1 || stdout != "" || !strings.Contains(stderr, "bakends") {
		t.Errorf("reload of a bad file: exit code %d: %s%s", code, stdout, stderr)
	}
	if _, stdout, _ := d.call(t, "status"); !strings.Contains(stdout, "INVALID") || !strings.Contains(stdout, "bakends") {
		t.Errorf("status hides a bad file:\n%s", stdout)
	}

	d.configure(t, `services: [{name: mail, backends: ["127.0.0.1:11"]}]`)
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	d.await(t, "service mail: added")
	if _, stdout, _ := d.call(t, "services", "--json"); !strings.Contains(stdout, `"mail"`) || strings.Contains(stdout, `"cart"`) {
		t.Errorf("services after SIGHUP:\n%s", stdout)
	}

	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-d.ended:
		if err != nil {
			t.Errorf("SIGTERM: %v; the log ends with\n%s", err, d.rest())
		}
	case <-time.After(20 * time.Second):
		t.Fatal("SIGTERM did not end the agent")
	}
	if code, _, stderr := d.call(t, "services"); code != exitLeft || !strings.Contains(stderr, "no agent") {
		t.Errorf("services without an agent: exit code %d: %s", code, stderr)
	}
}

// TestLogReaderGone: who reads the log may go, be it journald or a pipe; the host's traffic goes on.
func TestLogReaderGone(t *testing.T) {
	d := startDaemon(t)
	if err := d.log.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cart", "mail"} {
		d.configure(t, `services: [{name: `+name+`, backends: ["127.0.0.1:10"]}]`)
		if code, stdout, stderr := d.call(t, "reload"); code != 0 { // which writes to the log
			t.Fatalf("reload: exit code %d: %s%s", code, stdout, stderr)
		}
	}
	if code, stdout, stderr := d.call(t, "lookup", "mail"); code != 0 {
		t.Errorf("lookup: exit code %d: %s%s", code, stdout, stderr)
	}
}

// TestSameJSON: --json prints what the socket's JSON face says.
func TestSameJSON(t *testing.T) {
	d := startDaemon(t)
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", d.dir+"/a.sock")
	}}}
	defer client.CloseIdleConnections()
	for path, args := range map[string][]string{
		"/v1/services":               {"services", "--json"},
		"/v1/services/user/backends": {"list", "user", "--json"},
		"/v1/services/user/pick":     {"lookup", "user", "--json"},
		"/v1/status":                 {"status", "--json"},

		"/v1/services/user/explain?etcd_now=true": {"explain", "user", "--json"},
	} {
		resp, err := client.Get("http://lbagent" + path)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		_, stdout, stderr := d.call(t, args...)
		if face, verb := shape(t, raw), shape(t, []byte(stdout)); face != verb {
			t.Errorf("%s says\n%s\nlbagent %s says\n%s%s", path, face, strings.Join(args, " "), verb, stderr)
		}
	}
}

// shape is JSON in a stable form, without what changes from one moment to the next.
func shape(t *testing.T, raw []byte) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	var still func(v any)
	still = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, of := range v {
				if k == "age" || k == "summary" || k == "sentence" || k == "words" || k == "cause" {
					v[k] = "-"
				}
				still(of)
			}
		case []any:
			for _, of := range v {
				still(of)
			}
		}
	}
	still(v)
	out, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

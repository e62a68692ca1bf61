package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// deadAgent is a host whose agent has gone: its files for callers, and its spool unless that is not wanted.
func deadAgent(t *testing.T) (a *app, stdout, stderr *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	lists := filepath.Join(dir, "run", "lists")
	if err := os.MkdirAll(lists, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"user": "10.0.0.2:80 100\n10.0.0.1:80 50\n10.0.0.3:80 0\n", "cart": "10.0.1.1:80 100\n", "empty": "", ".tmp-1": "x"} {
		path := filepath.Join(lists, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, moment(), moment().Add(-3*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(dir, "lbagent.yaml")
	if err := os.WriteFile(config, []byte("state_dir: "+dir+"/state\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	return &app{
		stdout: &output{w: stdout}, stderr: stderr, now: moment, patience: 5 * time.Second, config: config,
		getenv: func(string) string { return filepath.Join(dir, "run", "a.sock") },
	}, stdout, stderr
}

// Verbs that only look say that there is no agent, and what the last one left.
func TestVerbsOfADeadAgent(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"services"}, exitLeft, []string{"SERVICE", "cart", "user", "3m", "file for callers"}},
		{[]string{"status"}, exitLeft, []string{"cart", "user"}},
		{[]string{"list", "user"}, exitLeft, []string{"user: 3 backends", "written 3m ago", "nobody knows now", "10.0.0.2:80  100", "10.0.0.3:80  0"}},
		{[]string{"explain", "user"}, exitLeft, []string{"user: 3 backends", "10.0.0.1:80"}},
		{[]string{"explain", "user", "10.0.0.1:80"}, exitLeft, []string{"10.0.0.1:80"}},
		{[]string{"lookup", "user"}, exitLeft, []string{"10.0.0.2:80\n"}},
		{[]string{"lookup", "usre"}, exitNone, nil},
		{[]string{"lookup", "empty"}, exitNone, nil},
	} {
		a, stdout, stderr := deadAgent(t)
		code := a.execute(t.Context(), c.args)
		if code != c.code {
			t.Errorf("%q: exit code %d, want %d: %s", c.args, code, c.code, stderr)
		}
		if s := stderr.String(); !strings.Contains(s, "no agent is running here") || !strings.Contains(s, "the last agent left") {
			t.Errorf("%q: stderr: %s", c.args, s)
		}
		for _, want := range c.want {
			if !strings.Contains(stdout.String(), want) && !strings.Contains(oneLine(stdout.String()), want) {
				t.Errorf("%q: stdout lacks %q:\n%s", c.args, want, stdout)
			}
		}
		if len(c.want) == 0 && stdout.Len() > 0 {
			t.Errorf("%q: stdout: %s", c.args, stdout)
		}
	}
	a, _, stderr := deadAgent(t)
	if a.execute(t.Context(), []string{"list", "usr"}); !strings.Contains(stderr.String(), "did you mean user?") {
		t.Errorf("stderr: %s", stderr)
	}
}

func TestJSONOfADeadAgent(t *testing.T) {
	for _, args := range [][]string{{"services", "--json"}, {"status", "--json"}, {"list", "user", "--json"}, {"explain", "user", "--json"}, {"lookup", "user", "--json"}} {
		a, stdout, stderr := deadAgent(t)
		code := a.execute(t.Context(), args)
		var l leftovers
		if err := json.Unmarshal(stdout.Bytes(), &l); err != nil || code != exitLeft {
			t.Fatalf("%q: exit code %d, %v: %s%s", args, code, err, stdout, stderr)
		}
		last := l.Services[len(l.Services)-1]
		if l.Agent != "absent" || !strings.Contains(l.Why, "no agent is running here") || (len(l.Services) == 1) != (len(args) == 3) || last.Service != "user" ||
			len(last.Backends) != 3 || *last.Backends[0].Weight != 100 {
			t.Errorf("%q: %s", args, stdout)
		}
	}
}

// What changes something needs an agent, whatever is left of one.
func TestChangesNeedAnAgent(t *testing.T) {
	for _, args := range [][]string{{"reload"}, {"mute", "user", "10.0.0.1:80"}, {"drain", "user"}, {"watch", "user"}, {"env", "user"}, {"events"}} {
		a, stdout, stderr := deadAgent(t)
		if code := a.execute(t.Context(), args); code != exitFailure || stdout.Len() > 0 || !strings.Contains(stderr.String(), "no agent is running here") {
			t.Errorf("%q: exit code %d: %s%s", args, code, stdout, stderr)
		}
	}
}

// In a crash loop the socket takes connections that nobody serves: there is no agent then, either.
func TestVerbsInACrashLoop(t *testing.T) {
	a, stdout, stderr := deadAgent(t)
	l, err := net.Listen("unix", a.getenv("LBAGENT_SOCKET"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	code := a.execute(t.Context(), []string{"status"})
	said := stderr.String()
	if code != exitLeft || !strings.Contains(said, "went away: it stops, restarts or crashes") || !strings.Contains(said, "the last agent left") || !strings.Contains(stdout.String(), "user") {
		t.Errorf("exit code %d: %s%s", code, said, stdout)
	}
	if strings.Contains(said, "transport") {
		t.Errorf("gRPC's own words: %s", said)
	}
}

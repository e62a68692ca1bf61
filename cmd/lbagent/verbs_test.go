package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "write the expected results anew")

// call runs one command line; env are variables beside nothing.
func call(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	a := &app{stdout: &output{w: &out}, stderr: &err, getenv: func(k string) string { return env[k] }, now: moment, patience: 5 * time.Second}
	code = a.execute(t.Context(), args)
	return code, out.String(), err.String()
}

// TestVerbs compares what each verb prints with a file in testdata.
func TestVerbs(t *testing.T) {
	agents := map[string]*fakeAgent{"busy": startFake(t, &fakeAgent{}), "idle": startFake(t, &fakeAgent{empty: true})}
	tests := []struct {
		name, agent string
		args        []string
		code        int
	}{
		{"help", "", []string{"--help"}, 0},
		{"help-nothing", "", nil, 0},
		{"help-lookup", "", []string{"help", "lookup"}, 0},
		{"help-doctor", "", []string{"help", "doctor"}, 0},
		{"help-explain", "", []string{"explain", "--help"}, 0},
		{"help-events", "", []string{"events", "--help"}, 0},
		{"help-tap", "", []string{"help", "tap"}, 0},
		{"help-top", "", []string{"help", "top"}, 0},
		{"help-run", "", []string{"run", "--help"}, 0},
		{"help-config", "", []string{"config"}, 0},
		{"help-config-put", "", []string{"help", "config", "put"}, 0},
		{"help-config-rm", "", []string{"help", "config", "rm"}, 0},
		{"help-config-list", "", []string{"help", "config", "list"}, 0},
		{"help-config-get", "", []string{"help", "config", "get"}, 0},
		{"help-config-history", "", []string{"help", "config", "history"}, 0},
		{"config-nothing-to-put", "", []string{"config", "put"}, 2},
		{"config-nothing-to-remove", "", []string{"config", "rm"}, 2},
		{"config-bad-name", "", []string{"config", "get", "a/b/c"}, 2},
		{"help-nosuch", "", []string{"help", "nosuch"}, 2},
		{"unknown-verb", "", []string{"lokup"}, 2},
		{"unknown-flag", "", []string{"list", "--jsn", "user"}, 2},
		{"missing-argument", "", []string{"list"}, 2},
		{"extra-argument", "", []string{"list", "user", "cart"}, 2},
		{"empty-argument", "", []string{"lookup", ""}, 2},
		{"bad-count", "", []string{"lookup", "user", "--count", "0"}, 2},
		{"completion-nosuch", "", []string{"completion", "csh"}, 2},

		{"services", "busy", []string{"services"}, 0},
		{"services-none", "idle", []string{"services"}, 0},
		{"services-json", "busy", []string{"services", "--json"}, 0},
		{"lookup", "busy", []string{"lookup", "user"}, 0},
		{"lookup-count", "busy", []string{"lookup", "user", "--count", "10"}, 0},
		{"lookup-json", "busy", []string{"lookup", "user", "--json"}, 0},
		{"lookup-nosuch", "busy", []string{"lookup", "nosuch"}, 3},
		{"lookup-down", "busy", []string{"lookup", "down"}, 3},
		{"lookup-not-ready", "busy", []string{"lookup", "new", "--json"}, 3},
		{"lookup-too-many", "busy", []string{"lookup", "many"}, 1},
		{"lookup-bad-name", "busy", []string{"lookup", "bad name"}, 2},
		{"lookup-evil", "busy", []string{"lookup", "evil"}, 3},
		{"list", "busy", []string{"list", "user"}, 0},
		{"list-json", "busy", []string{"list", "user", "--json"}, 0},
		{"list-static-empty", "busy", []string{"list", "static"}, 0},
		{"list-panic", "busy", []string{"list", "panic"}, 0},
		{"list-nosuch", "busy", []string{"list", "nosuch"}, 3},
		{"watch", "busy", []string{"watch", "user"}, 1},
		{"watch-json", "busy", []string{"watch", "user", "--json"}, 1},
		{"watch-nosuch", "busy", []string{"watch", "nosuch"}, 3},
		{"env", "busy", []string{"env", "user"}, 0},
		{"env-json", "busy", []string{"env", "user", "--json"}, 0},
		{"env-unix", "busy", []string{"env", "only.sock"}, 0},
		{"env-no-listener", "busy", []string{"env", "mail"}, 1},
		{"env-nosuch", "busy", []string{"env", "nosuch"}, 3},
		{"status", "busy", []string{"status"}, 0},
		{"status-idle", "idle", []string{"status"}, 0},
		{"status-json", "idle", []string{"status", "--json"}, 0},
		{"explain", "busy", []string{"explain", "user"}, 0},
		{"explain-backend", "busy", []string{"explain", "user", "10.0.0.3:8080"}, 0},
		{"explain-json", "busy", []string{"explain", "user", "10.0.0.3:8080", "--json"}, 0},
		{"explain-no-backend", "busy", []string{"explain", "user", "10.9.9.9:1"}, 3},
		{"events", "busy", []string{"events"}, 0},
		{"events-service", "busy", []string{"events", "cart"}, 0},
		{"events-json", "busy", []string{"events", "--json"}, 0},
		{"events-kind", "busy", []string{"events", "--kind", "agent,connection"}, 0},
		{"events-bad-kind", "busy", []string{"events", "--kind", "verdicts"}, 2},
		{"list-like", "busy", []string{"list", "usr"}, 3},
		{"explain-like-backend", "busy", []string{"explain", "user", "10.0.0.2:8080"}, 3},
		{"env-like", "busy", []string{"env", "uesr"}, 3},
		{"top-once", "busy", []string{"top", "--once", "--sort", "name"}, 0},
		{"top-service", "busy", []string{"top", "user", "--once", "--sort", "errors"}, 0},
		{"top-json", "busy", []string{"top", "--once", "--json"}, 0},
		{"top-nosuch", "busy", []string{"top", "nosuch"}, 3},
		{"top-bad-sort", "busy", []string{"top", "--sort", "loud"}, 2},
		{"tap", "busy", []string{"tap", "user", "--count", "4"}, 0},
		{"tap-all", "busy", []string{"tap", "--count", "1"}, 0},
		{"tap-json", "busy", []string{"tap", "user", "--json", "--count", "3"}, 0},
		{"tap-nosuch", "busy", []string{"tap", "nosuch"}, 3},
		{"reload", "busy", []string{"reload"}, 0},
		{"reload-nothing", "idle", []string{"reload"}, 0},
		{"reload-json", "busy", []string{"reload", "--json"}, 0},
		{"mute", "busy", []string{"mute", "user", "10.0.0.1:80"}, 0},
		{"mute-last", "busy", []string{"mute", "user", "10.0.0.2:80", "--for", "2d", "--reason", "x"}, 0},
		{"mute-fleet", "busy", []string{"mute", "user", "10.0.0.1:80", "--fleet", "--reason", "bad disk"}, 1},
		{"mute-force", "busy", []string{"mute", "user", "10.0.0.1:80", "--fleet", "--reason", "bad disk", "--force", "--for", "90s"}, 0},
		{"mute-json", "busy", []string{"mute", "user", "10.0.0.2:80", "--json"}, 0},
		{"mute-invalid", "busy", []string{"mute", "bad name", "10.0.0.1:80"}, 2},
		{"mute-bad-for", "busy", []string{"mute", "user", "10.0.0.1:80", "--for", "ever"}, 2},
		{"mute-zero", "busy", []string{"mute", "user", "10.0.0.1:80", "--for", "0"}, 2},
		{"mute-one-argument", "busy", []string{"mute", "user"}, 2},
		{"mute-flag-alone", "busy", []string{"mute", "--fleet"}, 2},
		{"mute-list", "busy", []string{"mute"}, 0},
		{"mute-list-json", "busy", []string{"mute", "--json"}, 0},
		{"mute-none", "idle", []string{"mute"}, 0},
		{"unmute", "busy", []string{"unmute", "user", "10.0.0.1:80"}, 0},
		{"unmute-fleet", "busy", []string{"unmute", "user", "10.0.0.1:80", "--fleet"}, 0},
		{"unmute-json", "busy", []string{"unmute", "user", "10.0.0.1:80", "--json"}, 0},
		{"gone", "busy", []string{"list", "gone"}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			env := map[string]string{}
			if a := agents[tt.agent]; a != nil {
				env["LBAGENT_SOCKET"], env["LBAGENT_ADMIN_SOCKET"] = a.socket, a.socket
			}
			code, stdout, stderr := call(t, env, tt.args...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			asJSON := strings.Contains(strings.Join(tt.args, " "), "--json")
			if tt.name == "tap" { // its lines are to be searched by line, however long they are
				checkForm(t, asJSON, strings.ReplaceAll(stdout, "; ended", ";\n ended"), stderr)
			} else {
				checkForm(t, asJSON, stdout, stderr)
			}
			got := fmt.Sprintf("$ lbagent %s\n%s", strings.Join(tt.args, " "), stdout)
			if stderr != "" {
				got += "--- stderr\n" + stderr
			}
			got += fmt.Sprintf("--- exit code %d\n", code)
			if env["LBAGENT_SOCKET"] != "" {
				got = strings.ReplaceAll(got, env["LBAGENT_SOCKET"], "SOCKET")
			}
			golden(t, tt.name, got)
		})
	}
}

// checkForm holds for every verb: JSON is JSON, text fits and does nothing to a terminal.
func checkForm(t *testing.T, asJSON bool, stdout, stderr string) {
	t.Helper()
	if asJSON {
		for dec := json.NewDecoder(strings.NewReader(stdout)); ; {
			var v any
			if err := dec.Decode(&v); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("stdout is not JSON: %v\n%s", err, stdout)
			}
		}
		stdout = ""
	}
	for line := range strings.Lines(stdout + stderr) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width && !strings.Contains(line, "/a.sock") {
			t.Errorf("%d columns: %s", n, line)
		}
		if strings.TrimRight(line, " \n")+"\n" != line {
			t.Errorf("spaces at the end: %q", line)
		}
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\n' }) {
			t.Errorf("control characters: %q", line)
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it anew). Got:\n%s", path, got)
	}
}

// TestEveryVerbReadsJSON: programs read all that people read.
func TestEveryVerbReadsJSON(t *testing.T) {
	a := &app{stdout: &output{w: io.Discard}, getenv: func(string) string { return "" }}
	verbs := a.root().Commands()
	for i := 0; i < len(verbs); i++ {
		verb := verbs[i]
		if verb.HasSubCommands() {
			verbs = append(verbs, verb.Commands()...)
			continue
		}
		switch verb.Name() {
		case "run", "help", "completion", "manual":
			continue
		}
		if verb.Flags().Lookup("json") == nil {
			t.Errorf("%s has no --json", verb.Name())
		}
	}
}

func TestFlagsBeatVariables(t *testing.T) {
	f := startFake(t, &fakeAgent{})
	nowhere := map[string]string{"LBAGENT_SOCKET": "/nonexistent/a", "LBAGENT_ADMIN_SOCKET": "/nonexistent/b"}
	if code, _, stderr := call(t, nowhere, "services", "--socket", f.socket); code != 0 {
		t.Errorf("services: exit code %d: %s", code, stderr)
	}
	if code, _, stderr := call(t, nowhere, "--admin-socket", f.socket, "reload"); code != 0 {
		t.Errorf("reload: exit code %d: %s", code, stderr)
	}
	if code, _, stderr := call(t, nowhere, "services"); code != 1 || !strings.Contains(stderr, "/nonexistent/a") {
		t.Errorf("services by LBAGENT_SOCKET: exit code %d: %s", code, stderr)
	}
	if code, _, stderr := call(t, nowhere, "reload"); code != 1 || !strings.Contains(stderr, "/nonexistent/b") {
		t.Errorf("reload by LBAGENT_ADMIN_SOCKET: exit code %d: %s", code, stderr)
	}
}

func TestCompletion(t *testing.T) {
	f := startFake(t, &fakeAgent{})
	code, stdout, _ := call(t, map[string]string{"LBAGENT_SOCKET": f.socket}, "__complete", "lookup", "")
	if code != 0 || !strings.Contains(stdout, "\nonly.sock\nuser\n") {
		t.Errorf("services are not completed: exit code %d\n%s", code, stdout)
	}
	if _, stdout, _ := call(t, map[string]string{"LBAGENT_SOCKET": "/nonexistent"}, "__complete", "lookup", ""); strings.Contains(stdout, "no agent") {
		t.Errorf("completion without an agent prints an error:\n%s", stdout)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if code, stdout, stderr := call(t, nil, "completion", shell); code != 0 || !strings.Contains(stdout, "lbagent") || stderr != "" {
			t.Errorf("completion %s: exit code %d, %d bytes, %s", shell, code, len(stdout), stderr)
		}
	}
}

func TestVersion(t *testing.T) {
	b := thisBuild()
	if b.Version == "" || !strings.HasPrefix(b.Go, "go1.") || !strings.HasPrefix(b.Platform, "linux/") {
		t.Errorf("build is %+v", b)
	}
	want := build{Version: "v1.2.3", Revision: "0123456789abcdef", Modified: true, Go: "go1.26.0", Platform: "linux/arm64"}
	if got := want.line(); got != "lbagent v1.2.3 0123456789ab+ go1.26.0 linux/arm64" {
		t.Errorf("line is %q", got)
	}
	_, flag, _ := call(t, nil, "--version")
	_, verb, _ := call(t, nil, "version")
	if flag != verb || flag != b.line()+"\n" {
		t.Errorf("--version says %q, version says %q", flag, verb)
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	for path, text := range map[string]string{
		good: "services:\n  - {name: user, backends: [\"10.0.0.1:80\"], listen: [7001]}\n  - {name: cart, backends: [\"10.0.0.1:81\"]}\n",
		bad:  "services:\n  - {name: user, backends: [\"10.0.0.1:80\"]}\nlog: {level: loud}\nnosuch: 1\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	code, stdout, stderr := call(t, nil, "check", good)
	if want := "ok: 2 services, 1 with listeners; no etcd; from " + good; code != 0 || strings.Join(strings.Fields(stdout), " ") != want || stderr != "" {
		t.Errorf("check of a good file: exit code %d\n%s%s", code, stdout, stderr)
	}
	code, stdout, stderr = call(t, nil, "check", bad)
	if code != 1 || stdout != "" || !strings.Contains(stderr, bad+":3: ") || !strings.Contains(stderr, bad+":4: ") || !strings.Contains(stderr, "2 mistakes to mend") {
		t.Errorf("check of a bad file: exit code %d\n%s%s", code, stdout, stderr)
	}
	for path, wantCode := range map[string]int{good: 0, bad: 1} {
		code, stdout, stderr = call(t, nil, "check", "--json", path)
		var said checked
		if err := json.Unmarshal([]byte(stdout), &said); err != nil || stderr != "" {
			t.Fatalf("check --json: %v: %s%s", err, stdout, stderr)
		}
		if code != wantCode || said.OK != (wantCode == 0) || said.OK != (len(said.Errors) == 0) || said.OK != (said.Services == 2) {
			t.Errorf("check --json %s: exit code %d, %+v", path, code, said)
		}
	}
	if code, _, stderr := call(t, nil, "check", filepath.Join(dir, "nosuch.yaml")); code != 1 || !strings.Contains(stderr, "nosuch.yaml") {
		t.Errorf("check of no file: exit code %d\n%s", code, stderr)
	}
}

// TestWriteErrors: a full disk behind stdout must not look like success.
func TestWriteErrors(t *testing.T) {
	f := startFake(t, &fakeAgent{})
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, args := range [][]string{{"list", "user"}, {"list", "user", "--json"}, {"lookup", "user"}, {"version"}, {"--help"}, {"events"}} {
		var stderr bytes.Buffer
		a := &app{stdout: &output{w: full}, stderr: &stderr, getenv: func(string) string { return f.socket }, now: moment, patience: 5 * time.Second}
		if code := a.execute(context.Background(), args); code != 1 || !strings.Contains(stderr.String(), "no space left") {
			t.Errorf("%q: exit code %d: %s", args, code, stderr.String())
		}
	}
}

package packaging

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/testneed"
)

// surroundings is a host without environment.
func surroundings() config.Options {
	return config.Options{Env: func(string) (string, bool) { return "", false }, Hostname: "web-17", Cores: 4}
}

func load(t *testing.T, text string) *config.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lbagent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := surroundings().Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestDefaultConfiguration: as installed it says nothing; with the # of its keys taken away it is a configuration.
func TestDefaultConfiguration(t *testing.T) {
	text := read(t, "etc/lbagent.yaml")
	if c, empty := load(t, text), load(t, ""); !config.Compare(c, empty).None() {
		t.Errorf("as installed: %s", config.Compare(empty, c))
	}
	_, keys, _ := strings.Cut(text, "\n\n")
	c := load(t, strings.ReplaceAll("\n"+keys, "\n#", "\n"))
	if c.Etcd == nil || len(c.Services) != 1 || c.Services[0].Name != "user" {
		t.Errorf("with its keys: %+v", c)
	}
}

// TestConffiles: whoever edited one of these is asked at the first upgrade that brings other bytes, and an unattended one stops there. So they stay as they are: what is to be said goes into
// the example and the manual.
func TestConffiles(t *testing.T) {
	for path, want := range map[string]string{
		"etc/lbagent.yaml": "fbeecc349135aeafa0798f5ac411162fad49c3e0594052a0165df9eaccb57e82",
		"etc/default":      "55c190e0e3f7013b0139935b0ac1e30d52a3eaa9edf5ebb8a450eb5024e14357",
	} {
		if got := fmt.Sprintf("%x", sha256.Sum256([]byte(read(t, path)))); got != want {
			t.Errorf("%s has the sum %s, want %s", path, got, want)
		}
	}
}

// TestScriptsExecuteNoSettings: what both packages' scripts make of /etc/default/lbagent is what systemd does, and nothing of it is executed, which would be as root.
func TestScriptsExecuteNoSettings(t *testing.T) {
	dir := t.TempDir()
	settings, program, harm := filepath.Join(dir, "default"), filepath.Join(dir, "lbagent"), filepath.Join(dir, "harm")
	real := strings.NewReplacer("HARM", harm, "TICK", "\x60").Replace
	text := real(`# a comment with A_COMMENT=1
; another: B_COMMENT=1
ZONE=eu-1a
  SPACES =no
WORD 
 INDENTED=  a b  c	 
QUOTED="a ' b"
SINGLE='c " d'
HALF="e
EMPTY=
RUN=$(touch HARM)
QUOTED_RUN=TICKtouch HARMTICK
touch HARM
export E=1
A.B=1
1A=1
;touch HARM;=1
EQUALS=a=b
verb=not this
LAST=z`)
	if err := errors.Join(os.WriteFile(settings, []byte(text), 0o644), os.WriteFile(program, []byte("#!/bin/sh\necho \"verb $*\"\nenv\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	want := strings.Split(real(`verb upgrade
ZONE=eu-1a
SPACES=no
INDENTED=a b  c
QUOTED=a ' b
SINGLE=c " d
HALF="e
EMPTY=
RUN=$(touch HARM)
QUOTED_RUN=TICKtouch HARMTICK
EQUALS=a=b
verb=not this
LAST=z`), "\n")
	slices.Sort(want)
	for _, script := range []string{"deb/postinst", "rpm/post"} {
		_, function, _ := strings.Cut(read(t, script), "\nagent() (")
		function, _, ok := strings.Cut(function, "\n)\n")
		if !ok {
			t.Fatalf("%s has no function agent", script)
		}
		run := strings.NewReplacer("/etc/default/lbagent", settings, "/usr/bin/lbagent", program).Replace("set -e\nagent() (" + function + "\n)\nagent upgrade\n")
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", run)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		got := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(out)), "\n"), func(line string) bool { return hasAnyPrefix(line, "PATH=", "PWD=", "OLDPWD=", "SHLVL=", "_=") })
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s: the program runs with\n%q\nwant\n%q", script, got, want)
		}
		if _, err := os.Stat(harm); err == nil {
			t.Errorf("%s executes what is in the settings", script)
		}
	}
}

// TestExample: the example is valid, and every value in it that isn't marked as an example is the default.
func TestExample(t *testing.T) {
	got := load(t, read(t, "etc/example.yaml"))
	want := load(t, `
register: [{name: user, address: ":8080"}]
register_allow: [{user: app, services: ["order-*"]}]
etcd: {endpoints: ["https://etcd-1:2379", "https://etcd-2:2379"]}
access_log: {path: /var/log/lbagent/access.log}
services:
  - {name: user, prefix: services/user/, listen: [7001, "127.0.0.2:7001", "unix:/run/lbagent/user.sock"]}
  - {name: one, key: lists/one, format: plain}
  - {name: static, backends: ["10.0.0.1:8080", "[2001:db8::1]:8080", "dns:static.example:8080"], listen: [7002]}
`)
	if change := config.Compare(want, got); !change.None() {
		t.Errorf("the example says otherwise than the defaults: %s", change)
		for i := range got.Services {
			if !reflect.DeepEqual(got.Services[i], want.Services[i]) {
				t.Logf("got  %+v\nwant %+v", got.Services[i], want.Services[i])
			}
		}
	}
	keys := []string{"node", "etcd", "api", "admin", "metrics", "state_dir", "proxy", "limits", "on_demand", "mute", "register", "registration_ttl", "register_allow", "log", "access_log", "notify", "defaults", "services"}
	for _, key := range keys {
		if !strings.Contains(read(t, "etc/example.yaml"), "\n"+key+":") {
			t.Errorf("the example has no %s", key)
		}
	}
}

// TestManPages: they have no mistakes, and lbagent.yaml(5) names every key of the example.
func TestManPages(t *testing.T) {
	man := testneed.Program(t, "man", "man-db")
	for _, page := range []string{"man/lbagent.8", "man/lbagent.yaml.5"} {
		cmd := exec.CommandContext(t.Context(), man, "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANWIDTH=80")
		var said strings.Builder
		cmd.Stderr = &said
		if err := cmd.Run(); err != nil || said.Len() > 0 {
			t.Errorf("%s: %v %s", page, err, said.String())
		}
	}
	page := read(t, "man/lbagent.yaml.5")
	for line := range strings.Lines(read(t, "etc/example.yaml")) {
		key, _, ok := strings.Cut(strings.TrimLeft(line, " -#"), ":")
		if ok && key == strings.ToLower(key) && !strings.ContainsAny(key, " ;,.") && !strings.Contains(page, key) {
			t.Errorf("lbagent.yaml(5) has no %s", key)
		}
	}
}

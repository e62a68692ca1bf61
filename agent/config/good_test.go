package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sameConfig says whether two configurations mean the same.
func sameConfig(a, b *Config) bool { return Compare(a, b).None() }

// TestGood: what was saved loads without the files and without the environment that it came from.
func TestGood(t *testing.T) {
	main := write(t,
		"lbagent.yaml", `
# the password is hunter2
node: {name: "${WORD}", zone: "${EMPTY}", region: }
state_dir: /var/lib/$$x # hunter2
proxy: {loops: "${LOOPS}"}
log:
  # hunter2
  level: 'debug'
on_demand: "${OFF}"
defaults:
  eject: ${OFF}
services:
`,
		"services.d/a.yaml", "# hunter2\nservices:\n  - {name: a, backends: [\"10.0.0.1:${PORT}\"], listen: [7001]}\n",
		"services.d/b.yaml", "services:\n  - name: b\n    backends:\n    - \"[::1]:80\"\n    panic_percent: \"07\"\n")
	o := testOptions()
	o.Env = environment("WORD", "null", "EMPTY", "", "LOOPS", "3", "OFF", "off", "PORT", "80")
	if _, err := o.Load(main); err == nil {
		t.Fatal("07 is accepted")
	}
	path := filepath.Join(dropInDir(main), "b.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), "07", "7", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := o.Load(main)
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	if err := SaveGood(dir, main, c); err != nil {
		t.Fatal(err)
	}
	got, err := Options{Env: environment(), Hostname: "other", Cores: 1}.LoadGood(dir, main)
	if err != nil {
		t.Fatal(err)
	}
	if !sameConfig(c, got) {
		t.Errorf("got %+v, want %+v", got, c)
	}
	if got.Node.Name != "null" || got.Loops != 3 || got.Services[0].Eject.On || got.Services[1].PanicPercent != 7 {
		t.Errorf("%+v", got)
	}
	good := filepath.Join(dir, "config.good")
	if len(got.Files) != 1 || got.Files[0] != good {
		t.Errorf("files %q", got.Files)
	}
	saved, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(saved), "hunter2") {
		t.Errorf("a comment was saved:\n%s", saved)
	}
	info, err := os.Stat(good)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("mode %v", mode)
	}

	// The same again is not written again; what was loaded from it saves to the same bytes.
	if err := SaveGood(dir, main, got); err != nil {
		t.Fatal(err)
	}
	again, err := os.Stat(good)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(info, again) {
		t.Error("the same configuration was written again")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the state directory: %v %v", entries, err)
	}
}

func TestGoodIsRefused(t *testing.T) {
	dir := t.TempDir()
	const main = "/etc/lbagent/lbagent.yaml"
	if _, err := testOptions().LoadGood(dir, main); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none there: error %v", err)
	}
	if err := SaveGood(dir, main, &Config{}); err == nil {
		t.Error("a configuration that was not loaded is saved")
	}
	if err := SaveGood(dir, main, mustParse(t, "node: {name: a}\nservices: [{name: a, backends: [\"10.0.0.1:1\"]}]\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := testOptions().LoadGood(dir, "/tmp/lbagent.yaml"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("that of another file: error %v", err)
	}
	path := filepath.Join(dir, "config.good")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty": "", "half": string(whole[:len(whole)-20]), "changed": strings.Replace(string(whole), "name: a", "name: b", 1), "foreign": "node: {name: a}\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := testOptions().LoadGood(dir, main); err == nil {
			t.Errorf("%s: loaded as %+v", name, c)
		}
	}
	if err := SaveGood(filepath.Join(dir, "none"), main, mustParse(t, "")); err == nil {
		t.Error("saved into a directory that is not there")
	}
}

func TestStateDirOf(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "/def",
		"state_dir: /a\nbroken: [":        "/a",
		"x: 1\nstate_dir: \"/b\" # c\n\t": "/b",
		"state_dir: /var/${WORD}\n":       "/var/word",
		"state_dir: /var/${UNSET}\n":      "/def",
		"state_dir: rel\n":                "/def",
		"state_dir: [/a]\n":               "/def",
		"state_dir:\n":                    "/def",
		"state_dir: \"/a\n":               "/def",
		"state_dir: /a\x00\n":             "/def",
		"  state_dir: /nested\n":          "/def",
	} {
		if got := testOptions().StateDirOf(write(t, "lbagent.yaml", text), "/def"); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	if got := testOptions().StateDirOf("/nonexistent/lbagent.yaml", "/def"); got != "/def" {
		t.Errorf("no file: %q", got)
	}
}

func TestCompare(t *testing.T) {
	const base = withEtcd + `
services:
  - {name: a, prefix: a/, listen: [7001]}
  - {name: b, prefix: b/}
`
	for _, c := range []struct{ name, text, want string }{
		{"nothing", base, "nothing changed"},
		{"lines and words", "# moved\n\n" + strings.Replace(base, "prefix: b/", "\"prefix\": 'b/', drain: 30000ms", 1), "nothing changed"},
		{"order", withEtcd + "services: [{name: b, prefix: b/}, {name: a, prefix: a/, listen: [7001]}]\n", "nothing changed"},
		{"a key", strings.Replace(base, "prefix: b/", "prefix: b/, drain: 31s", 1), "services: 1 changed (b)"},
		{"a listener", strings.Replace(base, "7001", "7002", 1), "services: 1 changed (a)"},
		{"added and removed", strings.Replace(base, "name: b", "name: c", 1), "services: 1 added (c), 1 removed (b)"},
		{"namespace", strings.Replace(base, "endpoints", "namespace: p/, endpoints", 1), "etcd, mute, defaults; services: 2 changed (a, b)"},
		{"defaults", base + "defaults: {policy: round_robin}\n", "defaults; services: 2 changed (a, b)"},
		{"sections", base + "node: {zone: a}\nlog: {level: warn}\nadmin: {listen: off}\nmetrics: {listen: \":1\"}\nstate_dir: /a\nproxy: {loops: 9}\n" +
			"on_demand: off\napi: {socket: /a}\n", "node, api, admin, metrics, state_dir, proxy, on_demand, log, defaults; services: 2 changed (a, b)"},
		{"no etcd", "", "etcd, on_demand, mute; services: 2 removed (a, b)"},
	} {
		got := Compare(mustParse(t, base), mustParse(t, c.text))
		if got.String() != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if got.None() != (c.want == "nothing changed") {
			t.Errorf("%s: None() = %v", c.name, got.None())
		}
	}
}

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
)

// What scan prints is a valid drop-in, and names the right places: whatever is written in the keys.
func TestScanPrintsConfiguration(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	for key, value := range map[string]string{
		"/prod/services/user/a": `{"Addr":"10.0.0.1:80"}`, "/prod/services/user/b": `{"Addr":"10.0.0.2:80"}`, "/prod/services/user/c": `{"Addr":5}`,
		"/prod/yes/1": "10.0.0.1:80", "elsewhere/odd \"name\": #1/x": `{"Addr":"10.0.0.3:80"}`, "lock/1": "evil\nservices: []",
		"/microservices/shop/1": `{"endpoints":["http://10.0.0.1:8000","grpc://10.0.0.1:9000"]}`,
	} {
		if _, err := c.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	main := filepath.Join(t.TempDir(), "lbagent.yaml")
	head := "etcd: {endpoints: [" + s.Endpoint() + "], namespace: /prod/}\n"
	writeFile(t, main, head)
	code, out, errs := call(t, nil, "scan", "--config", main)
	if code != exitOK || errs != "" {
		t.Fatalf("exit %d: %s", code, errs)
	}
	writeFile(t, main, head+out)
	got, err := config.Load(main)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := map[string]string{
		"user": "/prod/services/user/", "yes": "/prod/yes/", "odd--name-:--1": "elsewhere/odd \"name\": #1/", "shop": "/microservices/shop/",
	}
	for _, s := range got.Services {
		if want[s.Name] != s.EtcdPrefix {
			t.Errorf("%s: %q, want %q", s.Name, s.EtcdPrefix, want[s.Name])
		}
		delete(want, s.Name)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v in\n%s", want, out)
	}
	for _, line := range []string{
		"# all keys: 7 keys, ", ", 4 services\n", "# no service known by its look: 1 key under lock/\n", "  # 2 backends in 3 keys: 10.0.0.1:80, 10.0.0.2:80\n",
		"  # 1 key can't be read as grpc-naming; the first: /prod/services/user/c: ", "  # endpoints of grpc, http: select: {scheme: grpc} chooses\n",
		`  - {name: user, prefix: services/user/, format: grpc-naming}`, `  - {name: "yes", prefix: yes/, format: gozero}`,
	} {
		if !strings.Contains(out, line) {
			t.Errorf("no %q in\n%s", line, out)
		}
	}

	code, out, errs = call(t, nil, "scan", "--etcd", s.Endpoint(), "--json", "/prod/services/")
	var all struct {
		Keys     int
		Services []struct{ Name, Prefix string }
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil || code != exitOK || all.Keys != 3 || len(all.Services) != 1 || all.Services[0].Prefix != "/prod/services/user/" {
		t.Errorf("exit %d, %v: %s%s", code, err, out, errs)
	}
}

func TestScanSaysWhatIsWrong(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	none := filepath.Join(t.TempDir(), "none.yaml")
	static := filepath.Join(t.TempDir(), "static.yaml")
	writeFile(t, static, "services: [{name: a, backends: [10.0.0.1:80]}]\n")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--etcd", s.Endpoint()}, exitNone, "no services among 0 keys"},
		{[]string{"--config", none}, exitFailure, "--etcd http://127.0.0.1:2379"},
		{[]string{"--config", static}, exitFailure, "has no etcd: section"},
		{[]string{"--etcd", s.Endpoint(), "--user", "me"}, exitUsage, "--user goes with --password-file"},
		{[]string{"--ca-file", none}, exitUsage, "go with --etcd"},
		{[]string{"--etcd", "http://127.0.0.1:1"}, exitFailure, "connection refused"},
		{[]string{"a", "b"}, exitUsage, "one argument too many"},
	} {
		code, _, errs := call(t, nil, append([]string{"scan"}, c.args...)...)
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%v: exit %d, %q", c.args, code, errs)
		}
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A long scan says every two seconds how far it is; a short one says nothing.
func TestScanProgress(t *testing.T) {
	now := moment()
	var said strings.Builder
	progress := (&app{now: func() time.Time { return now }, stderr: &said}).scanProgress()
	for page := 1; page <= 9; page++ {
		progress(1000 * page)
		now = now.Add(500 * time.Millisecond)
	}
	if want := "lbagent: 5000 keys read\nlbagent: 9000 keys read\n"; said.String() != want {
		t.Errorf("it says %q, want %q", said.String(), want)
	}
}

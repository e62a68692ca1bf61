package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/config"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// unpack reads a bundle: what each part holds, by its name without the folder.
func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return parts
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		parts[name] = string(data)
	}
}

// sick is a doctor before a host with secrets in every place where one may be.
func sick(t *testing.T, agent *lbagentv1.StatusResponse, socket, adminSocket string) (*app, *doctor, *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	file, password := filepath.Join(dir, "lbagent.yaml"), filepath.Join(dir, "etcd.password")
	key := filepath.Join(dir, "key.pem")
	for path, text := range map[string]string{
		password: "hunter-in-a-file\n",
		key:      "-----BEGIN PRIVATE KEY-----\nhunterKeyLineOne0123456789\n-----END PRIVATE KEY-----\n",
		file: fmt.Sprintf(`# hunter-in-a-comment
node: {name: web-17}
etcd: {endpoints: ["https://root:hunter-in-an-endpoint@etcd-1:2379"], username: lbagent, password: hunter-in-clear, password_file: %s, tls: {key_file: %s}}
services: [{name: user, backends: ["10.0.0.1:80"]}]
`, password, key),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if agent != nil {
		agent.ConfigFiles = []string{file}
	}
	var stderr bytes.Buffer
	a := &app{stdout: &output{w: io.Discard}, stderr: &stderr, getenv: func(string) string { return "" }, now: moment, patience: 5 * time.Second, socket: socket, adminSocket: adminSocket,
		config: file}
	d := &doctor{
		proc: t.TempDir(), now: moment(), file: file, socket: socket, adminSocket: adminSocket, agent: agent,
		c:        &config.Config{Etcd: &config.Etcd{PasswordFile: password, TLS: config.TLS{KeyFile: key}}},
		findings: []finding{{"etcd", findBad, "login of lbagent with hunter-in-a-file failed", ""}},
		journal: func(context.Context) ([]byte, error) {
			return []byte("dial https://someone:hunter-in-the-journal@etcd-1:2379: hunter-in-clear, hunterKeyLineOne0123456789\n"), nil
		},
	}
	return a, d, &stderr
}

// A secret is found however a part writes it: in JSON, in Go's quotes, in a URL, or cut off at a part's end.
func TestBundleHidesWrittenSecrets(t *testing.T) {
	const secret = `p"w<d&\9'ü%`
	file := filepath.Join(t.TempDir(), "lbagent.yaml")
	if err := os.WriteFile(file, []byte("etcd: {password: '"+strings.ReplaceAll(secret, "'", "''")+"'}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := &bundle{d: &doctor{file: file}}
	b.learnSecrets()
	asJSON, err := json.Marshal(secret)
	if err != nil {
		t.Fatal(err)
	}
	for name, written := range map[string]string{
		"plain": secret, "json": string(asJSON), "protojson": `"p\"w<d&\\9'ü%"`, "quoted": fmt.Sprintf("%q", secret), "query": url.QueryEscape(secret), "path": url.PathEscape(secret),
	} {
		b.add(name, []byte("login with "+written+" failed"), nil)
	}
	b.add("long", []byte(strings.Repeat(" ", bundlePart-len(secret)/2)+secret), nil)
	for _, p := range b.parts {
		if text := strings.TrimLeft(string(p.data), " "); p.name == "long" && len(text) > 0 && !strings.HasPrefix("REDACTED", text) || p.name != "long" && !strings.Contains(text, "REDACTED") {
			t.Errorf("%s: %s", p.name, text)
		}
	}
}

func TestBundleHidesSecrets(t *testing.T) {
	f := startFake(t, &fakeAgent{})
	admin := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", admin)
	if err != nil {
		t.Fatal(err)
	}
	profiles := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "goroutine 1 [running]: hunter-in-clear "+r.URL.RequestURI())
	})}
	go profiles.Serve(l)
	t.Cleanup(func() { profiles.Close() })
	agent, err := f.Status(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	a, d, stderr := sick(t, agent, f.socket, admin)
	path := filepath.Join(t.TempDir(), "b.tar.gz")
	if err := a.writeBundle(t.Context(), d, path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	parts := unpack(t, path)
	for name, want := range map[string]string{
		"MANIFEST": "Secrets are taken out", "doctor.json": "login of lbagent with REDACTED failed", "version.txt": "lbagent", "config/00-lbagent.yaml": "web-17", "status.json": "web-17",
		"explain/user.json": `"sentence"`, "events.jsonl": `"kind":"verdict"`, "profiles/goroutines.txt": "debug=2", "profiles/heap.pb.gz": "heap", "profiles/cpu.pb.gz": "seconds=2",
		"journal.txt": "https://REDACTED@etcd-1:2379",
	} {
		if !strings.Contains(parts[name], want) {
			t.Errorf("%s lacks %q:\n%s", name, want, parts[name])
		}
	}
	for name, text := range parts {
		if strings.Contains(text, "hunter") && !strings.HasSuffix(name, ".gz") {
			t.Errorf("%s holds a secret:\n%s", name, text)
		}
	}
	if s := stderr.String(); !strings.Contains(s, "wrote "+path) || strings.Contains(s, "hunter") {
		t.Errorf("stderr: %s", s)
	}
	if err := a.writeBundle(t.Context(), d, path); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a file that is there is written over: %v", err)
	}
}

// Without an agent there is what can be had, and what can't is said.
func TestBundleWithoutAnAgent(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "a.sock")
	a, d, stderr := sick(t, nil, nowhere, nowhere)
	d.journal = func(context.Context) ([]byte, error) { return nil, errors.New("journalctl: not here") }
	path := filepath.Join(t.TempDir(), "b.tar.gz")
	if err := a.writeBundle(t.Context(), d, path); err != nil {
		t.Fatal(err)
	}
	parts := unpack(t, path)
	for _, want := range []string{"missing: journal.txt: journalctl: not here", "no agent answers"} {
		if !strings.Contains(parts["MANIFEST"], want) {
			t.Errorf("MANIFEST lacks %q:\n%s", want, parts["MANIFEST"])
		}
	}
	if !strings.Contains(parts["left.json"], `"absent"`) || !strings.Contains(parts["config/00-lbagent.yaml"], "web-17") || !strings.Contains(stderr.String(), "without journal.txt") {
		t.Errorf("parts %q; stderr: %s", parts, stderr)
	}
	for name, text := range parts {
		if strings.Contains(text, "hunter") {
			t.Errorf("%s holds a secret:\n%s", name, text)
		}
	}
}

// A bundle that can't be written whole leaves nothing.
func TestBundleThatFails(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "a.sock")
	a, d, _ := sick(t, nil, nowhere, nowhere)
	if err := a.writeBundle(t.Context(), d, filepath.Join(t.TempDir(), "nosuch", "b.tar.gz")); err == nil {
		t.Error("it is written into a folder that isn't there")
	}
}

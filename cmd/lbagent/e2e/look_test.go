package e2e

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A person looks at calls while they are made: tap and top of the real agent, and a bundle of it. What it has when it is dead, verbs that only look still show.
func TestLooking(t *testing.T) {
	t.Parallel()
	bs := backends(t, 2, 0)
	register(t, etcdClient(t, etcd.Endpoints()...), "user", addrs(bs)...)
	port := freePort(t)
	a := startAgent(t, fmt.Sprintf("- {name: user, prefix: services/user/, listen: [%d]}", port), etcd.Endpoints()...)
	c := newCaller(t, fmt.Sprintf("127.0.0.1:%d", port))

	out := a.words("explain", "user")
	if !strings.Contains(out, "etcd now: 2 keys at revision") || !strings.Contains(out, "and the list knows just these") {
		t.Errorf("explain:\n%s", out)
	}

	tap := exec.CommandContext(t.Context(), binary, "tap", "user", "--count", "5", "--admin-socket", a.admin)
	tap.Env = append(os.Environ(), raceOptions)
	lines, err := tap.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tap.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	var got []string
	go func() {
		for s := bufio.NewScanner(lines); s.Scan(); {
			got = append(got, s.Text())
		}
		ended <- tap.Wait()
	}()
	poll(t, "tap has seen enough", func() bool {
		c.burst(5, 1)
		select {
		case err := <-ended:
			ended <- err
			return true
		default:
			return false
		}
	})
	if err := <-ended; err != nil {
		t.Errorf("tap: %v", err)
	}
	for _, l := range got {
		if !strings.Contains(l, "grpc   OK") || !strings.Contains(l, bs[0].addr) && !strings.Contains(l, bs[1].addr) {
			t.Errorf("tap says %q", l)
		}
	}
	if len(got) != 5 {
		t.Errorf("tap has %d lines", len(got))
	}
	if stdout, stderr, code := a.cli("tap", "user", "--status", "loud"); code != 2 || !strings.Contains(stderr, "an HTTP status (503)") {
		t.Errorf("tap of no status: exit code %d: %s%s", code, stdout, stderr)
	}
	if out = a.words("top", "user", "--once"); !strings.Contains(out, "2 of 2 backends usable") || !strings.Contains(out, bs[1].addr) {
		t.Errorf("top:\n%s", out)
	}

	bundle := filepath.Join(a.dir, "bundle.tar.gz")
	a.cli("doctor", "--bundle", bundle, "--config", a.config) // its exit code is about this machine
	parts := untar(t, bundle)
	for name, want := range map[string]string{
		"status.json": `"user"`, "explain/user.json": bs[0].addr, "events.jsonl": "first list", "config/00-lbagent.yaml": "services/user/", "profiles/goroutines.txt": "goroutine ",
	} {
		if !strings.Contains(parts[name], want) {
			t.Errorf("%s of the bundle lacks %q; it has %d bytes", name, want, len(parts[name]))
		}
	}

	poll(t, "the spool has the list", func() bool {
		_, err := os.Stat(filepath.Join(a.dir, "state", "lists", "user.list"))
		return err == nil
	})
	a.stop()
	a.environment = []string{"LBAGENT_CONFIG=" + a.config}
	stdout, stderr, code := a.cli("explain", "user")
	if code != 4 || !strings.Contains(stderr, "no agent is running here") || !strings.Contains(stdout, "etcd's at revision") || !strings.Contains(stdout, bs[0].addr) {
		t.Errorf("explain without an agent: exit code %d:\n%s%s", code, stdout, stderr)
	}
	if stdout, _, code = a.cli("lookup", "user"); code != 4 || stdout != bs[0].addr+"\n" && stdout != bs[1].addr+"\n" {
		t.Errorf("lookup without an agent: exit code %d: %s", code, stdout)
	}
}

// untar is what a bundle holds, by name without its folder.
func untar(t *testing.T, path string) map[string]string {
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
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		parts[name] = string(text)
	}
}

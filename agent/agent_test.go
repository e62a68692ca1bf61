package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/proxy"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/agent/testneed"
)

// daemon is an Agent that runs, with its files in dir.
type daemon struct {
	*Agent

	t   *testing.T
	dir string
}

// start runs an agent on the given services (YAML, indented by two) until the test ends.
func start(t *testing.T, services string) *daemon {
	t.Helper()
	d := &daemon{t: t, dir: t.TempDir()}
	d.write(services)
	d.open()
	return d
}

// write replaces the configuration file.
func (d *daemon) write(services string) {
	d.t.Helper()
	text := fmt.Sprintf("api: {socket: %[1]s/api.sock, admin_socket: %[1]s/admin/admin.sock}\nadmin: {listen: \"\"}\nstate_dir: %[1]s/state\nservices:\n%[2]s", d.dir, services)
	if err := os.WriteFile(d.path(), []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) path() string { return filepath.Join(d.dir, "lbagent.yaml") }

func (d *daemon) open() {
	d.t.Helper()
	a, err := New(d.t.Context(), Options{ConfigPath: d.path(), NewLog: func(config.Log) hclog.Logger { return hclog.NewNullLogger() }})
	if err != nil {
		d.t.Fatal(err)
	}
	d.Agent = a
	ctx, cancel := context.WithCancel(context.WithoutCancel(d.t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	d.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			d.t.Errorf("run: %v", err)
		}
	})
}

// backend is an HTTP server that answers its name.
func backend(t *testing.T, name string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func entry(name string, port int, backend string) string {
	return fmt.Sprintf("  - {name: %s, listen: [%d], backends: [\"%s\"]}\n", name, port, backend)
}

// get is what a caller of a port gets, or the error's text.
func get(port int) string {
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func want(t *testing.T, what, got, text string) {
	t.Helper()
	if !strings.Contains(got, text) {
		t.Errorf("%s: %q, want %q", what, got, text)
	}
}

// TestReloadAppliesWhole: 6.1, services come, change and go while those that did not change serve on.
func TestReloadAppliesWhole(t *testing.T) {
	a, b, c := testneed.Port(t), testneed.Port(t), testneed.Port(t)
	one, two := backend(t, "one"), backend(t, "two")
	d := start(t, entry("a", a, one)+entry("b", b, one))
	want(t, "before", get(a)+get(b), "oneone")

	d.write(entry("a", a, one) + entry("b", b, two) + entry("c", c, two))
	lines, err := d.Reload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want(t, "what changed", strings.Join(lines, "; "), "service c: added; service b: changed")
	want(t, "after", get(a)+get(b)+get(c), "onetwotwo")

	d.write(entry("a", a, one))
	if _, err := d.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "what stayed", get(a), "one")
	want(t, "what went", get(b), "connection refused")
	if d.table.Lookup("b") != nil {
		t.Error("a service that went is still followed")
	}
	if lines, err = d.Reload(t.Context()); err != nil || len(lines) != 0 {
		t.Errorf("nothing changed: %v, %v", lines, err)
	}
}

// TestReloadRefusedWhole: 6.1, on any error the old configuration stays, and the answer says why.
func TestReloadRefusedWhole(t *testing.T) {
	a, b := testneed.Port(t), testneed.Port(t)
	one, two := backend(t, "one"), backend(t, "two")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	d := start(t, entry("a", a, one))
	for _, c := range []struct{ name, services, want string }{
		{"mistake", entry("a", a, two) + "  - {name: b, listne: [1]}\n", `did you mean "listen"`},
		{"port taken", entry("a", a, two) + entry("b", b, two) + entry("x", taken.Addr().(*net.TCPAddr).Port, two), "address already in use"},
		{"restart only", entry("a", a, two) + "proxy: {loops: 3}\n", "systemctl restart lbagent"},
	} {
		d.write(c.services)
		_, err := d.Reload(t.Context())
		if err == nil {
			t.Fatalf("%s: taken", c.name)
		}
		want(t, c.name, err.Error(), c.want)
		want(t, c.name+": the old service", get(a), "one")
		want(t, c.name+": a new port", get(b), "connection refused")
		if s := d.status(); s.GetConfigOk() || !strings.Contains(s.GetConfigError(), c.want) {
			t.Errorf("%s: status says ok %v, %q", c.name, s.GetConfigOk(), s.GetConfigError())
		}
	}
	d.write(entry("a", a, two))
	if _, err := d.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, "mended", get(a), "two")
	if !d.status().GetConfigOk() {
		t.Error("status is still red")
	}
}

// TestStartOnTheLastGoodConfiguration: 6.5.
func TestStartOnTheLastGoodConfiguration(t *testing.T) {
	port := testneed.Port(t)
	one := backend(t, "one")
	t.Run("first start", func(t *testing.T) {
		d := &daemon{t: t, dir: t.TempDir()}
		d.write("  - {name: user, listen: [no]}\n")
		if _, err := New(t.Context(), Options{ConfigPath: d.path()}); err == nil || !strings.Contains(err.Error(), "lbagent.yaml:5") {
			t.Errorf("without a good configuration: %v", err)
		}
	})
	dir := t.TempDir()
	t.Run("good", func(t *testing.T) {
		d := &daemon{t: t, dir: dir}
		d.write(entry("user", port, one))
		d.open()
		want(t, "good", get(port), "one")
	})
	t.Run("then bad", func(t *testing.T) {
		d := &daemon{t: t, dir: dir}
		d.write(entry("user", port, one) + "nonsense: 1\n")
		if _, err := New(t.Context(), Options{ConfigPath: d.path(), Strict: true}); err == nil {
			t.Error("--strict started on an invalid file")
		}
		d.open()
		want(t, "last good", get(port), "one")
		if s := d.status(); s.GetConfigOk() || !strings.Contains(s.GetConfigError(), "nonsense") {
			t.Errorf("status says ok %v, %q", s.GetConfigOk(), s.GetConfigError())
		} else if files := s.GetConfigFiles(); len(files) != 2 || files[0] != d.path() {
			t.Errorf("status names %q, want the file to mend first, then the copy in force", files)
		}
		d.write(entry("user", port, one))
		if _, err := d.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !d.status().GetConfigOk() {
			t.Error("status is still red after the file was mended")
		}
		if files := d.status().GetConfigFiles(); len(files) != 1 || files[0] != d.path() {
			t.Errorf("status names %q", files)
		}
	})
}

// TestReloadWaitsForTheListsOfNewServices: 6.1 with 6.4, nobody is told "no list yet" because of a reload.
func TestReloadWaitsForTheListsOfNewServices(t *testing.T) {
	one := backend(t, "one")
	services := entry("a", testneed.Port(t), one)
	d := start(t, services)
	for i := range 40 {
		services += fmt.Sprintf("  - {name: new%d, backends: [%q]}\n", i, one)
	}
	d.write(services)
	if _, err := d.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if missing := d.missing(); len(missing) != 0 {
		t.Errorf("no list yet of %v", missing)
	}
}

// TestReloadWaitsForTheListsOfChangedServices: 6.1, who calls after a reload gets none of the backends that it took away, also of a service that was known before under the same name.
func TestReloadWaitsForTheListsOfChangedServices(t *testing.T) {
	one, two := backend(t, "one"), backend(t, "two")
	services := func(addr string) (s string) {
		for i := range 40 {
			s += fmt.Sprintf("  - {name: s%d, backends: [%q]}\n", i, addr)
		}
		return s
	}
	d := start(t, services(one))
	for _, addr := range []string{two, one, two} {
		d.write(services(addr))
		if _, err := d.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, s := range d.table.Services() {
			if v := s.View(); v.Len() != 1 || v.Backend(0).Addr.String() != addr {
				t.Errorf("%s still has its old list", s.Name())
			}
		}
	}
}

// TestFailedStartLeavesNoSocket: an agent that can't start since another one runs takes its listeners' sockets with it.
func TestFailedStartLeavesNoSocket(t *testing.T) {
	d := start(t, "  - {name: user, backends: [\"127.0.0.1:9\"]}\n")
	sock := filepath.Join(d.dir, "user.sock")
	d.write(fmt.Sprintf("  - {name: user, backends: [\"127.0.0.1:9\"], listen: [\"unix:%s\"]}\n", sock))
	if _, err := New(t.Context(), Options{ConfigPath: d.path(), NewLog: func(config.Log) hclog.Logger { return hclog.NewNullLogger() }}); err == nil || !strings.Contains(err.Error(), "listens there already") {
		t.Fatalf("a second agent: %v", err)
	}
	if _, err := os.Lstat(sock); !os.IsNotExist(err) {
		t.Errorf("the socket of an agent that didn't start is there: %v", err)
	}
}

// What the configuration takes for retry.on, the proxy takes too.
func TestRetryWords(t *testing.T) {
	c := &config.Config{Services: []config.Service{{
		Name: "user", Listen: []config.Listen{{Unix: filepath.Join(t.TempDir(), "s")}}, Timeout: config.Timeout{Connect: time.Second},
		Retry: config.Retry{On: config.RetryWords(), Max: 2, BudgetPercent: 20},
	}}}
	tb, err := table.New(table.Config{Log: hclog.NewNullLogger(), Events: event.NewLog(1)})
	if err != nil {
		t.Fatal(err)
	}
	p, err := proxy.New(proxy.Config{Table: tb})
	if err != nil {
		t.Fatal(err)
	}
	change, err := p.Prepare(served(c))
	if err != nil {
		t.Fatal(err)
	}
	change.Abort()
}

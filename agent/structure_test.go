package agent_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
)

// module is the path in front of every package of this project.
const module = "github.com/lbagent/lbagent/"

// levels are the import levels of the project: a package imports only packages of lower levels. A package that is missing here fails the test: say where
// it belongs before it grows edges.
func levels() map[string]int {
	return map[string]int{
		"agent/service":    0,
		"agent/config":     0,
		"agent/event":      0,
		"agent/calls":      0,
		"agent/handoff":    0,
		"agent/proxy/loop": 0,
		"agent/proxy/h2":   0,
		"agent/proxy/h1":   0,
		"agent/proxy/tcp":  0,
		"agent/testneed":   0,

		"agent/discovery/etcdtest": 0,
		"health":                   0,
		"localapi/lbagent/v1":      0,

		"agent/picker":           1,
		"agent/discovery/format": 1,
		"agent/etcd":             1,
		"agent/notify":           1,
		"agent/accesslog":        1,
		"localapi/client":        1,

		"agent/discovery":      2,
		"agent/fleet":          2,
		"agent/mute":           2,
		"agent/registrar":      2,
		"agent/discovery/scan": 2,

		"agent/table": 3,

		"localapi":    4,
		"agent/proxy": 4,
		"agent/admin": 4,

		"agent": 5,

		"cmd/lbagent":     6,
		"cmd/lbagent/e2e": 6,
		"cmd/lbdemo":      6,
		"cmd/lbbench":     6,
		"packaging":       6,

		"cmd/lbbench/sim":     6,
		"packaging/inventory": 6,
	}
}

// allowed are edges within a level, with why.
func allowed() map[edge]string {
	return map[edge]string{
		{"cmd/lbbench", "cmd/lbbench/sim"}: "its verb sim; a package of its own, since it simulates and measures nothing of this machine",
		{"agent/config", "agent/service"}:  "the configuration names services and static backends in the words of all stages",
	}
}

type edge struct{ from, to string }

// reasons say why an edge is forbidden beyond its level; "*" stands for every package. The first that matches is told.
func reasons() []struct {
	edge
	why string
} {
	return []struct {
		edge
		why string
	}{
		{edge{"health", "*"}, "health is a leaf: it judges opaque groups and knows nothing of services; what it needs comes in as Targets and goes out by hooks"},
		{edge{"agent/service", "*"}, "service is vocabulary: everybody may use it, so it may use nobody"},
		{edge{"agent/event", "*"}, "events carry words, not types: any stage may add one"},
		{edge{"agent/calls", "*"}, "a record is what both who makes it and who shows it know, and they don't know each other"},
		{edge{"agent/proxy/loop", "*"}, "the loop owns sockets and knows no protocol"},
		{edge{"agent/proxy/h2", "*"}, "protocols are sans-I/O: bytes and now in, bytes and events out; agent/proxy joins them with loops"},
		{edge{"agent/proxy/h1", "*"}, "protocols are sans-I/O; agent/proxy joins them with loops"},
		{edge{"agent/proxy/tcp", "*"}, "protocols are sans-I/O; agent/proxy joins them with loops"},
		{edge{"agent/picker", "agent/table"}, "a picker sees candidates, not views: the table makes it, not the reverse"},
		{edge{"agent/table", "agent/proxy"}, "readers load views; the table knows none of them, it calls OnPublish"},
		{edge{"agent/table", "localapi"}, "readers load views; the table knows none of them, it calls OnPublish"},
		{edge{"agent/discovery", "agent/table"}, "discovery hands lists on by OnList; the flow has one direction"},
		{edge{"agent/proxy", "localapi"}, "the two doors don't know each other; what both need is in the table"},
		{edge{"localapi", "agent/proxy"}, "the two doors don't know each other; what both need is in the table"},
		{edge{"agent/admin", "agent/proxy"}, "admin is told by hooks of its Config; agent joins them"},
		{edge{"agent/admin", "localapi"}, "admin is told by hooks of its Config; agent joins them"},
		{edge{"localapi/client", "*"}, "applications link the client: it brings the generated code and grpc, nothing of the agent"},
		{edge{"*", "agent"}, "only the process edge knows the whole agent; an edge back to it is a func field that agent sets"},
		{edge{"*", "cmd/lbagent"}, "cmd is the edge of the process; move what others need into a stage"},
		{edge{"*", "agent/config"}, "a stage takes its own Config struct, which agent fills: stages don't know the file"},
	}
}

// owners are the imports that only some packages may have, by prefix of the import path. Tests may import what they like of them, unless it says so.
func owners() []struct {
	prefix string
	only   []string
	why    string
} {
	demo := []string{"agent/discovery/etcdtest", "cmd/lbdemo", "cmd/lbbench"}
	return []struct {
		prefix string
		only   []string
		why    string
	}{
		{"gopkg.in/yaml.v3", []string{"agent/config"}, "one package knows the file"},
		{"github.com/prometheus/", []string{"agent/admin"}, "stages have Stats; admin makes metrics of them"},
		{"github.com/spf13/cobra", []string{"cmd/lbagent", "cmd/lbdemo", "cmd/lbbench"}, "verbs are the process edge"},
		{"github.com/coreos/go-systemd/", []string{"agent/handoff"}, "one package speaks to the service manager"},
		{"github.com/grpc-ecosystem/grpc-gateway/", []string{"localapi", "localapi/lbagent/v1"}, "the JSON face is localapi's"},
		{"go.etcd.io/etcd/server/", demo, "the agent follows an etcd, it never is one"},
		{"go.etcd.io/", append([]string{"agent/etcd", "agent/discovery", "agent/fleet", "agent/mute", "agent/registrar"}, demo...), "one package makes the connection; few stages speak over it"},
		{"golang.org/x/net/http2/hpack", []string{"agent/proxy/h2", "health", "localapi"}, "header compression belongs to those who read frames"},
		{"golang.org/x/net/", demo, "of x/net the agent uses hpack only: the relay is our own"},
		{"testing", []string{"agent/testneed", "agent/discovery/etcdtest"}, "test code is not linked into programs"},
		{"net/http/pprof", []string{"localapi"}, "it registers itself on the default mux, which nobody serves: profiles are for administrators, on the admin socket"},
	}
}

// pure are the packages that decide and do no I/O.
func pure() []string {
	return []string{"agent/service", "agent/picker", "agent/table", "agent/discovery/format", "agent/event", "agent/calls", "agent/proxy/h1", "agent/proxy/h2", "agent/proxy/tcp"}
}

// pkg is a package of this project as `go list` tells it.
type pkg struct {
	ImportPath, Dir                    string
	Imports, TestImports, XTestImports []string
	GoFiles, TestGoFiles, XTestGoFiles []string
	IgnoredGoFiles                     []string
}

// name is the package's path within the project.
func (p *pkg) name() string { return strings.TrimPrefix(p.ImportPath, module) }

// listed is this project as `go list` tells it, asked once for all tests.
var listed struct {
	once sync.Once
	all  []*pkg
}

// packages lists this project.
func packages(t *testing.T) []*pkg {
	t.Helper()
	listed.once.Do(func() { listed.all = decodePackages(t, goList(t, "-json", "./...")) })
	if len(listed.all) < 10 {
		t.Fatalf("go list found %d packages, which can't be all", len(listed.all))
	}
	return listed.all
}

func decodePackages(t *testing.T, out []byte) []*pkg {
	t.Helper()
	var all []*pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(pkg)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// goList runs `go list` in the module's root.
func goList(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("%s: %v: %s", cmd, err, exit.Stderr)
		}
		t.Fatalf("%s: %v", cmd, err)
	}
	return out
}

// own returns the imports that are packages of this project, by their name in it.
func own(imports []string) []string {
	var out []string
	for _, i := range imports {
		if name, ok := strings.CutPrefix(i, module); ok {
			out = append(out, name)
		}
	}
	return out
}

// forbidden says why from must not import to; empty if it may.
func forbidden(from, to string) string {
	all := levels()
	a, ok := all[from]
	b, ok2 := all[to]
	switch _, exempt := allowed()[edge{from, to}]; {
	case !ok || !ok2:
		return "a package without a level: add it to levels() where it belongs"
	case to == "agent/testneed", to == "agent/discovery/etcdtest" && a < 6:
		return "it is for tests, and not linked into the agent"
	case exempt, a > b && (to != "agent/config" || a >= 5):
		return ""
	}
	for _, r := range reasons() {
		if (r.from == "*" || r.from == from) && (r.to == "*" || r.to == to) {
			return r.why
		}
	}
	return "data moves in one direction; a package imports lower levels only"
}

func TestImportLevels(t *testing.T) {
	for _, p := range packages(t) {
		if _, ok := levels()[p.name()]; !ok {
			t.Errorf("%s has no import level: add it to levels() where it belongs", p.name())
			continue
		}
		for _, to := range own(p.Imports) {
			if why := forbidden(p.name(), to); why != "" {
				t.Errorf("%s (level %d) imports %s (level %d): %s", p.name(), levels()[p.name()], to, levels()[to], why)
			}
		}
	}
}

// TestForbiddenEdges proves that the rules forbid what they should, and nothing that the design needs.
func TestForbiddenEdges(t *testing.T) {
	for _, e := range []edge{
		{"health", "agent/service"}, {"agent/table", "localapi"}, {"agent/proxy", "localapi"},
		{"localapi", "agent/proxy"}, {"agent/proxy/loop", "agent/proxy/h2"}, {"agent/proxy/h2", "agent/proxy/loop"}, {"agent/discovery", "agent/registrar"},
		{"agent/discovery", "agent/table"}, {"agent/proxy", "agent"}, {"agent/proxy", "agent/config"}, {"localapi/client", "agent/table"},
		{"agent/table", "agent/testneed"}, {"agent/discovery", "agent/discovery/etcdtest"}, {"agent", "cmd/lbagent"}, {"agent/service", "agent/config"}, {"nosuch", "agent"},
	} {
		if forbidden(e.from, e.to) == "" {
			t.Errorf("%s may import %s", e.from, e.to)
		}
	}
	for _, e := range []edge{
		{"agent/picker", "health"}, {"agent/discovery", "agent/discovery/format"}, {"agent/table", "agent/picker"}, {"agent/admin", "agent/discovery"},
		{"agent/proxy", "agent/proxy/h2"}, {"localapi", "agent/table"}, {"agent", "agent/config"}, {"cmd/lbagent", "agent"}, {"cmd/lbagent", "agent/config"},
		{"agent/config", "agent/service"}, {"localapi/client", "localapi/lbagent/v1"}, {"cmd/lbdemo", "agent/discovery/etcdtest"},
	} {
		if why := forbidden(e.from, e.to); why != "" {
			t.Errorf("%s must not import %s: %s", e.from, e.to, why)
		}
	}
}

func TestOwnedImports(t *testing.T) {
	for _, p := range packages(t) {
		for _, imported := range p.Imports {
			for _, o := range owners() {
				if imported != o.prefix && !strings.HasPrefix(imported, strings.TrimSuffix(o.prefix, "/")+"/") {
					continue
				}
				if !slices.Contains(o.only, p.name()) {
					t.Errorf("%s imports %s, which only %v may: %s", p.name(), imported, o.only, o.why)
				}
				break // the first rule that matches is the narrowest
			}
		}
	}
}

func TestDecisionsDoNoIO(t *testing.T) {
	io := []string{"net/http", "os", "os/exec", "syscall", "golang.org/x/sys/unix", "google.golang.org/grpc"}
	for _, p := range packages(t) {
		if !slices.Contains(pure(), p.name()) {
			continue
		}
		for _, imported := range p.Imports {
			if slices.Contains(io, imported) {
				t.Errorf("%s imports %s: it decides, others do the I/O", p.name(), imported)
			}
		}
		for _, f := range sources(t, p) {
			for _, complaint := range dials(f) {
				t.Error(complaint)
			}
		}
	}
}

// TestLinked: the agent follows an etcd and is none, and carries no test code.
func TestLinked(t *testing.T) {
	deps := strings.Fields(string(goList(t, "-deps", "./cmd/lbagent")))
	if !slices.Contains(deps, module+"agent") {
		t.Fatalf("cmd/lbagent does not link the agent; go list told %d packages", len(deps))
	}
	for _, dep := range deps {
		for _, never := range []string{"go.etcd.io/etcd/server/", "go.etcd.io/bbolt", "go.etcd.io/raft/", "testing", module + "agent/testneed", module + "agent/discovery/etcdtest"} {
			if dep == strings.TrimSuffix(never, "/") || strings.HasSuffix(never, "/") && strings.HasPrefix(dep, never) {
				t.Errorf("lbagent links %s", dep)
			}
		}
	}
}

// dependencies are the modules that this one may import from, with why. A further one needs a sentence in the commit that adds it.
func dependencies() map[string]string {
	return map[string]string{
		"google.golang.org/grpc":                    "the API, health probes",
		"google.golang.org/protobuf":                "generated code",
		"google.golang.org/genproto/googleapis/api": "generated code of the JSON face",
		"google.golang.org/genproto/googleapis/rpc": "ErrorInfo in the API's errors",
		"go.etcd.io/etcd/client/v3":                 "service lists",
		"go.etcd.io/etcd/api/v3":                    "types of the etcd client",
		"go.etcd.io/etcd/client/pkg/v3":             "types of the etcd client",
		"go.etcd.io/etcd/server/v3":                 "tests and demo: a real etcd in the process",
		"github.com/hashicorp/go-hclog":             "logs",
		"gopkg.in/yaml.v3":                          "configuration",
		"golang.org/x/net":                          "http2/hpack: header compression; tests may use http2's framer",
		"golang.org/x/sync":                         "errgroup",
		"golang.org/x/sys":                          "unix: epoll, splice, SO_PEERCRED",
		"github.com/prometheus/client_golang":       "metrics",
		"github.com/prometheus/client_model":        "the type that client_golang's Metric writes, for histograms with classic and native buckets",
		"github.com/coreos/go-systemd/v22":          "readiness, socket activation",
		"github.com/spf13/cobra":                    "verbs, completions, man pages",
		"github.com/spf13/pflag":                    "the flags of cobra, for the manual pages of verbs",
		"github.com/grpc-ecosystem/grpc-gateway/v2": "the JSON face",
		"github.com/cespare/xxhash/v2":              "hashing",
		"go.uber.org/zap":                           "the etcd client's and the embedded etcd's logger type",
	}
}

func TestDependencies(t *testing.T) {
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	// The module of an import is the longest path in front of it.
	moduleOf := func(imported string) string {
		best := ""
		for _, r := range mod.Require {
			if (imported == r.Path || strings.HasPrefix(imported, r.Path+"/")) && len(r.Path) > len(best) {
				best = r.Path
			}
		}
		return best
	}
	for _, p := range packages(t) {
		for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			m := moduleOf(imported)
			if m == "" {
				continue // the standard library, or this module
			}
			if _, ok := dependencies()[m]; !ok {
				t.Errorf("%s imports %s of module %s, which is not among the dependencies", p.name(), imported, m)
			}
		}
	}
}

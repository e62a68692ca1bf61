package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/testneed"
)

func TestBadUsage(t *testing.T) {
	for _, args := range [][]string{
		{"h3"}, {"h2", "h3"}, {"all", "h2"}, {"--loads", "9", "h2"}, {"--contenders", "envoy", "h2"}, {"--rounds", "0", "h2"}, {"--duration", "1ms"},
		{"--idle", "6001"}, {"--idle", "0"}, {"--gomaxprocs", "two"}, {"--gomaxprocs", "-1"}, {"--rate", "-1"},
	} {
		var out, errs bytes.Buffer
		if code := run(args, &out, &errs); code != 2 || errs.Len() == 0 {
			t.Errorf("%v: exit %d, %q; want 2 and a sentence", args, code, errs.String())
		}
	}
}

func TestHelpNamesEveryShape(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run([]string{"--help"}, &out, &errs); code != 0 || errs.Len() > 0 {
		t.Fatalf("exit %d, %q", code, errs.String())
	}
	for _, name := range append(shapeNames(), "--", "-quick", "-gomaxprocs") {
		if name != "--" && !strings.Contains(out.String(), name) {
			t.Errorf("the help lacks %q", name)
		}
	}
}

func TestNoShapeIsEveryShape(t *testing.T) {
	for _, args := range [][]string{nil, {"all"}} {
		o, err := parse(args, os.Stdout, os.Stderr)
		if err != nil || !slices.Equal(o.shapes, shapeNames()) {
			t.Errorf("%v: %v, %v", args, o.shapes, err)
		}
	}
}

// built are the programs under test, built once for all tests.
type built struct {
	once             sync.Once
	dir              string
	lbbench, lbagent string
	err              error
}

var binaries built

func TestMain(m *testing.M) {
	code := m.Run()
	if binaries.dir != "" {
		os.RemoveAll(binaries.dir)
	}
	os.Exit(code)
}

func (b *built) build(ctx context.Context) {
	if b.dir, b.err = os.MkdirTemp("", "lbbench-test"); b.err != nil {
		return
	}
	if b.lbagent, b.err = buildLbagent(ctx, b.dir); b.err != nil {
		return
	}
	b.lbbench = filepath.Join(b.dir, "lbbench")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.lbbench, ".")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0") // what it shares with the agent is compiled once
	if out, err := cmd.CombinedOutput(); err != nil {
		b.err = err
		os.Stderr.Write(out)
	}
}

// quickly runs lbbench --quick for a shape, as a user would.
func quickly(t *testing.T, args ...string) *results {
	t.Helper()
	testneed.Program(t, "h2load", "nghttp2-client")
	testneed.Program(t, "nghttpd", "nghttp2-server")
	testneed.Program(t, "haproxy", "haproxy")
	testneed.Program(t, "nginx", "nginx")
	if _, err := os.Stat(nginxModules()[0]); err != nil {
		testneed.Unmet(t, "nginx has no stream module; Debian has it in the package libnginx-mod-stream")
	}
	binaries.once.Do(func() { binaries.build(context.Background()) })
	if binaries.err != nil {
		t.Fatal(binaries.err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binaries.lbbench, append([]string{"--quick", "--json", "--lbagent", binaries.lbagent, "--rate", "200"}, args...)...)
	var progress bytes.Buffer
	cmd.Stderr = &progress
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, progress.String())
	}
	var r results
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Missing) > 0 {
		t.Errorf("missing: %v", r.Missing)
	}
	if !strings.Contains(progress.String(), "left) round 1") {
		t.Errorf("no progress was shown:\n%s", progress.String())
	}
	return &r
}

// complete wants exactly one measurement of each of names under load, done without a failure and with all of want greater than 0.
func complete(t *testing.T, r *results, shape, load string, names []string, want ...figure) {
	t.Helper()
	for _, name := range names {
		var found []measurement
		for _, m := range r.Measurements {
			if m.Shape == shape && m.Load == load && m.Contender == name {
				found = append(found, m)
			}
		}
		if len(found) != 1 {
			t.Errorf("%s %s %s: %d measurements, want 1", shape, load, name, len(found))
			continue
		}
		m := found[0]
		if m.Requests == 0 || m.Failed > 0 || m.Round != 1 {
			t.Errorf("%s %s %s: %d requests, %d failed, round %d", shape, load, name, m.Requests, m.Failed, m.Round)
		}
		for _, f := range want {
			if !(m.Figures[f] > 0) {
				t.Errorf("%s %s %s: %s is %v", shape, load, name, f, m.Figures[f])
			}
		}
	}
}

func proxies() []string { return []string{haproxy, nginx, goProxy, lbagent} }

func TestQuickH2(t *testing.T) {
	r := quickly(t, "--loads", "1x1,2x4", "h2")
	for _, l := range []string{"1x1", "2x4"} {
		complete(t, r, "h2", l, proxies(), cpuPerRequest, rate, meanLatency)
		complete(t, r, "h2", l, []string{none}, rate, meanLatency)
	}
	for _, l := range []string{loadDown, loadUp} {
		complete(t, r, "h2", l, proxies(), bytesPerCPU, throughput)
		complete(t, r, "h2", l, []string{none}, throughput)
	}
	complete(t, r, "h2", loadFixed, proxies(), cpuPerRequest, rate, medianLatency, tailLatency)
	complete(t, r, "h2", loadFixed, []string{none}, rate, medianLatency, tailLatency)
	if j, ok := r.judgementOf("h2", "1x1", cpuPerRequest, haproxy); !ok || j.Goal == nil || *j.Goal != 0.85 || j.Met == nil {
		t.Errorf("lbagent/haproxy at 1x1 is %+v, want a ratio beside its goal", j)
	}
}

func TestQuickHTTP1(t *testing.T) {
	r := quickly(t, "--loads", "2x1,4x4", "http1")
	complete(t, r, "http1", "2x1", proxies(), cpuPerRequest, rate, meanLatency)
	complete(t, r, "http1", "2x1", []string{none}, rate)
	complete(t, r, "http1", loadDown, proxies(), bytesPerCPU, throughput)
	complete(t, r, "http1", loadUp, proxies(), bytesPerCPU, throughput)
	complete(t, r, "http1", loadFixed, proxies(), cpuPerRequest, medianLatency, tailLatency)
	if loads := r.distinct("http1", func(m measurement) string { return m.Load }); slices.Contains(loads, "4x4") {
		t.Error("HTTP/1.1 was asked for four streams on a connection")
	}
}

func TestQuickTCP(t *testing.T) {
	r := quickly(t, "tcp")
	for _, l := range []string{loadBytes, loadBytesUp} {
		complete(t, r, "tcp", l, proxies(), bytesPerCPU, throughput)
		complete(t, r, "tcp", l, []string{none}, throughput)
	}
	complete(t, r, "tcp", loadConnect, proxies(), connsPerCPU, rate)
	complete(t, r, "tcp", loadConnect, []string{none}, rate)
}

func TestQuickGRPC(t *testing.T) {
	r := quickly(t, "grpc")
	complete(t, r, "grpc", grpcClosed, proxies(), cpuPerRequest, rate)
	complete(t, r, "grpc", grpcClosed, []string{none}, rate)
	complete(t, r, "grpc", loadFixed, proxies(), cpuPerRequest, rate, medianLatency, tailLatency)
	complete(t, r, "grpc", loadFixed, []string{none}, rate, medianLatency, tailLatency)
}

// So few connections may fit into memory that the process has already: only what Go's proxy needs, 30 KiB each, is sure to show.
func TestQuickIdle(t *testing.T) {
	r := quickly(t, "idle")
	complete(t, r, "idle", "h2", proxies())
	complete(t, r, "idle", "http1", proxies())
	for _, m := range r.Measurements {
		if _, ok := m.Figures[kernelPerConn]; !ok || m.Requests != 200 {
			t.Errorf("%s %s: %v with %d connections, want the kernel's memory with 200", m.Load, m.Contender, m.Figures, m.Requests)
		}
	}
	complete(t, r, "idle", "h2", []string{goProxy}, rssPerConn)
}

func TestQuickLookup(t *testing.T) {
	r := quickly(t, "lookup")
	complete(t, r, "lookup", loadSingle, []string{bareCall, emptyCall, pickCall}, onePickMedian, onePickTail)
	complete(t, r, "lookup", loadBatch, []string{pickCall}, picksPerCPU, picksPerAgent, picksPerSec)
	if j, ok := r.judgementOf("lookup", loadSingle, onePickMedian, emptyCall); !ok || j.Goal == nil || *j.Goal != 1.15 {
		t.Errorf("a pick beside an empty call is %+v, want a ratio beside its goal", j)
	}
}

func TestQuickNoisy(t *testing.T) {
	r := quickly(t, "--gomaxprocs", "0,1", "noisy")
	sum := make(map[figure]float64) // a round is so short that a machine which stands still may make none in it
	for _, m := range r.Measurements {
		for _, f := range []figure{changesPerSec, picksPerSec} {
			if m.Figures[f] > 0 && m.Contender == quiet {
				t.Errorf("%s: %s beside none", m.Load, f)
			}
			sum[f] += m.Figures[f]
		}
	}
	if sum[changesPerSec] == 0 || sum[picksPerSec] == 0 {
		t.Errorf("no noise: %v", sum)
	}
	for _, l := range []string{"GOMAXPROCS default", "GOMAXPROCS 1"} {
		complete(t, r, "noisy", l, []string{quiet, elsewhere, noisy}, cpuPerRequest, medianLatency, tailLatency)
		if j, ok := r.judgementOf("noisy", l, tailLatency, quiet); !ok || j.Goal == nil || *j.Goal != noisyGoal {
			t.Errorf("%s: noisy/quiet is %+v, want a ratio beside its goal", l, j)
		}
	}
}

// A contender that isn't there is named, and the others are measured.
func TestMissingContenderIsNamed(t *testing.T) {
	testneed.Program(t, "h2load", "nghttp2-client")
	testneed.Program(t, "nghttpd", "nghttp2-server")
	var progress bytes.Buffer
	o, err := parse([]string{"--quick", "--rate", "200", "--loads", "1x1", "--contenders", "none,haproxy", "--haproxy", "/nonexistent/haproxy", "--lbagent", "/bin/false", "h2"}, os.Stdout, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	r, err := bench(t.Context(), o, &progress)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Missing) != 1 || !strings.Contains(r.Missing[0], "h2: haproxy: start /nonexistent/haproxy") {
		t.Errorf("missing: %q", r.Missing)
	}
	complete(t, r, "h2", "1x1", []string{none}, rate)
}

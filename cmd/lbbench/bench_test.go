package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/testneed"
)

const h2loadOutput = `starting benchmark...
finished in 2.00s, 24747.50 req/s, 1.23MB/s
requests: 49495 total, 49505 started, 49495 done, 49493 succeeded, 1 failed, 1 errored, 0 timeout
status codes: 49495 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 2.46MB (2580000) total, 1.0MB (1048576) headers (space savings 50.00%), 1.51MB (1583840) data
                     min         max         mean         sd        +/- sd
time for request:       65us      4.41ms       349us       121us    87.33%
`

func TestParseH2load(t *testing.T) {
	got, err := parseH2load(h2loadOutput)
	if err != nil {
		t.Fatal(err)
	}
	if want := (loaded{requests: 49493, failed: 2, rate: 24747.5, mean: 349 * time.Microsecond}); got != want {
		t.Errorf("parsed %+v, want %+v", got, want)
	}
	if _, err := parseH2load("finished in a hurry"); err == nil {
		t.Error("an unknown form was taken")
	}
}

func TestParseLoad(t *testing.T) {
	if l, err := parseLoad("4x32"); err != nil || l != (load{4, 32}) {
		t.Errorf("4x32 = %v, %v", l, err)
	}
	for _, bad := range []string{"", "4", "4x", "x4", "0x1", "1x0", "1x251", "1001x1", "4x32x1"} {
		if _, err := parseLoad(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestTableShowsMediansAndRatios(t *testing.T) {
	r := &results{Missing: []string{"nginx: no program nginx"}}
	for round, cpu := range []float64{10, 30, 20} {
		r.Measurements = append(r.Measurements,
			measurement{Contender: "haproxy", Load: "1x1", Round: round, CPUMicros: cpu},
			measurement{Contender: "lbagent", Load: "1x1", Round: round, CPUMicros: cpu / 2})
	}
	var out bytes.Buffer
	if err := r.table(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"20.0", "(10.0-30.0)", "0.50", "missing: nginx"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
}

func TestBadUsage(t *testing.T) {
	for _, args := range [][]string{{}, {"h3"}, {"--loads", "9", "h2"}, {"--contenders", "envoy", "h2"}, {"--rounds", "0", "h2"}} {
		var out, errs bytes.Buffer
		if code := run(args, &out, &errs); code != 2 || errs.Len() == 0 {
			t.Errorf("%v: exit %d, %q; want 2 and a sentence", args, code, errs.String())
		}
	}
}

// TestBenchRuns measures for real, as short as it gets: every contender that needs nothing but this module answers without a failed request.
func TestBenchRuns(t *testing.T) {
	testneed.Program(t, "h2load", "nghttp2-client")
	testneed.Program(t, "nghttpd", "nghttp2-server")
	testneed.Program(t, "haproxy", "haproxy")
	binary := filepath.Join(t.TempDir(), "lbbench")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), binary, "--json", "--rounds", "1", "--duration", "200ms", "--loads", "2x2", "--contenders", "none,haproxy,go,lbagent", "h2")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var r results
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Missing) > 0 || len(r.Measurements) != 4 {
		t.Fatalf("missing %v, %d measurements", r.Missing, len(r.Measurements))
	}
	for _, m := range r.Measurements {
		if m.Requests == 0 || m.Failed > 0 {
			t.Errorf("%s: %d requests, %d failed", m.Contender, m.Requests, m.Failed)
		}
	}
}

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// conformanceVariable lets TestConformance run: it needs programs from several worlds, some of them built or installed first. `make conformance` sets it.
const conformanceVariable = "LBAGENT_CONFORMANCE"

// TestConformance lets the built agent meet what others have made to test HTTP/2 and gRPC, and others' clients and servers. Every case is a row of a
// table on stdout; a row that isn't as it has to be fails the test.
func TestConformance(t *testing.T) {
	if os.Getenv(conformanceVariable) != "1" {
		t.Skipf("run by make conformance, which sets %s=1", conformanceVariable)
	}
	p := newPeers(t)
	var r report
	for _, s := range []struct {
		name string
		run  func(*testing.T, *peers, *suite)
	}{
		{"h2spec", h2specSuite},
		{"interop", interopSuite},
		{"javascript", javascriptSuite},
		{"python", pythonSuite},
		{"curl", curlSuite},
		{"nghttp2", nghttp2Suite},
		{"node", nodeSuite},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t, p, r.suite(s.name)) })
	}
	r.print()
}

// outcome is what became of a case.
type outcome string

const (
	passed   outcome = "ok"
	excepted outcome = "excepted" // fails, and why it may is on a list
	notHere  outcome = "n/a"      // not run, and why is on a list
	failed   outcome = "FAILED"
)

// report is the outcome of every case.
type report struct{ suites []*suite }

// suite is the part of a report that has one name.
type suite struct {
	name  string
	began time.Time
	took  time.Duration
	count map[outcome]int
}

func (r *report) suite(name string) *suite {
	s := &suite{name: name, began: time.Now(), count: make(map[outcome]int)}
	r.suites = append(r.suites, s)
	return s
}

// add makes a row. Rows are printed as they come, so that whoever waits sees what is going on.
func (s *suite) add(t *testing.T, o outcome, group, name, note string, took time.Duration) {
	t.Helper()
	s.count[o]++
	s.took = time.Since(s.began)
	line := fmt.Sprintf("%-8s  %-10s  %-26s  %-34s  %6d ms  %s", o, s.name, group, name, took.Milliseconds(), note)
	fmt.Println(strings.TrimSpace(line))
	if o == failed {
		t.Errorf("%s, %s, %s: %s", s.name, group, name, note)
	}
}

// try makes a row of what f says.
func (s *suite) try(t *testing.T, group, name string, f func() error) {
	t.Helper()
	began := time.Now()
	err := f()
	if err != nil {
		s.add(t, failed, group, name, strings.ReplaceAll(err.Error(), "\n", " | "), time.Since(began))
		return
	}
	s.add(t, passed, group, name, "", time.Since(began))
}

// print makes the table of totals.
func (r *report) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nsuite\tok\texcepted\tn/a\tFAILED\tseconds\t")
	total := suite{name: "all", count: make(map[outcome]int)}
	for _, s := range append(r.suites, &total) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%.1f\t\n", s.name, s.count[passed], s.count[excepted], s.count[notHere], s.count[failed], s.took.Seconds())
		total.took += s.took
		for o, n := range s.count {
			total.count[o] += n
		}
	}
	_ = w.Flush()
}

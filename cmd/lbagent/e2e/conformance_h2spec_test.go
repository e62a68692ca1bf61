package e2e

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// h2specCases is how many cases the pinned h2spec has with --strict; a case that isn't run can't hide.
const h2specCases = 146

// h2specExceptions are the cases that may fail, and have to: h2spec knows RFC 7540, and RFC 9113 took something back.
func h2specExceptions() map[string]string {
	return map[string]string{
		// HEADERS, and PRIORITY, that depend on themselves: RFC 7540, 5.3.1 wanted a stream error.
		"http2/5.3.1/1": "RFC 9113, 5.3.2 and 6.2: priorities are deprecated, and so are their fields in HEADERS; nothing forbids a stream to name itself",
		"http2/5.3.1/2": "RFC 9113, 5.3.2 and 6.3: priorities are deprecated; PRIORITY has errors for its length and for stream 0 only",
	}
}

// h2specSuite runs all of h2spec against a listener that is told to speak HTTP/2, and against one that finds it out (4.9).
func h2specSuite(t *testing.T, p *peers, s *suite) {
	files := t.TempDir()
	if err := os.WriteFile(filepath.Join(files, "index.html"), bytes.Repeat([]byte("0123456789abcde\n"), 256), 0o644); err != nil {
		t.Fatal(err)
	}
	backend := p.nghttpServer(t, files, "--echo-upload")
	h2spec := tool(t, h2specTool)
	for _, protocol := range []string{"h2", "auto"} {
		port := freePort(t)
		startAgent(t, fmt.Sprintf("- {name: web, backends: [%q], listen: [%d], protocol: %s}", backend, port, protocol))
		xmlFile := filepath.Join(t.TempDir(), "report.xml")
		// h2spec's exit code is 1 as soon as one case fails; the report tells which.
		_, runErr := attempt(t, time.Minute, nil, h2spec, "--strict", "--timeout", "3", "--port", strconv.Itoa(port), "--junit-report", xmlFile)
		b, err := os.ReadFile(xmlFile)
		if err != nil {
			t.Fatal(errors.Join(err, runErr))
		}
		cases, err := readJUnit(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cases {
			o, note := c.judge(h2specExceptions())
			s.add(t, o, "protocol "+protocol, c.id, strings.TrimSpace(c.title+". "+note), c.took)
		}
		if len(cases) != h2specCases {
			s.add(t, failed, "protocol "+protocol, "all", fmt.Sprintf("%d cases were run, not %d", len(cases), h2specCases), 0)
		}
		for id := range missing(h2specExceptions(), cases) {
			s.add(t, failed, "protocol "+protocol, id, "is on the list of exceptions, but is no case", 0)
		}
	}
}

// h2specCase is a row of h2spec's report.
type h2specCase struct {
	id, title string // "http2/5.3.1/2" is the second case of what h2spec calls section 5.3.1
	failure   string // empty if it passed
	took      time.Duration
}

func (c h2specCase) judge(exceptions map[string]string) (o outcome, note string) {
	why, exception := exceptions[c.id]
	switch {
	case c.failure != "" && exception:
		return excepted, why
	case c.failure != "":
		return failed, c.failure
	case exception:
		return failed, "passes, but is on the list of exceptions: take it off"
	}
	return passed, ""
}

// missing are the exceptions that are no cases.
func missing(exceptions map[string]string, cases []h2specCase) map[string]bool {
	out := make(map[string]bool)
	for id := range exceptions {
		out[id] = true
	}
	for _, c := range cases {
		delete(out, c.id)
	}
	return out
}

// readJUnit reads h2spec's report.
func readJUnit(b []byte) ([]h2specCase, error) {
	var doc struct {
		Suites []struct {
			Package string `xml:"package,attr"`
			Cases   []struct {
				Title   string  `xml:"classname,attr"`
				Seconds float64 `xml:"time,attr"`
				Failure *string `xml:"failure"`
				Error   *string `xml:"error"`
				Skipped *string `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("read h2spec's report: %w", err)
	}
	var all []h2specCase
	for _, suite := range doc.Suites {
		for i, c := range suite.Cases {
			one := h2specCase{id: fmt.Sprintf("%s/%d", suite.Package, i+1), title: c.Title, took: time.Duration(c.Seconds * float64(time.Second))}
			for why, text := range map[string]*string{"fails": c.Failure, "error": c.Error, "skipped": c.Skipped} {
				if text != nil {
					one.failure = why + ": " + strings.Join(strings.Fields(*text), " ")
				}
			}
			all = append(all, one)
		}
	}
	return all, nil
}

// What h2spec reports is judged case by case: a failure that is on no list, an exception that passes or is no case, and a skip are errors.
func TestReadJUnit(t *testing.T) {
	got, err := readJUnit([]byte(`<?xml version="1.0" encoding="UTF-8"?><testsuites>
<testsuite name="1. A" package="http2/1"><testcase package="http2/1" classname="one" time="0.0010"></testcase>
<testcase classname="two" time="2.0"><failure>MUST&#xA;  not</failure></testcase></testsuite>
<testsuite name="2. B" package="hpack/2"><testcase classname="three" time="0"><skipped></skipped></testcase><testcase classname="four"><error>timeout</error></testcase></testsuite>
<testsuite name="3. C" package="hpack/3"></testsuite></testsuites>`))
	if err != nil {
		t.Fatal(err)
	}
	want := []h2specCase{
		{"http2/1/1", "one", "", time.Millisecond}, {"http2/1/2", "two", "fails: MUST not", 2 * time.Second},
		{"hpack/2/1", "three", "skipped: ", 0}, {"hpack/2/2", "four", "error: timeout", 0},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("got %v\nwant %v", got, want)
	}
	exceptions := map[string]string{"http2/1/1": "why", "http2/1/2": "why", "http2/9/9": "why"}
	for i, o := range []outcome{failed, excepted, failed, failed} {
		if got, note := want[i].judge(exceptions); got != o || note == "" {
			t.Errorf("%s is %s, %q; want %s", want[i].id, got, note, o)
		}
	}
	if o, note := want[0].judge(nil); o != passed || note != "" {
		t.Errorf("%s is %s, %q", want[0].id, o, note)
	}
	if m := missing(exceptions, got); len(m) != 1 || !m["http2/9/9"] {
		t.Errorf("exceptions that are no cases: %v", m)
	}
	if _, err := readJUnit([]byte("<testsuites><")); err == nil {
		t.Error("half a report is taken for a report")
	}
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// running is a verb that goes on until it is stopped, with its lines.
type running struct {
	t      *testing.T
	lines  chan string
	stop   context.CancelFunc
	stderr *lockedBuffer
	code   chan int
}

// lockedBuffer is written by a verb and read by its test.
type lockedBuffer struct {
	mu sync.Mutex

	b bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func begin(t *testing.T, socket string, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{t: t, lines: make(chan string, 100), stop: cancel, stderr: &lockedBuffer{}, code: make(chan int, 1)}
	out, in := io.Pipe()
	a := &app{stdout: &output{w: in}, stderr: r.stderr, getenv: func(string) string { return socket }, now: moment, patience: 5 * time.Second}
	go func() {
		r.code <- a.execute(ctx, args)
		in.Close()
	}()
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			r.lines <- s.Text()
		}
		close(r.lines)
	}()
	t.Cleanup(cancel)
	return r
}

// line is the next one.
func (r *running) line() string {
	r.t.Helper()
	select {
	case l, ok := <-r.lines:
		if !ok {
			r.t.Fatalf("it has ended; stderr: %s", r.stderr)
		}
		return l
	case <-time.After(20 * time.Second):
		r.t.Fatalf("no line came; stderr: %s", r.stderr)
	}
	return ""
}

// ends waits for the end.
func (r *running) ends() int {
	r.t.Helper()
	select {
	case code := <-r.code:
		return code
	case <-time.After(20 * time.Second):
		r.t.Fatal("it goes on")
	}
	return -1
}

func eventOf(id uint64, detail string) *lbagentv1.EventsResponse {
	return &lbagentv1.EventsResponse{Id: id, Time: before(-time.Minute), Kind: "list", Service: "user", Detail: detail}
}

// Events are followed over the life of the agent: nothing is told twice, and a gap is told of.
func TestEventsOverRestarts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "a.sock")
	first := &fakeAgent{began: moment().Add(-time.Hour), events: make(chan *lbagentv1.EventsResponse, 10)}
	stop := first.serve(t, socket)
	v := begin(t, socket, "events", "-f")
	first.events <- eventOf(7, "one")
	if l := v.line(); !strings.HasSuffix(l, "user: one") {
		t.Errorf("line %q", l)
	}
	first.events <- eventOf(10, "two")
	if l := v.line(); !strings.Contains(l, "---") || !strings.Contains(l, "2 events came faster than they were read") {
		t.Errorf("a gap of two: %q", l)
	}
	if l := v.line(); !strings.HasSuffix(l, "user: two") {
		t.Errorf("line %q", l)
	}

	close(first.events) // the stream ends, and the agent stays
	if l := v.line(); !strings.Contains(l, "the agent has gone; waiting for it") {
		t.Errorf("line %q", l)
	}
	if l := v.line(); !strings.Contains(l, "the agent is there again") {
		t.Errorf("line %q", l)
	}
	stop()
	second := &fakeAgent{began: moment().Add(-time.Second), events: make(chan *lbagentv1.EventsResponse, 10)}
	second.serve(t, socket)
	for l := ""; !strings.Contains(l, "the agent was started anew at 03:04:04"); l = v.line() {
		if l != "" && !strings.Contains(l, "the agent") {
			t.Errorf("line %q", l)
		}
	}
	if l := v.line(); !strings.Contains(l, "since the event of 03:03:05 may be missing") && !strings.Contains(l, "missing here") {
		t.Errorf("line %q", l) // the sentence goes on
	}
	second.events <- eventOf(1, "three")
	if l := v.line(); !strings.HasSuffix(l, "user: three") {
		t.Errorf("line %q", l)
	}
	v.stop()
	if code := v.ends(); code != 0 {
		t.Errorf("exit code %d, %s", code, v.stderr)
	}
}

// For programs what is no event stands beside the events.
func TestEventsAsJSONOverRestarts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "a.sock")
	f := &fakeAgent{began: moment(), events: make(chan *lbagentv1.EventsResponse, 10)}
	f.serve(t, socket)
	v := begin(t, socket, "events", "-f", "--json")
	f.events <- eventOf(1, "one")
	f.events <- eventOf(5, "two")
	for _, want := range []string{"one", "two"} {
		if l := v.line(); !strings.HasPrefix(l, "{") || !strings.Contains(l, want) {
			t.Errorf("line %q", l)
		}
	}
	if !strings.Contains(v.stderr.String(), "3 events came faster") {
		t.Errorf("stderr: %s", v.stderr)
	}
}

// A stream can't begin with an agent that isn't there.
func TestStreamsWithoutAnAgent(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "a.sock")
	for _, args := range [][]string{{"events", "-f"}, {"tap", "user"}, {"top", "--once"}, {"top", "--json"}} {
		code, stdout, stderr := call(t, map[string]string{"LBAGENT_SOCKET": nowhere, "LBAGENT_ADMIN_SOCKET": nowhere}, args...)
		if code != exitFailure || stdout != "" || !strings.Contains(stderr, "no agent is running here") {
			t.Errorf("%q: exit code %d: %s%s", args, code, stdout, stderr)
		}
	}
}

func TestTapOverRestarts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "a.sock")
	one := func(path string) *lbagentv1.TapResponse {
		return &lbagentv1.TapResponse{Call: &lbagentv1.Call{Time: before(0), Protocol: "h2", Method: "GET", Path: path, Phase: "done"}}
	}
	first := &fakeAgent{calls: make(chan *lbagentv1.TapResponse, 1)}
	stop := first.serve(t, socket)
	v := begin(t, socket, "tap", "user", "--status", "5xx,unavailable", "--slow", "100ms", "--backend", "10.0.0.1:80", "--per-second", "7", "--count", "2")
	first.calls <- one("/1")
	if l := v.line(); !strings.HasSuffix(l, "GET /1") {
		t.Errorf("line %q", l)
	}
	if got, want := fmt.Sprint(first.tapped), `service:"user" address:"10.0.0.1:80" statuses:"5xx" statuses:"unavailable" slow:{nanos:100000000} per_second:7`; strings.Join(strings.Fields(got), " ") != want {
		t.Errorf("asked for %s, want %s", got, want)
	}
	close(first.calls)
	stop()
	second := &fakeAgent{calls: make(chan *lbagentv1.TapResponse, 2)}
	second.serve(t, socket)
	second.calls <- &lbagentv1.TapResponse{LeftOut: 3}
	second.calls <- one("/2")
	if l := v.line(); !strings.HasSuffix(l, "GET /2") {
		t.Errorf("line %q", l)
	}
	if code := v.ends(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if s := v.stderr.String(); !strings.Contains(s, "the agent has gone; waiting for it") || !strings.Contains(s, "3 calls left out") {
		t.Errorf("stderr: %s", s)
	}
	close(second.calls)
}

func TestTimesOfCalls(t *testing.T) {
	for _, c := range []struct {
		wait, first, total time.Duration
		want               string
	}{
		{0, 0, 0, "-/-/0µs"},
		{20 * time.Microsecond, 1100 * time.Microsecond, 1250 * time.Microsecond, "20.0/1100/1250µs"},
		{time.Millisecond, 0, 12300 * time.Microsecond, "1.00/-/12.3ms"},
		{time.Millisecond, 2 * time.Second, 90 * time.Second, "0.00/2.00/90.0s"},
	} {
		one := &lbagentv1.Call{Total: durationpb.New(c.total)}
		if c.wait > 0 {
			one.Wait = durationpb.New(c.wait)
		}
		if c.first > 0 {
			one.FirstByte = durationpb.New(c.first)
		}
		if got := timesOf(one); got != c.want {
			t.Errorf("%v, %v, %v: %s, want %s", c.wait, c.first, c.total, got, c.want)
		}
	}
}

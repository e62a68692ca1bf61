package accesslog

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/calls"
	"github.com/lbagent/lbagent/agent/testneed"
	"golang.org/x/sys/unix"
)

// record is the record of a call that went well.
func record(path string) *calls.Record {
	return &calls.Record{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC), Service: "user", Protocol: "grpc", Client: "127.0.0.1:40000", Method: "POST", Path: path, Host: "user",
		Backend: netip.MustParseAddrPort("10.0.0.1:80"), Attempts: 1, Status: 200, GRPC: 0, Wait: 100 * time.Microsecond, FirstByte: 2 * time.Millisecond,
		Total: 2500 * time.Microsecond, In: 12, Out: 34, Phase: calls.Done, Trace: "4bf92f3577b34da6a3ce929d0e0e4736",
	}
}

// running is a Log in its life.
type running struct {
	*Log
	t    *testing.T
	taps *calls.Taps
	path string
	stop func()

	mu sync.Mutex

	told []error
}

func run(t *testing.T, o Options) *running {
	t.Helper()
	r := &running{t: t, taps: new(calls.Taps), path: filepath.Join(t.TempDir(), "access.log")}
	r.Log = New(hclog.NewNullLogger(), r.taps, func(err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.told = append(r.told, err)
	})
	if o.Path == "" {
		o.Path = r.path
	}
	r.path = o.Path
	r.Set(o)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() { cancel(); <-ended })
	t.Cleanup(r.stop)
	return r
}

// await waits for a condition that comes true in a moment.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// paths are those of the lines of a file, each of which has to be JSON.
func paths(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []string
	for s := bufio.NewScanner(f); s.Scan(); {
		var line struct{ Path string }
		if err := json.Unmarshal(s.Bytes(), &line); err != nil {
			t.Fatalf("%v: %s", err, s.Text())
		}
		all = append(all, line.Path)
	}
	return strings.Join(all, " ")
}

func TestLine(t *testing.T) {
	r := record("/user.Users/Get")
	want := `{"time":"2026-01-02T03:04:05.678901Z","service":"user","protocol":"grpc","client":"127.0.0.1:40000","method":"POST","path":"/user.Users/Get","host":"user",` +
		`"backend":"10.0.0.1:80","attempts":1,"status":200,"grpc_status":0,"bytes_in":12,"bytes_out":34,"wait_ms":0.1,"first_byte_ms":2,"total_ms":2.5,` +
		`"flags":"--","ended_by":"backend","phase":"done","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736"}` + "\n"
	if got := string(appendRecord(nil, r)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	r = &calls.Record{Time: r.Time, Service: "db", Protocol: "tcp", GRPC: -1, By: calls.Agent, Phase: calls.Connect, Cause: "no usable backend"}
	want = `{"time":"2026-01-02T03:04:05.678901Z","service":"db","protocol":"tcp","attempts":0,"bytes_in":0,"bytes_out":0,"total_ms":0,"flags":"AC","ended_by":"agent",` +
		`"phase":"connect","cause":"no usable backend"}` + "\n"
	if got := string(appendRecord(nil, r)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// FuzzString: whatever a peer says is one string of one line of JSON, and what is UTF-8 is read as it was.
func FuzzString(f *testing.F) {
	for _, s := range []string{"", "/a?b", `"\`, "a\nb\r\x00\x7f\x1b[31m", "\xff\xfe", "é\u2028\u2029\U0001F600", "\xed\xa0\x80", strings.Repeat("é", 99)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b := appendString(nil, s)
		var got string
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%q became %s: %v", s, b, err)
		}
		if want := strings.ToValidUTF8(s, "\uFFFD"); strings.ReplaceAll(got, "\uFFFD", "") != strings.ReplaceAll(want, "\uFFFD", "") {
			t.Fatalf("%q came back as %q", s, got)
		}
		for _, c := range string(b) {
			if c < ' ' || c == 0x7f || c == '\u2028' || c == '\u2029' {
				t.Fatalf("%q has %q in it", b, c)
			}
		}
	})
}

func TestWhatIsWritten(t *testing.T) {
	bad, gone := record("/bad"), record("/gone")
	bad.GRPC = 14
	gone.By, gone.Phase = calls.Client, calls.Wait
	for _, c := range []struct {
		sample float64
		errors bool
		want   string
	}{{1, true, "/good /bad /gone"}, {1, false, "/good /bad /gone"}, {0, true, "/bad"}, {0, false, ""}} {
		r := run(t, Options{Sample: c.sample, Errors: c.errors})
		for _, one := range []*calls.Record{record("/good"), bad, gone} {
			r.taps.Ended(one)
		}
		r.stop() // writes what is left
		if got := paths(t, r.path); got != c.want {
			t.Errorf("sample %v, errors %v: %q, want %q", c.sample, c.errors, got, c.want)
		}
		if s := r.Stats(); !s.On || !s.OK || s.Dropped != 0 || s.Written != uint64(len(strings.Fields(c.want))) {
			t.Errorf("%+v", s)
		}
	}
	r := run(t, Options{Sample: 0.25})
	for range 4000 {
		r.taps.Ended(record("/"))
	}
	r.stop()
	if n := r.Stats().Written; n < 800 || n > 1200 { // 7 standard deviations
		t.Errorf("a quarter of 4000 calls is %d", n)
	}
}

// TestOrderFromMany: lines of one goroutine stay in order, and none is lost or torn.
func TestOrderFromMany(t *testing.T) {
	r := run(t, Options{Sample: 1})
	const goroutines, each = 8, 500
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				r.taps.Ended(record(fmt.Sprintf("/%d/%d", g, i)))
			}
		})
	}
	wg.Wait()
	r.stop()
	next := make([]int, goroutines)
	for _, p := range strings.Fields(paths(t, r.path)) {
		var g, i int
		if _, err := fmt.Sscanf(p, "/%d/%d", &g, &i); err != nil || next[g] != i {
			t.Fatalf("%s came when number %d was due", p, next[g])
		}
		next[g]++
	}
	for g, n := range next {
		if n != each {
			t.Errorf("goroutine %d: %d lines", g, n)
		}
	}
}

// TestRotation: a file that was renamed, removed, or is to be opened anew.
func TestRotation(t *testing.T) {
	r := run(t, Options{Sample: 1})
	written := func(n uint64) { t.Helper(); await(t, "lines", func() bool { return r.Stats().Written == n }) }
	r.taps.Ended(record("/1"))
	written(1)
	old := r.path + ".1"
	if err := os.Rename(r.path, old); err != nil {
		t.Fatal(err)
	}
	// It looks for the file once in a second: until then lines go where they went.
	n := uint64(1)
	await(t, "a new file", func() bool {
		n++
		r.taps.Ended(record("/2"))
		written(n)
		_, err := os.Stat(r.path)
		return err == nil
	})
	if got := paths(t, old); !strings.HasPrefix(got, "/1") {
		t.Errorf("the old file has %q", got)
	}
	if err := os.Rename(r.path, old); err != nil {
		t.Fatal(err)
	}
	r.Set(Options{Path: r.path, Sample: 1}) // a reload: at once
	r.taps.Ended(record("/3"))
	written(n + 1)
	if got := paths(t, r.path); got != "/3" {
		t.Errorf("after a reload the file has %q", got)
	}
	other := r.path + ".other"
	r.Set(Options{Path: other, Sample: 1})
	r.taps.Ended(record("/4"))
	written(n + 2)
	if got := paths(t, other); got != "/4" {
		t.Errorf("the other file has %q", got)
	}
	r.Set(Options{})
	if r.taps.Wants("user") || r.Stats().On {
		t.Error("it is off, and calls are still looked at")
	}
	r.Set(Options{Path: other, Sample: 1})
	r.taps.Ended(record("/5"))
	written(n + 3)
	if got := paths(t, other); got != "/4 /5" {
		t.Errorf("turned on again, the other file has %q", got)
	}
}

// TestCannotBeWritten: no folder, a link, a pipe, a folder in its place: told once, counted, and nobody waits. Once it can be written, it is.
func TestCannotBeWritten(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"no folder": func(string) error { return nil },
		"a link":    func(path string) error { return os.Symlink("/dev/full", path) },
		"a pipe":    func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a folder":  func(path string) error { return os.Mkdir(path, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "access.log")
			if name == "no folder" {
				path = filepath.Join(filepath.Dir(path), "missing", "access.log")
			}
			if err := make(path); err != nil {
				t.Fatal(err)
			}
			r := run(t, Options{Path: path, Sample: 1})
			for i := range 3 {
				r.taps.Ended(record("/lost"))
				await(t, "a lost line", func() bool { return r.Stats().Dropped == uint64(i+1) })
			}
			if s := r.Stats(); s.OK || s.Written != 0 {
				t.Errorf("%+v", s)
			}
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			await(t, "the file", func() bool { return r.Stats().OK })
			r.taps.Ended(record("/kept"))
			r.stop()
			if got := paths(t, path); got != "/kept" {
				t.Errorf("the file has %q", got)
			}
			if len(r.told) != 2 || r.told[0] == nil || r.told[1] != nil {
				t.Errorf("told %v, want one error and one nil", r.told)
			}
		})
	}
}

// TestDiskFull: what fits is written whole, the rest is counted, and what comes once there is room begins on a line of its own.
func TestDiskFull(t *testing.T) {
	testneed.Root(t) // for a small file system
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		testneed.Unmet(t, "no tmpfs can be mounted here: %v", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	path := filepath.Join(dir, "access.log")
	r := run(t, Options{Path: path, Sample: 1})
	const many = 1000 // some 350 bytes each
	for range many {
		r.taps.Ended(record("/full"))
	}
	await(t, "lost lines", func() bool { s := r.Stats(); return s.Written+s.Dropped == many && !s.OK })
	if s := r.Stats(); s.Written == 0 || s.Dropped == 0 {
		t.Errorf("%+v", s)
	}
	before := r.Stats().Written
	if err := os.Truncate(path, 100); err != nil { // somebody makes room, and cuts a line
		t.Fatal(err)
	}
	await(t, "room", func() bool { r.taps.Ended(record("/room")); s := r.Stats(); return s.OK && s.Written > before })
	r.stop()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if i > 0 && !json.Valid([]byte(line)) {
			t.Errorf("line %d is torn: %s", i, line)
		}
	}
}

// TestBound: a disk that takes nothing costs a bounded number of bytes.
func TestBound(t *testing.T) {
	taps := new(calls.Taps)
	l := New(hclog.NewNullLogger(), taps, nil) // nobody writes
	l.Set(Options{Path: "/nowhere", Sample: 1})
	big := record("/" + strings.Repeat("x", calls.MaxText-1))
	for l.Stats().Dropped < 10 {
		l.Ended(big)
	}
	if n := l.waiting.Load(); n < bound || n > bound+4096 {
		t.Errorf("%d bytes wait", n)
	}
	text, lines := l.take(nil)
	if len(text) <= bound || lines == 0 || l.waiting.Load() != 0 {
		t.Errorf("took %d lines of %d bytes, %d are left", lines, len(text), l.waiting.Load())
	}
}

func BenchmarkEnded(b *testing.B) {
	l := New(hclog.NewNullLogger(), new(calls.Taps), nil)
	l.options.Store(&Options{Path: "/nowhere", Sample: 1})
	r := record("/user.Users/Get")
	b.ReportAllocs()
	for b.Loop() {
		if l.Ended(r); l.waiting.Load() > bound/2 {
			l.take(nil)
		}
	}
}

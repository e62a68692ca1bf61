package discovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/service"
)

// spoolFull spools services with backends each, as a fleet has them, and returns how to follow them.
func spoolFull(t testing.TB, dir string, services, backends int) []Follow {
	t.Helper()
	s := newSpool(dir, hclog.NewNullLogger())
	var follows []Follow
	for i := range services {
		f := Follow{Name: fmt.Sprintf("service-%d", i), Prefix: fmt.Sprintf("services/service-%d/", i), Format: "grpc-naming"}
		l := &service.List{Service: f.Name, Epoch: 1, Revision: 1000, Confirmed: time.Now()}
		for j := range backends {
			a := mustAddr(fmt.Sprintf("10.%d.%d.%d:8080", i>>8, i&255, j))
			l.Backends = append(l.Backends, &service.Backend{
				Addr: a, Weight: 100, Zone: "eu-1a", Metadata: map[string]string{"version": fmt.Sprint("v", j%2)}, Key: f.Prefix + a.String(), Created: 100, Modified: 200,
			})
		}
		s.put(f, l)
		follows = append(follows, f)
	}
	s.flush()
	if s.trouble() != "" {
		t.Fatal(s.trouble())
	}
	return follows
}

// The list of a service that somebody waits for is given while the others' are still being read, once, and by the time that Hasten returns (1.8). One that the spool doesn't
// have, or that nobody follows, has Hasten do nothing.
func TestHasten(t *testing.T) {
	dir := t.TempDir()
	follows := spoolFull(t, dir, runtime.GOMAXPROCS(0)+1, 2) // more than are read at once
	slices.SortFunc(follows, func(a, b Follow) int { return strings.Compare(a.Name, b.Name) })
	last := follows[len(follows)-1].Name
	rec, hold := newRecorder(t), make(chan struct{})
	out := &logBuffer{}
	d, err := New(Config{SpoolDir: dir, Log: hclog.New(&hclog.LoggerOptions{Output: out}), OnList: func(now time.Time, l *service.List) {
		if l.Service != last {
			<-hold
		}
		rec.onList(now, l)
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(follows, naming("unknown")) {
		d.Set(f)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	for range 2 {
		d.Hasten(last)
		if n := len(rec.all(last)); n != 1 {
			t.Errorf("%d lists of a service that is waited for", n)
		}
	}
	d.Hasten("unknown")
	d.Hasten("nobody")
	select {
	case <-d.Loaded():
		t.Error("all is loaded, though lists could not be given yet")
	default:
	}
	close(hold)
	<-d.Loaded()
	for _, f := range follows {
		if n := len(rec.all(f.Name)); n != 1 {
			t.Errorf("%d lists of %s", n, f.Name)
		}
	}
	if want := fmt.Sprint("count=", len(follows)); !strings.Contains(out.String(), want) {
		t.Errorf("log %q, want %s", out.String(), want)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A service that is dropped while its list is read from the spool has no list any more, and no file.
func TestRemoveWhileLoading(t *testing.T) {
	dir := t.TempDir()
	f := spoolFull(t, dir, 1, 2)[0]
	d, err := New(Config{SpoolDir: dir, OnList: func(time.Time, *service.List) { t.Error("a list of a service that nobody follows") }})
	if err != nil {
		t.Fatal(err)
	}
	d.Set(f)
	of := d.follows[f.Name]
	d.Remove(f.Name)
	of.seed(time.Now()) // by who looked for it a moment before
	d.spool.flush()
	if _, err := os.Stat(d.spool.path(f.Name, listSuffix)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its file: %v", err)
	}
}

// 1,000 services with 100 backends each are read in well under 100 ms.
func BenchmarkLoadSpool(b *testing.B) {
	dir := b.TempDir()
	follows := spoolFull(b, dir, 1000, 100)
	b.ReportAllocs()
	var used time.Duration
	for b.Loop() {
		b.StopTimer()
		d, err := New(Config{SpoolDir: dir, OnList: func(time.Time, *service.List) {}})
		if err != nil {
			b.Fatal(err)
		}
		for _, f := range follows {
			d.Set(f)
		}
		begin := cpuTime()
		b.StartTimer()
		d.loadSpool(b.Context())
		used += cpuTime() - begin
	}
	b.ReportMetric(float64(used)/float64(b.N)/1e6, "cpu-ms/op")
}

package localapi

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// listRig is a running Lists over a real table, in a bubble.
type listRig struct {
	rig
	lists *Lists
	dir   string
}

func newListRig(t *testing.T, dir string) *listRig {
	r := &listRig{dir: dir}
	r.t = t
	var l *Lists
	tab, err := table.New(table.Config{Log: hclog.NewNullLogger(), Events: event.NewLog(10), OnPublish: func(s *table.Service) { l.Published(s) }})
	if err != nil {
		t.Fatal(err)
	}
	if l, err = NewLists(ListsConfig{Log: hclog.NewNullLogger(), Table: tab, Dir: dir}); err != nil {
		t.Fatal(err)
	}
	r.table, r.lists = tab, l
	return r
}

// start runs it; the returned func ends it.
func (r *listRig) start() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.lists.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	}
}

func (r *listRig) text(service string) string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, lbagentv1.ListFile(service)))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// advance lets the bubble's time pass.
func advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestLists(t *testing.T) {
	dir := filepath.Join(publicDir(t), "run", "lists")
	synctest.Test(t, func(t *testing.T) {
		r := newListRig(t, dir)
		l := listOf("user", 1, 2, 3, 4, 5)
		l.Backends[1].Weight, l.Backends[3].Draining = 300, true
		r.table.SetSpec(time.Now(), specOf("user"))
		r.table.Apply(time.Now(), l)
		stop := r.start()
		synctest.Wait()
		lines := strings.Split(r.text("user"), "\n")
		if len(lines) != 5 || lines[0] != "10.0.0.2:80 300" || lines[4] != "" || strings.Contains(r.text("user"), "10.0.0.4") {
			t.Fatalf("%q", lines)
		}
		for path, want := range map[string]os.FileMode{dir: 0o755, filepath.Join(dir, "user"): 0o644} {
			if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != want {
				t.Error(path, fi, err)
			}
		}

		// The one that is out comes last, with weight 0.
		advance(time.Second)
		r.judge("user", 2, health.Part{Kind: health.Down, Cause: "probe failed 3 times"})
		synctest.Wait()
		if lines := strings.Split(r.text("user"), "\n"); len(lines) != 5 || lines[3] != "10.0.0.2:80 0" {
			t.Errorf("%q", lines)
		}

		// At most one write a second, the latest wins.
		before := r.text("user")
		for id := 20; id < 120; id++ {
			r.set("user", id)
		}
		synctest.Wait()
		if got := r.text("user"); got != before {
			t.Errorf("written twice within a second: %q", got)
		}
		advance(time.Second)
		if got := r.text("user"); got != addr(119).String()+" 100\n" {
			t.Errorf("%q", got)
		}

		// What didn't change isn't written again.
		old := time.Unix(1e9, 0)
		if err := os.Chtimes(filepath.Join(dir, "user"), old, old); err != nil {
			t.Fatal(err)
		}
		r.set("user", 119)
		advance(2 * time.Second)
		if fi, err := os.Stat(filepath.Join(dir, "user")); err != nil || !fi.ModTime().Equal(old) {
			t.Error("written although nothing changed", err)
		}

		// An empty list is an empty file; a service that goes takes its file along.
		r.set("user")
		r.set("other", 1)
		advance(2 * time.Second)
		if got := r.text("user"); got != "" {
			t.Errorf("%q", got)
		}
		r.table.Remove(time.Now(), "user")
		advance(2 * time.Second)
		if got := r.text("user"); !strings.Contains(got, "no such file") {
			t.Errorf("%q", got)
		}

		// What was published last is written before the end, and stays.
		r.set("other", 2)
		stop()
		if got := r.text("other"); got != "10.0.0.2:80 100\n" {
			t.Errorf("%q", got)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Error(entries, err)
		}
	})
}

// No name leaves the directory, hides, or meets another one's file.
func TestListFileNames(t *testing.T) {
	dir := filepath.Join(publicDir(t), "lists")
	names := []string{"...", ".x", ".tmp-1", "-", "a:b@c", "A.b_c-d", strings.Repeat("x", 253), "." + strings.Repeat("x", 252), "2E", "E"}
	synctest.Test(t, func(t *testing.T) {
		r := newListRig(t, dir)
		for i, name := range names {
			if !service.ValidName(name) {
				t.Fatalf("%q is no service name", name)
			}
			r.set(name, i+1)
		}
		stop := r.start()
		synctest.Wait()
		for i, name := range names {
			if got, want := r.text(name), addr(i+1).String()+" 100\n"; got != want {
				t.Errorf("%q: %q, want %q", name, got, want)
			}
			if back := lbagentv1.ListFileService(lbagentv1.ListFile(name)); back != name {
				t.Errorf("%q came back as %q", name, back)
			}
		}
		stop()
	})
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(entries) != 1 {
		t.Error(entries, err)
	}
	if entries, _ = os.ReadDir(dir); len(entries) != len(names) {
		t.Error(entries)
	}
}

// What a former agent left: its list stays while the service has no list yet, and when nobody follows it, for a while; half-written files go.
func TestListsOfFormerAgent(t *testing.T) {
	dir := publicDir(t)
	put := func(name string, age time.Duration) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("10.1.1.1:80 5\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		// In the bubble it is the year 2000.
		at := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Add(-age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	put("slow", 90*24*time.Hour)
	put("recent", time.Hour)
	put("forgotten", 90*24*time.Hour)
	put(".tmp-17", time.Hour)
	put("not a service", 90*24*time.Hour)
	put(".hidden", 90*24*time.Hour)
	synctest.Test(t, func(t *testing.T) {
		r := newListRig(t, dir)
		r.table.SetSpec(time.Now(), specOf("slow"))
		stop := r.start()
		synctest.Wait()
		stop()
	})
	var left []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if got := strings.Join(left, ","); got != ".hidden,not a service,recent,slow" {
		t.Error(got)
	}
}

// A disk that takes no file is told once and tried again.
func TestListsDiskTrouble(t *testing.T) {
	dir := filepath.Join(publicDir(t), "lists")
	if err := os.WriteFile(dir, nil, 0o644); err != nil { // a file where the directory should be
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		var said strings.Builder
		r := newListRig(t, dir)
		r.lists.cfg.Log = hclog.New(&hclog.LoggerOptions{Output: &said})
		r.set("user", 1)
		stop := r.start()
		advance(time.Minute)
		if n := strings.Count(said.String(), "can't be written"); n > 2 || n == 0 {
			t.Errorf("told %d times:\n%s", n, said.String())
		}
		r.set("user", 2)
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		advance(listsRetry + time.Second)
		if got := r.text("user"); got != "10.0.0.2:80 100\n" {
			t.Errorf("%q\n%s", got, said.String())
		}
		stop()
	})
}

// Two hosts, or two runs, don't send everybody to the same one of equal backends.
func TestListsOrder(t *testing.T) {
	first := map[string]bool{}
	for range 50 {
		r := newListRig(t, t.TempDir())
		r.set("user", 1, 2, 3, 4, 5)
		text := string(r.lists.format(r.table.Lookup("user").View()))
		if again := string(r.lists.format(r.table.Lookup("user").View())); again != text {
			t.Fatal("one run writes the same list in two orders")
		}
		line, _, _ := strings.Cut(text, "\n")
		first[line] = true
	}
	if len(first) < 3 {
		t.Error(first)
	}
}

// What a failed round gives back never takes the place of a service that was followed anew meanwhile.
func TestListsAgainNeverHidesNewer(t *testing.T) {
	r := newRig(t, nil)
	l, err := NewLists(ListsConfig{Log: hclog.NewNullLogger(), Table: r.table, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	old := r.table.Lookup("user")
	r.table.Remove(time.Now(), "user")
	r.set("user", 1)
	newer := r.table.Lookup("user")
	if newer == nil || newer == old {
		t.Fatal("not followed anew")
	}
	for range 100000 {
		l.dirty = map[string]*table.Service{}
		var wg sync.WaitGroup
		wg.Go(func() { l.again(old) })
		wg.Go(func() { l.Published(newer) })
		wg.Wait()
		if l.dirty["user"] != newer {
			t.Fatal("the old service hides the newer one")
		}
	}
}

// Something clears the folder, or one file of it, while the agent runs: all is there again soon, though no list has changed (6.6).
func TestListsAreRestored(t *testing.T) {
	dir := filepath.Join(publicDir(t), "run", "lists")
	synctest.Test(t, func(t *testing.T) {
		r := newListRig(t, dir)
		for _, name := range []string{"user", "cart"} {
			r.table.SetSpec(time.Now(), specOf(name))
			r.table.Apply(time.Now(), listOf(name, 1, 2))
		}
		stop := r.start()
		defer stop()
		advance(listsEvery)
		user, cart := r.text("user"), r.text("cart")
		for _, remove := range []string{dir, filepath.Join(dir, lbagentv1.ListFile("cart"))} {
			if err := os.RemoveAll(remove); err != nil {
				t.Fatal(err)
			}
			advance(listsLook + 2*listsEvery)
			if r.text("user") != user || r.text("cart") != cart {
				t.Errorf("after %s was removed: %q and %q", remove, r.text("user"), r.text("cart"))
			}
		}
	})
}

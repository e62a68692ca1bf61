package fleet

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const patience = time.Minute

// host is an agent, as far as the fleet is concerned: a text that contains "bad" can't be used.
type host struct {
	*Fleet

	t      *testing.T
	links  *etcd.Links
	events *event.Log
	stop   func()

	mu      sync.Mutex
	applied int
	changed chan struct{}
}

func startHost(t *testing.T, dir, prefix string, server *etcdtest.Server) *host {
	t.Helper()
	h := &host{t: t, events: event.NewLog(100), changed: make(chan struct{})}
	h.links = etcd.New(etcd.Options{Etcd: &etcd.Config{Endpoints: server.Endpoints()}})
	f, err := New(Config{Events: h.events, Dir: dir, Etcd: h.links, OnChange: h.apply})
	if err != nil {
		t.Fatal(err)
	}
	h.Fleet = f
	f.Set(time.Now(), prefix)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { h.links.Run(ctx) })
	wg.Go(func() { f.Run(ctx) })
	h.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(h.stop)
	return h
}

func (h *host) apply(context.Context) {
	entries := h.Entries()
	var outcomes []Outcome
	for _, e := range entries {
		o := Outcome{Key: e.Key, Place: "in force", Used: e.Now}
		if strings.Contains(e.Now, "bad") {
			o.Used, o.Problem = e.Good, "it is bad"
			if e.Good == "" {
				o.Place = "bad"
			}
		}
		outcomes = append(outcomes, o)
	}
	h.Settle(time.Now(), entries, outcomes)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.applied++
	close(h.changed)
	h.changed = make(chan struct{})
}

// tell is what is in force, by key: "user=1 mail=2(bad)".
func (h *host) tell() string {
	var out []string
	for _, i := range h.Status().Items {
		s := i.Key + "=" + i.Used
		if i.Problem != "" {
			s += "(bad)"
		}
		if !i.Held.IsZero() {
			s += "(held)"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func (h *host) await(want string) {
	h.t.Helper()
	h.awaitThat(want, func() bool { return h.tell() == want })
}

func (h *host) awaitThat(what string, ok func() bool) {
	h.t.Helper()
	end := time.After(patience)
	for {
		h.mu.Lock()
		changed := h.changed
		h.mu.Unlock()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-end:
			h.t.Fatalf("not within %v: %s; there is %q", patience, what, h.tell())
		}
	}
}

func (h *host) told() string {
	var b strings.Builder
	events, _ := h.events.Since(0)
	for _, e := range events {
		fmt.Fprintln(&b, e.Service, e.Detail)
	}
	return b.String()
}

func put(t *testing.T, c *clientv3.Client, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if _, err := c.Put(t.Context(), pairs[i], pairs[i+1]); err != nil {
			t.Fatal(err)
		}
	}
}

func del(t *testing.T, c *clientv3.Client, keys ...string) {
	t.Helper()
	for _, key := range keys {
		if _, err := c.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFollow: what is put, changed and deleted comes; what can't be used keeps its last good form, and is told once.
func TestFollow(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, server)
	put(t, c, "f/user", "1", "f/mail", "bad", "fx/no", "1", "g/user", "0")
	h := startHost(t, t.TempDir(), "f/", server)
	select {
	case <-h.First():
	case <-time.After(patience):
		t.Fatal("nothing was applied")
	}
	h.await("mail=(bad) user=1")
	put(t, c, "f/mail", "2", "f/user/new", "3")
	h.await("mail=2 user=1 user/new=3")
	put(t, c, "f/user", "bad")
	h.await("mail=2 user=1(bad) user/new=3")
	put(t, c, "f/user", "4")
	del(t, c, "f/user/new")
	h.await("mail=2 user=4")
	want := "mail fleet item mail can't be used, it is not in force: it is bad\n" + "mail fleet item mail is well again: in force\n" +
		"user fleet item user can't be used, its last good form stays in force: it is bad\n" + "user fleet item user is well again: in force\n"
	if got := h.told(); got != want {
		t.Errorf("events:\n%swant:\n%s", got, want)
	}
	if s := h.Status(); s.Source != "etcd" || s.Revision == 0 || s.Confirmed.IsZero() || s.Error != "" {
		t.Errorf("status %+v", s)
	}

	// Another prefix: what is known stays until the new one is read, however little of it is there.
	h.Set(time.Now(), "g/")
	h.await("user=0")
	h.Set(time.Now(), "")
	h.await("")
}

// TestChurn: somebody who writes without end does not make the agent apply without end.
func TestChurn(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, server)
	h := startHost(t, "", "f/", server)
	<-h.First()
	began := time.Now()
	for i := range 300 {
		put(t, c, "f/user", fmt.Sprint(i))
	}
	h.await("user=299")
	h.mu.Lock()
	defer h.mu.Unlock()
	if most := 3 + int(time.Since(began)/applyEvery); h.applied > most {
		t.Errorf("applied %d times in %v, want at most %d", h.applied, time.Since(began), most)
	}
}

// TestWithoutEtcd: a start without etcd has what was spooled (1.8, 1.12); changes made meanwhile come when it is back, compacted (1.4) or not.
func TestWithoutEtcd(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, server)
	dir := t.TempDir()
	put(t, c, "f/a", "1", "f/b", "1", "f/c", "1")
	h := startHost(t, dir, "f/", server)
	h.await("a=1 b=1 c=1")
	put(t, c, "f/c", "bad")
	h.await("a=1 b=1 c=1(bad)")
	server.Stop()
	h.stop()

	h = startHost(t, dir, "f/", server)
	h.await("a=1 b=1 c=1(bad)")
	if s := h.Status(); s.Source != "spool" {
		t.Errorf("source %q, want spool", s.Source)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	h.awaitStatus("source etcd", func(s Status) bool { return s.Source == "etcd" })
	put(t, c, "f/d", "1")
	h.await("a=1 b=1 c=1(bad) d=1")

	// The watch is lost, and what it missed is compacted.
	server.Stop()
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	del(t, c, "f/a")
	put(t, c, "f/b", "2")
	if err := server.Compact(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	h.await("b=2 c=1(bad) d=1")
}

// awaitStatus is for what comes without a change.
func (h *host) awaitStatus(what string, ok func(Status) bool) {
	h.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !ok(h.Status()) {
		select {
		case <-tick.C:
		case <-end:
			h.t.Fatalf("not within %v: %s; there is %+v", patience, what, h.Status())
		}
	}
}

// TestEmptiedEtcd: an etcd that lost all, or another one, takes no service away; that survives a restart. Who wants it so says it once, for all hosts.
func TestEmptiedEtcd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr := ""
	func() {
		first, err := etcdtest.Run(etcdtest.Config{Token: "first"})
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		addr = first.Addr()
		c := etcdtest.NewClient(t, first)
		put(t, c, "f/a", "1", "f/b", "1", "f/c", "1")
		h := startHost(t, dir, "f/", first)
		h.await("a=1 b=1 c=1")
		if _, err := c.Delete(t.Context(), "f/", clientv3.WithPrefix()); err != nil {
			t.Fatal(err)
		}
		h.await("a=1(held) b=1(held) c=1(held)")
		put(t, c, "f/a", "2")
		h.await("a=2 b=1(held) c=1(held)")
		if got := h.told(); strings.Count(got, "3 items of the fleet vanished from etcd at once") != 1 {
			t.Errorf("events:\n%s", got)
		}
		h.stop()
	}()
	second := etcdtest.Start(t, etcdtest.Config{Addr: addr, Token: "second"})
	h := startHost(t, dir, "f/", second)
	h.awaitStatus("source etcd", func(s Status) bool { return s.Source == "etcd" })
	h.await("a=2(held) b=1(held) c=1(held)")
	s := NewStore(etcd.Wrap(etcdtest.NewClient(t, second)), "f/")
	if _, err := s.Write(t.Context(), By{}, []Change{{Key: "a", Remove: true}, {Key: "c", Remove: true}}, func(*Snapshot) error { return nil }); err != nil {
		t.Fatal(err)
	}
	h.await("b=1(held)")
}

// TestTooMuch: a wrong prefix does not fill the agent's memory.
func TestTooMuch(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, server)
	put(t, c, "f/a", "1")
	h := startHost(t, "", "f/", server)
	h.await("a=1")
	big := strings.Repeat("x", 1<<20)
	for i := range maxBytes>>20 + 1 {
		put(t, c, fmt.Sprint("f/big", i), big)
	}
	h.awaitStatus("the trouble", func(s Status) bool { return strings.Contains(s.Error, "is the prefix right?") })
	if got := h.tell(); !strings.Contains(got, "a=1") {
		t.Errorf("what was known is gone: %s", got)
	}
	if _, err := c.Delete(t.Context(), "f/big", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	put(t, c, "f/a", "2")
	h.awaitThat("a=2", func() bool { return strings.HasPrefix(h.tell(), "a=2") })
}

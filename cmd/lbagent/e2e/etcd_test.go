package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// list is what the agent has of a service; nil if it can't say.
func (a *agent) list(service string) *lbagentv1.ListResponse {
	ctx, cancel := context.WithTimeout(a.t.Context(), patience/2)
	defer cancel()
	l, err := a.cachedLookup().List(ctx, &lbagentv1.ListRequest{Service: service}, grpc.WaitForReady(true))
	if err != nil {
		return nil
	}
	return l
}

func (a *agent) addresses(service string) []string {
	var out []string
	for _, b := range a.list(service).GetBackends() {
		out = append(out, b.GetAddress())
	}
	return out
}

// etcd stops, the agent restarts with nothing but its spool, etcd's history is changed and compacted behind its back, etcd returns: callers see nothing of it
// (1.4, 1.8, 1.12), and no list is ever empty.
func TestEtcdIsAwayAndTheAgentRestarts(t *testing.T) {
	t.Parallel()
	own, err := etcdtest.Run(etcdtest.Config{Dir: filepath.Join(t.TempDir(), "etcd")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { own.Close() })
	bs := backends(t, 3, work)
	late := newBackend(t, "late", "127.0.0.1", work)
	register(t, etcdClient(t, own.Endpoints()...), "user", addrs(bs)...)
	port := freePort(t)
	a := startAgent(t, fmt.Sprintf("- {name: user, prefix: services/user/, listen: [%d]}", port), own.Endpoints()...)
	if got := a.list("user").GetProvenance().GetSource(); got != "etcd" {
		t.Errorf("source %q, want etcd", got)
	}
	c := newCaller(t, fmt.Sprintf("127.0.0.1:%d", port))
	c.burst(100, 10)
	stop := c.keepCalling(6)
	revision := a.list("user").GetProvenance().GetRevision()

	// Without etcd.
	own.Stop()
	began := time.Now()
	poll(t, "calls go on without etcd", func() bool { _, n := c.since(began); return n > 300 })
	if got := a.list("user").GetProvenance(); got.GetRevision() != revision || len(a.addresses("user")) != 3 {
		t.Errorf("without etcd: %v, %v", got, a.addresses("user"))
	}
	poll(t, "the status names etcd's absence", func() bool {
		st, err := a.status().Status(t.Context(), &lbagentv1.StatusRequest{})
		return err == nil && st.GetEtcd().GetConfigured() && !st.GetEtcd().GetConnected()
	})

	// A restart with the spool only.
	a.stop()
	a.start()
	if l := a.list("user"); l.GetProvenance().GetSource() != "spool" || len(l.GetBackends()) != 3 || l.GetProvenance().GetRevision() != revision {
		t.Errorf("after a restart: %v", l)
	}
	began = time.Now()
	poll(t, "calls go on from the spool", func() bool { _, n := c.since(began); return n > 300 })

	// What happens to etcd's data while the agent can't see it: it runs at another address.
	hidden, err := etcdtest.Run(etcdtest.Config{Dir: own.Dir(), Addr: fmt.Sprintf("127.0.0.1:%d", freePort(t))})
	if err != nil {
		t.Fatal(err)
	}
	edit := etcdClient(t, hidden.Endpoints()...)
	register(t, edit, "user", late.addr)
	unregister(t, edit, "user", bs[0].addr)
	if err := hidden.Compact(t.Context(), edit); err != nil {
		t.Fatal(err)
	}
	edit.Close()
	hidden.Close()
	sawEmpty := watchForEmpty(a, "user")
	if err := own.Start(); err != nil {
		t.Fatal(err)
	}
	want := []string{bs[1].addr, bs[2].addr, late.addr}
	poll(t, "the list is etcd's", func() bool {
		return a.list("user").GetProvenance().GetSource() == "etcd" && sameSet(a.addresses("user"), want)
	})

	// A restart of etcd with a compaction while the agent watches: the watch is at a revision that is gone.
	live := etcdClient(t, own.Endpoints()...)
	register(t, live, "user", bs[0].addr)
	poll(t, "the list has four", func() bool { return len(a.addresses("user")) == 4 })
	unregister(t, live, "user", late.addr)
	if err := own.Compact(t.Context(), live); err != nil {
		t.Fatal(err)
	}
	if err := own.Restart(); err != nil {
		t.Fatal(err)
	}
	poll(t, "the list is etcd's after a compaction", func() bool { return sameSet(a.addresses("user"), addrs(bs)) })
	register(t, live, "user", late.addr)
	poll(t, "a change after it is seen", func() bool { return len(a.addresses("user")) == 4 })

	stop()
	c.wantNoFailures()
	if sawEmpty() {
		t.Error("a watcher saw an empty list")
	}
}

// watchForEmpty watches a service until the returned func is called, which says whether it was ever empty.
func watchForEmpty(a *agent, service string) (stop func() bool) {
	a.t.Helper()
	ctx, cancel := context.WithCancel(a.t.Context())
	s, err := a.lookup().Watch(ctx, &lbagentv1.WatchRequest{Service: service})
	if err != nil {
		a.t.Fatal(err)
	}
	empty, lists := false, 0
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			l, err := s.Recv()
			if err != nil {
				return
			}
			lists++
			empty = empty || len(l.GetBackends()) == 0
		}
	})
	return func() bool {
		cancel()
		wg.Wait()
		if lists < 2 {
			a.t.Errorf("the watcher saw %d lists", lists)
		}
		return empty
	}
}

func sameSet(got, want []string) bool {
	if len(got) != len(want) {
		return false
	}
	for _, w := range want {
		if !strings.Contains(" "+strings.Join(got, " ")+" ", " "+w+" ") {
			return false
		}
	}
	return true
}

// Services that are only asked for are followed on demand (1.15); each has bounds.
func TestServicesOnDemand(t *testing.T) {
	t.Parallel()
	reg := etcdClient(t, etcd.Endpoints()...)
	register(t, reg, "asked", "10.0.0.1:80", "10.0.0.2:80")
	a := startAgent(t, "", etcd.Endpoints()...)
	lookup := a.lookup()
	p, err := lookup.Pick(t.Context(), &lbagentv1.PickRequest{Service: "asked"})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.GetPicks()) != 1 || !strings.HasPrefix(p.GetPicks()[0].GetAddress(), "10.0.0.") {
		t.Errorf("picked %v", p)
	}
	register(t, reg, "asked", "10.0.0.3:80")
	poll(t, "the list is followed", func() bool { return len(a.addresses("asked")) == 3 })
	s, err := lookup.Services(t.Context(), &lbagentv1.ServicesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.GetServices()) != 1 || s.GetServices()[0].GetOrigin() != "on-demand" {
		t.Errorf("services: %v", s)
	}
}

// One user can have at most 64 services followed on demand; those that are configured are none of them (1.15).
func TestServicesOnDemandAreBounded(t *testing.T) {
	t.Parallel()
	reg := etcdClient(t, etcd.Endpoints()...)
	register(t, reg, "configured", "10.0.0.1:80")
	a := startAgent(t, "- {name: configured, prefix: elsewhere/configured/}", etcd.Endpoints()...)
	for i := range 64 {
		register(t, reg, fmt.Sprintf("s%d", i), "10.0.0.1:80")
	}
	lookup := a.lookup()
	for i := range 64 {
		if _, err := lookup.Pick(t.Context(), &lbagentv1.PickRequest{Service: fmt.Sprintf("s%d", i)}); err != nil {
			t.Fatalf("service %d: %v", i, err)
		}
	}
	_, err := lookup.Pick(t.Context(), &lbagentv1.PickRequest{Service: "one-too-many"})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the 65th: %v", err)
	}
	for _, name := range []string{"", "a/b", strings.Repeat("x", 254), "ä"} {
		if _, err := lookup.Pick(t.Context(), &lbagentv1.PickRequest{Service: name}); status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.NotFound {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if _, err := lookup.Pick(t.Context(), &lbagentv1.PickRequest{Service: "s0"}); err != nil {
		t.Errorf("one of the 64: %v", err)
	}
}

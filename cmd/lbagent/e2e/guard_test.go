package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// announce puts backends into etcd, each under a lease of its own, as programs do that register themselves.
func announce(t *testing.T, c *clientv3.Client, service string, bs []*backend) map[*backend]clientv3.LeaseID {
	t.Helper()
	leases := make(map[*backend]clientv3.LeaseID)
	for _, b := range bs {
		l, err := c.Grant(t.Context(), 600)
		if err != nil {
			t.Fatal(err)
		}
		leases[b] = l.ID
		value, err := json.Marshal(map[string]any{"Op": 0, "Addr": b.addr})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Put(t.Context(), namespace(t)+"services/"+service+"/"+b.addr, string(value), clientv3.WithLease(l.ID)); err != nil {
			t.Fatal(err)
		}
	}
	return leases
}

// expire ends the leases of backends, which takes their keys as their expiry would.
func expire(t *testing.T, c *clientv3.Client, leases map[*backend]clientv3.LeaseID, bs ...*backend) {
	t.Helper()
	for _, b := range bs {
		if _, err := c.Revoke(t.Context(), leases[b]); err != nil {
			t.Fatal(err)
		}
	}
}

// verdicts are the numbers of backends by verdict.
func (a *agent) verdicts(service string) map[string]int {
	out := make(map[string]int)
	for _, b := range a.list(service).GetBackends() {
		out[b.GetVerdict()]++
	}
	return out
}

func (a *agent) accept(service string) (*lbagentv1.AcceptResponse, error) {
	conn := a.dial("unix:" + a.admin)
	defer conn.Close()
	return lbagentv1.NewAdminServiceClient(conn).Accept(a.t.Context(), &lbagentv1.AcceptRequest{Service: service}, grpc.WaitForReady(true))
}

// guardRig is an agent with a service of backends that hold leases, and a caller that calls all the time.
type guardRig struct {
	*agent
	*caller
	etcd   *clientv3.Client
	bs     []*backend
	leases map[*backend]clientv3.LeaseID
	stop   func()
}

func newGuardRig(t *testing.T, n int, endpoints ...string) *guardRig {
	if len(endpoints) == 0 {
		endpoints = etcd.Endpoints()
	}
	r := &guardRig{etcd: etcdClient(t, endpoints...), bs: backends(t, n, work)}
	r.leases = announce(t, r.etcd, "user", r.bs)
	port := freePort(t)
	r.agent = startAgent(t, fmt.Sprintf("- {name: user, prefix: services/user/, protocol: h2, listen: [%d]}", port), endpoints...)
	r.caller = newCaller(t, fmt.Sprintf("127.0.0.1:%d", port))
	r.burst(10*n, n)
	r.stop = r.keepCalling(6)
	return r
}

// reach waits until calls that begin from now on reach exactly these backends.
func (r *guardRig) reach(t *testing.T, bs []*backend) {
	t.Helper()
	began := time.Now()
	poll(t, "calls reach all of the backends", func() bool {
		counts, n := r.since(began)
		return n > 20*len(bs) && len(counts) == len(bs)
	})
}

// 80 % of the keys expire at once while their backends live: no call fails, all go on to get calls, and explain, status and metrics say why (1.9). A restart of the agent
// keeps them (1.10), and lbagent accept believes etcd.
func TestMassExpiry(t *testing.T) {
	t.Parallel()
	r := newGuardRig(t, 10)
	expire(t, r.etcd, r.leases, r.bs[:8]...)
	poll(t, "8 orphans", func() bool { v := r.verdicts("user"); return v["orphaned"] == 8 && v["up"] == 2 })
	r.reach(t, r.bs)

	st, err := r.status().Status(t.Context(), &lbagentv1.StatusRequest{})
	if err != nil || !strings.Contains(strings.Join(st.GetWarnings(), "\n"), "user: 8 of 10 backends are orphans") || st.GetServices()[0].GetOrphans() != 8 {
		t.Errorf("status %v, error %v", st, err)
	}
	ex, err := r.status().Explain(t.Context(), &lbagentv1.ExplainRequest{Service: "user", Address: r.bs[0].addr})
	if err != nil || !strings.HasPrefix(ex.GetBackends()[0].GetSentence(), "gets calls, weight") || !strings.Contains(ex.GetBackends()[0].GetSentence(), ": its key went away") {
		t.Errorf("explain %v, error %v", ex, err)
	}
	if _, m := r.agent.get("/metrics"); !strings.Contains(m, `lbagent_discovery_orphans{service="user"} 8`) {
		t.Error("no metric")
	}

	since := r.list("user").GetBackends()
	r.agent.stop()
	r.agent.start()
	poll(t, "8 orphans after a restart", func() bool { v := r.verdicts("user"); return v["orphaned"] == 8 && v["up"] == 2 })
	for i, b := range r.list("user").GetBackends() {
		if b.GetVerdict() == "orphaned" && !b.GetSince().AsTime().Equal(since[i].GetSince().AsTime()) {
			t.Errorf("%s: orphaned since %v, was %v", b.GetAddress(), b.GetSince().AsTime(), since[i].GetSince().AsTime())
		}
	}
	r.reach(t, r.bs)

	// One that dies goes, without anybody's word; the others stay.
	died := time.Now()
	r.bs[0].kill()
	poll(t, "the dead orphan leaves", func() bool { return r.verdicts("user")["orphaned"] == 7 })
	gone := span{died, time.Now()}

	resp, err := r.accept("user")
	if err != nil || len(resp.GetAddresses()) != 7 {
		t.Errorf("accepted %v, error %v", resp, err)
	}
	poll(t, "what etcd says is the list", func() bool { return sameSet(r.addresses("user"), addrs(r.bs[8:])) })
	r.stop()
	r.wantNoFailures(gone)
}

// Blue/green: ten in, ten out that live on. However blue is deregistered, it is off the list at once, and no call that begins from then on gets there.
func TestBlueGreen(t *testing.T) {
	t.Parallel()
	for name, out := range map[string]func(t *testing.T, r *guardRig){
		"deleted": func(t *testing.T, r *guardRig) {
			for _, b := range r.bs {
				unregister(t, r.etcd, "user", b.addr)
			}
		},
		"revoked": func(t *testing.T, r *guardRig) { expire(t, r.etcd, r.leases, r.bs...) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newGuardRig(t, 10)
			var green []*backend
			for i := range 10 {
				green = append(green, newBackend(t, fmt.Sprintf("green%d", i), "127.0.0.1", work))
			}
			announce(t, r.etcd, "user", green)
			poll(t, "20 backends", func() bool { return len(r.addresses("user")) == 20 })
			out(t, r)
			poll(t, "green alone is on the list", func() bool { return sameSet(r.addresses("user"), addrs(green)) }) // an orphan would stay for longer than that
			began := time.Now()
			poll(t, "calls reach green", func() bool { counts, n := r.since(began); return n > 500 && len(counts) >= 10 })
			counts, _ := r.since(began)
			for _, b := range r.bs {
				if n := counts[b.name]; n > 0 {
					t.Errorf("%d calls reached blue", n)
				}
			}
			r.stop()
			r.wantNoFailures()
		})
	}
}

// Everything stops in good order, one after another, revoking its lease: the last ones look like a mass expiry, and leave all the same, for the second witness sees them stop (1.10).
func TestGracefulStopOfAll(t *testing.T) {
	t.Parallel()
	r := newGuardRig(t, 6)
	spare := newBackend(t, "spare", "127.0.0.1", work)
	announce(t, r.etcd, "user", []*backend{spare})
	poll(t, "7 backends", func() bool { return len(r.addresses("user")) == 7 })
	for i, b := range r.bs {
		expire(t, r.etcd, r.leases, b)
		b.srv.GracefulStop()
		poll(t, "the one that stopped leaves", func() bool { return len(r.addresses("user")) == len(r.bs)-i })
	}
	if got := r.addresses("user"); !sameSet(got, []string{spare.addr}) {
		t.Errorf("list %v", got)
	}
	began := time.Now()
	poll(t, "calls go on", func() bool { _, n := r.since(began); return n > 100 })
	r.stop()
	r.wantNoFailures()
}

// The agent restarts while etcd is down, after a mass expiry: its orphans are in the spool, get calls, and leave when they die (1.8, 1.10).
func TestOrphansWithoutEtcd(t *testing.T) {
	t.Parallel()
	own := etcdtest.Start(t, etcdtest.Config{})
	r := newGuardRig(t, 4, own.Endpoints()...)
	expire(t, r.etcd, r.leases, r.bs...)
	poll(t, "4 orphans", func() bool { return r.verdicts("user")["orphaned"] == 4 })
	own.Stop()
	r.agent.stop()
	r.agent.start()
	if v := r.verdicts("user"); v["orphaned"] != 4 {
		t.Fatalf("after a restart: %v", v)
	}
	r.reach(t, r.bs)
	died := time.Now()
	r.bs[3].kill()
	poll(t, "the dead orphan leaves", func() bool { return len(r.addresses("user")) == 3 })
	gone := span{died, time.Now()}
	if err := own.Start(); err != nil {
		t.Fatal(err)
	}
	announce(t, r.etcd, "user", r.bs[:3])
	poll(t, "all are listed again", func() bool { v := r.verdicts("user"); return v["up"] == 3 && v["orphaned"] == 0 })
	r.stop()
	r.wantNoFailures(gone)
}

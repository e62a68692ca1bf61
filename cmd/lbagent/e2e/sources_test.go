package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func putKey(t *testing.T, c *clientv3.Client, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := c.Put(ctx, key, value); err != nil {
		t.Fatal(err)
	}
}

// words is what a verb prints, without its line breaks.
func (a *agent) words(args ...string) string {
	out, _, _ := a.cli(args...)
	return strings.Join(strings.Fields(out), " ")
}

func (a *agent) hints(service string) string {
	a.t.Helper()
	e, err := a.status().Explain(a.t.Context(), &lbagentv1.ExplainRequest{Service: service})
	if err != nil {
		a.t.Fatal(err)
	}
	return e.GetSummary() + "; " + strings.Join(e.GetHints(), "; ")
}

// Where lists come from: a service's own namespace, one key, a choice by metadata (1.2), a host name (1.13), and what is refused (1.14); a call reaches each.
func TestSourcesOfLists(t *testing.T) {
	t.Parallel()
	c := etcdClient(t, etcd.Endpoints()...)
	bs := backends(t, 4, 0)
	own, other := namespace(t), "/elsewhere"+namespace(t)
	putKey(t, c, other+"services/user/a", fmt.Sprintf(`{"Addr":%q}`, bs[0].addr))
	putKey(t, c, own+"services/user/a", `{"Addr":"192.0.2.1:1"}`) // in the wrong namespace
	putKey(t, c, own+"lists/one", bs[1].addr)
	putKey(t, c, own+"lists/one2", "192.0.2.1:1")
	putKey(t, c, own+"services/db/a", fmt.Sprintf(`{"Addr":%q,"Metadata":{"role":"replica","zone":"a"}}`, bs[2].addr))
	putKey(t, c, own+"services/db/b", fmt.Sprintf(`{"Addr":"%s","Metadata":{"role":"primary","zone":"a"}}`, strings.Replace(bs[3].addr, "127.0.0.1", "localhost", 1)))
	putKey(t, c, own+"services/db/c", `{"Addr":"192.0.2.1:1","Metadata":{"role":"primary","zone":"b"}}`)
	putKey(t, c, own+"services/db/d", `{"Addr":"169.254.169.254:80","Metadata":{"role":"primary","zone":"a"}}`)
	ports := []int{freePort(t), freePort(t), freePort(t), freePort(t)}
	a := startAgent(t, fmt.Sprintf(`
- {name: user, prefix: services/user/, namespace: %q, listen: [%d]}
- {name: one, key: lists/one, format: plain, listen: [%d]}
- {name: db, prefix: services/db/, select: {role: primary, zone: [a, c]}, allow: ["127.0.0.1"], listen: [%d]}
- {name: static, backends: ["dns:localhost:%s"], allow: ["127.0.0.1"], listen: [%d]}
`, other, ports[0], ports[1], ports[2], bs[0].addr[len("127.0.0.1:"):], ports[3]), etcd.Endpoints()...)
	for i, want := range []string{"b0", "b1", "b3", "b0"} {
		c := newCaller(t, fmt.Sprintf("127.0.0.1:%d", ports[i]))
		c.burst(10, 2)
		c.wantNoFailures()
		if counts, n := c.since(time.Time{}); n != 10 || counts[want] != 10 {
			t.Errorf("service %d: %v, want %s", i, counts, want)
		}
	}
	l := a.list("db")
	if len(l.GetBackends()) != 1 || l.GetBackends()[0].GetHost() != "localhost" {
		t.Errorf("db: %v", l.GetBackends())
	}
	out := a.words("explain", "db")
	for _, want := range []string{"select leaves out 2 of the", "169.254.169.254:80 is refused: a link-local address"} {
		if !strings.Contains(out, want) {
			t.Errorf("explain has no %q:\n%s", want, out)
		}
	}
	out = a.words("events", "db")
	if !strings.Contains(out, "a link-local address") {
		t.Errorf("events:\n%s", out)
	}
}

// Tiers by skydns' priority (3.8): the first gets all calls, the second none until the first is gone.
func TestTiersOfSkyDNS(t *testing.T) {
	t.Parallel()
	c := etcdClient(t, etcd.Endpoints()...)
	bs := backends(t, 3, 0)
	for i, b := range bs {
		host, port, err := net.SplitHostPort(b.addr)
		if err != nil {
			t.Fatal(err)
		}
		putKey(t, c, fmt.Sprintf("%sskydns/local/prod/user/x%d", namespace(t), i), fmt.Sprintf(`{"host":%q,"port":%s,"priority":%d}`, host, port, 10+10*(i/2)))
	}
	port := freePort(t)
	a := startAgent(t, fmt.Sprintf("- {name: user, prefix: skydns/local/prod/user/, format: skydns, listen: [%d], probe: {interval: 200ms}}", port), etcd.Endpoints()...)
	call := newCaller(t, fmt.Sprintf("127.0.0.1:%d", port))
	call.burst(200, 4)
	if counts, n := call.since(time.Time{}); n != 200 || counts["b2"] != 0 || counts["b0"] == 0 || counts["b1"] == 0 {
		t.Errorf("%v, want b0 and b1", counts)
	}
	if h := a.hints("user"); !strings.Contains(h, "tier 10 takes 100 % of the calls, 2 of 2 backends usable; tier 20 stands by, 1 of 1 backends usable") {
		t.Error(h)
	}
	bs[0].kill()
	bs[1].kill()
	poll(t, "the second tier takes the calls", func() bool {
		return strings.Contains(a.hints("user"), "tier 20 takes 100 % of the calls")
	})
	began := time.Now()
	call.burst(100, 4)
	if counts, n := call.since(began); n != 100 || counts["b2"] != 100 {
		t.Errorf("%v, want b2", counts)
	}
	bs[0].start()
	bs[1].start()
	poll(t, "the first tier is back", func() bool {
		return strings.Contains(a.hints("user"), "tier 10 takes 100 % of the calls, 2 of 2")
	})
	began = time.Now()
	call.burst(100, 4)
	if counts, n := call.since(began); n != 100 || counts["b2"] != 0 {
		t.Errorf("%v, want b0 and b1", counts)
	}
}

// 1.16: when no backend of the service is left, calls go to the fallback, and everything says so; 10 s after one is back they are its again.
func TestFallback(t *testing.T) {
	t.Parallel()
	c := etcdClient(t, etcd.Endpoints()...)
	near, far := newBackend(t, "near", "127.0.0.1", 0), newBackend(t, "far", "127.0.0.1", 0)
	register(t, c, "user", near.addr)
	putKey(t, c, namespace(t)+"far/user/a", fmt.Sprintf(`{"Addr":%q}`, far.addr))
	port := freePort(t)
	a := startAgent(t, fmt.Sprintf("- {name: user, prefix: services/user/, fallback: {prefix: far/user/}, listen: [%d], probe: {interval: 200ms}}", port), etcd.Endpoints()...)
	call := newCaller(t, fmt.Sprintf("127.0.0.1:%d", port))
	poll(t, "the fallback is known", func() bool { return len(a.addresses("user")) == 2 })
	call.burst(100, 4)
	if counts, n := call.since(time.Time{}); n != 100 || counts["near"] != 100 {
		t.Errorf("%v, want near", counts)
	}
	if v, ok := a.metric("lbagent_table_fallback"); !ok || v != 0 {
		t.Errorf("the metric is %v, %v", v, ok)
	}
	source := func() string { return a.list("user").GetProvenance().GetSource() }
	near.kill()
	poll(t, "the fallback is used", func() bool { return source() == "fallback" })
	began := time.Now()
	call.burst(100, 4)
	if counts, n := call.since(began); n != 100 || counts["far"] != 100 {
		t.Errorf("%v, want far", counts)
	}
	if v, _ := a.metric("lbagent_table_fallback"); v != 1 {
		t.Errorf("the metric is %v", v)
	}
	if h := a.hints("user"); !strings.Contains(h, "1 of 1 backends of the fallback usable; none of the service's own is usable") {
		t.Error(h)
	}
	out := a.words("status")
	if !strings.Contains(out, "fallback") {
		t.Errorf("status:\n%s", out)
	}
	near.start()
	began = time.Now()
	poll(t, "the own backend is well", func() bool {
		for _, b := range a.list("user").GetBackends() {
			if b.GetAddress() == near.addr {
				return b.GetVerdict() == "up"
			}
		}
		return false
	})
	if source() != "fallback" {
		t.Error("it was left at once")
	}
	poll(t, "the fallback is left", func() bool { return source() == "etcd" })
	if stayed := time.Since(began); stayed < 10*time.Second {
		t.Errorf("it was left after %v of health at most", stayed)
	}
	began = time.Now()
	call.burst(100, 4)
	if counts, n := call.since(began); n != 100 || counts["near"] != 100 {
		t.Errorf("%v, want near", counts)
	}
	out = a.words("events", "user")
	if !strings.Contains(out, "the fallback is used: no backend of the service is usable; 1 of 1 backend of the fallback usable") || !strings.Contains(out, "the fallback is left") {
		t.Errorf("events:\n%s", out)
	}
}

package registrar

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/health"
)

var (
	refused = health.Check{Refused: true, Cause: "connection refused"}
	sick    = health.Check{Cause: "status 500"}
)

// 5.2: announced when two probes in a row have passed, gone at the first refused connect, or after three other failures.
func TestProbeDecides(t *testing.T) {
	story(t, func(t *testing.T, g *rig) {
		g.holds("before any probe")
		advance(1500 * time.Millisecond)
		g.holds("after two probes", webKey)
		g.fails("10.0.0.1:8080", refused)
		advance(time.Second)
		g.holds("after a refused connect")
		if s := g.r.Status()[0]; s.Announced || s.Why != "probe fails: connection refused" {
			t.Errorf("status %+v", s)
		}
		g.passes("10.0.0.1:8080")
		advance(time.Second)
		g.holds("after one success")
		advance(time.Second)
		g.holds("after two", webKey)

		g.fails("10.0.0.1:8080", sick)
		advance(2 * time.Second)
		g.holds("after two other failures", webKey)
		advance(time.Second)
		g.holds("after three")

		g.passes("10.0.0.1:8080")
		advance(3 * time.Second)
		g.fails("10.0.0.1:8080", health.Check{Local: true, Cause: "too many open files"})
		advance(time.Minute)
		g.holds("when this host can't probe", webKey)
	}, web)
}

// 5.1: what it costs etcd while nothing happens is one keepalive and one read of all keys, each third of the lease's life.
func TestQuietCost(t *testing.T) {
	var regs []Registration
	for i := range chunk {
		regs = append(regs, Registration{Service: "user", Address: fmt.Sprintf(":%d", 8000+i)})
	}
	story(t, func(t *testing.T, g *rig) {
		advance(5 * time.Second)
		if n := len(g.etcd.names()); n != len(regs) {
			t.Fatalf("%d keys", n)
		}
		g.etcd.changes()
		g.etcd.with(func() { g.etcd.calls = 0 })
		advance(10 * rigTTL)
		// 10 lives are 30 thirds, each shortened by up to a fifth.
		if c := g.etcd.calls; c < 2*30 || c > 2*38 {
			t.Errorf("%d calls in ten times the lease's life; want about 60", c)
		}
		if g.etcd.txns == 0 || g.etcd.keepalives == 0 || len(g.etcd.changes()) > 0 {
			t.Errorf("%d transactions, %d keepalives", g.etcd.txns, g.etcd.keepalives)
		}
		if n := len(g.etcd.leases); n != 1 {
			t.Errorf("%d leases, want one per host", n)
		}
	}, regs...)
}

// 5.1: whatever happens to a key, it is back within a third of the lease's life, once.
func TestRepair(t *testing.T) {
	other := Registration{Service: "order", Address: "10.0.0.1:9090"}
	const otherKey = "services/order/10.0.0.1:9090"
	for name, harm := range map[string]func(f *fake){
		"key deleted by hand":         func(f *fake) { f.del(webKey) },
		"key changed by hand":         func(f *fake) { f.put(webKey, "nonsense", 0) },
		"changed under our own lease": func(f *fake) { f.put(webKey, "nonsense", f.keys[webKey].lease) },
		"lease revoked by hand":       func(f *fake) { f.revoke(f.keys[webKey].lease) },
		"restored from a backup before it": func(f *fake) {
			f.keys, f.leases = map[string]held{}, map[int64]fakeLease{}
			f.revision, f.cluster = 1, 8
		},
		"restored, the same cluster id": func(f *fake) {
			f.keys, f.leases, f.revision = map[string]held{}, map[int64]fakeLease{}, 1
		},
		"restored with the key of then": func(f *fake) {
			h := f.keys[webKey]
			h.value, h.create, h.mod = "of then", 2, 2
			// One that was ours then, and isn't now: it has to go with the lease of then.
			f.keys, f.revision, f.cluster = map[string]held{webKey: h, "services/user/10.0.0.1:1": {create: 2, mod: 2, lease: h.lease, value: "of then"}}, 2, 8
		},
	} {
		t.Run(name, func(t *testing.T) {
			story(t, func(t *testing.T, g *rig) {
				advance(30 * time.Second)
				want := g.etcd.values()
				g.etcd.with(func() { harm(g.etcd) })
				advance(rigTTL / 3)
				if name != "restored with the key of then" {
					g.holds("after a third", otherKey, webKey)
				}
				if got := g.etcd.values(); got[webKey] != want[webKey] || got[otherKey] != want[otherKey] {
					t.Errorf("values %q, want %q", got, want)
				}
				advance(rigTTL)
				g.holds("after a whole life", otherKey, webKey)
				g.etcd.changes()
				advance(5 * rigTTL)
				if c := g.etcd.changes(); len(c) > 0 {
					t.Errorf("not quiet afterwards: %q", c)
				}
				g.etcd.with(func() {
					g.etcd.expire()
					if len(g.etcd.leases) != 1 || g.etcd.keys[webKey].lease != g.etcd.keys[otherKey].lease {
						t.Errorf("leases %v, keys %v", g.etcd.leases, g.etcd.keys)
					}
				})
			}, web, other)
		})
	}
}

// Whose a key is that was edited by hand and then deregistered: this host's, if it knows that it wrote it (5.5), so that it goes. If the answer to that was lost, it may be that the
// key is there all the same, and it goes as well; but not if it was edited before this host has seen it again: then it says in no way that it was ever ours, as a stranger's doesn't.
func TestDeregisteredAfter(t *testing.T) {
	edit := func(f *fake) { f.put(webKey, "by hand", 0) }
	for _, tt := range []struct {
		name   string
		unsure bool // the answer to the writing was lost
		harm   func(*fake)
		stays  bool
	}{
		{"nothing", false, func(*fake) {}, false},
		{"an edit", false, edit, false},
		{"a lost answer", true, func(*fake) {}, false},
		{"a lost answer, and an edit", true, edit, true},
		{"a lost answer, and an edit that keeps the lease", true, func(f *fake) { f.put(webKey, "by hand", f.keys[webKey].lease) }, false},
		{"a lost answer, and a stranger", true, func(f *fake) { f.del(webKey); edit(f) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			story(t, func(t *testing.T, g *rig) {
				g.etcd.with(func() { g.etcd.mute = tt.unsure })
				g.r.Set([]Registration{web}, rigTTL)
				for len(g.etcd.names()) == 0 { // up to the transaction, and no back-off further
					advance(time.Millisecond)
				}
				g.r.Set(nil, rigTTL)
				g.etcd.with(func() {
					g.etcd.mute = false
					tt.harm(g.etcd)
				})
				advance(rigTTL / 3)
				if tt.stays {
					g.holds("a third of the lease's life later", webKey)
					if v := g.etcd.values()[webKey]; v != "by hand" {
						t.Errorf("the key became %q", v)
					}
					return
				}
				g.holds("a third of the lease's life later")
			})
		})
	}
}

// 5.1: a dead lease is answered by one transaction for all keys.
func TestDeadLease(t *testing.T) {
	var regs []Registration
	for i := range 50 {
		regs = append(regs, Registration{Service: "user", Address: fmt.Sprintf(":%d", 8000+i)})
	}
	story(t, func(t *testing.T, g *rig) {
		advance(30 * time.Second)
		g.etcd.with(func() {
			for id := range g.etcd.leases {
				g.etcd.revoke(id)
			}
			g.etcd.txns = 0
		})
		advance(rigTTL / 3)
		if n := len(g.etcd.names()); n != 50 {
			t.Errorf("%d keys", n)
		}
		if g.etcd.txns > 2 { // one writes, the check after it may have come already
			t.Errorf("%d transactions", g.etcd.txns)
		}
		if s := g.r.Stats(); s.LeaseLosses != 1 || s.Announced != 50 {
			t.Errorf("stats %+v", s)
		}
	}, regs...)
}

// 5.5: a key of somebody else is neither overwritten nor deleted, and comes to us when it is free.
func TestAnotherOwner(t *testing.T) {
	story(t, func(t *testing.T, g *rig) { // there before us
		g.etcd.with(func() {
			g.etcd.leases[5] = fakeLease{rigTTL, time.Now().Add(rigTTL)}
			g.etcd.put(webKey, "theirs", 5)
		})
		for range 20 { // they keep their lease alive
			advance(rigTTL / 3)
			if v := g.etcd.values()[webKey]; v != "theirs" {
				t.Fatalf("overwritten by %q", v)
			}
			g.etcd.with(func() { g.etcd.leases[5] = fakeLease{rigTTL, time.Now().Add(rigTTL)} })
		}
		if s := g.r.Status()[0]; s.Announced || !strings.Contains(s.Why, "belongs to somebody else") {
			t.Errorf("status %+v", s)
		}
		// Our registration ends: their key stays.
		g.r.Set(nil, rigTTL)
		advance(rigTTL / 3)
		if v := g.etcd.values()[webKey]; v != "theirs" {
			t.Fatalf("theirs became %q", v)
		}
		g.r.Set([]Registration{web}, rigTTL)
		advance(rigTTL / 3)
		g.etcd.with(func() { g.etcd.revoke(5) })
		advance(rigTTL / 3)
		if v := g.etcd.values()[webKey]; !strings.Contains(v, "10.0.0.1:8080") {
			t.Errorf("free, and now %q", v)
		}
	}, web)
	story(t, func(t *testing.T, g *rig) {
		advance(5 * time.Second)
		g.etcd.with(func() {
			g.etcd.del(webKey)
			g.etcd.put(webKey, "by hand", 0)
		})
		advance(5 * rigTTL)
		if v := g.etcd.values()[webKey]; v != "by hand" {
			t.Errorf("a key that others made anew became %q", v)
		}
		if s := g.r.Status()[0]; s.Announced || !strings.Contains(s.Why, "was not written by this agent") {
			t.Errorf("status %+v", s)
		}
	}, web)
}

// 1.5, 5.5: revisions of an etcd restored from a backup say nothing of who wrote: a stranger's key may have come to the very one that ours had.
func TestAnotherOwnerAfterRestore(t *testing.T) {
	for name, next := range map[string]func(g *rig){
		"value changes": func(g *rig) {
			if err := g.r.Drain(web.Service, false); err != nil {
				g.t.Error(err)
			}
		},
		"not wanted any more": func(g *rig) { g.r.Set(nil, rigTTL) },
		"the lease is dead":   func(g *rig) { g.etcd.with(func() { clear(g.etcd.leases) }) },
		"agent restarts": func(g *rig) {
			g.stop()
			g.start(web)
		},
	} {
		t.Run(name, func(t *testing.T) {
			story(t, func(t *testing.T, g *rig) {
				advance(5 * time.Second)
				g.etcd.with(func() {
					ours := g.etcd.keys[webKey]
					g.etcd.del(webKey)
					g.etcd.revision = ours.mod - 1
					g.etcd.put(webKey, "theirs", 0)
					if theirs := g.etcd.keys[webKey]; theirs.mod != ours.mod || theirs.create != ours.create {
						t.Fatalf("ours was at %d, theirs is at %d", ours.mod, theirs.mod)
					}
				})
				next(g)
				advance(2 * rigTTL)
				if v := g.etcd.values()[webKey]; v != "theirs" {
					t.Errorf("the stranger's became %q", v)
				}
			}, web)
		})
	}
}

// A host whose state was lost finds its own keys of before, on a lease that nobody keeps alive: it takes them over before that ends, without a gap.
func TestLostState(t *testing.T) {
	story(t, func(t *testing.T, g *rig) {
		advance(30 * time.Second)
		g.stop()
		if err := os.Remove(filepath.Join(g.dir, stateName)); err != nil {
			t.Fatal(err)
		}
		g.etcd.changes()
		g.start(web)
		advance(2 * rigTTL)
		g.holds("two lives later", webKey)
		if c := g.etcd.changes(); !slices.Equal(c, []string{"put " + webKey}) {
			t.Errorf("on the way: %q, want the key never gone", c)
		}
	}, web)
}

// 5.2, 5.3: a restart within the lease's life is seen by nobody.
func TestRestart(t *testing.T) {
	story(t, func(t *testing.T, g *rig) {
		advance(30 * time.Second)
		for range 3 {
			g.etcd.changes()
			g.stop()
			advance(35 * time.Second)
			g.start(web)
			advance(25 * time.Second)
			g.holds("after a restart", webKey)
			if c := g.etcd.changes(); len(c) > 0 {
				t.Errorf("a watcher would have seen %q", c)
			}
		}
		// The service died while the agent was away.
		g.stop()
		g.fails("10.0.0.1:8080", refused)
		advance(5 * time.Second)
		g.holds("while the agent is away", webKey)
		g.start(web)
		advance(time.Second)
		g.holds("a second after the agent is back")

		// The registration went from the configuration while the agent was away.
		g.passes("10.0.0.1:8080")
		advance(5 * time.Second)
		g.holds("well again", webKey)
		g.stop()
		g.start()
		advance(time.Second)
		g.holds("without it in the configuration")

		// The agent was away for longer than the lease lived.
		g.stop()
		g.start(web)
		advance(5 * time.Second)
		g.stop()
		advance(2 * rigTTL)
		g.holds("after the lease's life")
		g.start(web)
		advance(5 * time.Second)
		g.holds("back", webKey)
	}, web)
}

// etcd away for less than the lease's life costs nothing, and for longer a third of it at most.
func TestEtcdAway(t *testing.T) {
	story(t, func(t *testing.T, g *rig) {
		advance(30 * time.Second)
		for _, away := range []time.Duration{5 * time.Second, 30 * time.Second, 5 * time.Minute} {
			g.etcd.with(func() { g.etcd.down = true })
			advance(away)
			g.etcd.with(func() { g.etcd.down = false })
			advance(rigTTL / 3)
			g.holds(fmt.Sprintf("a third after %v", away), webKey)
		}
		if s := g.r.Stats(); s.Failures == 0 {
			t.Errorf("stats %+v", s)
		}
	}, web)
}

// This host's address changes: the new key is there before the old one goes, in one transaction.
func TestAddressChange(t *testing.T) {
	story(t, func(t *testing.T, g *rig) {
		advance(30 * time.Second)
		g.etcd.changes()
		g.mu.Lock()
		g.own = netip.MustParseAddr("2001:db8::1")
		g.mu.Unlock()
		advance(rigTTL / 3)
		const key = "services/user/[2001:db8::1]:8080"
		g.holds("after it", key)
		if c := g.etcd.changes(); !slices.Equal(c, []string{"put " + key, "del " + webKey}) {
			t.Errorf("%q", c)
		}
	}, web)
}

// 5.6: drain marks, or deletes where the format has no mark; it survives a restart.
func TestDrain(t *testing.T) {
	plain := Registration{Service: "plain", Address: ":9090", Format: "plain"}
	const plainKey = "services/plain/10.0.0.1:9090"
	story(t, func(t *testing.T, g *rig) {
		advance(5 * time.Second)
		g.holds("at first", plainKey, webKey)
		if err := g.r.Drain("nosuch", false); err == nil {
			t.Error("a service that isn't here was drained")
		}
		for _, s := range []string{"user", "plain"} {
			if err := g.r.Drain(s, false); err != nil {
				t.Fatal(err)
			}
		}
		advance(time.Second)
		g.holds("drained", webKey)
		if v := g.etcd.values()[webKey]; !strings.Contains(v, `"Op":1`) {
			t.Errorf("value %s", v)
		}
		for range 2 {
			g.stop()
			g.start(web, plain)
			advance(5 * time.Second)
			g.holds("drained, after a restart", webKey)
			if v := g.etcd.values()[webKey]; !strings.Contains(v, `"Op":1`) {
				t.Errorf("after a restart: value %s", v)
			}
		}
		for _, one := range []struct {
			service string
			was     bool
		}{{"user", true}, {"plain", true}, {"plain", false}} {
			if was, err := g.r.Undrain(one.service); was != one.was || err != nil {
				t.Errorf("undrain %s: %v, %v", one.service, was, err)
			}
		}
		advance(time.Second)
		g.holds("undrained", plainKey, webKey)
		if v := g.etcd.values()[webKey]; !strings.Contains(v, `"Op":0`) {
			t.Errorf("value %s", v)
		}
		if err := g.r.Drain("user", true); err != nil {
			t.Fatal(err)
		}
		advance(time.Second)
		g.holds("drained by removal", plainKey)
	}, web, plain)
}

// 5.3: before the host goes down every key goes, and they come back with the agent.
func TestWithdraw(t *testing.T) {
	story(t, func(t *testing.T, g *rig) {
		advance(5 * time.Second)
		if err := g.r.Withdraw(); err != nil {
			t.Fatal(err)
		}
		if err := g.r.Await(t.Context()); err != nil {
			t.Fatal(err)
		}
		g.holds("withdrawn")
		advance(rigTTL)
		g.holds("still")
		g.stop()
		g.start(web)
		advance(5 * time.Second)
		g.holds("after the next start", webKey)
	}, web)
}

// 5.4: what came by the API survives restarts; a held one goes with its holder, or if that doesn't come back.
func TestAPI(t *testing.T) {
	job := Registration{Service: "job", Address: "10.0.0.1:1"}
	batch := Registration{Service: "batch", Address: "10.0.0.1:2"}
	const jobKey, batchKey = "services/job/10.0.0.1:1", "services/batch/10.0.0.1:2"
	story(t, func(t *testing.T, g *rig) {
		if err := g.r.Register(job, Who{UID: 1}); err != nil {
			t.Fatal(err)
		}
		if _, err := g.r.Hold(batch, Who{UID: 1}); err != nil {
			t.Fatal(err)
		}
		g.r.Ready()
		advance(5 * time.Second)
		g.holds("at first", batchKey, jobKey)
		g.etcd.changes()

		g.stop()
		g.start()
		g.r.Ready()
		advance(9 * time.Second)
		g.holds("after a restart", batchKey, jobKey)
		held, err := g.r.Hold(batch, Who{UID: 1})
		if err != nil {
			t.Fatal(err)
		}
		advance(time.Minute)
		g.holds("claimed", batchKey, jobKey)
		if c := g.etcd.changes(); len(c) > 0 {
			t.Errorf("a watcher would have seen %q", c)
		}

		// A second process takes over; the first one's end means nothing then.
		second, err := g.r.Hold(batch, Who{UID: 1})
		if err != nil {
			t.Fatal(err)
		}
		<-held.Ended()
		held.Release()
		advance(time.Minute)
		g.holds("held by another", batchKey, jobKey)
		second.Release()
		if err := g.r.Await(t.Context()); err != nil {
			t.Fatal(err)
		}
		g.holds("released", jobKey)

		if _, err := g.r.Hold(batch, Who{UID: 1}); err != nil {
			t.Fatal(err)
		}
		advance(5 * time.Second)
		g.stop()
		g.start()
		advance(30 * time.Second)
		g.holds("not ready yet", batchKey, jobKey)
		g.r.Ready()
		advance(11 * time.Second)
		g.holds("not claimed", jobKey)

		if _, err := g.r.Deregister("job", "", Who{UID: 2}); err == nil {
			t.Error("another uid deregistered it")
		}
		if gone, err := g.r.Deregister("job", "", Who{UID: 1}); err != nil || len(gone) != 1 {
			t.Error(gone, err)
		}
		advance(time.Second)
		g.holds("deregistered")
		g.stop()
		g.start()
		advance(5 * time.Second)
		g.holds("deregistered, after a restart")
	})
}

// Two registrations of one key: the configuration's wins, the other says why not.
func TestSameKey(t *testing.T) {
	story(t, func(t *testing.T, g *rig) {
		if err := g.r.Register(Registration{Service: "user", Address: "10.0.0.1:8080", Weight: 7}, Who{}); err != nil {
			t.Fatal(err)
		}
		advance(5 * time.Second)
		g.holds("both", webKey)
		if v := g.etcd.values()[webKey]; strings.Contains(v, "weight") {
			t.Errorf("value %s", v)
		}
		for _, s := range g.r.Status() {
			if s.Origin == FromAPI && (s.Announced || !strings.Contains(s.Why, "already")) {
				t.Errorf("%+v", s)
			}
		}
		if err := g.r.Register(web, Who{Admin: true}); err == nil {
			t.Error("the API changed what stands in the configuration")
		}
	}, web)
}

// A change of weight rewrites the key; the service never leaves etcd. So does a change of registration_ttl, under another lease.
func TestReload(t *testing.T) {
	story(t, func(t *testing.T, g *rig) {
		advance(5 * time.Second)
		g.etcd.changes()
		heavy := web
		heavy.Weight = 200
		g.r.Set([]Registration{heavy}, rigTTL)
		advance(time.Second)
		if c := g.etcd.changes(); !slices.Equal(c, []string{"put " + webKey}) || !strings.Contains(g.etcd.values()[webKey], `"weight":200`) {
			t.Errorf("%q %v", c, g.etcd.values())
		}
		g.r.Set([]Registration{heavy}, 2*rigTTL)
		advance(time.Second)
		if c := g.etcd.changes(); !slices.Equal(c, []string{"put " + webKey}) {
			t.Errorf("%q", c)
		}
		advance(3 * rigTTL)
		if c := g.etcd.changes(); len(c) > 0 {
			t.Errorf("the end of the old lease was seen: %q", c)
		}
	}, web)
}

// 5.6, 3.12: load is written on changes of 10 and more, at most every 10 s, and again before it is stale.
func TestLoad(t *testing.T) {
	story(t, func(t *testing.T, g *rig) {
		advance(5 * time.Second)
		load := func(n int) {
			t.Helper()
			if err := g.r.Update("user", "", n, Who{Admin: true}); err != nil {
				t.Fatal(err)
			}
		}
		wrote := func(when string, n int, value string) {
			t.Helper()
			if c := g.etcd.changes(); len(c) != n || value != "" && !strings.Contains(g.etcd.values()[webKey], value) {
				t.Errorf("%s: %q, value %s; want %d writes and %s", when, c, g.etcd.values()[webKey], n, value)
			}
		}
		g.etcd.changes()
		load(50)
		advance(time.Second)
		wrote("first", 1, `"load":"50","load_at":`)
		load(59)
		advance(20 * time.Second)
		wrote("9 more", 0, "")
		load(60)
		advance(time.Second)
		wrote("10 more", 1, `"load":"60",`)
		load(90)
		advance(5 * time.Second)
		load(95)
		wrote("within 10 s", 0, "")
		advance(5 * time.Second)
		wrote("after 10 s", 1, `"load":"95",`)
		advance(40 * time.Second)
		wrote("nothing new", 0, "")
		advance(10 * time.Second)
		wrote("almost stale", 1, `"load":"95",`)
		load(3)
		advance(11 * time.Second)
		wrote("idle", 1, `"load":"3",`)
		advance(10 * time.Minute)
		wrote("idle for long", 0, "")
		if err := g.r.Update("user", "", 101, Who{Admin: true}); err == nil {
			t.Error("101 was taken")
		}
		if err := g.r.Update("user", "", 10, Who{UID: 9}); err == nil {
			t.Error("another uid's was taken")
		}
	}, web)
}

// register.load: host measures this host.
func TestHostLoad(t *testing.T) {
	busy := web
	busy.HostLoad = true
	story(t, func(t *testing.T, g *rig) {
		n := uint64(0)
		g.r.mu.Lock()
		g.r.cpu = func() (cpu, error) { n++; return cpu{busy: 70 * n, all: 100 * n}, nil }
		g.r.mu.Unlock()
		advance(15 * time.Second)
		if v := g.etcd.values()[webKey]; !strings.Contains(v, `"load":"70",`) {
			t.Errorf("value %s", v)
		}
	}, busy)
}

func TestBounds(t *testing.T) {
	story(t, func(t *testing.T, g *rig) {
		for i := range maxPerUID {
			if err := g.r.Register(Registration{Service: "s", Address: fmt.Sprintf("10.0.0.1:%d", i+1)}, Who{UID: 5}); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.r.Register(Registration{Service: "s", Address: "10.0.0.1:60000"}, Who{UID: 5}); err == nil || !strings.Contains(err.Error(), "64 registrations") {
			t.Error(err)
		}
		if err := g.r.Register(Registration{Service: "s", Address: "10.0.0.1:1", Weight: 3}, Who{UID: 5}); err != nil {
			t.Error("a change of one of them:", err)
		}
		if err := g.r.Register(Registration{Service: "s", Address: "10.0.0.1:1"}, Who{UID: 6}); err == nil {
			t.Error("another uid changed it")
		}
	})
}

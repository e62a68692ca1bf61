package discovery

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// While all is well a list is never older than 10 s, and nothing is read again (1.3).
func TestProgressConfirms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		e.put("services/user/a", record("10.0.0.1:80", 1))
		d := startFake(t, e, setup{}, naming("user"))
		for range 1000 {
			advance(t, time.Second)
			if age := time.Since(d.confirmedAt("user")); age > etcd.ProgressEvery {
				t.Fatalf("age %v", age)
			}
		}
		if n := len(e.seen().checks); n != int(d.Status().Audits) || n > 3 { // 1.6
			t.Errorf("%d checks, %d audits", n, d.Status().Audits)
		}
		if len(e.seen().reads) != 1 || len(d.all("user")) != 1 {
			t.Errorf("%d reads, %d checks, %d lists", len(e.seen().reads), len(e.seen().checks), len(d.all("user")))
		}
	})
}

// A watch that etcd doesn't make costs the client only if etcd is silent on all others, too: a slow etcd makes one after the other.
func TestWatchNotMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		e.put("services/user/a", record("10.0.0.1:80", 1))
		e.set(func() { e.uncreated = true })
		startFake(t, e, setup{}, naming("user"))
		for range 100 {
			e.set(func() { e.heard = time.Now() })
			advance(t, silence/2)
		}
		if n := e.seen().dials; n != 1 {
			t.Errorf("%d clients while etcd makes other watches", n)
		}
		advance(t, silence+time.Second)
		if n := e.seen().dials; n < 2 {
			t.Errorf("%d clients though etcd is silent", n)
		}
	})
}

// A watch without a word for 30 s: one cheap read; if nothing has changed the list is confirmed and the watch stays (1.3).
func TestSilenceUnchanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		for i := range 5 {
			e.put(fmt.Sprintf("services/user/%d", i), record(fmt.Sprintf("10.0.0.%d:80", i/2+1), 1)) // some hidden
		}
		e.put("services/user/bad", "garbage")
		d := startFake(t, e, setup{}, naming("user"))
		e.set(func() { e.mute = true })
		began := time.Now()
		advance(t, silence+silenceJoin)
		if len(e.seen().checks) != 1 || e.seen().checks[0].Sub(began) < silence {
			t.Fatalf("checks %v", e.seen().checks)
		}
		if got := d.confirmedAt("user"); got != e.seen().checks[0] {
			t.Errorf("confirmed at %v, want %v", got, e.seen().checks[0])
		}
		advance(t, 5*time.Minute)
		if n := len(e.seen().checks); n < 9 || n > 11 {
			t.Errorf("%d checks in 5.5 min", n)
		}
		if len(e.seen().reads) != 1 {
			t.Errorf("%d reads", len(e.seen().reads))
		}
	})
}

// A watch that is silent although something changed is found out, and the list repaired (1.3).
func TestSilenceMissed(t *testing.T) {
	for name, change := range map[string]func(e *fakeEtcd){
		"put":     func(e *fakeEtcd) { e.put("services/user/b", record("10.0.0.2:80", 1)) },
		"replace": func(e *fakeEtcd) { e.put("services/user/a", record("10.0.0.2:80", 1)) },
		"delete":  func(e *fakeEtcd) { e.set(func() { delete(e.keys, "services/user/c"); e.revision++ }) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newFakeEtcd()
				e.put("services/user/c", record("10.0.0.3:80", 1))
				e.put("services/user/a", record("10.0.0.1:80", 1))
				d := startFake(t, e, setup{}, naming("user"))
				e.set(func() { e.mute = true })
				before := addrs(d.last("user"))
				change(e)
				advance(t, silence+silenceJoin+etcd.MinBackoff)
				if got := addrs(d.last("user")); got == before || len(e.seen().reads) != 2 {
					t.Errorf("after %d reads the list is %q", len(e.seen().reads), got)
				}
				if !strings.Contains(d.log.String(), etcd.ErrMissed.Error()) {
					t.Error("nothing in the log")
				}
			})
		})
	}
}

// An etcd that was restored from a backup has lower revisions; a watch for a higher one is silent there. The new list comes whole, under 35 s, and no other passes.
func TestSilenceRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		for i := range 9 {
			e.put("services/user/a", record(fmt.Sprintf("10.0.0.%d:80", i+1), 1))
		}
		d := startFake(t, e, setup{}, naming("user"))
		e.set(func() { e.mute, e.revision, e.keys["services/user/a"].ModRevision = true, 3, 3 })
		e.set(func() { e.keys["services/user/b"] = e.keys["services/user/a"]; delete(e.keys, "services/user/a") })
		e.set(func() { e.keys["services/user/b"].Value = []byte(record("10.0.1.1:80", 1)) })
		advance(t, silence+silenceJoin+etcd.MinBackoff)
		l := d.last("user")
		if addrs(l) != "10.0.1.1:80" || l.Revision != 3 || len(d.all("user")) != 2 {
			t.Errorf("%d lists, the last %+v", len(d.all("user")), l)
		}
	})
}

// The same, with the very same keys: only the revision tells. Left alone, the watch would miss what comes before its own revision.
func TestSilenceRestoredUnchanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		e.put("services/user/a", record("10.0.0.1:80", 1))
		for range 9 {
			e.put("elsewhere", "x")
		}
		d := startFake(t, e, setup{}, naming("user"))
		e.set(func() { e.mute, e.revision = true, 5 })
		advance(t, silence+silenceJoin)
		e.set(func() { e.mute = false })
		advance(t, etcd.MinBackoff)
		if l := d.last("user"); l.Revision != 5 || len(e.seen().reads) != 2 {
			t.Errorf("after %d reads: %+v", len(e.seen().reads), l)
		}
	})
}

// A watch that begins below the revision of the list: with a member that is behind it stays, after one cheap read; with an etcd that was restored between the read and
// the watch, the list is read again at once.
func TestWatchBeginsBelow(t *testing.T) {
	begin := func(t *testing.T, e *fakeEtcd) *running {
		for i := range 9 {
			e.put("services/user/a", record(fmt.Sprintf("10.0.0.%d:80", i+1), 1))
		}
		return startFake(t, e, setup{}, naming("user"))
	}
	t.Run("behind", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e := newFakeEtcd()
			e.behind = 3
			d := begin(t, e)
			advance(t, time.Minute)
			e.put("services/user/a", record("10.0.1.1:80", 1))
			synctest.Wait()
			if saw := e.seen(); len(saw.reads) != 1 || len(saw.checks) != 1 || addrs(d.last("user")) != "10.0.1.1:80" {
				t.Errorf("%d reads, %d checks, list %q", len(saw.reads), len(saw.checks), addrs(d.last("user")))
			}
		})
	})
	t.Run("restored", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e := newFakeEtcd()
			e.onWatch = func() {
				e.onWatch, e.revision = nil, 3
				e.keys["services/user/a"].ModRevision = 3
			}
			d := begin(t, e)
			advance(t, etcd.MinBackoff)
			if saw := e.seen(); len(saw.reads) != 2 || d.last("user").Revision != 3 {
				t.Errorf("%d reads, revision %d", len(saw.reads), d.last("user").Revision)
			}
		})
	})
}

// A watch that etcd never creates needs another client.
func TestWatchNotCreated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		e.uncreated = true
		d := startFake(t, e, setup{}, naming("user"))
		advance(t, silence-time.Second)
		if e.seen().dials != 1 {
			t.Fatalf("%d clients", e.seen().dials)
		}
		e.set(func() { e.uncreated = false })
		advance(t, 2*time.Second)
		if e.seen().dials != 2 || !d.Status().Connected {
			t.Errorf("%d clients, status %+v", e.seen().dials, d.Status())
		}
		e.put("services/user/a", record("10.0.0.1:80", 1))
		synctest.Wait()
		if got := addrs(d.last("user")); got != "10.0.0.1:80" {
			t.Errorf("list %q", got)
		}
	})
}

// Reads that fail come again after 100 ms to 30 s with full jitter; the list stays; a success begins anew (1.4).
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		e.put("services/user/a", record("10.0.0.1:80", 1))
		d := startFake(t, e, setup{}, naming("user"))
		e.set(func() { e.pageErr = func(int64) error { return errors.New("etcdserver: request timed out") } })
		broken := time.Now()
		e.breakWatches("etcdserver: no leader")
		const outage = 30 * time.Minute
		advance(t, outage)
		bound, last := etcd.MinBackoff, broken
		for i, at := range e.seen().reads[1:] {
			if wait := at.Sub(last); wait > bound {
				t.Fatalf("failure %d: waited %v, more than %v", i, wait, bound)
			}
			last, bound = at, min(2*bound, etcd.MaxBackoff)
		}
		// Uniform below 30 s is one read per 15 s.
		if n := len(e.seen().reads); n < 60 || n > 240 {
			t.Errorf("%d reads in %v", n, outage)
		}
		if st := d.Status(); st.Connected || !strings.Contains(st.LastError, "timed out") {
			t.Errorf("status %+v", st)
		}
		if len(d.all("user")) != 1 || time.Since(d.confirmedAt("user")) < outage {
			t.Errorf("%d lists, confirmed %v ago", len(d.all("user")), time.Since(d.confirmedAt("user")))
		}
		e.set(func() { e.pageErr = nil })
		advance(t, etcd.MaxBackoff)
		if st := d.Status(); !st.Connected || st.LastError != "" || st.Reconnects != 1 {
			t.Errorf("status %+v", st)
		}
		reads := len(e.seen().reads)
		e.breakWatches("etcdserver: no leader")
		advance(t, etcd.MinBackoff)
		if len(e.seen().reads) != reads+1 {
			t.Error("after a success the first wait is long")
		}
	})
}

// Watches that end as soon as they are made are made again at once a few times, then ever more rarely.
func TestShortWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		e.shortErr = errors.New("etcdserver: no leader")
		startFake(t, e, setup{}, naming("user"))
		advance(t, 2*time.Second)
		if n := len(e.seen().reads); n < etcd.BudgetMost {
			t.Errorf("%d reads in 2 s", n)
		}
		advance(t, 30*time.Minute)
		if n, most := len(e.seen().reads), int(30*time.Minute/etcd.BudgetEvery); n > 2*most {
			t.Errorf("%d reads in 30 min", n)
		}
	})
}

// What etcd tells of its absence: once lost, once back, however often it is tried.
func TestOutageIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		var follows []Follow
		for i := range 50 {
			follows = append(follows, naming(fmt.Sprintf("s%d", i)))
		}
		d := startFake(t, e, setup{}, follows...)
		e.disconnect()
		advance(t, 10*time.Minute)
		if d.Status().Connected {
			t.Error("connected")
		}
		e.connect()
		advance(t, time.Second)
		if st := d.Status(); !st.Connected || st.Reconnects != 1 {
			t.Errorf("status %+v", st)
		}
		all, _ := d.events.Since(0)
		if len(all) != 2 || !strings.Contains(all[0].Detail, "lost") || !strings.Contains(all[1].Detail, "again, after 10m") {
			t.Errorf("events %+v", all)
		}
		if n := strings.Count(d.log.String(), "[WARN]") + strings.Count(d.log.String(), "[ERROR]"); n != 1 {
			t.Errorf("%d warnings:\n%s", n, d.log.String())
		}
	})
}

// While there is no connection nothing is tried, and all lists come as soon as there is one, at most 8 reads at a time.
func TestConnectLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		e.down = make(chan struct{})
		var follows []Follow
		for i := range 200 {
			follows = append(follows, naming(fmt.Sprintf("s%d", i)))
			e.put(follows[i].Prefix+"a", record("10.0.0.1:80", 1))
		}
		hold := make(chan struct{})
		e.holdPages = hold
		d := startFake(t, e, setup{}, follows...)
		advance(t, 10*time.Minute)
		if len(e.seen().reads) != 0 {
			t.Fatalf("%d reads without a connection", len(e.seen().reads))
		}
		e.connect()
		synctest.Wait()
		if e.seen().reading != readsAtOnce {
			t.Errorf("%d reads at once", e.seen().reading)
		}
		close(hold)
		synctest.Wait()
		for _, f := range follows {
			if got := addrs(d.last(f.Name)); got != "10.0.0.1:80" {
				t.Fatalf("%s: %q", f.Name, got)
			}
		}
		if e.seen().mostReading != readsAtOnce || len(e.seen().reads) != len(follows) {
			t.Errorf("%d reads, at most %d at once", len(e.seen().reads), e.seen().mostReading)
		}
	})
}

// An expired token: a new client, the same lists (1.4).
func TestAuthErrorMakesNewClient(t *testing.T) {
	for _, reason := range []error{rpctypes.ErrInvalidAuthToken, rpctypes.ErrAuthOldRevision, rpctypes.ErrUserEmpty} {
		t.Run(reason.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := newFakeEtcd()
				e.put("services/user/a", record("10.0.0.1:80", 1))
				d := startFake(t, e, setup{}, naming("user"), naming("other"))
				advance(t, 2*linkSettles)
				e.breakWatches(reason.Error())
				advance(t, time.Second)
				if e.seen().dials != 2 {
					t.Errorf("%d clients", e.seen().dials)
				}
				if all, _ := d.events.Since(0); len(all) != 0 {
					t.Errorf("events %+v: a new login is no loss of etcd", all)
				}
				e.put("services/user/b", record("10.0.0.2:80", 1))
				synctest.Wait()
				if got := addrs(d.last("user")); got != "10.0.0.1:80 10.0.0.2:80" {
					t.Errorf("list %q", got)
				}
				for _, l := range d.all("user") {
					if len(l.Backends) == 0 {
						t.Error("an empty list passed")
					}
				}
			})
		})
	}
}

// Clients that all fail at once don't follow each other closely.
func TestAuthErrorBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		e.pageErr = func(int64) error { return rpctypes.ErrUserEmpty }
		d := startFake(t, e, setup{}, naming("user"))
		if st := d.Status(); st.Connected || !strings.Contains(st.LastError, "no user is configured (etcd.username)") {
			t.Errorf("status %+v", st)
		}
		advance(t, 30*time.Minute)
		if e.seen().dials < 60 || e.seen().dials > 240 { // one per 15 s
			t.Errorf("%d logins in 30 min", e.seen().dials)
		}
	})
}

// A prefix that may not be read is told once, and is no loss of etcd.
func TestDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		e.watchErr = rpctypes.ErrPermissionDenied
		d := startFake(t, e, setup{}, naming("user"))
		advance(t, time.Hour)
		// Reads go well here, so the connection is well.
		if st := d.Status(); !st.Connected {
			t.Errorf("status %+v", st)
		}
		if n := strings.Count(d.log.String(), "cannot follow service"); n != 1 {
			t.Errorf("told %d times", n)
		}
		if why, denied := d.Trouble("user"); !denied || !strings.Contains(why, "services/user/ can't be read: ") {
			t.Errorf("trouble %q, %v", why, denied)
		}
		e.mu.Lock()
		e.watchErr = nil
		e.mu.Unlock()
		advance(t, time.Minute)
		if why, denied := d.Trouble("user"); denied || why != "etcd has no keys at services/user/" {
			t.Errorf("trouble %q, %v", why, denied)
		}
		e.put("services/user/a", record("10.0.0.1:80", 1))
		advance(t, time.Second)
		if why, denied := d.Trouble("user"); denied || why != "" {
			t.Errorf("trouble %q, %v", why, denied)
		}
	})
}

// Compaction between two pages: from the start again; a page that is too large: smaller ones; pages of two clusters: no list at all.
func TestReadFaults(t *testing.T) {
	fill := func(e *fakeEtcd, n int) {
		for i := range n {
			e.put(fmt.Sprintf("services/user/%d", i), record(fmt.Sprintf("10.0.%d.%d:80", i>>8, i&255), 1))
		}
	}
	t.Run("compacted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e := newFakeEtcd()
			fill(e, pageSize+1)
			failed := false
			e.pageErr = func(rev int64) error {
				if rev > 0 && !failed {
					failed = true
					return errCompacted
				}
				return nil
			}
			d := startFake(t, e, setup{}, naming("user"))
			advance(t, time.Second)
			if lists := d.all("user"); len(lists) != 1 || len(lists[0].Backends) != pageSize+1 || len(e.seen().reads) != 2 || !failed {
				t.Errorf("%d lists after %d reads, failed %v", len(lists), len(e.seen().reads), failed)
			}
		})
	})
	t.Run("too large", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e := newFakeEtcd()
			e.maxKeys = 200
			fill(e, 500)
			d := startFake(t, e, setup{}, naming("user"))
			if l := d.last("user"); l == nil || len(l.Backends) != 500 || e.seen().limits[0] != pageSize || e.seen().limits[1] != pageSize/8 {
				t.Errorf("list %q, limits %v", addrs(l), e.seen().limits)
			}
		})
	})
	t.Run("one key is too large for two", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e := newFakeEtcd()
			e.maxKeys = 1
			fill(e, 10)
			d := startFake(t, e, setup{}, naming("user"))
			if l := d.last("user"); l == nil || len(l.Backends) != 10 {
				t.Errorf("list %q, limits %v", addrs(l), e.seen().limits)
			}
		})
	})
	t.Run("two clusters", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e := newFakeEtcd()
			fill(e, pageSize+1)
			e.pageErr = func(int64) error { e.cluster++; return nil }
			d := startFake(t, e, setup{}, naming("user"))
			advance(t, time.Minute)
			if n := len(d.all("user")); n != 0 {
				t.Errorf("%d lists", n)
			}
			if n := strings.Count(d.log.String(), "cannot follow service"); n != 1 {
				t.Errorf("told %d times", n)
			}
		})
	})
}

// Events that came together become one list, and each is in it.
func TestCoalesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		d := startFake(t, e, setup{}, naming("user"))
		const n = 1000
		for i := range n {
			e.put(fmt.Sprintf("services/user/%d", i), record(fmt.Sprintf("10.0.%d.%d:80", i>>8, i&255), 1))
		}
		synctest.Wait()
		if got := len(d.last("user").Backends); got != n {
			t.Errorf("%d backends", got)
		}
		if lists := len(d.all("user")); lists > n/4 {
			t.Errorf("%d lists for %d events", lists, n)
		}
	})
}

// Static lists need no etcd and don't age.
func TestStatic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := startWith(t, setup{SpoolDir: t.TempDir()}, nil, Follow{Name: "user", Static: []service.Backend{
			{Addr: mustAddr("10.0.0.2:80")}, {Addr: mustAddr("10.0.0.1:80"), Weight: 3}, {Addr: mustAddr("10.0.0.2:80"), Weight: 9},
		}})
		synctest.Wait()
		l := rec.last("user")
		if addrs(l) != "10.0.0.1:80 10.0.0.2:80" || l.Source != service.FromStatic || l.Backends[0].Weight != 3 || l.Backends[1].Weight != service.DefaultWeight {
			t.Errorf("list %+v", l)
		}
		for range 100 {
			advance(t, time.Second)
			if age := time.Since(rec.confirmedAt("user")); age > etcd.ProgressEvery {
				t.Fatalf("age %v", age)
			}
		}
		if st := rec.Status(); st.Configured || st.Connected {
			t.Errorf("status %+v", st)
		}
		rec.Set(Follow{Name: "user", Static: []service.Backend{{Addr: mustAddr("10.0.0.3:80")}}})
		synctest.Wait()
		if got := addrs(rec.last("user")); got != "10.0.0.3:80" {
			t.Errorf("list %q", got)
		}
	})
}

// OnList is called once at a time per service, also when a service is changed while it runs; the last Set wins.
func TestSetWaitsForOnList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		e.put("services/user/a", record("10.0.0.9:80", 1))
		d := startFake(t, e, setup{})
		d.recorder.slow.Store(int64(time.Second))
		d.Set(naming("user"))
		for i := range 5 {
			advance(t, 300*time.Millisecond)
			d.Set(Follow{Name: "user", Static: []service.Backend{{Addr: mustAddr(fmt.Sprintf("10.0.0.%d:80", i+1))}}})
		}
		advance(t, 10*time.Second)
		if got := addrs(d.last("user")); got != "10.0.0.5:80" {
			t.Errorf("list %q", got)
		}
	})
}

// Await is back when OnList has had what Set asked for last, and doesn't wait for what nobody can give.
func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		e.put("services/user/a", record("10.0.0.9:80", 1))
		d := startFake(t, e, setup{}, naming("user"))
		d.recorder.slow.Store(int64(time.Second))
		await := func(name, want string, took time.Duration) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			began := time.Now()
			d.Await(ctx, []string{name})
			if got := addrs(d.last(name)); got != want || time.Since(began) != took {
				t.Errorf("%s is %q after %v, want %q after %v", name, got, time.Since(began), want, took)
			}
		}
		static := Follow{Name: "user", Static: []service.Backend{{Addr: mustAddr("10.0.0.1:80")}}}
		await("user", "10.0.0.9:80", 0)
		d.Set(static)
		await("user", "10.0.0.1:80", time.Second)
		await("user", "10.0.0.1:80", 0)
		static.Hold = time.Minute // the same follower
		d.Set(static)
		await("user", "10.0.0.1:80", 0)
		d.Set(naming("user"))
		await("user", "10.0.0.9:80", time.Second)
		d.Set(Follow{Name: "user", Prefix: "services/user/", Format: "nonsense"})
		await("user", "10.0.0.9:80", 0)
		d.Remove("user")
		await("user", "10.0.0.9:80", 0)
	})
}

// One endpoint of several that fails is shown, is no loss, and is forgotten when it fails no more.
func TestEndpointFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEtcd()
		d := startFake(t, e, setup{}, naming("user"))
		e.failed(errors.New("dial 10.0.0.7:2379: no route to host"))
		if st := d.Status(); !st.Connected || !strings.Contains(st.LastError, "no route") {
			t.Errorf("status %+v", st)
		}
		advance(t, errorShown)
		if st := d.Status(); !st.Connected || st.LastError != "" {
			t.Errorf("status %+v", st)
		}
	})
}

package mute

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const prefix = "prod/lbagent/mutes/"

// host is an agent's mutes on a real etcd, running until the test ends.
type host struct {
	*rig

	links *etcd.Links
	stop  func()
}

func startHost(t *testing.T, name, dir string, e *etcd.Config) *host {
	t.Helper()
	links := etcd.New(etcd.Options{Etcd: e})
	h := &host{links: links, rig: newRig(t, Config{Dir: dir, Node: name, Etcd: links, Prefix: prefix})}
	h.Load(time.Now())
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{links.Run, h.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	h.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(h.stop)
	return h
}

// following waits until what the host knows is etcd's word.
func (h *host) following() {
	h.t.Helper()
	eventually(h.t, "following", func() string {
		if s := h.Stats(); !s.Following {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})
}

func at(s *etcdtest.Server) *etcd.Config { return &etcd.Config{Endpoints: s.Endpoints()} }

// fleetOf starts hosts web-1, web-2, ... on one etcd.
func fleetOf(t *testing.T, n int) (*etcdtest.Server, *clientv3.Client, []*host) {
	t.Helper()
	s := etcdtest.Start(t, etcdtest.Config{})
	var hosts []*host
	for i := range n {
		hosts = append(hosts, startHost(t, fmt.Sprintf("web-%d", i+1), "", at(s)))
	}
	for _, h := range hosts {
		h.following()
	}
	return s, etcdtest.NewClient(t, s), hosts
}

func fleet(addr string) Request {
	return Request{Address: addr, Fleet: true, Reason: "bad disk"}
}

// Muted on one host, out on all, and back from any of them; with author and reason.
func TestFleet(t *testing.T) {
	_, c, hosts := fleetOf(t, 3)
	a := hosts[0].mute(time.Now(), fleet("10.0.0.1:80"))
	if len(a.Warnings) != 0 {
		t.Errorf("warnings %q", a.Warnings)
	}
	hosts[0].want("where it was asked, when that is answered", "user 10.0.0.1:80 fleet alice@web-1")
	for _, h := range hosts {
		h.until("everywhere", "user 10.0.0.1:80 fleet alice@web-1")
	}
	contains(t, "events", hosts[2].details(), `mute user 10.0.0.1:80: muted by alice on web-1 for 1 h (fleet): "bad disk", until `)
	r, err := c.Get(t.Context(), prefix+"user/10.0.0.1:80")
	if err != nil || len(r.Kvs) != 1 {
		t.Fatalf("%v, %v", r, err)
	}
	lease := clientv3.LeaseID(r.Kvs[0].Lease)
	if ttl, err := c.TimeToLive(t.Context(), lease); err != nil || ttl.GrantedTTL != 3600 {
		t.Errorf("lease %+v, %v", ttl, err)
	}

	// Longer: the new lease takes the place of the old one, which goes.
	longer := fleet("10.0.0.1:80")
	longer.For = 2 * time.Hour
	hosts[1].mute(time.Now(), longer)
	for _, h := range hosts {
		h.until("again", "user 10.0.0.1:80 fleet alice@web-2")
	}
	if ttl, err := c.TimeToLive(t.Context(), lease); err != nil || ttl.TTL != -1 {
		t.Errorf("the old lease: %+v, %v", ttl, err)
	}

	// Muted on one of them, too: that is another matter.
	hosts[2].mute(time.Now(), Request{Address: "10.0.0.1:80", Author: "carol"})
	back := hosts[2].unmute(time.Now(), Request{Address: "10.0.0.1:80", Fleet: true})
	if !back.Was {
		t.Error("it was not muted?")
	}
	contains(t, "the answer", back.Warnings, "it stays muted by carol for 1 h (this host), until ")
	hosts[2].want("unmuted where it is also muted here", "user 10.0.0.1:80 here carol@web-3")
	hosts[0].until("unmuted elsewhere")
	hosts[1].until("unmuted elsewhere")
	contains(t, "events", hosts[2].details(), "unmuted fleet-wide by bob here")
	if leases, err := c.Leases(t.Context()); err != nil || len(leases.Leases) != 0 {
		t.Errorf("leases are left: %v, %v", leases, err)
	}
	if again := hosts[0].unmute(time.Now(), Request{Address: "10.0.0.1:80", Fleet: true}); again.Was || len(again.Warnings) != 0 {
		t.Errorf("unmute of nothing: %+v", again)
	}
}

// An unmute of this host says that the fleet's is still there.
func TestUnmuteHereOfFleet(t *testing.T) {
	_, _, hosts := fleetOf(t, 1)
	hosts[0].mute(time.Now(), fleet("10.0.0.1:80"))
	a := hosts[0].unmute(time.Now(), Request{Address: "10.0.0.1:80"})
	if a.Was {
		t.Error("it was muted here?")
	}
	contains(t, "the answer", a.Warnings, `"lbagent unmute user 10.0.0.1:80 --fleet" ends that`)
	hosts[0].want("still", "user 10.0.0.1:80 fleet alice@web-1")
}

// The end of a mute is the end of its lease: the key goes, and nobody has to do anything.
func TestLeaseEnds(t *testing.T) {
	_, c, hosts := fleetOf(t, 2)
	short := fleet("10.0.0.1:80")
	short.For = MinFor
	hosts[0].mute(time.Now(), short)
	for _, h := range hosts {
		h.until("over")
	}
	contains(t, "events", hosts[1].details(), "no longer muted, the time is over: it was by alice on web-1 for 1 s (fleet)")
	eventually(t, "the key is gone", func() string {
		r, err := c.Get(t.Context(), prefix, clientv3.WithPrefix())
		if err != nil || len(r.Kvs) > 0 {
			return fmt.Sprint(r, err)
		}
		return ""
	})
	for _, h := range hosts {
		h.want("after the lease")
		eventually(t, "forgotten", func() string {
			h.Mutes.mu.Lock()
			defer h.Mutes.mu.Unlock()
			if len(h.fleets) > 0 {
				return "still known"
			}
			return ""
		})
	}
}

// Without etcd what is known stays until its own end, through a restart, too. Nothing fleet-wide can be changed then, and the answer says so.
func TestEtcdIsAway(t *testing.T) {
	s, c, hosts := fleetOf(t, 1)
	dir := filepath.Join(t.TempDir(), "mutes")
	h := startHost(t, "web-9", dir, at(s))
	h.following()
	short := fleet("10.0.0.2:80")
	short.For = time.Minute
	hosts[0].mute(time.Now(), fleet("10.0.0.1:80"))
	hosts[0].mute(time.Now(), short)
	both := []string{"user 10.0.0.1:80 fleet alice@web-1", "user 10.0.0.2:80 fleet alice@web-1"}
	h.until("before", both...)
	s.Stop()
	eventually(t, "etcd is lost", func() string {
		if h.Stats().Following {
			return "still following"
		}
		return ""
	})
	h.want("without etcd", both...)
	h.stop()
	h = startHost(t, "web-9", dir, at(s))
	h.want("after a restart without etcd", both...)
	if _, err := h.Mute(t.Context(), time.Now(), Request{Service: "user", Address: "10.0.0.3:80", Fleet: true, Reason: "x"}); !errors.Is(err, ErrEtcd) ||
		!strings.Contains(err.Error(), "etcd can't be reached, so nothing fleet-wide can be changed now: ") {
		t.Errorf("mute without etcd: %v", err)
	}
	if _, err := h.Unmute(t.Context(), time.Now(), Request{Service: "user", Address: "10.0.0.1:80", Fleet: true}); !errors.Is(err, ErrEtcd) {
		t.Errorf("unmute without etcd: %v", err)
	}
	h.tick(time.Now().Add(time.Minute)) // what Run does then
	h.want("after the end of one", both[0])

	// What etcd says when it is back is true: one was unmuted, one is new.
	h.stop()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	hosts[0].following()
	hosts[0].unmute(time.Now(), Request{Address: "10.0.0.1:80", Fleet: true})
	hosts[0].mute(time.Now(), fleet("10.0.0.4:80"))
	if _, err := c.Delete(t.Context(), prefix+"user/10.0.0.2:80"); err != nil {
		t.Fatal(err)
	}
	h = startHost(t, "web-9", dir, at(s))
	h.until("when etcd is back", "user 10.0.0.4:80 fleet alice@web-1")
}

// Another etcd in its place, empty: its word counts.
func TestEtcdIsReplaced(t *testing.T) {
	s, _, hosts := fleetOf(t, 1)
	h := hosts[0]
	h.mute(time.Now(), fleet("10.0.0.1:80"))
	other := etcdtest.Start(t, etcdtest.Config{Token: "another"})
	h.links.Set(at(other))
	h.until("as the new one says")
	h.mute(time.Now(), fleet("10.0.0.2:80"))
	h.links.Set(at(s))
	h.until("as the old one says", "user 10.0.0.1:80 fleet alice@web-1")
}

// Half of a service or more goes fleet-wide only by force, counted in etcd: also when two hosts ask at the same moment.
func TestHalfOfAService(t *testing.T) {
	_, _, hosts := fleetOf(t, 2)
	h, now := hosts[0], time.Now()
	refused := func(q Request, want string) {
		t.Helper()
		q.Author = "alice"
		if q.Service == "" {
			q.Service = "user"
		}
		if _, err := h.Mute(t.Context(), time.Now(), q); !errors.Is(err, ErrNeedsForce) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", q, err, want)
		}
	}
	h.mute(now, fleet("10.0.0.1:80"))
	h.mute(now, fleet("10.0.0.2:80")) // 2 of 5
	h.mute(now, fleet("10.0.0.2:80")) // the same again
	refused(fleet("10.0.0.3:80"), "3 of the 5 backends of user would be muted on every host; --force says that it is meant")
	h.mute(now, fleet("10.9.9.9:80")) // takes nothing
	forced := fleet("10.0.0.3:80")
	forced.Force = true
	h.mute(now, forced)
	// A mute here is this host's own matter.
	h.mute(now, Request{Address: "10.0.0.4:80"})

	one := fleet("10.0.0.1:80")
	for name, list := range map[string][]string{"single": {"10.0.0.1:80"}, "two": {"10.0.0.1:80", "10.0.0.2:80"}, "draining": {"10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80 draining"}} {
		h.lists[name] = list
		one.Service = name
		refused(one, "would be muted on every host")
	}
	one.Service = "nosuch"
	refused(one, "no list of nosuch here")
	one.Force = true
	h.mute(now, one)

	// Four of ten may go. Both hosts try all ten at once.
	var ten []string
	for i := range 10 {
		ten = append(ten, fmt.Sprintf("10.0.1.%d:80", i+1))
	}
	var wg sync.WaitGroup
	for _, h := range hosts {
		h.lists["ten"] = ten
		wg.Go(func() {
			for i := range ten {
				q := fleet(ten[i])
				q.Service = "ten"
				if _, err := h.Mute(t.Context(), time.Now(), q); err != nil && !errors.Is(err, ErrNeedsForce) && !errors.Is(err, ErrEtcd) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	n := 0
	for _, m := range h.List() {
		if m.Service == "ten" {
			n++
		}
	}
	if n != 4 {
		t.Errorf("%d of 10 are muted", n)
	}
}

// Who mutes between another's look and its write makes that one look again: what was counted is what is written on.
func TestHalfOfAServiceAtTheSameMoment(t *testing.T) {
	_, c, hosts := fleetOf(t, 2)
	h := hosts[0]
	h.mute(time.Now(), fleet("10.0.0.1:80"))
	var once sync.Once
	h.asked = func() {
		once.Do(func() {
			forced := fleet("10.0.0.2:80")
			forced.Force = true
			hosts[1].mute(time.Now(), forced)
		})
	}
	_, err := h.Mute(t.Context(), time.Now(), Request{Service: "user", Address: "10.0.0.3:80", Fleet: true, Reason: "x"})
	if !errors.Is(err, ErrNeedsForce) || !strings.Contains(err.Error(), "3 of the 5 backends of user") {
		t.Errorf("%v, want a refusal", err)
	}
	if leases, err := c.Leases(t.Context()); err != nil || len(leases.Leases) != 2 {
		t.Errorf("leases %v, %v, want those of the two mutes", leases, err)
	}
}

// Keys that others wrote: what can be read is honoured, what can't is told, nothing else happens.
func TestHandWrittenKeys(t *testing.T) {
	_, c, hosts := fleetOf(t, 1)
	h := hosts[0]
	put := func(key, value string) {
		t.Helper()
		if _, err := c.Put(t.Context(), prefix+key, value); err != nil {
			t.Fatal(err)
		}
	}
	until := time.Now().Add(time.Hour).Format(time.RFC3339)
	good := fmt.Sprintf(`{"since":%q,"until":%q}`, time.Now().Format(time.RFC3339), until)
	put("user/10.0.0.1:80", good)
	h.until("by hand", "user 10.0.0.1:80 fleet somebody@somebody")
	put("user/10.0.0.1:80", "{") // what it said holds no longer
	h.until("spoilt")
	if n := h.Stats().Bad; n != 1 {
		t.Errorf("%d bad keys", n)
	}
	put("user/10.0.0.2:80", good)
	put("user/10.0.0.1:80", good)
	h.until("mended", "user 10.0.0.1:80 fleet somebody@somebody", "user 10.0.0.2:80 fleet somebody@somebody")
	if n := h.Stats().Bad; n != 0 {
		t.Errorf("%d bad keys", n)
	}
	// One that is over by this host's clock is none.
	put("user/10.0.0.2:80", fmt.Sprintf(`{"since":"2020-01-01T00:00:00Z","until":%q}`, time.Now().Add(-time.Second).Format(time.RFC3339)))
	h.until("over", "user 10.0.0.1:80 fleet somebody@somebody")
	// A lease on which something else hangs is left alone.
	lease, err := c.Grant(t.Context(), 600)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{prefix + "user/10.0.0.3:80", "elsewhere"} {
		if _, err := c.Put(t.Context(), key, good, clientv3.WithLease(lease.ID)); err != nil {
			t.Fatal(err)
		}
	}
	h.until("with a lease", "user 10.0.0.1:80 fleet somebody@somebody", "user 10.0.0.3:80 fleet somebody@somebody")
	h.unmute(time.Now(), Request{Address: "10.0.0.3:80", Fleet: true})
	if r, err := c.Get(t.Context(), "elsewhere"); err != nil || len(r.Kvs) != 1 {
		t.Errorf("the other key of the lease: %v, %v", r, err)
	}
}

// More keys than are honoured: memory stays bounded, and when there is room the others count.
func TestMostOfAFleet(t *testing.T) {
	_, c, hosts := fleetOf(t, 1)
	h := hosts[0]
	value := fmt.Sprintf(`{"since":%q,"until":%q}`, time.Now().Format(time.RFC3339), time.Now().Add(time.Hour).Format(time.RFC3339))
	const all = maxFleet + 5
	for i := 0; i < all; i += 67 {
		var ops []clientv3.Op
		for j := i; j < min(all, i+67); j++ {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("%sbig/10.0.%d.%d:80", prefix, j/200, j%200), value))
		}
		if _, err := c.Txn(t.Context()).Then(ops...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	held := func(n int, over bool) {
		t.Helper()
		eventually(t, "as many as are honoured", func() string {
			if s := h.Stats(); s.Fleet != n || s.Over != over {
				return fmt.Sprintf("%+v, want %d", s, n)
			}
			return ""
		})
	}
	held(maxFleet, true)
	if _, err := h.Mute(t.Context(), time.Now(), Request{Service: "user", Address: "10.0.0.1:80", Fleet: true, Reason: "x"}); !errors.Is(err, ErrTooMany) {
		t.Errorf("one more: %v", err)
	}
	if _, err := c.Delete(t.Context(), prefix+"big/10.0.0.", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	held(all-200, false)
}

// The prefix may change, be turned off and on.
func TestSetPrefix(t *testing.T) {
	_, c, hosts := fleetOf(t, 1)
	h := hosts[0]
	h.mute(time.Now(), fleet("10.0.0.1:80"))
	h.SetPrefix(time.Now(), "")
	h.want("turned off")
	if _, err := h.Mute(t.Context(), time.Now(), Request{Service: "user", Address: "10.0.0.2:80", Fleet: true, Reason: "x"}); !errors.Is(err, ErrNoFleet) {
		t.Errorf("turned off: %v", err)
	}
	h.SetPrefix(time.Now(), "other/")
	h.following()
	h.mute(time.Now(), fleet("10.0.0.2:80"))
	h.want("elsewhere", "user 10.0.0.2:80 fleet alice@web-1")
	if r, err := c.Get(t.Context(), "other/user/10.0.0.2:80"); err != nil || len(r.Kvs) != 1 {
		t.Errorf("%v, %v", r, err)
	}
	h.SetPrefix(time.Now(), prefix)
	h.until("back", "user 10.0.0.1:80 fleet alice@web-1")
}

// What the agent's user in etcd has to be allowed: reading to honour, writing to mute. Without either the agent says so, and does all else.
func TestRoles(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	dir, ctx := t.TempDir(), t.Context()
	end := clientv3.GetPrefixRangeEnd(prefix)
	var steps []func() error
	step := func(f func() error) { steps = append(steps, f) }
	for name, roles := range map[string][]string{"root": {"root"}, "none": {}, "reader": {"mute-read"}, "writer": {"mute-write"}} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		step(func() error { _, err := c.UserAdd(ctx, name, name); return err })
		for _, role := range roles {
			step(func() error { _, err := c.UserGrantRole(ctx, name, role); return err })
		}
	}
	grants := map[string]clientv3.PermissionType{"mute-read": clientv3.PermissionType(clientv3.PermRead), "mute-write": clientv3.PermissionType(clientv3.PermReadWrite)}
	for role, may := range grants {
		if _, err := c.RoleAdd(ctx, role); err != nil {
			t.Fatal(err)
		}
		if _, err := c.RoleGrantPermission(ctx, role, prefix, end, may); err != nil {
			t.Fatal(err)
		}
	}
	step(func() error { _, err := c.AuthEnable(ctx); return err })
	for i, f := range steps {
		if err := f(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	as := func(name string) *host {
		return startHost(t, "web-"+name, "", &etcd.Config{Endpoints: s.Endpoints(), Username: name, PasswordFile: filepath.Join(dir, name)})
	}
	none, reader, writer := as("none"), as("reader"), as("writer")
	writer.following()
	reader.following()
	writer.mute(time.Now(), fleet("10.0.0.1:80"))
	writer.mute(time.Now(), fleet("10.0.0.1:80"))
	writer.mute(time.Now(), fleet("10.0.0.2:80"))
	reader.until("honoured", "user 10.0.0.1:80 fleet alice@web-writer", "user 10.0.0.2:80 fleet alice@web-writer")
	_, err := reader.Mute(ctx, time.Now(), Request{Service: "user", Address: "10.0.0.3:80", Fleet: true, Reason: "x", Force: true})
	if !errors.Is(err, ErrEtcd) || !strings.Contains(err.Error(), "does not let this agent's user write below "+prefix) {
		t.Errorf("a reader: %v", err)
	}
	if _, err = reader.Unmute(ctx, time.Now(), Request{Service: "user", Address: "10.0.0.1:80", Fleet: true}); !errors.Is(err, ErrEtcd) {
		t.Errorf("a reader: %v", err)
	}
	if a := writer.unmute(time.Now(), Request{Address: "10.0.0.1:80", Fleet: true}); !a.Was {
		t.Errorf("a writer: %+v", a)
	}
	reader.until("unmuted", "user 10.0.0.2:80 fleet alice@web-writer")
	eventually(t, "the denial is told", func() string {
		if s := none.Stats(); s.Following || !strings.Contains(s.Trouble, "permission denied") {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})
	if st := none.links.Status(); !st.Connected {
		t.Errorf("a denial was taken for a loss: %+v", st)
	}
	root, err := clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), Username: "root", Password: "root", Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if leases, err := root.Leases(ctx); err != nil || len(leases.Leases) != 1 {
		t.Errorf("leases %v, %v, want that of the one mute", leases, err)
	}
}

package etcd

import (
	"context"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

func TestMain(m *testing.M) {
	etcdtest.Child()
	os.Exit(m.Run())
}

// eventually fails the test unless ok is true within d.
func eventually(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within %v: %s", d, what)
		case <-tick.C:
		}
	}
}

// lent runs Links for a test and returns them with the link that they lend.
func lent(t *testing.T, e Config) (*Links, *Link) {
	t.Helper()
	k := New(Options{Etcd: &e})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	soon, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	l, err := k.Get(soon)
	if err != nil {
		t.Fatal(err)
	}
	return k, l
}

func newest(t *testing.T, l *Link, d time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	_, err := l.Newest(ctx, "services/")
	return err
}

// at is the number of the member that l talks to.
func at(t *testing.T, c *etcdtest.Cluster, l *Link) int {
	t.Helper()
	now := l.Client.(*etcdClient).where.connected()
	for i, m := range c.Members {
		if m.Clients.Addr() == now {
			return i
		}
	}
	t.Fatalf("connected to %q", now)
	return -1
}

// Of three endpoints one is dead and one accepts and says nothing: every call is answered by the third, over one connection.
func TestDeadAndHangingEndpoints(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	good, hanging := etcdtest.StartProxy(t, s.Addr()), etcdtest.StartProxy(t, s.Addr())
	hanging.Pause()
	for range 5 { // the order is one of chance
		_, l := lent(t, Config{Endpoints: []string{"127.0.0.1:1", "http://" + hanging.Addr(), "http://" + good.Addr()}})
		for range 30 {
			if err := newest(t, l, time.Minute); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := good.Accepted(); n != 5 {
		t.Errorf("%d connections for 5 clients", n)
	}
}

// A member of three stands still under the connection: that is found out, and another client goes on with another member.
func TestMemberHangs(t *testing.T) {
	c := etcdtest.StartCluster(t, 3, etcdtest.Config{Process: true})
	k, l := lent(t, Config{Endpoints: c.Endpoints()})
	if err := newest(t, l, time.Minute); err != nil {
		t.Fatal(err)
	}
	k.OK()
	stuck := at(t, c, l)
	if err := c.Members[stuck].Freeze(); err != nil {
		t.Fatal(err)
	}
	err := newest(t, l, time.Second)
	if !isHung(err) {
		t.Fatalf("error %v", err)
	}
	k.Fail(err)
	eventually(t, 3*time.Minute, "another member", func() bool { // the two that are left may have to elect a leader first
		l, err := k.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := newest(t, l, 5*time.Second); err != nil {
			k.Fail(err) // as whoever uses it does, each time
			return false
		}
		return at(t, c, l) != stuck
	})
}

// A member that lost its leader refuses, over a connection that is well: the same client goes on with another member, and does not come back by itself. How often it may move: see
// TestMovesAreFew.
func TestMemberWithoutLeader(t *testing.T) {
	c := etcdtest.StartCluster(t, 3, etcdtest.Config{})
	k, l := lent(t, Config{Endpoints: c.Endpoints()})
	var watch <-chan Response
	eventually(t, time.Minute, "etcd serves", func() bool { return newest(t, l, 5*time.Second) == nil })
	watch = l.Watch(t.Context(), "services/", 1)
	if r := <-watch; !r.Created {
		t.Fatalf("first response %+v", r)
	}
	alone := at(t, c, l)
	c.Isolate(alone)
	var last error
	for r := range watch {
		last = r.Err
	}
	if !isRefusal(last) || !strings.Contains(last.Error(), "no leader") {
		t.Fatalf("the watch ended with %v", last) // or require-leader is missing
	}
	k.Fail(last)
	eventually(t, 3*time.Minute, "another member answers", func() bool { return newest(t, l, time.Minute) == nil && at(t, c, l) != alone })
	if err := l.Context().Err(); err != nil {
		t.Errorf("another client: %v", err)
	}
}

// movable is a client that counts how often it is sent elsewhere.
type movable struct {
	stub

	moves *atomic.Int64
}

func (m movable) Elsewhere() { m.moves.Add(1) }

// That a member can't serve is told by each of a thousand services, and moves the client once; while no member serves it moves ever more seldom, or a fleet would run round the
// members in a circle (1.4).
func TestMovesAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var moves atomic.Int64
		k := New(Options{Etcd: &Config{Endpoints: []string{"x", "y"}}, Dial: func(context.Context, Config, func(error)) (Client, error) { return movable{moves: &moves}, nil }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = k.Run(ctx) }()
		synctest.Wait()
		for range 1000 {
			k.Fail(rpctypes.ErrNoLeader)
		}
		if n := moves.Load(); n != 1 {
			t.Errorf("1,000 failures at one moment moved the client %d times", n)
		}
		fail := func(d time.Duration) (moved int64) {
			was := moves.Load()
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(MinBackoff) {
				k.Fail(rpctypes.ErrNoLeader)
			}
			return moves.Load() - was
		}
		fail(5 * time.Minute)
		if n, mean := fail(time.Hour), int64(time.Hour/(MinBackoff+MaxBackoff/2)); n < mean/2 || n > mean*2 { // 238 on average, with a standard deviation of 9
			t.Errorf("in an hour without a leader the client moved %d times, want some %d", n, mean)
		}
		k.OK()
		time.Sleep(MaxBackoff + MinBackoff)
		if n := fail(MinBackoff); n != 1 {
			t.Errorf("after a good time it moved %d times in the first moment", n)
		}
		cancel()
		<-done
	})
}

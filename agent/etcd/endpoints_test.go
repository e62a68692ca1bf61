package etcd

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
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
			if err := newest(t, l, 20*time.Second); err != nil {
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
	if err := newest(t, l, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	k.OK()
	stuck := at(t, c, l)
	if err := c.Members[stuck].Freeze(); err != nil {
		t.Fatal(err)
	}
	err := newest(t, l, time.Second)
	if !IsHung(err) {
		t.Fatalf("error %v", err)
	}
	k.Fail(err)
	eventually(t, time.Minute, "another member", func() bool {
		l, err := k.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return newest(t, l, 2*time.Second) == nil && at(t, c, l) != stuck
	})
}

// A member that lost its leader refuses, over a connection that is well: the same client goes on with another member, and does not come back by itself.
func TestMemberWithoutLeader(t *testing.T) {
	c := etcdtest.StartCluster(t, 3, etcdtest.Config{})
	k, l := lent(t, Config{Endpoints: c.Endpoints()})
	var watch <-chan Response
	eventually(t, 30*time.Second, "etcd serves", func() bool { return newest(t, l, 5*time.Second) == nil })
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
	if !IsRefusal(last) || !strings.Contains(last.Error(), "no leader") {
		t.Fatalf("the watch ended with %v", last) // or require-leader is missing
	}
	k.Fail(last)
	eventually(t, 30*time.Second, "another member answers", func() bool { return newest(t, l, 20*time.Second) == nil })
	if l.Context().Err() != nil || at(t, c, l) == alone {
		t.Errorf("link %v, at member %d, which is isolated: %d", l.Context().Err(), at(t, c, l), alone)
	}
	accepted := 0
	for _, m := range c.Members {
		accepted += m.Clients.Accepted()
	}
	began := time.Now()
	for range 1000 { // as many services say the same
		k.Fail(last)
	}
	moves := 2 + int(time.Since(began)/MinBackoff)
	eventually(t, 30*time.Second, "a member answers", func() bool { return newest(t, l, 20*time.Second) == nil })
	after := 0
	for _, m := range c.Members {
		after += m.Clients.Accepted()
	}
	if after > accepted+moves {
		t.Errorf("%d connections for 1,000 failures, want at most %d", after-accepted, moves)
	}
}

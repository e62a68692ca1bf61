//go:build linux

package client

import (
	"fmt"
	"runtime"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	verdict "github.com/lbagent/lbagent/health"
)

// Ten ClientConns hang on one watch; closing one never ends another's; the last one ends it.
func TestResolverSharesOneWatch(t *testing.T) {
	r := newRig(t)
	a, b := backend(t), backend(t)
	r.set(sorted(a, b)...)
	r.start()
	c := r.client()
	var conns []*grpc.ClientConn
	for range 10 {
		cc := dial(t, c)
		conns = append(conns, cc)
		reached(t, cc, a, b)
	}
	watches := func(want int) func() string {
		return func() string {
			if n := r.api.Stats().Calls; n != want {
				return fmt.Sprintf("%d calls open at the agent, want %d", n, want)
			}
			return ""
		}
	}
	eventually(t, watches(1))
	for _, cc := range conns[:9] {
		_ = cc.Close()
	}
	r.set(b)
	reached(t, conns[9], b)
	eventually(t, watches(1))
	_ = conns[9].Close()
	eventually(t, watches(0))
	again := dial(t, c)
	defer again.Close()
	reached(t, again, b)
}

// Only usable backends are given, and in panic those that the agent would try.
func TestResolverGivesUsable(t *testing.T) {
	r := newRig(t)
	a, b, d := backend(t), backend(t), backend(t)
	r.set(sorted(a, b, d)...)
	r.start()
	cc := dial(t, r.client())
	defer cc.Close()
	reached(t, cc, a, b, d)
	r.judge(a, verdict.Part{Kind: verdict.Down, Soft: true, Cause: "probe failed 3 times"})
	reached(t, cc, b, d)
	r.judge(b, verdict.Part{Kind: verdict.Down, Soft: true, Cause: "probe failed 3 times"}) // 1 of 3: panic
	reached(t, cc, a, b, d)
	r.judge(a, verdict.Part{Kind: verdict.Up})
	reached(t, cc, a, d)
}

// While the agent is away, callers go on with the last list; when it is back, changes come again.
func TestResolverOverAgentRestart(t *testing.T) {
	r := newRig(t)
	a, b := backend(t), backend(t)
	r.set(sorted(a, b)...)
	r.start()
	c := r.client()
	cc := dial(t, c)
	defer cc.Close()
	reached(t, cc, a, b)
	r.stop()
	reached(t, cc, a, b)
	r.set(a)
	reached(t, cc, a, b) // nobody can tell yet
	r.start()
	reached(t, cc, a)
}

// With no agent at the start, the list on disk serves until there is one.
func TestResolverFromFile(t *testing.T) {
	r := newRig(t)
	a, b := backend(t), backend(t)
	r.file("user", a+" 100\n"+b+" 0\n")
	cc := dial(t, r.client())
	defer cc.Close()
	reached(t, cc, a)
	r.set(b)
	r.start()
	reached(t, cc, b)
}

// A service that is unknown is an error of the call, in the agent's words, and works once it is there.
func TestResolverUnknownService(t *testing.T) {
	r := newRig(t)
	r.start()
	cc := dial(t, r.client())
	defer cc.Close()
	eventually(t, func() string {
		err := cc.Invoke(testContext(t), "/x/Y", nil, nil)
		if want := `no such service: "user" is not configured`; status.Code(err) != codes.Unavailable || !contains(err.Error(), want) {
			return fmt.Sprintf("%v, want %q", err, want)
		}
		return ""
	})
	a := backend(t)
	r.set(a)
	reached(t, cc, a)
}

func TestResolverBadTargets(t *testing.T) {
	r := newRig(t)
	for _, target := range []string{"lbagent:///", "lbagent://host/user"} {
		cc, err := grpc.NewClient(target, grpc.WithResolvers(NewResolverBuilder(r.client())), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			continue
		}
		if err := cc.Invoke(testContext(t), "/x/Y", nil, nil); err == nil || !contains(err.Error(), "lbagent:///SERVICE") {
			t.Errorf("%s: %v", target, err)
		}
		_ = cc.Close()
	}
}

// A thousand applications come and go; nothing of them is left.
func TestNothingIsLeft(t *testing.T) {
	r := newRig(t)
	a := backend(t)
	r.set(a)
	r.start()
	shared := r.client()
	use := func(c *Client) {
		cc := dial(t, c)
		if _, err := call(cc); err != nil {
			t.Fatal(err)
		}
		_ = cc.Close()
	}
	use(shared)
	idle := func() string {
		if n := r.api.Stats().Calls; n != 0 {
			return fmt.Sprintf("%d calls open at the agent", n)
		}
		return ""
	}
	eventually(t, idle)
	goroutines := runtime.NumGoroutine()
	n := 1000
	if testing.Short() {
		n = 100
	}
	for i := range n {
		if i%4 != 0 {
			use(shared)
			continue
		}
		own, err := New(Config{Socket: r.socket})
		if err != nil {
			t.Fatal(err)
		}
		use(own)
		w, err := own.Watch("user")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Next(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if err := own.Close(); err != nil { // with a watch open
			t.Fatal(err)
		}
	}
	eventually(t, idle)
	eventually(t, func() string {
		if g := runtime.NumGoroutine(); g > goroutines+2 {
			return fmt.Sprintf("%d goroutines, before %d", g, goroutines)
		}
		return ""
	})
}

// A watch misses steps, never the last one; after Close it says so.
func TestWatch(t *testing.T) {
	r := newRig(t)
	r.set("10.0.0.1:80")
	r.start()
	c := r.client()
	w, err := c.Watch("user")
	if err != nil {
		t.Fatal(err)
	}
	l, err := w.Next(testContext(t))
	if err != nil || len(l.Backends) != 1 || l.Provenance.Source != "etcd" {
		t.Fatal(l, err)
	}
	for i := range 100 {
		r.set(fmt.Sprintf("10.0.0.%d:80", i+1))
	}
	for l.Backends[0].Address != "10.0.0.100:80" {
		if l, err = w.Next(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	got := make(chan error)
	go func() {
		_, err := w.Next(testContext(t))
		got <- err
	}()
	w.Close()
	w.Close()
	if err := <-got; err != ErrClosed {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Watch("user"); err != ErrClosed {
		t.Error(err)
	}
	if _, err := c.Pick(testContext(t), "user"); err != ErrClosed {
		t.Error(err)
	}
}

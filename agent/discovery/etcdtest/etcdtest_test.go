package etcdtest_test

import (
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
)

// A stopped etcd comes back with its data, on its port, and stops at once although a watch is open.
func TestStopAndStart(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	if _, err := c.Put(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	watch := c.Watch(t.Context(), "k")
	begin := time.Now()
	s.Stop()
	if d := time.Since(begin); d > 4*time.Second {
		t.Errorf("stopped after %v; an open watch holds it up", d)
	}
	addr := s.Addr()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if s.Addr() != addr {
		t.Errorf("address %s after the restart, was %s", s.Addr(), addr)
	}
	r, err := c.Get(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "v" {
		t.Errorf("after the restart: %v", r.Kvs)
	}
	if _, err := c.Put(t.Context(), "k", "w"); err != nil {
		t.Fatal(err)
	}
	for e := range watch {
		if n := len(e.Events); n > 0 && string(e.Events[n-1].Kv.Value) == "w" {
			return
		}
	}
	t.Error("the watch ended with the restart")
}

func TestCompact(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	if _, err := c.Put(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to forget
		if err := s.Compact(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

package fleet

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/etcd"
)

// TestCheck: what a silent watch would never tell is found by asking (1.3).
func TestCheck(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, server)
	l := etcd.NewLink(t.Context(), etcd.Wrap(c))
	f, err := New(Config{Etcd: etcd.New(etcd.Options{}), OnChange: func(context.Context) {}})
	if err != nil {
		t.Fatal(err)
	}
	f.Set(time.Now(), "f/")
	put(t, c, "f/a", "1", "f/b", "1")
	read := func() *follower {
		w := &follower{f: f, prefix: "f/", read: make(map[string]Entry)}
		if err := w.readAll(t.Context(), l); err != nil || len(w.read) != 2 {
			t.Fatalf("%v, %v", w.read, err)
		}
		return w
	}
	for _, step := range []struct {
		name string
		do   func(w *follower)
		want error
	}{
		{"nothing happened", func(*follower) {}, nil},
		{"something beside it", func(*follower) { put(t, c, "g/a", "1") }, nil},
		{"one was written", func(*follower) { put(t, c, "f/a", "2") }, errMissed},
		{"one went and came again", func(*follower) { del(t, c, "f/b"); put(t, c, "f/b", "1") }, errMissed},
		{"etcd is older than what is known", func(w *follower) { w.rev += 100 }, errRestored},
		{"etcd is another", func(w *follower) { w.epoch++ }, errRestored},
		{"one went", func(*follower) { del(t, c, "f/b") }, errMissed},
	} {
		w := read()
		step.do(w)
		if err := w.check(t.Context(), l); !errors.Is(err, step.want) {
			t.Errorf("%s: %v, want %v", step.name, err, step.want)
		}
	}
}

package fleet

import (
	"context"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/etcd"
)

// TestInventory: what a silent watch would never tell is found by asking (1.3).
func TestInventory(t *testing.T) {
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
	read := func() *keys {
		k := &keys{f: f, prefix: "f/"}
		if _, err := k.Read(t.Context(), l); err != nil || len(k.read) != 2 {
			t.Fatalf("%v, %v", k.read, err)
		}
		return k
	}
	for _, step := range []struct {
		name string
		do   func()
		same bool
	}{
		{"nothing happened", func() {}, true},
		{"something beside it", func() { put(t, c, "g/a", "1") }, true},
		{"one was written", func() { put(t, c, "f/a", "2") }, false},
		{"one went and came again", func() { del(t, c, "f/b"); put(t, c, "f/b", "1") }, false},
		{"one went", func() { del(t, c, "f/b") }, false},
	} {
		k := read()
		step.do()
		r, err := l.Newest(t.Context(), "f/")
		if err != nil {
			t.Fatal(err)
		}
		count, newest, known := k.Inventory()
		if same := known && int64(count) == r.Count && newest == r.Kvs[0].ModRevision; same != step.same {
			t.Errorf("%s: %d keys, newest %d; etcd has %d, newest %d", step.name, count, newest, r.Count, r.Kvs[0].ModRevision)
		}
	}
}

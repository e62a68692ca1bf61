package fleet

import (
	"context"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
)

// TestSettleWhileItChanges: what was applied is the last good form, not what etcd says by then.
func TestSettleWhileItChanges(t *testing.T) {
	f, err := New(Config{Etcd: etcd.New(etcd.Options{}), OnChange: func(context.Context) {}})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1, 0)
	f.Set(now, "f/")
	f.set.put("user", "1", 1)
	entries := f.Entries()
	f.set.put("user", "bad", 2)
	f.Settle(now, entries, []Outcome{{Key: "user", Place: "in force", Used: "1"}})
	if e := f.Entries()[0]; e.Good != "1" || e.Now != "bad" {
		t.Errorf("%+v", e)
	}
	if f.wantsAgain() {
		t.Error("all is well, and yet it is tried again")
	}
	f.Settle(now, f.Entries(), []Outcome{{Key: "user", Place: "bad", Problem: "port taken", Again: true}})
	if !f.wantsAgain() {
		t.Error("what this host stands in the way of isn't tried again")
	}
	// And one that went meanwhile is not there again.
	entries = f.Entries()
	f.set.removed["user"] = true
	f.set.remove(now, "user")
	f.set.settle(now)
	f.Settle(now, entries, []Outcome{{Key: "user", Place: "in force", Used: "1"}})
	if got := f.Entries(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

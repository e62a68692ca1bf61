package registrar

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/etcd"
)

// Three members, each of which restarts in turn: no key goes, and a member that lags behind is not taken for another etcd. Then a restore from a backup, which has a key
// that isn't ours any more, and an older value.
func TestCluster(t *testing.T) {
	cluster := etcdtest.StartCluster(t, 3, etcdtest.Config{})
	c := cluster.Client(t, "", "")
	l := live(t, etcd.Config{Endpoints: cluster.Endpoints()}, t.TempDir(), 30*time.Second, reg(1), reg(2))
	announced := func(n int) func() bool { return func() bool { return l.r.Stats().Announced == n } }
	await(t, "announced", announced(2))
	gone := watcher(t, c)
	checked := func(what string) {
		t.Helper()
		since := time.Now()
		await(t, what, func() bool {
			l.r.poke()
			return l.r.Stats().LastOK.After(since)
		})
	}
	for _, m := range cluster.Members {
		m.Stop()
		checked("a check with a member stopped")
		if err := m.Restart(); err != nil {
			t.Fatal(err)
		}
		checked("a check with it back")
	}
	for range 20 {
		checked("a check with all of them")
	}
	if n := gone.Load(); n != 0 {
		t.Errorf("%d keys went", n)
	}
	if n := l.r.Stats().Writes; n != 2 {
		t.Errorf("%d keys written, want the first two only", n)
	}

	// A short life from here on.
	l.r.Set([]Registration{withQuickProbe(reg(1)), withQuickProbe(reg(2))}, 5*time.Second)
	await(t, "the keys are under another lease", func() bool { return l.r.Stats().Writes >= 4 })
	backup := filepath.Join(t.TempDir(), "backup")
	if err := etcdtest.Backup(t.Context(), cluster.Client(t, "", "", 1), backup); err != nil {
		t.Fatal(err)
	}
	changed := withQuickProbe(reg(1))
	changed.Weight = 7
	l.r.Set([]Registration{changed}, 5*time.Second)
	await(t, "one is changed and one withdrawn", func() bool {
		v, _, _ := get(t, c, keyOf(1))
		return strings.Contains(v, `"weight":7`) && !has(t, c, keyOf(2))
	})
	cluster.Stop()
	if err := cluster.Restore(backup, "other"); err != nil {
		t.Fatal(err)
	}
	restored := cluster.Client(t, "", "")
	await(t, "the key is as it should be after the restore", func() bool {
		v, _, _ := get(t, restored, keyOf(1))
		return strings.Contains(v, `"weight":7`)
	})
	// That of the backup hangs on a lease of ours too: if that were kept alive for it, it would stay for ever.
	await(t, "the key of before goes", func() bool { return !has(t, restored, keyOf(2)) })
}

func withQuickProbe(r Registration) Registration {
	r.Probe.Interval = 100 * time.Millisecond
	return r
}

package etcdtest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestMain(m *testing.M) {
	etcdtest.Child()
	os.Exit(m.Run())
}

// works reports whether etcd takes a write within d.
func works(t *testing.T, c *clientv3.Client, d time.Duration) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	for ctx.Err() == nil {
		one, done := context.WithTimeout(ctx, time.Second) // the next try goes to another member
		_, err := c.Put(one, "works", "yes")
		done()
		if err == nil {
			return true
		}
	}
	return false
}

func mustWork(t *testing.T, c *clientv3.Client, when string) {
	t.Helper()
	if !works(t, c, 30*time.Second) {
		t.Fatalf("%s: etcd takes no write", when)
	}
}

// get is the value of a key, with the revision and the cluster that it comes from.
func get(t *testing.T, c *clientv3.Client, key string) (value string, revision int64, cluster uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r, err := c.Get(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kvs) > 0 {
		value = string(r.Kvs[0].Value)
	}
	return value, r.Header.Revision, r.Header.ClusterId
}

// Three members, in this process and as processes of their own: one of them may be isolated, stopped, or frozen; two may not.
func TestCluster(t *testing.T) {
	for _, process := range []bool{false, true} {
		t.Run(fmt.Sprintf("process=%v", process), func(t *testing.T) {
			begin := time.Now()
			cluster := etcdtest.StartCluster(t, 3, etcdtest.Config{Process: process})
			c := cluster.Client(t, "", "")
			mustWork(t, c, "at first")
			t.Logf("started in %v", time.Since(begin))
			lead := cluster.Leader(t.Context(), c)
			if lead < 0 {
				t.Fatal("no leader")
			}
			cluster.Isolate(lead)
			mustWork(t, c, "one isolated")
			alone := cluster.Client(t, "", "", lead)
			if works(t, alone, 2*time.Second) {
				t.Error("an isolated member takes a write")
			}
			cluster.Join(lead)
			mustWork(t, alone, "joined again")

			cluster.Members[0].Stop()
			mustWork(t, c, "one stopped")
			if process {
				if err := cluster.Members[1].Freeze(); err != nil {
					t.Fatal(err)
				}
				if works(t, c, 2*time.Second) {
					t.Error("one of three takes a write")
				}
				if err := cluster.Members[1].Thaw(); err != nil {
					t.Fatal(err)
				}
				mustWork(t, c, "thawed")
			} else if err := cluster.Members[1].Freeze(); err == nil {
				t.Error("this process was to be frozen")
			}
			if err := cluster.Start(); err != nil {
				t.Fatal(err)
			}
			mustWork(t, c, "all back")
		})
	}
}

// A backup brings back what etcd had, with its revision and either the same cluster or another.
func TestRestore(t *testing.T) {
	cluster := etcdtest.StartCluster(t, 3, etcdtest.Config{})
	c := cluster.Client(t, "", "")
	if _, err := c.Put(t.Context(), "k", "old"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "backup")
	if err := etcdtest.Backup(t.Context(), cluster.Client(t, "", "", 1), file); err != nil {
		t.Fatal(err)
	}
	_, was, first := get(t, c, "k")
	for i := range 10 {
		if _, err := c.Put(t.Context(), "k", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, token := range []string{"", "other"} {
		begin := time.Now()
		cluster.Stop()
		t.Logf("stopped in %v", time.Since(begin))
		if err := cluster.Restore(file, token); err != nil {
			t.Fatal(err)
		}
		t.Logf("restored after %v", time.Since(begin))
		value, revision, id := get(t, c, "k")
		if value != "old" || revision != was || (id == first) != (token == "") {
			t.Errorf("token %q: %q at revision %d of cluster %x; was at %d of %x", token, value, revision, id, was, first)
		}
		mustWork(t, c, "restored")
		if err := cluster.Members[1].Restart(); err != nil {
			t.Fatal(err)
		}
		mustWork(t, c, "restarted")
	}
}

package etcd

import (
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcd was restored from a backup, so that it knows nothing of our token; it does not say so, but lets calls wait. The client finds out and logs in again.
func TestTokenOfFormerLife(t *testing.T) {
	cluster := etcdtest.StartCluster(t, 3, etcdtest.Config{})
	c := cluster.Client(t, "", "", 0)
	for _, step := range []func() error{
		func() error { _, err := c.UserAdd(t.Context(), "root", "pw"); return err },
		func() error { _, err := c.UserGrantRole(t.Context(), "root", "root"); return err },
		func() error { _, err := c.AuthEnable(t.Context()); return err },
	} {
		eventually(t, time.Minute, "authentication is on", func() bool { // a slow cluster may say that it timed out, and do it all the same
			err := step()
			return err == nil || errors.Is(err, rpctypes.ErrUserAlreadyExist)
		})
	}
	root := cluster.Client(t, "root", "pw", 0)
	backup, password := filepath.Join(t.TempDir(), "backup"), filepath.Join(t.TempDir(), "password")
	if err := etcdtest.Backup(t.Context(), root, backup); err != nil {
		t.Fatal(err)
	}
	put := func(c *clientv3.Client, n int) {
		for range n {
			eventually(t, time.Minute, "a put", func() bool {
				_, err := c.Put(t.Context(), "elsewhere", "x")
				return err == nil
			})
		}
	}
	put(root, 50) // the token's place in the log is beyond what the restored one will have
	write(t, password, "pw")
	cl, err := Dial(t.Context(), Config{Endpoints: cluster.Endpoints(), Username: "root", PasswordFile: password}, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	l := NewLink(t.Context(), cl)
	if err := newest(t, l, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Restore(backup, ""); err != nil {
		t.Fatal(err)
	}
	put(cluster.Client(t, "root", "pw", 1), 1)
	begin := time.Now()
	// A stream that is opened with the old token says nothing either, and all watches are on it. Of many calls one finds out for all.
	var all sync.WaitGroup
	all.Go(func() {
		select {
		case <-cl.Watch(t.Context(), "services/", 1):
		case <-time.After(time.Minute):
			t.Error("a watch neither began nor ended")
		}
	})
	for range 8 {
		all.Go(func() {
			if err := newest(t, l, time.Minute); err != nil && !isRefusal(err) {
				t.Errorf("after %v: %v", time.Since(begin), err)
			}
		})
	}
	all.Wait()
	t.Logf("all answered after %v", time.Since(begin))
	eventually(t, time.Minute, "an answer", func() bool { return newest(t, l, 10*time.Second) == nil })
	t.Logf("answered after %v", time.Since(begin))
}

package etcdtest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/datadir"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
)

// Backup saves what etcd holds in a file, as `etcdctl snapshot save` does. c has one endpoint: another member may be behind.
func Backup(ctx context.Context, c *clientv3.Client, file string) error {
	if _, err := c.Get(ctx, "etcdtest"); err != nil { // linearizable: the member is not behind now
		return fmt.Errorf("back up etcd: %w", err)
	}
	r, err := c.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("back up etcd: %w", err)
	}
	defer r.Close()
	out, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("back up etcd: %w", err)
	}
	_, err = io.Copy(out, r)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("back up etcd: %w", err)
	}
	return nil
}

// Restore stops the cluster and starts it anew with what was in the backup, as `etcdutl snapshot restore` does: revisions go on from the backup's. With another
// token the cluster's id is another; empty keeps it.
func (c *Cluster) Restore(file, token string) error {
	c.Stop()
	for _, m := range c.Members { // a life takes some 200 MB of disk, and a random test has dozens
		if err := os.RemoveAll(m.cfg.Dir); err != nil {
			return fmt.Errorf("restore etcd: %w", err)
		}
	}
	c.lives++
	c.setDirs()
	for _, m := range c.Members {
		if token != "" {
			m.cfg.Token = token
		}
		if err := restore(file, m.cfg.Dir); err != nil {
			return err
		}
	}
	if err := c.identify(); err != nil {
		return err
	}
	return c.Start()
}

// restore makes the folder of a member that has never run out of a backup: the data without membership, which a new cluster writes itself, and without the
// place in a log that is not there.
func restore(file, dir string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("restore etcd: %w", err)
	}
	if len(data)%512 == sha256.Size { // etcd appends a checksum to whole pages
		data = data[:len(data)-sha256.Size]
	}
	db := datadir.ToBackendFileName(dir)
	if err := os.MkdirAll(filepath.Dir(db), 0o700); err != nil {
		return fmt.Errorf("restore etcd: %w", err)
	}
	if err := os.WriteFile(db, data, 0o600); err != nil {
		return fmt.Errorf("restore etcd: %w", err)
	}
	log := zap.NewNop()
	be := backend.NewDefaultBackend(log, db)
	defer be.Close()
	members := schema.NewMembershipBackend(log, be)
	if err := members.TrimMembershipFromBackend(); err != nil {
		return fmt.Errorf("restore etcd: %w", err)
	}
	tx := be.BatchTx()
	tx.LockOutsideApply()
	tx.UnsafeDelete(schema.Meta, schema.MetaConsistentIndexKeyName)
	tx.UnsafeDelete(schema.Meta, schema.MetaTermKeyName)
	tx.Unlock()
	be.ForceCommit()
	return nil
}

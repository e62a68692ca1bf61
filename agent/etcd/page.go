package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	pageSize    = 1000             // keys (1.2)
	readTimeout = 10 * time.Second // of one page
)

// errMixed says that two answers came from different clusters, which only a wrong list of endpoints explains.
var errMixed = errors.New("etcd's endpoints belong to different clusters")

// Position is a moment of etcd. Revisions compare only within an epoch (1.5).
type Position struct {
	Cluster  uint64
	Epoch    uint64
	Revision int64
}

// ReadAll reads all keys of a prefix at one revision, and hands them to take, page by page. Only a few such reads run at one time.
func (l *Link) ReadAll(ctx context.Context, prefix string, take func([]*mvccpb.KeyValue) error) (at Position, err error) {
	release, err := l.Acquire(ctx)
	if err != nil {
		return at, err
	}
	defer release()
	asked := l.Seen()
	err = Pages(ctx, l, prefix, 0, func(r *clientv3.GetResponse) error {
		if at.Revision == 0 {
			at.Cluster, at.Revision = r.Header.ClusterId, r.Header.Revision
			if at.Epoch, err = l.See(r.Header, asked); err != nil {
				return err
			}
		}
		if r.Header.ClusterId != at.Cluster {
			return errMixed
		}
		return take(r.Kvs)
	})
	return at, err
}

// Pages reads all keys of a prefix at one revision, 0 = that of now, and hands each answer to take, which may end it by an error. Pages that are too large are read as several.
func Pages(ctx context.Context, c Client, prefix string, rev int64, take func(*clientv3.GetResponse) error) error {
	for from, limit, more := prefix, pageSize, true; more; {
		pctx, cancel := context.WithTimeout(ctx, readTimeout)
		r, err := c.Page(pctx, prefix, from, rev, limit)
		cancel()
		if IsTooLarge(err) && limit > 1 {
			limit = max(1, limit/8)
			continue
		}
		if err == nil {
			rev = cmp.Or(rev, r.Header.Revision) // later pages are read at the first one's
			err = take(r)
		}
		if err != nil {
			return fmt.Errorf("read %q: %w", prefix, err)
		}
		if more = r.More && len(r.Kvs) > 0; more {
			from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
		}
	}
	return nil
}

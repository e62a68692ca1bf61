package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

const (
	pageSize    = 1000             // keys (1.2)
	readTimeout = 10 * time.Second // of one page
)

// errMixed says that two answers came from different clusters, which only a wrong list of endpoints explains.
var errMixed = errors.New("etcd's endpoints belong to different clusters")

// snapshot is a whole prefix at one revision.
type snapshot struct {
	records  records
	epoch    uint64
	revision int64
}

// read reads prefix whole: pages of one revision (1.2).
func read(ctx context.Context, l *etcd.Link, dec *format.Decoder, prefix string) (snapshot, error) {
	release, err := l.Acquire(ctx)
	if err != nil {
		return snapshot{}, err
	}
	defer release()
	var (
		s       snapshot
		fresh   []service.Backend
		unused  = make(map[string]other)
		from    = prefix
		limit   = pageSize
		more    = true
		current []service.Backend
	)
	for more {
		pctx, cancel := context.WithTimeout(ctx, readTimeout)
		r, err := l.Page(pctx, prefix, from, s.revision, limit)
		cancel()
		if etcd.IsTooLarge(err) && limit > 1 {
			limit = max(1, limit/8)
			continue
		}
		if err != nil {
			return snapshot{}, fmt.Errorf("read %q: %w", prefix, err)
		}
		if s.revision == 0 {
			s.epoch, s.revision = r.Header.ClusterId, r.Header.Revision
		} else if r.Header.ClusterId != s.epoch {
			return snapshot{}, fmt.Errorf("read %q: %w", prefix, errMixed)
		}
		for _, kv := range r.Kvs {
			c := decode(dec, current[:0], kv)
			fresh = append(fresh, c.backends...)
			if c.other != nil {
				unused[string(kv.Key)] = *c.other
			}
			current = c.backends
		}
		more = r.More && len(r.Kvs) > 0
		if more {
			from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
		}
	}
	s.records, _ = merge(nil, nil, fresh)
	if len(unused) > 0 {
		s.records.other = unused
	}
	return s, nil
}

// decode says what one key gives; its backends are appended to room.
func decode(dec *format.Decoder, room []service.Backend, kv *mvccpb.KeyValue) change {
	key := string(kv.Key)
	backends, err := dec.Append(room, key, kv.Value)
	backends = slices.DeleteFunc(backends, func(b service.Backend) bool {
		if b.Addr.Addr().IsValid() {
			return false
		}
		err = fmt.Errorf("address \"%s:%d\": host names are not supported yet", b.Host, b.Addr.Port())
		return true
	})
	c := change{backends: backends}
	for i := range backends {
		backends[i].Key, backends[i].Created, backends[i].Modified = key, kv.CreateRevision, kv.ModRevision
	}
	if err != nil {
		c.other = &other{reason: err.Error(), modified: kv.ModRevision}
	} else if len(backends) == 0 {
		c.other = &other{modified: kv.ModRevision}
	}
	return c
}

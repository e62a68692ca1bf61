package discovery

import (
	"context"
	"iter"
	"maps"
	"strings"

	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// snapshot is a whole prefix at one revision.
type snapshot struct {
	records records
	at      etcd.Position
}

// read reads prefix whole.
func read(ctx context.Context, l *etcd.Link, dec *format.Decoder, prefix string) (s snapshot, err error) {
	var fresh []*service.Backend
	var room []service.Backend
	unused := make(map[string]other)
	j := dec.Joiner()
	if j != nil {
		j.Reset()
	}
	s.at, err = l.ReadAll(ctx, prefix, func(kvs []*mvccpb.KeyValue) error {
		for _, kv := range kvs {
			c := decode(dec, room[:0], kv)
			fresh = appendCopies(fresh, c.backends)
			if c.other != nil {
				unused[string(kv.Key)] = *c.other
			}
			room = c.backends
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	if j != nil {
		for key, c := range joined(j) {
			fresh = appendCopies(fresh, c.backends)
			if c.other == nil {
				delete(unused, key)
			} else {
				unused[key] = *c.other
			}
		}
	}
	s.records, _ = merge(nil, nil, fresh)
	joinKeys(s.records.shown)
	if len(unused) > 0 {
		s.records.other = unused
	}
	return s, nil
}

// joinKeys has the keys of a whole list share one string: by itself each takes up to 15 bytes more.
func joinKeys(list []*service.Backend) {
	isNext := func(i int) bool { return i == 0 || list[i].Key != list[i-1].Key } // a key that lists many backends is there once
	var all strings.Builder
	for i := range list {
		if isNext(i) {
			all.WriteString(list[i].Key)
		}
	}
	keys, at := all.String(), 0
	for i := range list {
		if isNext(i) {
			n := len(list[i].Key)
			list[i].Key, at = keys[at:at+n], at+n
		} else {
			list[i].Key = list[i-1].Key
		}
	}
}

// decodeEvents says what the keys of a batch give now, and the newest revision in it.
func decodeEvents(dec *format.Decoder, batch []*mvccpb.Event) (changes map[string]change, newest int64) {
	last := make(map[string]*mvccpb.Event, len(batch))
	for _, e := range batch {
		last[string(e.Kv.Key)] = e
		newest = max(newest, e.Kv.ModRevision)
	}
	j := dec.Joiner()
	changes = make(map[string]change, len(last))
	for key, e := range last {
		if e.Type != mvccpb.Event_DELETE {
			changes[key] = decode(dec, nil, e.Kv)
			continue
		}
		changes[key] = change{}
		if j != nil {
			j.Delete(key)
		}
	}
	if j != nil {
		maps.Insert(changes, joined(j))
	}
	return changes, newest
}

// decode says what one key gives; its backends are appended to room. If keys are joined, joined has to be asked what they give together.
func decode(dec *format.Decoder, room []service.Backend, kv *mvccpb.KeyValue) change {
	key := string(kv.Key)
	if j := dec.Joiner(); j != nil {
		j.Put(key, kv.Value, kv.CreateRevision, kv.ModRevision, kv.Lease)
	}
	backends, err := dec.Append(room, key, kv.Value)
	return newChange(key, kv.CreateRevision, kv.ModRevision, kv.Lease, backends, err)
}

// joined says what the keys give that j joins with those which changed, themselves included.
func joined(j *format.Joiner) iter.Seq2[string, change] {
	return func(yield func(string, change) bool) {
		for _, p := range j.Changed() {
			if !yield(p.Key, newChange(p.Key, p.Created, p.Modified, p.Lease, p.Backends, p.Err)) {
				return
			}
		}
	}
}

// newChange is what a key gives; backends become its own.
func newChange(key string, created, modified, lease int64, backends []service.Backend, err error) change {
	for i := range backends {
		backends[i].Key, backends[i].Created, backends[i].Modified, backends[i].Lease = key, created, modified, lease
	}
	c := change{backends: backends}
	if err != nil {
		c.other = &other{reason: err.Error(), modified: modified}
	} else if len(backends) == 0 {
		c.other = &other{modified: modified}
	}
	return c
}

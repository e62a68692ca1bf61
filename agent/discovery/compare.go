package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lbagent/lbagent/agent/etcd"
)

const (
	maxDiffer   = 20   // keys of each kind that a Comparison names
	keysPage    = 1000 // that are read at once
	keysTimeout = 10 * time.Second
)

// Comparison is what etcd has of a service at this moment, beside what the agent knows of it.
type Comparison struct {
	Revision int64 // of etcd
	Keys     int   // that it has
	Known    int64 // the revision of the agent's list

	// Keys that etcd has and the agent doesn't know, the reverse, and those whose values are of different revisions: the first of each, sorted, and their number. What
	// is on its way to the agent is among them.
	Missing, Gone, Changed    []string
	Missings, Gones, Changeds int
}

// ErrNotInEtcd is why Compare can't compare: the list isn't etcd's.
var ErrNotInEtcd = errors.New("its list is not kept in etcd")

// Compare reads the keys of a followed service, without their values, and compares them with what is known. It costs etcd a read of all keys of the prefix: callers are to ask
// seldom.
func (d *Discovery) Compare(ctx context.Context, name string) (*Comparison, error) {
	d.mu.Lock()
	f := d.follows[name]
	d.mu.Unlock()
	if f == nil || f.follow.keys() == "" {
		return nil, ErrNotInEtcd
	}
	l, err := d.cfg.Etcd.Get(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := l.Join(ctx)
	defer cancel()
	release, err := l.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	there, revision, err := keysOf(ctx, l, f.follow.keys())
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	known, rev := f.records, f.rev
	f.mu.Unlock()
	return known.compareWith(there, revision, rev), nil
}

// keysOf reads the keys of a prefix, each with the revision of its value.
func keysOf(ctx context.Context, l *etcd.Link, prefix string) (keys map[string]int64, revision int64, err error) {
	raw := l.Raw()
	if raw == nil {
		return nil, 0, errors.New("no client of etcd")
	}
	end := prefix + "\x00"
	if strings.HasSuffix(prefix, "/") {
		end = clientv3.GetPrefixRangeEnd(prefix)
	}
	keys = make(map[string]int64)
	for from := prefix; ; {
		pctx, cancel := context.WithTimeout(ctx, keysTimeout)
		r, err := raw.Get(pctx, from, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(keysPage), clientv3.WithKeysOnly())
		cancel()
		if err != nil {
			return nil, 0, fmt.Errorf("read the keys of %q: %w", prefix, err)
		}
		if revision == 0 {
			revision = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			keys[string(kv.Key)] = kv.ModRevision
		}
		if !r.More || len(r.Kvs) == 0 {
			return keys, revision, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// compareWith compares what the keys say with the keys that are there. rev is that of r.
func (r records) compareWith(there map[string]int64, revision, rev int64) *Comparison {
	c := &Comparison{Revision: revision, Keys: len(there), Known: rev}
	known := make(map[string]int64, len(r.shown)+len(r.hidden)+len(r.other))
	for i := range r.shown {
		known[r.shown[i].Key] = r.shown[i].Modified
	}
	for i := range r.hidden {
		known[r.hidden[i].Key] = r.hidden[i].Modified
	}
	for key, o := range r.other {
		known[key] = o.modified
	}
	for key, modified := range there {
		switch is, ok := known[key]; {
		case !ok:
			c.Missing = append(c.Missing, key)
		case is != modified:
			c.Changed = append(c.Changed, key)
		}
	}
	for key := range known {
		if _, ok := there[key]; !ok {
			c.Gone = append(c.Gone, key)
		}
	}
	c.Missings, c.Gones, c.Changeds = len(c.Missing), len(c.Gone), len(c.Changed)
	for _, keys := range []*[]string{&c.Missing, &c.Gone, &c.Changed} {
		slices.Sort(*keys)
		*keys = (*keys)[:min(len(*keys), maxDiffer)]
		for i, key := range *keys {
			(*keys)[i] = strings.ToValidUTF8(key, "?") // etcd takes any bytes
		}
	}
	return c
}

package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	maxItems = 5000     // more are no configuration that anybody wrote
	maxBytes = 16 << 20 // of all texts
)

var errTooMuch = fmt.Errorf("there are more than %d items, or they have more than %d MiB: is the prefix right?", maxItems, maxBytes>>20)

// keys is what etcd has below a prefix, the mark of removals included.
type keys struct {
	f      *Fleet
	prefix string
	read   map[string]Entry
	bytes  int
	at     etcd.Position
}

// follow keeps the entries level with etcd until ctx ends.
func (f *Fleet) follow(ctx context.Context) {
	etcd.FollowWhere(ctx, f.cfg.Etcd, func() (string, <-chan struct{}) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.prefix, f.changed
	}, func(prefix string) etcd.Keys { return &keys{f: f, prefix: prefix} })
}

// Read: see etcd.Keys.
func (k *keys) Read(ctx context.Context, l *etcd.Link) (etcd.Position, error) {
	k.read, k.bytes = make(map[string]Entry), 0
	at, err := l.ReadAll(ctx, k.prefix, func(kvs []*mvccpb.KeyValue) error {
		for _, kv := range kvs {
			k.put(kv)
		}
		return k.tooMuch()
	})
	if err != nil {
		return at, err
	}
	k.at = at
	k.publish(true)
	return at, nil
}

func (k *keys) put(kv *mvccpb.KeyValue) {
	key := strings.TrimPrefix(string(kv.Key), k.prefix)
	k.bytes += len(kv.Value) - len(k.read[key].Now)
	k.read[key] = Entry{Key: key, Now: string(kv.Value), Modified: kv.ModRevision}
}

func (k *keys) tooMuch() error {
	if len(k.read) > maxItems || k.bytes > maxBytes {
		return errTooMuch
	}
	return nil
}

// Apply: see etcd.Keys.
func (k *keys) Apply(_ context.Context, _ *etcd.Link, events []*mvccpb.Event) error {
	for _, e := range events {
		k.at.Revision = max(k.at.Revision, e.Kv.ModRevision)
		if e.Type == clientv3.EventTypeDelete {
			key := strings.TrimPrefix(string(e.Kv.Key), k.prefix)
			k.bytes -= len(k.read[key].Now)
			delete(k.read, key)
		} else {
			k.put(e.Kv)
		}
	}
	if err := k.tooMuch(); err != nil {
		return err
	}
	k.publish(true)
	return nil
}

// Confirm: see etcd.Keys.
func (k *keys) Confirm() { k.publish(false) }

// Inventory: see etcd.Keys.
func (k *keys) Inventory() (count int, newest int64, known bool) {
	for _, e := range k.read {
		newest = max(newest, e.Modified)
	}
	return len(k.read), newest, true
}

// Well: see etcd.Keys.
func (k *keys) Well() {
	f := k.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.trouble != "" && f.prefix == k.prefix {
		f.trouble = ""
		f.log.Info("the fleet's items are followed again", "prefix", k.prefix)
	}
}

// Ended: see etcd.Keys.
func (k *keys) Ended(err error) (own bool) {
	f := k.f
	f.log.Debug("reading the fleet's items again", "cause", err)
	if errors.Is(err, etcd.ErrMissed) {
		f.log.Warn("the fleet's items were out of date", "cause", err)
	}
	if own = etcd.IsOwn(err) || errors.Is(err, errTooMuch); !own {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.trouble != err.Error() && f.prefix == k.prefix {
		f.trouble = err.Error()
		f.log.Error("cannot follow the fleet's items; those known stay in force", "error", err)
	}
	return true
}

// removedKey names what was removed on purpose. No service's name is empty, so no item has this key.
const removedKey = "/removed"

// removals is the value of removedKey.
type removals struct {
	Keys []string `json:"keys"` // the latest last
}

// publish gives what was read to the Fleet, or confirms it.
func (k *keys) publish(changed bool) {
	f, now := k.f, time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.prefix != k.prefix {
		return
	}
	f.confirmed = now
	if !changed {
		return
	}
	f.epoch, f.revision, f.source = k.at.Epoch, k.at.Revision, "etcd"
	items, removed := make(map[string]Entry, len(k.read)), make(map[string]bool)
	for key, e := range k.read {
		if key != removedKey {
			items[key] = e
			continue
		}
		var r removals
		if err := json.Unmarshal([]byte(e.Now), &r); err != nil {
			f.log.Warn("the mark of removed items can't be read", "key", k.prefix+removedKey, "cause", err)
		}
		for _, k := range r.Keys {
			removed[k] = true
		}
	}
	if !f.known {
		f.set = newSet()
	}
	if different := f.set.install(now, items, removed); different || !f.known {
		f.known, f.dirty = true, true
		f.poke()
	}
}

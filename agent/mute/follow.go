package mute

import (
	"context"
	"errors"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var (
	errTooMany = errors.New("more than are honoured")                     // ends a read
	errRoom    = errors.New("there is room for mutes that were left out") // has all keys read anew
)

// followed is how the following fares.
type followed struct {
	now     bool // what is known is etcd's word
	trouble string
	bad     map[string]string // reasons by key
	over    bool              // there are more keys than are honoured
}

// SetPrefix changes where fleet-wide mutes are; "" = nowhere. Those of another prefix hold no longer.
func (m *Mutes) SetPrefix(now time.Time, prefix string) {
	m.mu.Lock()
	if prefix == m.prefix {
		m.mu.Unlock()
		return
	}
	m.prefix = prefix
	close(m.moved)
	m.moved = make(chan struct{})
	clear(m.fleets)
	m.followed = followed{}
	m.settleLocked(now, true)
	m.mu.Unlock()
}

func (m *Mutes) changedLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// follow keeps the fleet's mutes as etcd has them, until ctx ends. Whatever happens to etcd, what is known stays, each until its own end.
func (m *Mutes) follow(ctx context.Context) {
	etcd.FollowWhere(ctx, m.cfg.Etcd, func() (string, <-chan struct{}) {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.prefix, m.moved
	}, func(prefix string) etcd.Keys { return &keys{m, prefix} })
}

// keys are those below a prefix, which counts as long as it is that of Mutes.
type keys struct {
	m      *Mutes
	prefix string
}

// Read: see etcd.Keys.
func (k *keys) Read(ctx context.Context, l *etcd.Link) (etcd.Position, error) {
	var all []*mvccpb.KeyValue
	at, err := l.ReadAll(ctx, k.prefix, func(kvs []*mvccpb.KeyValue) error {
		if all = append(all, kvs...); len(all) > maxFleet {
			return errTooMany
		}
		return nil
	})
	if err != nil && !errors.Is(err, errTooMany) {
		return at, err
	}
	k.m.install(time.Now(), k.prefix, all)
	return at, nil
}

// Apply: see etcd.Keys.
func (k *keys) Apply(_ context.Context, _ *etcd.Link, events []*mvccpb.Event) error {
	return k.m.apply(time.Now(), k.prefix, events)
}

// Confirm: see etcd.Keys.
func (k *keys) Confirm() {}

// Inventory: see etcd.Keys. What can't be read, or is too much, isn't known here; but a read is one page.
func (k *keys) Inventory() (count int, newest int64, known bool) { return 0, 0, false }

// Well: see etcd.Keys.
func (k *keys) Well() { k.setTrouble("") }

// Ended: see etcd.Keys.
func (k *keys) Ended(err error) (own bool) {
	m := k.m
	m.log.Debug("reading the fleet's mutes again", "cause", err)
	m.mu.Lock()
	if m.prefix == k.prefix {
		m.followed.now = m.followed.now && errors.Is(err, etcd.ErrLook)
	}
	m.mu.Unlock()
	if errors.Is(err, errRoom) {
		return true
	}
	if own = etcd.IsOwn(err); own && k.setTrouble(err.Error()) {
		m.log.Error("fleet-wide mutes can't be followed; grant the agent's etcd user to read the prefix, or turn them off (mute.prefix)", "cause", err)
	}
	return own
}

// setTrouble notes why the mutes can't be followed, and says whether that is news.
func (k *keys) setTrouble(why string) bool {
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	if k.m.prefix != k.prefix || k.m.followed.trouble == why {
		return false
	}
	k.m.followed.trouble = why
	return true
}

// install makes what a whole read found all that is known. A list that is empty, or is another cluster's, is believed: to mute somebody by what etcd no longer says would be
// worse than to give them calls.
func (m *Mutes) install(now time.Time, prefix string, all []*mvccpb.KeyValue) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.prefix != prefix {
		return
	}
	was := m.fleets
	m.fleets = make(map[key]fleetMute, len(all))
	m.followed.bad = nil
	if m.followed.over = len(all) > maxFleet; m.followed.over {
		m.log.Error("there are more fleet-wide mutes than are honoured", "prefix", prefix, "honoured", maxFleet)
		all = all[:maxFleet]
	}
	for _, kv := range all {
		m.takeLocked(prefix, kv)
	}
	m.followed.now = true
	m.settleLocked(now, !equal(was, m.fleets))
}

func equal(a, b map[key]fleetMute) bool {
	if len(a) != len(b) {
		return false
	}
	for k, one := range a {
		if other, ok := b[k]; !ok || !same(one.Mute, other.Mute) {
			return false
		}
	}
	return true
}

// takeLocked takes one key as it is now; false if it can't be read, or there are too many.
func (m *Mutes) takeLocked(prefix string, kv *mvccpb.KeyValue) (service.Mute, bool) {
	name := string(kv.Key)
	one, err := decode(prefix, name, kv.Value)
	if err != nil {
		m.dropLocked(prefix, name) // what it said before holds no longer
		if len(m.followed.bad) < maxFleet {
			if m.followed.bad == nil {
				m.followed.bad = make(map[string]string)
			}
			if m.followed.bad[name] != err.Error() {
				m.log.Warn("a fleet-wide mute can't be read", "key", clip(name, 300), "cause", err)
			}
			m.followed.bad[name] = err.Error()
		}
		return one, false
	}
	delete(m.followed.bad, name)
	if _, known := m.fleets[keyOf(&one)]; !known && len(m.fleets) >= maxFleet {
		m.followed.over = true
		return one, false
	}
	m.fleets[keyOf(&one)] = fleetMute{Mute: one, modified: kv.ModRevision}
	return one, true
}

// dropLocked forgets one key.
func (m *Mutes) dropLocked(prefix, name string) {
	delete(m.followed.bad, name)
	for k, one := range m.fleets {
		if encodeKey(prefix, &one.Mute) == name {
			delete(m.fleets, k)
			return
		}
	}
}

// settleLocked hands on what has become of the fleet's mutes.
func (m *Mutes) settleLocked(now time.Time, changed bool) {
	if changed {
		m.touchLocked(m.fleet)
	}
	m.publishLocked(now, "")
	m.changedLocked()
}

// apply takes what happened.
func (m *Mutes) apply(now time.Time, prefix string, events []*mvccpb.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.prefix != prefix {
		return nil // the end of this is near
	}
	left := false
	for _, e := range events {
		if e.Type == clientv3.EventTypeDelete {
			m.dropLocked(prefix, string(e.Kv.Key))
			left = true
		} else if one, ok := m.takeLocked(prefix, e.Kv); ok && !now.Before(one.Until) {
			m.log.Warn("a fleet-wide mute is over already by this host's clock, and not honoured; are the clocks right?",
				"service", one.Service, "backend", one.Addr, "author", one.Author, "host", one.Host, "until", one.Until)
		}
	}
	m.settleLocked(now, true)
	if m.followed.over && left {
		return errRoom
	}
	return nil
}

// await waits until seen is true of the fleet's mutes as they are known here; false if that takes longer than ctx has.
func (m *Mutes) await(ctx context.Context, k key, seen func(one fleetMute, ok bool) bool) bool {
	for {
		m.mu.Lock()
		one, ok := m.fleets[k]
		changed := m.changed
		m.mu.Unlock()
		if seen(one, ok) {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// holding are the addresses of a service that etcd's keys mute at now.
func holding(prefix string, kvs []*mvccpb.KeyValue, now time.Time) []service.Mute {
	var out []service.Mute
	for _, kv := range kvs {
		if one, err := decode(prefix, string(kv.Key), kv.Value); err == nil && now.Before(one.Until) {
			out = append(out, one)
		}
	}
	return out
}

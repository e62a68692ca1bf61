package mute

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	readTimeout = 10 * time.Second
	silence     = 30 * time.Second // without a word on the watch: read again (1.3)
	silenceJoin = 3 * time.Second  // and up to this much more
	auditEvery  = 10 * time.Minute // ±50 %: read again although all seems well (1.6)
	settles     = 10 * time.Second // a watch that lived this long was a good one
)

// Why a watch is given up although it did not fail.
var (
	errAudit    = errors.New("it is time to look")
	errSilent   = errors.New("etcd does not answer on the watch")
	errRestored = errors.New("etcd was replaced or restored from a backup")
	errEnded    = errors.New("the watch ended")
	errRoom     = errors.New("there is room for mutes that were left out")
	errPrefix   = errors.New("the prefix changed")
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
	var back etcd.Backoff
	for ctx.Err() == nil {
		m.mu.Lock()
		prefix, changed := m.prefix, m.changed
		m.mu.Unlock()
		if prefix == "" {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		l, err := m.cfg.Etcd.Get(ctx)
		if err != nil {
			return
		}
		both, cancel := l.Join(ctx)
		began := time.Now()
		err = m.attempt(both, l, prefix)
		ended := context.Cause(l.Context())
		cancel()
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) >= settles || errors.Is(err, errPrefix) {
			back.Reset()
		}
		if ended == nil {
			m.report(l, err, &back)
		}
		m.mu.Lock()
		m.followed.now = m.followed.now && errors.Is(err, errAudit)
		m.mu.Unlock()
		etcd.Sleep(ctx, back.Next(), nil)
	}
}

// report says why an attempt ended, to whom it concerns.
func (m *Mutes) report(l *etcd.Link, err error, back *etcd.Backoff) {
	m.log.Debug("reading the fleet's mutes again", "cause", err)
	switch {
	case etcd.IsAuth(err):
		l.Fail(err)
	case errors.Is(err, errSilent):
		m.cfg.Etcd.Fail(err)
		l.Fail(err)
	case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, errRestored), errors.Is(err, errEnded), errors.Is(err, errAudit), errors.Is(err, errRoom), errors.Is(err, errPrefix):
	case etcd.IsDenied(err), etcd.IsTooLarge(err):
		m.cfg.Etcd.OK() // it did answer
		back.Most()     // nothing that will be better in a second
		if m.setTrouble(err.Error()) {
			m.log.Error("fleet-wide mutes can't be followed; grant the agent's etcd user to read the prefix, or turn them off (mute.prefix)", "cause", err)
		}
	default:
		m.cfg.Etcd.Fail(err)
	}
}

// setTrouble notes why the mutes can't be followed, and says whether that is news.
func (m *Mutes) setTrouble(why string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	news := m.followed.trouble != why
	m.followed.trouble = why
	return news
}

// attempt reads the mutes and watches them until something fails; it never returns nil.
func (m *Mutes) attempt(ctx context.Context, l *etcd.Link, prefix string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	read, err := m.read(ctx, l, prefix)
	if err != nil {
		return fmt.Errorf("read %q: %w", prefix, err)
	}
	m.cfg.Etcd.OK()
	if !m.install(time.Now(), prefix, read) {
		return errPrefix
	}
	guard := time.AfterFunc(silence, func() { cancel(errSilent) }) // until etcd has made the watch nobody else sets a limit
	defer guard.Stop()
	err = m.watch(ctx, l, prefix, read.Header.ClusterId, read.Header.Revision, guard)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return fmt.Errorf("watch %q: %w", prefix, err)
}

func (m *Mutes) read(ctx context.Context, l *etcd.Link, prefix string) (*clientv3.GetResponse, error) {
	release, err := l.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	return l.Page(ctx, prefix, prefix, 0, maxFleet)
}

// install makes what a whole read found all that is known; false if another prefix counts by now. A list that is empty, or is another cluster's, is believed:
// to mute somebody by what etcd no longer says would be worse than to give them calls.
func (m *Mutes) install(now time.Time, prefix string, r *clientv3.GetResponse) bool {
	m.mu.Lock()
	if m.prefix != prefix {
		m.mu.Unlock()
		return false
	}
	was := m.fleets
	m.fleets = make(map[key]fleetMute, len(r.Kvs))
	m.followed.bad = nil
	if m.followed.over = r.More; r.More {
		m.log.Error("there are more fleet-wide mutes than are honoured", "prefix", prefix, "count", r.Count, "honoured", maxFleet)
	}
	for _, kv := range r.Kvs {
		m.takeLocked(prefix, kv)
	}
	m.followed.now, m.followed.trouble = true, ""
	m.settleLocked(now, !equal(was, m.fleets))
	m.mu.Unlock()
	return true
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

// watch follows from the revision that was read (1.2) until the watch fails.
func (m *Mutes) watch(ctx context.Context, l *etcd.Link, prefix string, epoch uint64, rev int64, guard *time.Timer) error {
	responses := l.Watch(ctx, prefix, rev)
	quiet := time.NewTimer(silence + rand.N(silenceJoin))
	defer quiet.Stop()
	audit := time.NewTimer(auditEvery/2 + rand.N(auditEvery))
	defer audit.Stop()
	for {
		m.mu.Lock()
		changed, current := m.changed, m.prefix
		m.mu.Unlock()
		if current != prefix {
			return errPrefix
		}
		select {
		case r, ok := <-responses:
			guard.Stop()
			switch {
			case !ok:
				return errEnded
			case r.Err != nil:
				return r.Err
			case r.Header.GetClusterId() != epoch, r.Created && r.Header.GetRevision() < rev:
				return errRestored
			}
			m.cfg.Etcd.OK()
			if err := m.apply(time.Now(), prefix, r.Events); err != nil {
				return err
			}
			quiet.Reset(silence + rand.N(silenceJoin))
		case <-changed:
		case <-quiet.C:
			return errAudit // a read tells more than a question would: it is one page
		case <-audit.C:
			return errAudit
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// apply takes what happened, one response of etcd at a time.
func (m *Mutes) apply(now time.Time, prefix string, events []*clientv3.Event) error {
	if len(events) == 0 {
		return nil
	}
	m.mu.Lock()
	if m.prefix != prefix {
		m.mu.Unlock()
		return errPrefix
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
	over := m.followed.over
	m.settleLocked(now, true)
	m.mu.Unlock()
	if over && left {
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

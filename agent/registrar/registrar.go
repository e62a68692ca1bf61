// Package registrar keeps the services that run on this host in etcd: present while they answer, gone within seconds when they don't (SEMANTICS 5).
//
// It is a loop, not an action: "key present, value equal, lease alive" is checked every third of the lease's life, at the cost of one keepalive and one
// transaction that only reads for the whole host, however many services it has. What the transaction compares are ModRevisions, so that a key which somebody
// deleted, changed or took away is seen, and never overwritten unseen. All keys hang on one lease, which only the death of the host ends: the death of a service is
// found by its probe, and the agent takes its lease over when it starts again.
package registrar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/health"
)

const (
	// DefaultTTL is how long a host may be silent until its keys go.
	DefaultTTL = 60 * time.Second
	// claimWithin is how long a held registration waits for its holder after a restart of the agent (5.4).
	claimWithin = 10 * time.Second

	stateName = "registrations"
)

// Place is where and how a service's keys are written.
type Place struct{ Prefix, Format string }

// Config wires a Registrar.
type Config struct {
	Log    hclog.Logger
	Events *event.Log
	Etcd   *etcd.Links
	Dir    string // where the state is kept; empty = nowhere
	// Place says where the records of a service go, in which format; format is what the registration asks for, empty = the service's own. It is called with locks held.
	Place func(service, format string) (Place, error)
}

// Registrar keeps this host's registrations in etcd. Safe for concurrent use.
type Registrar struct {
	cfg   Config
	probe func(ctx context.Context, o health.Options, addr netip.AddrPort) health.Check
	own   func(ctx context.Context) (netip.Addr, error)
	open  func(ctx context.Context) (conn, error)
	cpu   func() (cpu, error)
	wake  chan struct{}

	saving sync.Mutex // one writer of the file; taken before mu
	saved  []byte

	mu sync.Mutex

	ttl       time.Duration
	entries   map[id]*entry
	seq       uint64
	drains    map[string]drain
	withdrawn bool
	handedOn  bool      // another process writes from now on
	claimBy   time.Time // zero: the agent isn't ready yet
	ownAddr   netip.Addr
	ownErr    error
	inherited map[string]bool // keys that another life of this host wrote
	keep      state           // the keeper's part of the file
	wanted    uint64          // rises with every change of what is wanted
	applied   uint64          // the wanted that etcd has
	syncErr   error           // why the last sync failed; nil if it didn't
	changed   chan struct{}   // closed and replaced after every sync, and every change
	spawn     func(*entry)    // starts the probes of an entry; nil while the registrar doesn't run
	stats     Stats
}

// conn is etcd for one sync.
type conn struct {
	store
	ctx  context.Context // ends with ctx of open, or with the connection
	fail func(error)     // the connection is of no use any more
	done func()          // gives it back
}

// New returns a Registrar with what it finds in its file; Run starts it.
func New(cfg Config) (*Registrar, error) {
	if cfg.Log == nil || cfg.Events == nil || cfg.Etcd == nil || cfg.Place == nil {
		return nil, errors.New("registrar: Log, Events, Etcd and Place are needed")
	}
	prober := health.NewProber()
	r := &Registrar{
		cfg: cfg, probe: prober.Check, cpu: readCPU, wake: make(chan struct{}, 1), ttl: DefaultTTL,
		entries: make(map[id]*entry), drains: make(map[string]drain), inherited: make(map[string]bool), changed: make(chan struct{}),
	}
	r.own = func(ctx context.Context) (netip.Addr, error) { return ownAddress(ctx, cfg.Etcd.Status().Endpoints) }
	r.open = r.openEtcd
	r.load()
	return r, nil
}

// path is the state's file, "" if there is none.
func (r *Registrar) path() string {
	if r.cfg.Dir == "" {
		return ""
	}
	return filepath.Join(r.cfg.Dir, stateName)
}

// load takes over what another life of this host left (5.3); it returns the file, nil if there is none.
func (r *Registrar) load() *state {
	if r.cfg.Dir == "" {
		return nil
	}
	s, err := loadState(r.path())
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			r.cfg.Log.Warn("the registrations of before can't be read and were set aside; those that came by the API are lost", "path", r.path(), "error", err)
		}
		return nil
	}
	r.keep = state{Leases: s.Leases, TTL: s.TTL, Cluster: s.Cluster, Keys: s.Keys}
	for _, k := range s.Keys {
		r.inherited[k.Key] = true
	}
	for _, f := range s.Registrations {
		if err := f.Check(); err != nil {
			r.cfg.Log.Warn("a registration of before is invalid and was dropped", "service", f.Service, "cause", err)
			continue
		}
		origin := FromAPI
		if f.Hold {
			origin = FromHold
		}
		r.put(&entry{Registration: f.Registration, origin: origin, uid: f.UID})
	}
	for _, d := range s.Drains {
		r.drains[d.Service] = d
	}
	return s
}

// HandOn writes the file for the last time and ends all changes: from now on another process is this host's registrar (6.3). Run has to have ended. TakeBack is for when
// that process fails.
func (r *Registrar) HandOn() {
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	r.handedOn = true
	r.mu.Unlock()
	r.write()
}

// TakeBack undoes HandOn.
func (r *Registrar) TakeBack() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handedOn = false
}

// TakeOver reads the file again, before Run: the agent that this one follows has written it for the last time (6.3).
func (r *Registrar) TakeOver() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, e := range r.entries {
		if e.origin == FromAPI || e.origin == FromHold {
			delete(r.entries, id)
		}
	}
	clear(r.drains)
	clear(r.inherited)
	if s := r.load(); s != nil {
		r.withdrawn = s.Withdrawn // a host that goes down isn't announced by an upgrade
	}
}

// save writes the file, unless it is another process's by now.
func (r *Registrar) save() {
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	handedOn := r.handedOn
	r.mu.Unlock()
	if !handedOn {
		r.write()
	}
}

// write is save under r.saving: if the file would say something new. That it can't be written is no reason not to serve.
func (r *Registrar) write() {
	if r.cfg.Dir == "" {
		return
	}
	r.mu.Lock()
	s := r.stateLocked()
	r.mu.Unlock()
	data, err := encodeState(&s)
	if err == nil && string(data) == string(r.saved) {
		return
	}
	if err == nil {
		err = saveState(r.path(), data)
	}
	if err == nil {
		r.saved = data
	}
	r.mu.Lock()
	before := r.stats.FileError
	r.stats.FileError = ""
	if err != nil {
		r.stats.FileError = err.Error()
	}
	r.mu.Unlock()
	if err != nil && before == "" {
		r.cfg.Log.Warn("registrations can't be written to disk, and would not survive a restart", "path", r.path(), "error", err)
	}
}

// Run keeps etcd as it should be until ctx ends, and then leaves everything as it is: the keys stay, for the agent to take over when it starts again (5.3).
func (r *Registrar) Run(ctx context.Context) error {
	probes, stop := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer stop()
	r.mu.Lock()
	r.spawn = func(e *entry) {
		mine, cancel := context.WithCancel(probes)
		e.stop = cancel
		tasks.Go(func() { r.watch(mine, e) })
	}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.spawn = nil
		for _, e := range r.entries { // their probes have ended
			e.stop = nil
		}
		r.mu.Unlock()
	}()
	tasks.Go(func() { r.sampleHost(probes) })
	r.loop(ctx, r.newKeeper())
	return nil
}

// newKeeper is a keeper that takes over what the file says.
func (r *Registrar) newKeeper() *keeper {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := &keeper{slots: make(map[string]*slot), leases: slices.Clone(r.keep.Leases), ttl: time.Duration(r.keep.TTL) * time.Second, cluster: r.keep.Cluster}
	for _, f := range r.keep.Keys {
		k.slots[f.Key] = &slot{key: f.Key, seen: held{mod: unknown}, wrote: f.Create, last: f.Create}
	}
	k.changed = func() { r.keeperChanged(k) }
	k.note = func(format string, a ...any) {
		text := fmt.Sprintf(format, a...)
		r.cfg.Log.Warn("registrations", "cause", text)
		r.cfg.Events.Add(event.Event{Time: time.Now(), Kind: event.Registration, Detail: text})
	}
	return k
}

// keeperChanged writes down what the keeper is about to use.
func (r *Registrar) keeperChanged(k *keeper) {
	s := state{Leases: append([]int64(nil), k.leases...), TTL: int64(k.ttl / time.Second), Cluster: k.cluster}
	for _, one := range sortedSlots(k.slots) {
		s.Keys = append(s.Keys, keyFile{Key: one.key, Create: one.wrote})
	}
	r.mu.Lock()
	r.keep = s
	r.mu.Unlock()
	r.save()
}

// loop syncs whenever something changed here, and every third of the lease's life. It is the one goroutine that owns the keeper.
func (r *Registrar) loop(ctx context.Context, k *keeper) {
	var back etcd.Backoff
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-timer.C:
		}
		wait, err := r.round(ctx, k)
		if ctx.Err() != nil {
			return
		}
		third := r.TTL() / 3
		if err != nil {
			wait = min(back.Next(), third)
			// What changes here meanwhile waits too, or a service that flaps would undo the back-off.
			etcd.Sleep(ctx, wait, nil)
			wait = 0
		} else {
			back.Reset()
			wait = min(wait, third-rand.N(third/5)) // spread: hosts that began together don't stay together
		}
		timer.Reset(max(wait, 0))
	}
}

// TTL is how long the lease lives unless it is kept alive.
func (r *Registrar) TTL() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ttl
}

// round brings etcd to what is wanted now. wait is when something that is known already has to be done next.
func (r *Registrar) round(ctx context.Context, k *keeper) (wait time.Duration, err error) {
	r.findOwn(ctx)
	r.wants(time.Now()) // so that probes run although etcd can't be reached
	c, err := r.open(ctx)
	if err != nil {
		return 0, err
	}
	defer c.done()
	now := time.Now()
	wants, wanted, next := r.wants(now)
	again, err := k.sync(c.ctx, now, c, wants, r.TTL())
	if err == nil {
		k.changed()
	}
	r.settled(time.Now(), k, wanted, err)
	if err != nil {
		if etcd.IsAuth(err) {
			c.fail(err)
		}
		return 0, err
	}
	return cmp.Or(shorter(again, next), time.Hour), nil
}

// shorter is the shorter of two waits, of which 0 is none.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// openEtcd waits for a connection. While there is none it has the next try come sooner than the back-off would, so that a host whose lease may have died is back
// within ttl/3 of its etcd; the fleet is spread over that time.
func (r *Registrar) openEtcd(ctx context.Context) (conn, error) {
	for {
		third := r.TTL() / 3
		patience, cancel := context.WithTimeout(ctx, third/2+rand.N(third/4))
		l, err := r.cfg.Etcd.Get(patience)
		cancel()
		if err == nil {
			both, done := l.Join(ctx)
			return conn{store: etcdStore{l.Raw()}, ctx: both, fail: l.Fail, done: done}, nil
		}
		if ctx.Err() != nil {
			return conn{}, context.Cause(ctx)
		}
		r.cfg.Etcd.Hurry()
	}
}

// findOwn looks up this host's own address, if a registration needs it. One that can't be found keeps what it was.
func (r *Registrar) findOwn(ctx context.Context) {
	r.mu.Lock()
	needed := false
	for _, e := range r.entries {
		needed = needed || e.own
	}
	r.mu.Unlock()
	if !needed {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	a, err := r.own(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ownErr = err; err == nil {
		r.ownAddr = a
	}
}

// poke has the loop look at once.
func (r *Registrar) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

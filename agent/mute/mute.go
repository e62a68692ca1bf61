// Package mute keeps what operators have taken out by hand: backends that get no new calls until their time is over, on this host or fleet-wide.
//
// A mute of this host is a line of a file in the state directory. One of the fleet is a key in etcd with a lease, `<prefix><service>/<address>`, that every
// agent watches; what was seen of them is kept on disk too, for a start without etcd. Who is out at any moment is decided here and handed to the table.
package mute

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
)

// Bounds of what an operator may ask.
const (
	DefaultFor = time.Hour
	MinFor     = time.Second
	MaxFor     = 7 * 24 * time.Hour // what has to be out for longer has to leave the list
	MaxReason  = 200                // characters

	maxHere  = 1000 // mutes of this host
	maxFleet = 1000 // keys below the prefix that are honoured; memory is bounded, whoever writes there
)

// Times of the goroutine that ends mutes.
const (
	lookEvery  = time.Second      // while there is any mute: the wall clock may be set
	retryEvery = 10 * time.Second // after a file that could not be written
)

// Backend is a backend of a list, as far as muting goes.
type Backend struct {
	Addr     netip.AddrPort
	Usable   bool
	Draining bool
}

// Config wires Mutes.
type Config struct {
	Log    hclog.Logger // nil = none
	Events *event.Log   // nil = none
	Dir    string       // where the files are; "" = none
	Node   string       // this host's name, for those who read a fleet-wide mute elsewhere
	Etcd   *etcd.Links  // nil = no fleet-wide mutes
	Prefix string       // of fleet-wide mutes, whole, ends in /; "" = none are made or honoured
	// OnMutes is called with every mute that holds, each time that these change. It must not block and must not call back.
	OnMutes func(now time.Time, mutes []service.Mute)
	// Backends returns the list of a service as OnMutes has left it; false if there is none. Nil = never.
	Backends func(service string) ([]Backend, bool)
}

// Mutes is every mute that this agent knows. Safe for concurrent use.
type Mutes struct {
	cfg   Config
	log   hclog.Logger
	here  *file
	fleet *file
	wake  chan struct{} // the goroutine that ends mutes has to look
	dirty chan struct{} // the goroutine that writes the files has to

	mu sync.Mutex

	prefix   string
	moved    chan struct{}          // closed and replaced when prefix changes
	changed  chan struct{}          // closed and replaced when what is known of the fleet's mutes changes
	hosts    map[key]service.Mute   // of this host
	fleets   map[key]fleetMute      // as etcd said last, those whose time is over included
	shown    map[shown]service.Mute // what OnMutes was told
	followed followed
}

type key struct {
	service string
	addr    netip.AddrPort
}

func keyOf(m *service.Mute) key { return key{m.Service, m.Addr} }

type shown struct {
	key
	fleet bool
}

// fleetMute is one key of etcd; modified is its ModRevision, 0 for what was read from disk.
type fleetMute struct {
	service.Mute

	modified int64
}

// New returns Mutes that know nothing yet: Load reads the files, Run follows etcd and ends what is over.
func New(cfg Config) (*Mutes, error) {
	if cfg.OnMutes == nil {
		return nil, errors.New("mute: no OnMutes")
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.Backends == nil {
		cfg.Backends = func(string) ([]Backend, bool) { return nil, false }
	}
	m := &Mutes{
		cfg: cfg, log: cfg.Log, wake: make(chan struct{}, 1), dirty: make(chan struct{}, 1), prefix: cfg.Prefix, moved: make(chan struct{}), changed: make(chan struct{}),
		hosts: make(map[key]service.Mute), fleets: make(map[key]fleetMute), shown: make(map[shown]service.Mute),
	}
	m.here, m.fleet = &file{log: cfg.Log}, &file{log: cfg.Log}
	if cfg.Dir != "" {
		m.here.path, m.fleet.path = filepath.Join(cfg.Dir, "here.json"), filepath.Join(cfg.Dir, "fleet.json")
	}
	return m, nil
}

// Load reads what was muted when the agent ended; before Run, so that nobody who is muted gets a first call.
func (m *Mutes) Load(now time.Time) {
	here, fleet := m.here.load(now, false), m.fleet.load(now, true)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, one := range here[:min(len(here), maxHere)] {
		m.hosts[keyOf(&one)] = one
	}
	if m.prefix != "" {
		for _, one := range fleet[:min(len(fleet), maxFleet)] {
			m.fleets[keyOf(&one)] = fleetMute{Mute: one}
		}
	}
	m.publishLocked(now, "")
}

// Run follows the fleet's mutes and ends those whose time is over, until ctx ends.
func (m *Mutes) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	if m.cfg.Etcd != nil {
		wg.Go(func() { m.follow(ctx) })
	}
	wg.Go(func() { m.write(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-m.wake:
		case <-timer.C:
		case <-ctx.Done():
			continue
		}
		if wait, busy := m.tick(time.Now()); busy {
			timer.Reset(wait)
		} else {
			timer.Stop() // no mute, no wake-up
		}
	}
	wg.Wait()
	return nil
}

// write writes the files when they have to be, so that a disk that hangs holds up neither etcd's word nor the end of a mute; what can't be written is tried
// again.
func (m *Mutes) write(ctx context.Context) {
	for {
		m.save()
		var again <-chan time.Time
		if m.fileError() != "" {
			again = time.After(retryEvery)
		}
		select {
		case <-m.dirty:
		case <-again:
		case <-ctx.Done():
			m.save()
			return
		}
	}
}

func (m *Mutes) fileError() string { return cmp.Or(m.here.trouble(), m.fleet.trouble()) }

// tick ends what is over, and says when to look again, if there is any need to.
func (m *Mutes) tick(now time.Time) (wait time.Duration, busy bool) {
	m.mu.Lock()
	for k, one := range m.hosts {
		if !now.Before(one.Until) {
			delete(m.hosts, k)
			m.touchLocked(m.here)
		}
	}
	m.publishLocked(now, "")
	wait = lookEvery
	for _, one := range m.shown {
		wait, busy = min(wait, one.Until.Sub(now)), true
	}
	m.mu.Unlock()
	return wait, busy
}

// touchLocked has a file written soon.
func (m *Mutes) touchLocked(f *file) {
	f.touch()
	select {
	case m.dirty <- struct{}{}:
	default:
	}
}

// save writes what has changed.
func (m *Mutes) save() {
	m.here.save(func() []service.Mute {
		m.mu.Lock()
		defer m.mu.Unlock()
		return sorted(m.hosts, func(one service.Mute) service.Mute { return one })
	})
	m.fleet.save(func() []service.Mute {
		m.mu.Lock()
		defer m.mu.Unlock()
		return sorted(m.fleets, func(one fleetMute) service.Mute { return one.Mute })
	})
}

// poke has Run look again.
func (m *Mutes) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func sorted[T any](in map[key]T, mute func(T) service.Mute) []service.Mute {
	out := make([]service.Mute, 0, len(in))
	for _, one := range in {
		out = append(out, mute(one))
	}
	slices.SortFunc(out, compare)
	return out
}

func compare(a, b service.Mute) int {
	if c := cmp.Or(cmp.Compare(a.Service, b.Service), a.Addr.Compare(b.Addr)); c != 0 {
		return c
	}
	switch {
	case a.Fleet == b.Fleet:
		return 0
	case a.Fleet:
		return 1
	}
	return -1
}

// List returns every mute that holds, sorted.
func (m *Mutes) List() []service.Mute {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]service.Mute, 0, len(m.shown))
	for _, one := range m.shown {
		out = append(out, one)
	}
	slices.SortFunc(out, compare)
	return out
}

// Stats is what is known of the mutes themselves.
type Stats struct {
	Here, Fleet int    // mutes that hold
	FileError   string // why the files can't be written; empty if they can

	Followed  bool   // the fleet's mutes are wanted
	Following bool   // and etcd's word on them is up to date
	Trouble   string // why not
	Bad       int    // keys that can't be read as a mute
	Over      bool   // there are more than are honoured
}

// Stats returns it.
func (m *Mutes) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Stats{
		Followed: m.prefix != "" && m.cfg.Etcd != nil && m.cfg.Etcd.Status().Configured, Following: m.followed.now, Trouble: m.followed.trouble,
		Bad: len(m.followed.bad), Over: m.followed.over, FileError: m.fileError(),
	}
	for one := range m.shown {
		if one.fleet {
			s.Fleet++
		} else {
			s.Here++
		}
	}
	return s
}

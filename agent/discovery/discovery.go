// Package discovery keeps etcd's service lists: it reads, watches and confirms them, and keeps the last good ones in the spool (SEMANTICS 1).
//
// One goroutine per service owns that service's list (follower). All share one client of etcd, package etcd's link. A goroutine of its own writes the spool.
package discovery

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
)

// Follow is one service to keep.
type Follow struct {
	Name   string
	Prefix string // whole, namespace included; ends in /. Empty, as is Key: Static is the list
	Key    string // instead of Prefix: one key, which doesn't end in /
	Format string
	Static []service.Backend
	Select Select // what is wanted of it; nil = all
	Allow  []netip.Prefix
	Deny   []netip.Prefix
	Hold   time.Duration // how long backends that look like victims of a mass expiry are kept at least (1.9, 1.10); 0 = not at all
	// Fallback says where the backends are that stand in when no other is usable (1.16); its Name and Hold don't count. nil = none.
	Fallback *Follow
}

// keys is what to read of etcd: a prefix, which ends in /, or else a key; empty for a static list.
func (f *Follow) keys() string {
	if f.Key != "" {
		return f.Key
	}
	return f.Prefix
}

// named reports whether some of a static list are host names.
func (f *Follow) named() bool {
	return slices.ContainsFunc(f.Static, func(b service.Backend) bool { return isName(&b) })
}

// spools reports whether the spool keeps what can't be had from the configuration alone.
func (f *Follow) spools() bool { return f.keys() != "" || f.named() }

// Config wires a Discovery.
type Config struct {
	Log      hclog.Logger
	Events   *event.Log
	SpoolDir string      // "" = no spool
	Etcd     *etcd.Links // nil = only static lists
	// OnList is called with each new list, one call at a time per service. It may be called while Set or Remove runs, also for a service that Remove has just
	// been called for.
	OnList func(now time.Time, l *service.List)
	// OnConfirm is called when the source said that name's list is still so (1.3): at most every 10 s or so while etcd answers. Static lists are confirmed in
	// the same way, so that their age stays near 0.
	OnConfirm func(name string, at time.Time)
	// Own reports whether the agent itself listens at an address (1.14); nil = nowhere.
	Own func(netip.AddrPort) bool
	// Lookup resolves host names (1.13); nil = as other programs of this host do.
	Lookup LookupFunc
}

// Discovery follows services. Safe for concurrent use.
type Discovery struct {
	cfg   Config
	log   hclog.Logger
	spool *spool
	reads atomic.Uint64
	// How often lists were compared with etcd's (1.6), and how often a watch had missed something.
	audits, repairs atomic.Uint64

	wake   chan struct{} // tend has something to do
	loaded chan struct{} // closed when the spool has been read

	names   atomic.Int64  // that are asked for
	lookups chan struct{} // has room for those that may run at once

	mu sync.Mutex

	follows   map[string]*follower
	ending    map[string]<-chan struct{} // of followers that were stopped: the next of the same service begins after them
	ctx       context.Context            // of Run; nil before
	stopped   bool
	followers sync.WaitGroup

	notesMu sync.Mutex

	notes map[string]map[netip.AddrPort]string // of Gone, by service, for tend
}

// New returns a Discovery; Run starts it. It opens no connection.
func New(cfg Config) (*Discovery, error) {
	if cfg.OnList == nil {
		return nil, errors.New("discovery: no OnList")
	}
	if cfg.OnConfirm == nil {
		cfg.OnConfirm = func(string, time.Time) {}
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.Etcd == nil {
		cfg.Etcd = etcd.New(etcd.Options{})
	}
	if cfg.Lookup == nil {
		cfg.Lookup = lookupBy(&net.Resolver{PreferGo: true}) // libc's takes a thread for each lookup
	}
	return &Discovery{
		lookups: make(chan struct{}, namesAtOnce),
		cfg:     cfg,
		log:     cfg.Log,
		spool:   newSpool(cfg.SpoolDir, cfg.Log),
		wake:    make(chan struct{}, 1),
		loaded:  make(chan struct{}),
		notes:   make(map[string]map[netip.AddrPort]string),
		follows: make(map[string]*follower),
		ending:  make(map[string]<-chan struct{}),
	}, nil
}

// loadSpool calls OnList with every spooled list among follows, and with static ones (1.8), those aside that Hasten has. One core is left to those who ask.
func (d *Discovery) loadSpool(ctx context.Context) {
	now := time.Now()
	d.mu.Lock()
	todo := slices.Collect(maps.Values(d.follows))
	d.mu.Unlock()
	slices.SortFunc(todo, func(a, b *follower) int { return strings.Compare(a.follow.Name, b.follow.Name) })
	var next, spooled atomic.Int64
	var wg sync.WaitGroup
	for range min(max(1, runtime.GOMAXPROCS(0)-1), len(todo)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(todo) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if todo[i].seed(now) {
					spooled.Add(1)
				}
			}
		})
	}
	wg.Wait()
	d.reportSpool(now, int(spooled.Load()))
}

// Loaded is closed when every list that the spool has is given.
func (d *Discovery) Loaded() <-chan struct{} { return d.loaded }

// Hasten gives OnList the list of a service that has none yet, if it needs no etcd: somebody waits for it, and has it before its turn comes in loadSpool.
func (d *Discovery) Hasten(name string) {
	d.mu.Lock()
	f := d.follows[name]
	d.mu.Unlock()
	if f != nil && f.after == nil { // else the follower before it is to end first
		f.seed(time.Now())
	}
}

// reportSpool says once how many lists came from the spool.
func (d *Discovery) reportSpool(now time.Time, n int) {
	if n == 0 {
		return
	}
	d.log.Info("lists read from the spool", "count", n)
	if d.cfg.Events != nil {
		d.cfg.Events.Add(event.Event{Time: now, Kind: event.Source, Detail: spoolSentence(n)})
	}
}

// Run keeps lists until ctx ends; the last dirty lists are spooled before it returns. It begins with what needs no etcd; who asks for a service meanwhile has its list
// first (Hasten). Followers start afterwards, and etcd should be asked by nobody before Loaded: what it says is compared with all that the spool knows of its lives (1.5).
func (d *Discovery) Run(ctx context.Context) error {
	d.loadSpool(ctx)
	d.mu.Lock()
	if d.ctx != nil {
		d.mu.Unlock()
		return errors.New("discovery: Run was called twice")
	}
	d.ctx = ctx
	close(d.loaded)
	followed := slices.Collect(maps.Keys(d.follows))
	for name, f := range d.follows {
		followed = append(followed, name+fallbackSuffix)
		d.startLocked(f)
	}
	d.mu.Unlock()

	var wg sync.WaitGroup
	wg.Go(func() { d.spool.run(ctx, followed) })
	wg.Go(func() { d.confirmStatic(ctx) })
	wg.Go(func() { d.tend(ctx) })
	<-ctx.Done()
	d.mu.Lock()
	d.stopped = true
	d.mu.Unlock()
	d.followers.Wait()
	wg.Wait()
	d.spool.flush()
	return nil
}

func (d *Discovery) startLocked(f *follower) {
	if d.ctx == nil || d.stopped {
		return
	}
	ctx, cancel := context.WithCancel(d.ctx)
	f.cancel = cancel
	d.followers.Go(func() { f.run(ctx) })
}

// confirmStatic confirms the lists that need no etcd.
func (d *Discovery) confirmStatic(ctx context.Context) {
	t := time.NewTicker(etcd.ProgressEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		var names []string
		d.mu.Lock()
		for name, f := range d.follows {
			if f.follow.keys() == "" {
				names = append(names, name)
			}
		}
		d.mu.Unlock()
		for _, name := range names {
			d.cfg.OnConfirm(name, time.Now())
		}
	}
}

// Set follows f, or changes how; nothing happens if nothing changed. It does not wait: after Run has begun the first list comes from another goroutine, soon (Await).
func (d *Discovery) Set(f Follow) {
	if !service.ValidName(f.Name) {
		d.log.Error("cannot follow service", "service", f.Name, "cause", "not a valid name")
		return
	}
	f.tidy()
	if f.Fallback != nil {
		of := *f.Fallback
		of.tidy()
		of.Name, of.Hold = f.Name+fallbackSuffix, 0
		f.Fallback = &of
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if old := d.follows[f.Name]; old != nil {
		if old.become(f) {
			return
		}
		d.endLocked(f.Name)
	}
	n := newFollower(d, f)
	n.after = d.ending[f.Name]
	d.follows[f.Name] = n
	d.startLocked(n)
}

// Await returns when each of the services named has given OnList a list as Set last said that it is to be followed; not of one that is not followed, or that has nothing more to
// give. It ends with ctx.
func (d *Discovery) Await(ctx context.Context, names []string) {
	for _, name := range names {
		d.mu.Lock()
		f := d.follows[name]
		d.mu.Unlock()
		if f == nil {
			continue
		}
		select {
		case <-f.given:
		case <-f.done:
		case <-ctx.Done():
			return
		}
	}
}

// tidy makes f what a follower takes.
func (f *Follow) tidy() {
	if f.Prefix != "" && !strings.HasSuffix(f.Prefix, "/") {
		f.Prefix += "/" // or services/user would also read services/user2/ (1.2)
	}
	f.Static = slices.Clone(f.Static)
	if f.keys() == "" {
		f.Hold = 0 // the configuration loses nobody
	}
}

// Remake makes the lists anew of what is known, where something else than etcd has a say in them and has changed: where the agent itself listens.
func (d *Discovery) Remake() {
	d.mu.Lock()
	followed := slices.Collect(maps.Values(d.follows))
	d.mu.Unlock()
	for _, f := range followed {
		if f.fallback != nil {
			f.fallback.remake()
		}
		f.remake()
	}
}

// Remove stops following; its list leaves the spool.
func (d *Discovery) Remove(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.follows[name] == nil {
		return
	}
	d.endLocked(name)
}

// endLocked stops a follower without waiting for it.
func (d *Discovery) endLocked(name string) {
	f := d.follows[name]
	delete(d.follows, name)
	if f.cancel == nil { // never started, but it may be read from the spool at the moment
		f.end()
		d.spool.remove(name)
		d.spool.remove(name + fallbackSuffix)
		return
	}
	f.cancel()
	d.ending[name] = f.done
	go func() {
		<-f.done
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.ending[name] == f.done {
			delete(d.ending, name)
		}
		next := d.follows[name]
		if next == nil || !next.follow.spools() {
			d.spool.remove(name)
		}
		if f.fallback != nil && (next == nil || next.fallback == nil) {
			d.spool.remove(name + fallbackSuffix)
		}
	}()
}

// HoldSpool writes the spool and then leaves it to another process (SEMANTICS 6.3), or takes it back.
func (d *Discovery) HoldSpool(held bool) { d.spool.hold(held) }

// Status is what discovery knows of the spool, and what it did.
type Status struct {
	SpoolError string // empty if the spool is well
	Reads      uint64 // whole reads of a prefix
	Audits     uint64 // lists that were compared with etcd's (1.6)
	Repairs    uint64 // lists that had missed a change: found by an audit, or after a silence (1.3)
}

// Status returns it.
func (d *Discovery) Status() Status {
	return Status{Reads: d.reads.Load(), Audits: d.audits.Load(), Repairs: d.repairs.Load(), SpoolError: d.spool.trouble()}
}

// Trouble says why a service's list can't be what a person expects, for those who look: etcd doesn't let it be read, or has nothing where it was looked for. Empty if nothing is
// the matter, and for services without keys. denied says that it can't be read.
func (d *Discovery) Trouble(name string) (words string, denied bool) {
	d.mu.Lock()
	f := d.follows[name]
	d.mu.Unlock()
	if f == nil || f.follow.keys() == "" {
		return "", false
	}
	if why := f.trouble.Load(); why != nil {
		return *why, true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if l := f.list; l != nil && l.Source == service.FromEtcd && len(l.Backends) == 0 && l.BadCount == 0 && l.LeftOut == 0 && l.LostCount == 0 {
		return "etcd has no keys at " + f.follow.keys(), false
	}
	return "", false
}

// Package fleet follows the services that etcd keeps for all hosts (DESIGN.md 5, Fleet): one key below a prefix for each, or for a variant of one. It knows what etcd says, what was in force last,
// and what it must not believe; what the texts mean is decided by whoever applies them. Store, for those who change the fleet, writes the same keys.
package fleet

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
)

// How changes are applied. Lower costs more work while somebody changes many items one by one, higher makes a single change late.
const (
	gather     = 100 * time.Millisecond // what comes within this of the first change is applied with it
	applyEvery = time.Second / 2        // at most so often
	retryEvery = 30 * time.Second       // for items that something else on this host stands in the way of, such as a port that is taken
	spoolEvery = 5 * time.Second        // as for lists (SEMANTICS 1.8)
)

// Entry is one key: what etcd says of it, and what of that was in force last.
type Entry struct {
	Key      string    // below the prefix: SERVICE or SERVICE/VARIANT
	Now      string    // its text
	Modified int64     // its ModRevision
	Good     string    // the last text that could be applied; "" = none
	Held     time.Time // when it vanished together with too many others to be believed (1.9); zero = it is there
}

// Outcome is what came of an entry when it was applied.
type Outcome struct {
	Key     string
	Place   string // in force, elsewhere, hidden, overridden, bad
	Used    string // the text that is used: the entry's Now, its Good, or none
	Only    string // the hosts that it is for, in words; "" = all
	By      string // hidden, overridden: by what
	Problem string // why Now isn't used; "" if it is
	Again   bool   // the problem is this host's, and may pass by itself
}

// Config wires a Fleet.
type Config struct {
	Log    hclog.Logger
	Events *event.Log
	Dir    string // for the spool; "" = none
	Etcd   *etcd.Links
	// OnChange is called from one goroutine when Entries are to be applied, for the first time, anew, or once more. Whoever applies them calls Settle.
	OnChange func(ctx context.Context)
}

// Fleet follows the fleet's configuration. Safe for concurrent use.
type Fleet struct {
	cfg   Config
	log   hclog.Logger
	spool spool
	wake  chan struct{} // 1: the entries changed

	mu sync.Mutex

	prefix    string        // with the namespace; "" = off
	changed   chan struct{} // closed and replaced when prefix changes
	set       set
	outcomes  map[string]Outcome
	first     chan struct{} // closed when entries that etcd, or the spool, knows were applied
	known     bool          // there are such
	source    string
	epoch     uint64
	revision  int64
	confirmed time.Time
	trouble   string // why etcd's keys can't be followed
	dirty     bool   // the spool is older than the entries
	again     bool   // an outcome says so
}

// New returns a Fleet; Run starts it.
func New(cfg Config) (*Fleet, error) {
	if cfg.OnChange == nil || cfg.Etcd == nil {
		return nil, errors.New("fleet: OnChange and Etcd are needed")
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	return &Fleet{
		cfg: cfg, log: cfg.Log, spool: spool{dir: cfg.Dir, log: cfg.Log}, wake: make(chan struct{}, 1),
		changed: make(chan struct{}), first: make(chan struct{}), set: newSet(),
	}, nil
}

// Set changes the prefix; "" = nothing is followed, and there are no entries. What was spooled of the new one is there at once; else what the old one held stays until etcd has answered.
func (f *Fleet) Set(now time.Time, prefix string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if prefix == f.prefix {
		return
	}
	f.prefix = prefix
	if prefix == "" {
		f.set = newSet()
	}
	f.known, f.source, f.epoch, f.revision, f.confirmed, f.trouble, f.dirty, f.again = false, "", 0, 0, time.Time{}, "", prefix == "", false
	close(f.changed)
	f.changed = make(chan struct{})
	if prefix != "" {
		if s := f.spool.load(prefix, now); s != nil {
			f.set = newSet()
			f.set.load(s.Entries)
			f.known, f.source, f.epoch, f.revision, f.confirmed = true, "spool", s.Epoch, s.Revision, s.Confirmed
			f.log.Info("items read from the spool", "count", len(s.Entries))
		}
	}
	f.poke()
}

// First is closed when what etcd or the spool knows of the fleet was applied, once for the life of f. It is open for ever without a prefix.
func (f *Fleet) First() <-chan struct{} { return f.first }

// Entries are all there are, those that were written first before the others.
func (f *Fleet) Entries() []Entry {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.set.all()
	slices.SortFunc(all, func(a, b Entry) int { return cmp.Or(cmp.Compare(a.Modified, b.Modified), cmp.Compare(a.Key, b.Key)) })
	return all
}

// Settle takes what came of entries, which are those that were applied: some may have changed again meanwhile.
func (f *Fleet) Settle(now time.Time, entries []Entry, outcomes []Outcome) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.outcomes
	f.outcomes, f.again = make(map[string]Outcome, len(outcomes)), false
	for i, o := range outcomes {
		f.outcomes[o.Key] = o
		f.again = f.again || o.Again
		if e, ok := f.set.entries[o.Key]; ok && o.Used != "" && e.Good != o.Used && e.Good == entries[i].Good {
			e.Good = o.Used
			f.set.entries[o.Key] = e
			f.dirty = true
		}
		f.tell(now, before[o.Key], o)
	}
	if f.known {
		select {
		case <-f.first:
		default:
			close(f.first)
		}
	}
}

// tell says once what is wrong with an item, and once that it isn't any more.
func (f *Fleet) tell(now time.Time, was, is Outcome) {
	switch is.Problem {
	case was.Problem:
	case "":
		f.event(now, is.Key, "fleet item "+is.Key+" is well again: "+is.Place)
		f.log.Info("item of the fleet is well again", "item", is.Key)
	default:
		instead := "it is not in force"
		if is.Used != "" {
			instead = "its last good form stays in force"
		}
		f.event(now, is.Key, "fleet item "+is.Key+" can't be used, "+instead+": "+is.Problem)
		f.log.Error("item of the fleet can't be used", "item", is.Key, "instead", instead, "error", is.Problem)
	}
}

func (f *Fleet) event(now time.Time, key, detail string) {
	if f.cfg.Events != nil {
		f.cfg.Events.Add(event.Event{Time: now, Kind: event.Config, Service: serviceOf(key), Detail: detail})
	}
}

// Run follows etcd, and calls OnChange, until ctx ends; then the last changes are spooled.
func (f *Fleet) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { f.follow(ctx) })
	f.apply(ctx)
	wg.Wait()
	f.write()
	return nil
}

// apply is the goroutine that decides what is believed and has it applied: soon after a change, but never in a hot loop.
func (f *Fleet) apply(ctx context.Context) {
	again, spool := time.NewTicker(retryEvery), time.NewTicker(spoolEvery)
	defer again.Stop()
	defer spool.Stop()
	for {
		select {
		case <-f.wake:
			etcd.Sleep(ctx, gather, nil)
			if ctx.Err() != nil {
				return
			}
			began := time.Now()
			f.believe(began)
			f.cfg.OnChange(ctx)
			etcd.Sleep(ctx, applyEvery-time.Since(began), nil)
		case <-again.C:
			if f.wantsAgain() {
				f.cfg.OnChange(ctx)
			}
		case <-spool.C:
			f.write()
		case <-ctx.Done():
			return
		}
	}
}

// believe decides about keys that vanished.
func (f *Fleet) believe(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	held, released := f.set.settle(now)
	if len(held) > 0 {
		detail := heldSentence(held)
		f.log.Error("too many items vanished at once to be believed: they stay in force", "items", held)
		f.event(now, "", detail)
		f.dirty = true
	}
	if len(released) > 0 {
		f.log.Info("items that were kept although they had vanished are removed now", "items", released)
		f.dirty = true
	}
}

func (f *Fleet) wantsAgain() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.again
}

// poke has the entries applied soon.
func (f *Fleet) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// write spools what is not on disk yet.
func (f *Fleet) write() {
	f.mu.Lock()
	s := spooled{Prefix: f.prefix, Epoch: f.epoch, Revision: f.revision, Confirmed: f.confirmed}
	dirty := f.dirty && (f.known || f.prefix == "")
	s.Entries = f.set.all()
	slices.SortFunc(s.Entries, func(a, b Entry) int { return cmp.Compare(a.Key, b.Key) })
	f.dirty = f.dirty && !dirty
	f.mu.Unlock()
	if dirty && !f.spool.save(s) {
		f.mu.Lock()
		f.dirty = true
		f.mu.Unlock()
	}
}

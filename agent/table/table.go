// Package table joins lists and verdicts into immutable views and publishes them by one atomic pointer per service. It is pure memory:
// writers take its lock, readers load. It knows no network and starts no goroutine.
package table

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// Spec is how one service is picked and judged; all values are concrete.
type Spec struct {
	Name         string
	Policy       picker.Policy
	PanicPercent int // 0 = off (2.9)
	Health       health.Options
	Drain        time.Duration // 4.7
	OnDemand     bool          // followed because someone asked (1.15)
	Fleet        bool          // configured for all hosts, in etcd
	Listeners    []string      // as configured, for `services` and Status
	Protocol     string
	InUse        bool // it has a listener: always probed (2.3)

	DynamicWeight bool          // 3.3
	Load          bool          // 3.12
	SlowStart     time.Duration // 3.7; 0 = off
	Zone          string        // of this host, which is preferred (3.8); "" = no zone is
	Subset        int           // of how many backends (3.9); 0 = off
}

// Config wires a Table. The hooks are called under the table's lock: they must not block and must not call the table.
type Config struct {
	Log       hclog.Logger
	Events    *event.Log
	OnTargets func(group string, o health.Options, targets health.Targets) // health.Monitor.SetGroup
	OnActive  func(group string, active bool)                              // health.Monitor.SetActive
	// OnGone is called for an orphan of which health says that it is gone (1.10): discovery.Gone.
	OnGone    func(service string, addr netip.AddrPort, cause string)
	OnPublish func(s *Service) // a new view of s: loops are marked dirty
	// Random is what picks draw from; the zero value is the runtime's generator.
	Random picker.Random
	// Seed makes this host's order of a service's backends another than that of other hosts (3.9); it should stay the same for the life of the host.
	Seed uint64
	// Known is what another process knew of a backend that joins a list of that epoch, and by what its weight was multiplied (6.3); no state = nothing. nil = there was none.
	Known func(now time.Time, service string, epoch uint64, b *service.Backend) (*health.State, Factors)
}

// Table is every service this agent follows. Safe for concurrent use.
type Table struct {
	cfg      Config
	wake     chan struct{}                       // Run has something to do before its next second
	services atomic.Pointer[map[string]*Service] // copied on write

	mu sync.Mutex // held by writers; guards what a Service keeps for them

	mutes map[string]muted // of all services, followed or not
	pings []chan struct{}  // closed by Run

	weighed []int32 // scratch space of Second
	inside  []bool  // likewise

	sample []time.Duration // likewise; it is Second's own
}

// New returns an empty table.
func New(cfg Config) (*Table, error) {
	if cfg.Log == nil || cfg.Events == nil {
		return nil, errors.New("table: Log and Events are needed")
	}
	if cfg.OnTargets == nil {
		cfg.OnTargets = func(string, health.Options, health.Targets) {}
	}
	if cfg.OnActive == nil {
		cfg.OnActive = func(string, bool) {}
	}
	if cfg.OnGone == nil {
		cfg.OnGone = func(string, netip.AddrPort, string) {}
	}
	if cfg.OnPublish == nil {
		cfg.OnPublish = func(*Service) {}
	}
	if cfg.Known == nil {
		cfg.Known = func(time.Time, string, uint64, *service.Backend) (*health.State, Factors) { return nil, Factors{} }
	}
	t := &Table{cfg: cfg, wake: make(chan struct{}, 1)}
	t.services.Store(&map[string]*Service{})
	return t, nil
}

// SetSpec adds services or changes how they are treated; what did not change is not touched (6.1). An unknown policy is taken as p2c: the configuration is where
// it is refused. Many at once take one copy of the map.
func (t *Table) SetSpec(now time.Time, specs ...Spec) {
	t.mu.Lock()
	defer t.mu.Unlock()
	services, added := *t.services.Load(), false
	for i := range specs {
		spec := new(specs[i])
		if !spec.Policy.Known() {
			spec.Policy = picker.P2C
		}
		if s := services[spec.Name]; s != nil {
			t.change(now, s, spec)
			continue
		}
		if !added {
			services, added = maps.Clone(services), true
		}
		services[spec.Name] = t.newService(now, spec)
	}
	if !added {
		return
	}
	t.services.Store(&services)
	for i := range specs {
		if specs[i].InUse {
			t.setActive(now, services[specs[i].Name], true)
		}
	}
}

// change gives s another spec.
func (t *Table) change(now time.Time, s *Service, spec *Spec) {
	old := s.Spec()
	s.spec.Store(spec)
	if old.Health != spec.Health {
		t.sendTargets(s)
	}
	if old.InUse != spec.InUse {
		t.setActive(now, s, spec.InUse || s.askedWithin(now, askedUse))
	}
	if old.Policy == spec.Policy && old.PanicPercent == spec.PanicPercent && old.Health.Probe == spec.Health.Probe && old.Zone == spec.Zone &&
		old.Subset == spec.Subset && old.DynamicWeight == spec.DynamicWeight && old.Load == spec.Load {
		return
	}
	e := s.View().roster.edit()
	if old.Zone != spec.Zone {
		s.rezone(e)
	}
	if spec.Policy != picker.Hash {
		s.ring = ring{}
	}
	for k := range e.chunks {
		backends := e.writeChunk(k)
		for i := range backends {
			s.refresh(now, &backends[i])
		}
	}
	t.publish(now, s, s.View().List, e)
}

// Remove forgets a service; its subscriptions end, its last view says Gone.
func (t *Table) Remove(now time.Time, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.Lookup(name)
	if s == nil {
		return
	}
	services := maps.Clone(*t.services.Load())
	delete(services, name)
	t.services.Store(&services)

	t.setActive(now, s, false)
	if s.used {
		t.cfg.OnTargets(name, s.Spec().Health, nil)
	}
	s.left = nil
	last := *s.View()
	last.Gone, last.At, last.next = true, now, make(chan struct{})
	t.swap(s, &last)
	close(last.next) // nothing newer will come: a late reader sees Gone and doesn't wait
}

// Apply takes a new list, which must not be written afterwards. A list of a service without Spec is ignored.
func (t *Table) Apply(now time.Time, l *service.List) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.Lookup(l.Service)
	if s == nil {
		return
	}
	s.confirmed.Store(&l.Confirmed) // also if it is older than what is known: an old list of the spool, after one of etcd
	first := !s.View().Ready
	e, d := s.merge(now, l)
	if d.orphaned.n > 0 && !s.used {
		s.begin(now, e) // an orphan is always probed (1.10)
		d.targets = true
	}
	if d.targets {
		defer t.sendTargets(s) // after the view is there that a verdict will change
	}
	t.publish(now, s, l, e)
	t.announce(now, s, &d, first)
}

// Confirm notes that name's list was still true at `at`: age starts again (1.3).
func (t *Table) Confirm(name string, at time.Time) {
	if s := t.Lookup(name); s != nil {
		s.confirm(at)
	}
}

// SetVerdicts takes what health found (health.Config.OnChange).
func (t *Table) SetVerdicts(now time.Time, changes []health.Change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(changes) > 0 {
		n := 1
		for n < len(changes) && changes[n].Group == changes[0].Group {
			n++
		}
		if s := t.Lookup(changes[0].Group); s != nil {
			t.setVerdicts(now, s, changes[:n])
		}
		changes = changes[n:]
	}
}

// setVerdicts takes verdicts of one service into one new view.
func (t *Table) setVerdicts(now time.Time, s *Service, changes []health.Change) {
	v := s.View()
	e := v.roster.edit()
	taken, accused := changes[:0:0], false
	for _, c := range changes {
		i, ok := v.roster.index(c.Addr)
		if !ok || e.at(i).State != c.State {
			continue // it left, or was restarted, while the verdict was on its way
		}
		if c.Gone != "" {
			if !e.at(i).Orphaned.IsZero() {
				t.cfg.OnGone(s.name, c.Addr, c.Gone)
			}
			continue
		}
		if c.Accused {
			accused = t.accuse(now, s, v, e, i) || accused
			continue
		}
		if c.Would != nil {
			t.tellObserved(now, s, &c)
			continue
		}
		s.entered[c.To.Kind].Add(moved(c))
		if !e.at(i).Draining && s.muted[c.Addr] == nil {
			b := e.write(i)
			was := b.Verdict
			b.Verdict = orphaned(b.Backend, s.verdict(c.To))
			s.moved(now, b, was)
		}
		taken = append(taken, c)
	}
	if len(taken) == 0 && !accused {
		return
	}
	t.tellVerdicts(now, s, taken)
	t.publish(now, s, v.List, e)
}

// moved is 1 if c is more than a new cause of the same verdict.
func moved(c health.Change) uint64 {
	if c.From.Kind != c.To.Kind {
		return 1
	}
	return 0
}

// publish makes the view of now and tells everyone.
func (t *Table) publish(now time.Time, s *Service, l *service.List, e *edit) {
	e.seal()
	old := s.View()
	ready := old.Ready || l != old.List
	turned := s.turnFallback(now, ready, e.groups)
	v := newView(now, s, l, e)
	if v.Ready = ready; !ready {
		v.At = old.At // callers wait for the first list from the beginning of the service
	}
	t.swap(s, v)
	if turned {
		t.tellFallback(now, s, v)
		t.sendTargets(s) // some are spare no longer, or again
		s.poke()         // Run looks when it may be left
	}
	if old.Panic != v.Panic {
		t.tellPanic(now, v)
	}
}

// swap publishes v, whose next isn't closed, and wakes those who wait for it.
func (t *Table) swap(s *Service, v *View) {
	old := s.view.Swap(v)
	close(old.next)
	t.cfg.OnPublish(s)
}

// sendTargets hands the backends of s to health. Those of a service that was never in use stay here: nothing happens to them, and health would keep
// three times what a view does.
func (t *Table) sendTargets(s *Service) {
	if !s.used {
		return
	}
	v, o := s.View(), s.Spec().Health
	if v.severalPriorities() {
		o.PanicPercent = 0 // a dead tier is no panic while another carries the load, and health doesn't know of tiers
	}
	t.cfg.OnTargets(s.name, o, targets{v})
}

// targets is the backends of a view as health sees them.
type targets struct{ *View }

func (t targets) At(i int) health.Target {
	b := t.roster.at(i)
	// Health need not know who takes a backend out: one that gets no calls is no room for others' ejections (2.6).
	return health.Target{Addr: b.Addr, State: b.State, Draining: !b.tryable() || t.isSpare(b), Orphan: !b.Orphaned.IsZero()}
}

// use makes s one that has been in use: somebody may pick from now on.
func (t *Table) use(now time.Time, s *Service) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.useLocked(now, s)
}

func (t *Table) useLocked(now time.Time, s *Service) {
	v := s.View()
	if s.used || v.Gone {
		return
	}
	e := v.roster.edit()
	s.begin(now, e)
	t.publish(now, s, v.List, e)
	t.sendTargets(s)
}

func (t *Table) setActive(now time.Time, s *Service, active bool) {
	if s.active.Swap(active) == active {
		return
	}
	if active {
		t.useLocked(now, s)
	}
	t.cfg.OnActive(s.name, active)
	s.poke() // Run takes its medians from now on
}

// Lookup returns a service by name, nil if it isn't followed. It takes no lock.
func (t *Table) Lookup(name string) *Service { return (*t.services.Load())[name] }

// Services returns every service, sorted by name.
func (t *Table) Services() []*Service {
	services := *t.services.Load()
	all := make([]*Service, 0, len(services))
	for _, s := range services {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *Service) int { return strings.Compare(a.name, b.name) })
	return all
}

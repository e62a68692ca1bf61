package health

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
)

// wakeGrain is the least time between two wake-ups for timers: what is due meanwhile shares the next one. Higher costs exactness of probes and
// trials, lower costs processor time on hosts with many backends. Crossings wake at once.
const wakeGrain = 50 * time.Millisecond

// Config wires a Monitor.
type Config struct {
	Log hclog.Logger
	// OnChange is called from the Monitor's goroutine with every verdict that moved, in order. It must not call the Monitor.
	OnChange func(now time.Time, changes []Change)
}

// Monitor owns all verdicts: one goroutine, woken by crossings and timers; probes run beside it.
type Monitor struct {
	cfg     Config
	probe   func(ctx context.Context, o Options, addr netip.AddrPort) outcome
	sweep   *sweep // plain tcp probes; nil: probe runs them too
	swept   []result
	inbox   *inbox
	results chan result // as long as probes run at once: none of them waits for the Monitor
	stats   stats

	mu sync.Mutex

	mail map[string]*letter // what SetGroup and SetActive asked for last, by group
	asks []func(*core)      // what is to be asked of the core
}

// letter is the latest wish for a group; an unset half leaves things as they are.
type letter struct {
	set     bool
	options Options
	targets Targets

	setActive bool
	active    bool
}

// New returns a Monitor; Run starts it.
func New(cfg Config) (*Monitor, error) {
	if cfg.Log == nil || cfg.OnChange == nil {
		return nil, errors.New("health: Log and OnChange are needed")
	}
	return &Monitor{
		cfg:     cfg,
		probe:   newProber().probe,
		sweep:   new(sweep),
		inbox:   newInbox(),
		results: make(chan result, probesAtOnce),
	}, nil
}

// Run judges until ctx ends. Its goroutine alone owns the core, hence every verdict; whatever others want reaches it through the mail, the inbox
// or the results, and one channel wakes it.
func (m *Monitor) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var probes sync.WaitGroup
	defer probes.Wait()
	defer cancel()
	if m.sweep != nil {
		defer m.sweep.close()
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	c := newCore(m.inbox, rand.Float64, &m.stats, m.cfg.Log)
	for {
		now := time.Now()
		m.open(now, c)
		for t := range m.inbox.take() {
			c.judge(now, t)
		}
		m.takeResults(now, c)
		m.start(ctx, now, c, &probes)
		if changes := c.takeChanges(); len(changes) > 0 {
			m.cfg.OnChange(now, changes)
		}
		next, ok := c.next(now)
		if m.sweep != nil && len(m.sweep.flights) > 0 {
			next, ok = now.Add(wakeGrain), true
		}
		if ok {
			timer.Reset(max(time.Until(next), wakeGrain))
		} else {
			timer.Stop() // nothing is pending: no wake-up
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.inbox.wake:
		case r := <-m.results:
			c.probed(time.Now(), r)
		case <-timer.C:
		}
	}
}

// start runs the probes that are due. More may be due once those are over that end at once.
func (m *Monitor) start(ctx context.Context, now time.Time, c *core, probes *sync.WaitGroup) {
	for _, p := range c.tick(now) {
		if m.sweep != nil && m.sweep.takes(&p) {
			if r, done := m.sweep.start(now, p); done {
				c.probed(now, r)
			}
			continue
		}
		probes.Go(func() { m.results <- result{p.t, m.probe(ctx, p.options, p.addr)} })
	}
}

func (m *Monitor) takeResults(now time.Time, c *core) {
	if m.sweep != nil {
		m.swept = m.sweep.collect(now, m.swept[:0])
		for _, r := range m.swept {
			c.probed(now, r)
		}
		clear(m.swept)
	}
	for {
		select {
		case r := <-m.results:
			c.probed(now, r)
		default:
			return
		}
	}
}

// open does what the mail asks for.
func (m *Monitor) open(now time.Time, c *core) {
	m.mu.Lock()
	mail, asks := m.mail, m.asks
	m.mail, m.asks = nil, nil
	m.mu.Unlock()
	for group, l := range mail {
		if l.set {
			c.setGroup(now, group, l.options, l.targets)
		}
		if l.setActive {
			c.setActive(now, group, l.active)
		}
	}
	for _, ask := range asks {
		ask(c)
	}
}

// ask has f look at the core, on the Monitor's goroutine, and returns when it has; or when ctx has ended, and f may still run.
func (m *Monitor) ask(ctx context.Context, f func(*core)) {
	done := make(chan struct{})
	m.mu.Lock()
	m.asks = append(m.asks, func(c *core) { f(c); close(done) })
	m.mu.Unlock()
	m.inbox.poke()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Ping returns when the Monitor's goroutine has answered, or ctx has ended.
func (m *Monitor) Ping(ctx context.Context) { m.ask(ctx, func(*core) {}) }

// SetGroup replaces the targets and options of a group; nil or no targets = the group is gone. It never blocks on probes or OnChange (which may
// be running).
func (m *Monitor) SetGroup(group string, o Options, targets Targets) {
	m.post(group, func(l *letter) { l.set, l.options, l.targets = true, o, targets })
}

// SetActive says whether the group is in use: only those are probed (2.3).
func (m *Monitor) SetActive(group string, active bool) {
	m.post(group, func(l *letter) { l.setActive, l.active = true, active })
}

func (m *Monitor) post(group string, write func(*letter)) {
	m.mu.Lock()
	if m.mail == nil {
		m.mail = map[string]*letter{}
	}
	l := m.mail[group]
	if l == nil {
		l = &letter{}
		m.mail[group] = l
	}
	write(l)
	m.mu.Unlock()
	m.inbox.poke()
}

// Stats are counters for metrics.
type Stats struct {
	Probes, ProbeFailures uint64 // that were run, that failed
	ProbesSpared          uint64 // a good outcome stood for them (2.3)
	ProbesPutOff          uint64 // this host could not run them: out of descriptors or ports
	ProbesRunning         int
	ProbesWaiting         int             // due, but held back by the limit per second (2.3)
	Ejections             [Reasons]uint64 // by Reason
	WouldEject            [Reasons]uint64 // that `eject: observe` did not let happen
	EjectionsHeldBack     uint64          // by max_percent, or the last one usable (2.6)
	Targets               int
}

type stats struct {
	probes, probeFailures, probesSpared, probesPutOff atomic.Uint64
	ejections, wouldEject                             [Reasons]atomic.Uint64
	heldBack                                          atomic.Uint64
	running, waiting, targets                         atomic.Int64
}

// Stats returns the counters of now.
func (m *Monitor) Stats() Stats {
	s := &m.stats
	c := Stats{
		Probes: s.probes.Load(), ProbeFailures: s.probeFailures.Load(),
		ProbesSpared: s.probesSpared.Load(), ProbesPutOff: s.probesPutOff.Load(),
		ProbesRunning: int(s.running.Load()), ProbesWaiting: int(s.waiting.Load()),
		EjectionsHeldBack: s.heldBack.Load(),
		Targets:           int(s.targets.Load()),
	}
	for i := range Reasons {
		c.Ejections[i], c.WouldEject[i] = s.ejections[i].Load(), s.wouldEject[i].Load()
	}
	return c
}

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
	"golang.org/x/sys/unix"
)

// wakeGrain is the least time between two wake-ups for timers: what is due meanwhile shares the next one. Higher costs exactness of probes and
// trials, lower costs processor time on hosts with many backends. Crossings wake at once.
const wakeGrain = 50 * time.Millisecond

// lateMost is how late a wake-up may be before probes under way get that time on top (2.3).
const lateMost = 500 * time.Millisecond

// Config wires a Monitor.
type Config struct {
	Log hclog.Logger
	// OnChange is called from the Monitor's goroutine with every verdict that moved, in order. It may call what only leaves mail (SetGroup, SetActive, Stats), and nothing that waits
	// for that goroutine, such as Ping.
	OnChange func(now time.Time, changes []Change)
	// OnSuspicion is called in the same way when this host begins to suspect itself, and when that is over (2.10). Nil: nobody wants to know.
	OnSuspicion func(Suspicion)
}

// Suspicion says that it seems to be this host that is ill, and not its backends: while On, no backend becomes down or ejected for being silent, and no orphan is let go (2.10).
type Suspicion struct {
	On    bool
	Since time.Time // began or ended
	Words string    // what began it, for a person
}

// Monitor owns all verdicts: one goroutine, woken by crossings and timers; probes run beside it.
type Monitor struct {
	cfg     Config
	probe   func(ctx context.Context, o Options, addr netip.AddrPort) outcome
	sweep   *sweep   // plain tcp probes; nil: probe runs them too
	watches *watches // the same for grpc probes of backends that offer Watch
	swept   []result
	ill     atomic.Pointer[Suspicion]
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
		watches: newWatches(),
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
	defer m.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	c := newCore(m.inbox, rand.Float64, &m.stats, m.cfg.Log)
	var due time.Time // when the timer was to go off; zero = nobody waits for it
	for {
		now := time.Now()
		if late := now.Sub(due); !due.IsZero() && late > lateMost {
			m.excuse(late)
		}
		m.open(now, c)
		for t := range m.inbox.take() {
			c.judge(now, t)
		}
		m.takeResults(ctx, now, c, &probes)
		m.start(ctx, now, c, &probes)
		if changes := c.takeChanges(); len(changes) > 0 {
			m.cfg.OnChange(now, changes)
		}
		m.tellSuspicion(now, c)
		if due = m.next(now, c); due.IsZero() {
			timer.Stop() // nothing is pending: no wake-up
		} else {
			due = latest(due, now.Add(wakeGrain))
			timer.Reset(time.Until(due))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.inbox.wake:
		case r := <-m.results:
			c.probed(time.Now(), r)
		case events := <-m.watched():
			m.watches.took(time.Now(), events)
		case <-timer.C:
		}
	}
}

// next is when something has to be looked at, zero if nothing is pending.
func (m *Monitor) next(now time.Time, c *core) time.Time {
	if m.sweep != nil && len(m.sweep.flights) > 0 || m.watches != nil && len(m.watches.pending)+len(m.watches.results)+len(m.watches.unable) > 0 {
		return now.Add(wakeGrain)
	}
	next, _ := c.next(now)
	return next
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// watched is where the kernel's word of watches comes; nil if there are none.
func (m *Monitor) watched() chan []unix.EpollEvent {
	if m.watches == nil {
		return nil
	}
	return m.watches.ready
}

// excuse gives the probes under way the time that this process was late: it was stopped, or had no processor.
func (m *Monitor) excuse(late time.Duration) {
	if m.sweep != nil {
		m.sweep.excuse(late)
	}
	if m.watches != nil {
		m.watches.excuse(late)
	}
}

func (m *Monitor) close() {
	if m.sweep != nil {
		m.sweep.close()
	}
	if m.watches != nil {
		m.watches.close()
	}
}

// start runs the probes that are due. More may be due once those are over that end at once.
func (m *Monitor) start(ctx context.Context, now time.Time, c *core, probes *sync.WaitGroup) {
	swept := false
	for _, p := range c.tick(now) {
		switch {
		case m.sweep != nil && m.sweep.takes(&p):
			swept = true
			if r, done := m.sweep.start(now, p); done {
				c.probed(now, r)
			}
		case m.watches != nil && m.watches.takes(now, &p):
			m.watches.start(ctx, probes, now, p)
		default:
			m.run(ctx, p, probes)
		}
	}
	if swept { // most are over by the time that the last one has begun, unless they go far: that spares a wake-up, and the backend the end of the handshake
		m.takeSwept(time.Now(), c)
	}
}

// run runs a probe in a goroutine of its own.
func (m *Monitor) run(ctx context.Context, p probeJob, probes *sync.WaitGroup) {
	probes.Go(func() { m.results <- result{t: p.t, outcome: m.probe(ctx, p.options, p.addr)} })
}

func (m *Monitor) takeResults(ctx context.Context, now time.Time, c *core, probes *sync.WaitGroup) {
	if m.sweep != nil {
		m.takeSwept(now, c)
	}
	m.takeWatches(ctx, now, c, probes)
	for {
		select {
		case r := <-m.results:
			c.probed(now, r)
		default:
			return
		}
	}
}

// takeSwept takes what became of the probes of the sweep.
func (m *Monitor) takeSwept(now time.Time, c *core) {
	m.swept = m.sweep.collect(now, m.swept[:0])
	for _, r := range m.swept {
		c.probed(now, r)
	}
	clear(m.swept)
}

// takeWatches takes what watches found, has a Check do what they can't, and ends those that nobody needs any more.
func (m *Monitor) takeWatches(ctx context.Context, now time.Time, c *core, probes *sync.WaitGroup) {
	if m.watches == nil {
		return
	}
	results, unable := m.watches.collect(now)
	for _, r := range results {
		c.probed(now, r)
	}
	for _, p := range unable {
		m.run(ctx, p, probes)
	}
	for _, t := range c.unwatched {
		m.watches.drop(t)
	}
	clear(c.unwatched)
	c.unwatched = c.unwatched[:0]
	m.stats.watches.Store(int64(len(m.watches.all)))
}

// tellSuspicion tells that a suspicion began or ended.
func (m *Monitor) tellSuspicion(now time.Time, c *core) {
	s := &c.suspicion
	if !s.untold {
		return
	}
	s.untold = false
	told := Suspicion{On: s.on, Since: now, Words: s.words}
	m.ill.Store(&told)
	if s.on {
		m.stats.suspicions.Add(1)
	}
	if m.cfg.OnSuspicion != nil {
		m.cfg.OnSuspicion(told)
	}
}

// Suspicion is whether this host suspects itself now (2.10).
func (m *Monitor) Suspicion() Suspicion {
	if s := m.ill.Load(); s != nil {
		return *s
	}
	return Suspicion{}
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

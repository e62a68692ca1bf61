// Package sim lives the days of a fleet in virtual time: hosts that call backends, which are slow, fail, flap or drown. Who gets a call is decided by the agent's own code,
// table, picker and health, or by one of a few others to compare it with. Nothing in it is random but by its seed.
package sim

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	lbagent "github.com/lbagent/lbagent/agent"
	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
)

// Config is one run.
type Config struct {
	Scenario     string
	Contender    string
	Seed         uint64
	Hosts        int     // 0 = the scenario's
	Backends     int     // 0 = the scenario's
	Rate         float64 // calls per second of each host; 0 = the scenario's
	Mean         time.Duration
	Distribution Distribution
	Load         float64 // of a good backend's servers, if all are good and get their share: there are as many as that takes, 4 at least
	Timeout      time.Duration
	Settings     string // more keys of the service, in YAML: `policy: round_robin, eject: off`
}

// Check says what can't be.
func (c *Config) Check() error {
	switch {
	case c.Hosts < 0 || c.Backends < 0 || c.Rate < 0 || c.Rate > 1e6:
		return errors.New("hosts, backends and rate can't be negative, nor the rate above 1000000")
	case c.Mean < time.Millisecond/10 || c.Timeout < c.Mean || c.Timeout > time.Minute:
		return errors.New("the mean has to be 100us at least, the timeout from the mean to 1m")
	case !(c.Load > 0 && c.Load <= 0.95):
		return errors.New("the load has to be above 0 and 0.95 at most")
	case !slices.Contains(Distributions(), c.Distribution):
		return fmt.Errorf("no distribution %q; there are %v", c.Distribution, Distributions())
	}
	_, err := spec(c.Settings)
	return err
}

// Contenders.
const (
	Agent        = "lbagent"
	Asked        = "lbagent_asked" // callers pick batches, call themselves, and report
	RoundRobin   = "round_robin"
	LeastRequest = "least_request"
	Oracle       = "oracle"
)

// Contenders is who may take part.
func Contenders() []string { return []string{Agent, Asked, RoundRobin, LeastRequest, Oracle} }

// world is one run.
type world struct {
	cfg      Config
	scenario scenario
	clock    clock
	backends []*backend
	hosts    []*host
	links    []link // host by host
	meter    *meter

	spec table.Spec
	list *service.List

	calls  *rand.Rand // when calls come and what work they are: the same for all contenders
	chance *rand.Rand // what backends throw dice for
	picks  *rand.Rand // the choosers'
}

// host is one machine that calls the backends.
type host struct {
	w       *world
	index   int
	chooser chooser
}

// Run lives through a scenario.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	w, err := newWorld(cfg)
	if err != nil {
		return nil, err
	}
	w.scenario.plot(w)
	w.clock.every(0, time.Second, w.meter.second) // first in each second, but for the plot
	for _, h := range w.hosts {
		if err := w.choose(h); err != nil {
			return nil, err
		}
		w.start(h)
	}
	if !w.clock.run(w.scenario.lasts, func() bool { return ctx.Err() != nil }) {
		return nil, context.Cause(ctx)
	}
	return w.meter.result(), nil
}

func newWorld(cfg Config) (*world, error) {
	s, err := find(cfg.Scenario)
	if err != nil {
		return nil, err
	}
	set := func(v *int, is int) {
		if *v == 0 {
			*v = is
		}
	}
	set(&cfg.Hosts, s.hosts)
	set(&cfg.Backends, s.backends)
	if cfg.Rate == 0 {
		cfg.Rate = s.rate
	}
	if cfg.Hosts < 1 || cfg.Backends < 2 || cfg.Hosts*cfg.Backends > 1<<22 || !(cfg.Rate > 0) {
		return nil, errors.New("there have to be a host, two backends, at most 4 million pairs of them, and calls")
	}
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	w := &world{
		cfg: cfg, scenario: s,
		calls:  rand.New(rand.NewPCG(cfg.Seed, 1)),
		chance: rand.New(rand.NewPCG(cfg.Seed, 2)),
		picks:  rand.New(rand.NewPCG(cfg.Seed, 3)),
	}
	for i := range cfg.Backends {
		w.backends = append(w.backends, newBackend(w.servers(), s.weight(i)))
	}
	for i := range cfg.Hosts {
		w.hosts = append(w.hosts, &host{w: w, index: i})
	}
	w.links = make([]link, len(w.hosts)*len(w.backends))
	w.meter = newMeter(w)
	if w.spec, err = spec(cfg.Settings); err != nil {
		return nil, err
	}
	w.list = newList(w)
	return w, nil
}

// zone is where host or backend i is, if there are zones.
func (w *world) zone(i int) string { return fmt.Sprintf("zone-%d", i%w.scenario.zones) }

// servers is how many each backend has.
func (w *world) servers() int {
	busy := float64(w.cfg.Hosts) * w.cfg.Rate * w.cfg.Mean.Seconds() / float64(w.cfg.Backends)
	return max(4, int(math.Ceil(busy/w.cfg.Load)))
}

// spec is a service as the configuration would have it.
func spec(settings string) (table.Spec, error) {
	c, err := config.Parse("sim", fmt.Appendf(nil, "services:\n  - {name: sim, listen: [20000], backends: [\"10.0.0.1:80\"], %s}\n", settings))
	if err != nil {
		return table.Spec{}, fmt.Errorf("settings: %w", err)
	}
	s := lbagent.SpecOf(c.Services[0])
	s.Health.HTTP2 = true // calls are gRPC's: who accepts and says nothing passes no probe (2.1)
	return s, nil
}

// choose gives the host its chooser.
func (w *world) choose(h *host) (err error) {
	switch w.cfg.Contender {
	case Agent:
		h.chooser, err = newAgent(w, h)
	case Asked:
		h.chooser, err = newAsker(w, h)
	case RoundRobin:
		h.chooser = newRobin(w)
	case LeastRequest:
		h.chooser = newLeast(w)
	case Oracle:
		h.chooser = newOracle(w)
	default:
		err = fmt.Errorf("no contender %q; there are %v", w.cfg.Contender, Contenders())
	}
	return err
}

// start begins the calls of a host.
func (w *world) start(h *host) {
	if w.scenario.serial {
		var again func()
		again = func() { w.newCall(h, again).dispatch() }
		w.clock.after(0, again)
		return
	}
	w.clock.plan(w.untilNext(), h)
}

func (w *world) untilNext() time.Duration {
	return time.Duration(w.calls.ExpFloat64() / w.cfg.Rate * float64(time.Second))
}

// act is a call that comes.
func (h *host) act() {
	h.w.clock.plan(h.w.clock.now+h.w.untilNext(), h)
	h.w.newCall(h, nil).dispatch()
}

func (w *world) newCall(h *host, done func()) *call {
	c := &call{w: w, host: h, began: w.clock.now, done: done}
	c.work = time.Duration(w.cfg.Distribution.draw(w.calls) * float64(w.cfg.Mean))
	c.deadline = c.began + w.cfg.Timeout
	if s := &w.scenario; s.hasty > 0 && w.calls.Float64() < s.hasty {
		c.work *= hastyWork
		c.deadline = c.began + hastyPatience*w.cfg.Mean
	}
	return c
}

// turn gives backend i another condition.
func (w *world) turn(i int, to condition) {
	b := w.backends[i]
	died, stopped, resumed := to.refuses && !b.refuses, to.hangs && !b.hangs, b.hangs && !to.hangs
	w.meter.turning(i, to)
	b.turn(w.clock.now, to)
	switch {
	case died:
		w.kill(i)
	case stopped:
		w.stop(i)
	case resumed:
		w.resume(i)
	}
}

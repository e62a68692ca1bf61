package sim

import (
	"net/netip"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
)

// agent is lbagent on one host: its table, pickers and verdicts, the real ones. Only the loops that call them are those of the simulation.
type agent struct {
	w         *world
	host      *host
	table     *table.Table
	service   *table.Service
	judge     *health.Stepper
	connected []bool
	wakeAt    time.Duration // when the judge is to be stepped; 0 = not planned
}

func newAgent(w *world, h *host) (*agent, error) {
	a := &agent{w: w, host: h, connected: make([]bool, len(w.backends))}
	var err error
	if a.judge, err = health.NewStepper(health.Config{Log: hclog.NewNullLogger(), OnChange: a.changed}, w.picks.Float64); err != nil {
		return nil, err
	}
	if a.table, err = table.New(table.Config{
		Log:    hclog.NewNullLogger(),
		Events: event.NewLog(1),
		OnTargets: func(group string, o health.Options, targets health.Targets) {
			a.judge.SetGroup(w.clock.time(), group, o, targets)
		},
		OnActive: func(group string, active bool) { a.judge.SetActive(w.clock.time(), group, active) },
		Random:   picker.NewRandom(w.picks),
		Seed:     w.cfg.Seed<<32 | uint64(h.index), // each host has a subset of its own (3.9)
	}); err != nil {
		return nil, err
	}
	now := w.clock.time()
	spec := w.spec
	if w.scenario.zones > 0 {
		spec.Zone = w.zone(h.index)
	}
	a.table.SetSpec(now, spec)
	a.table.Apply(now, w.list)
	a.service = a.table.Lookup(w.spec.Name)
	a.step()
	w.clock.every(time.Duration(w.picks.Int64N(int64(time.Second))), time.Second, func() {
		a.table.Second(w.clock.time())
		a.step()
	})
	return a, nil
}

func (a *agent) pick(c *call) int {
	now := a.w.clock.time()
	b := a.service.View().Pick(now, c.states)
	if b == nil {
		return -1
	}
	b.State.Begin()
	c.states = append(c.states, b.State)
	i := number(b.Addr)
	if b := a.w.backends[i]; !a.connected[i] && !b.refuses && !b.hangs {
		a.connected[i] = true
		c.state().Connected(now)
		a.step()
	}
	return i
}

// state is that of the attempt that c makes.
func (c *call) state() *health.State { return c.states[len(c.states)-1] }

func (a *agent) refused(c *call) { a.notConnected(c, "connection refused") }

func (a *agent) unanswered(c *call) { a.notConnected(c, "no SETTINGS within 1 s") }

func (a *agent) notConnected(c *call, cause string) {
	now := a.w.clock.time()
	c.state().ConnectFailed(now, cause)
	c.state().End(now, health.Neutral, 0, false, "")
	a.step()
}

func (a *agent) carries() bool { return true }

func (a *agent) ended(c *call, result health.Result, firstByte time.Duration) {
	cause := ""
	if result == health.Failure {
		cause = "HTTP 503"
	}
	if result == health.Neutral {
		firstByte = 0
	}
	c.state().End(a.w.clock.time(), result, firstByte, true, cause)
	a.step()
}

func (a *agent) lost(i int) {
	if b := a.service.View().Find(address(i)); b != nil {
		b.State.ConnectionLost(a.w.clock.time(), "connection reset")
		a.step()
	}
}

func (a *agent) closed(i int) { a.connected[i] = false }

// changed hands verdicts on, as package agent does, and has them counted.
func (a *agent) changed(now time.Time, changes []health.Change) {
	for _, c := range changes {
		if was, is := c.From.Usable(), c.To.Usable(); was != is {
			a.w.meter.turned(a.host, number(c.Addr), is)
		}
	}
	a.table.SetVerdicts(now, changes)
}

// step lets the judge do what its Monitor would at once.
func (a *agent) step() {
	now := a.w.clock.now
	probes, next := a.judge.Step(a.w.clock.time())
	for _, p := range probes {
		a.probe(p)
	}
	if next.IsZero() {
		return
	}
	if at := a.w.clock.since(next); a.wakeAt <= now || at < a.wakeAt {
		a.wakeAt = at
		a.w.clock.plan(at, a)
	}
}

// act is a wake-up of the judge.
func (a *agent) act() {
	if a.w.clock.now == a.wakeAt {
		a.step()
	}
}

// probe answers a probe as the backend would.
func (a *agent) probe(p health.Probe) {
	i := number(p.Addr())
	a.w.meter.probes++
	b, o := a.w.backends[i], p.Options()
	takes := wireTime
	if b.hangs {
		takes = o.Timeout
	}
	a.w.clock.after(takes, func() {
		check := health.Check{Passed: true}
		switch {
		case b.refuses:
			check = health.Check{Refused: true, Cause: "connection refused"}
		case b.hangs:
			check = health.Check{Cause: "no answer within 1 s"}
		case o.Probe != health.ProbeTCP && b.fail > 0 && a.w.chance.Float64() < b.fail:
			check = health.Check{Answered: true, Cause: "HTTP 503"}
		}
		a.judge.Answer(a.w.clock.time(), p, check)
		a.step()
	})
}

// address is that of backend i, number the way back.
func address(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 80)
}

func number(a netip.AddrPort) int {
	b := a.Addr().As4()
	return int(b[1])<<16 | int(b[2])<<8 | int(b[3])
}

// newList is the list of all backends, which every host has.
func newList(w *world) *service.List {
	l := &service.List{Service: w.spec.Name, Source: service.FromEtcd, Epoch: 1, Revision: 1, Backends: make([]*service.Backend, len(w.backends))}
	for i, b := range w.backends {
		l.Backends[i] = &service.Backend{Addr: address(i), Weight: uint32(b.weight), Created: 1, Modified: 1}
		if w.scenario.zones > 0 {
			l.Backends[i].Zone = w.zone(i)
		}
	}
	return l
}

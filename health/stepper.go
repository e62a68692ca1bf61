package health

import (
	"errors"
	"net/netip"
	"time"
)

// Stepper is a Monitor without goroutine, clock and sockets: whoever has it says what time it is, and how probes end. Hours of a fleet's life pass in seconds
// with it, judged by the same code. It belongs to one goroutine; States may be written by it too, and then Step is to be called.
type Stepper struct {
	cfg   Config
	core  *core
	stats stats
}

// Probe is one probe that is to be run, and whose end is to be told by Answer.
type Probe struct{ job probeJob }

// Addr is the backend to probe.
func (p Probe) Addr() netip.AddrPort { return p.job.addr }

// Options say how.
func (p Probe) Options() Options { return p.job.options }

// NewStepper returns a Stepper that draws jitter from random, in [0, 1).
func NewStepper(cfg Config, random func() float64) (*Stepper, error) {
	if cfg.Log == nil || cfg.OnChange == nil || random == nil {
		return nil, errors.New("health: Log, OnChange and random are needed")
	}
	s := &Stepper{cfg: cfg}
	s.core = newCore(newInbox(), random, &s.stats, cfg.Log)
	return s, nil
}

// SetGroup is Monitor.SetGroup at now; what changes by it is told by the next Step.
func (s *Stepper) SetGroup(now time.Time, group string, o Options, targets Targets) {
	s.core.setGroup(now, group, o, targets)
}

// SetActive is Monitor.SetActive at now.
func (s *Stepper) SetActive(now time.Time, group string, active bool) {
	s.core.setActive(now, group, active)
}

// Answer takes the end of a probe; Step is to be called next.
func (s *Stepper) Answer(now time.Time, p Probe, c Check) {
	o := outcome{kind: probeSilent, cause: c.Cause, refused: c.Refused}
	switch {
	case c.Passed:
		o = outcome{kind: probePassed}
	case c.Local:
		o.kind = probeLocal
	case c.Refused, !c.Answered && p.job.options.Probe == ProbeTCP: // no connection, or no SETTINGS on it
		o.kind = probeUnreachable
	case c.Answered:
		o.kind = probeAnswered
	}
	s.core.probed(now, result{t: p.job.t, outcome: o})
}

// Step does what is due, tells OnChange, and returns the probes to run and when to step again, be there no crossing until then; zero = not before one.
func (s *Stepper) Step(now time.Time) (probes []Probe, next time.Time) {
	for t := range s.core.inbox.take() {
		s.core.judge(now, t)
	}
	for _, job := range s.core.tick(now) {
		probes = append(probes, Probe{job})
	}
	if changes := s.core.takeChanges(); len(changes) > 0 {
		s.cfg.OnChange(now, changes)
	}
	next, ok := s.core.next(now)
	if ok && next.Sub(now) < wakeGrain {
		next = now.Add(wakeGrain)
	}
	return probes, next
}

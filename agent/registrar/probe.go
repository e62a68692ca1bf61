package registrar

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/lbagent/lbagent/health"
)

// Defaults of 5.2: a service that dies leaves etcd within seconds.
const (
	defaultInterval = time.Second
	defaultTimeout  = time.Second
	defaultRise     = 2
	defaultFall     = 3
)

func (p Probe) withDefaults() Probe {
	p.Type = cmp.Or(p.Type, string(health.ProbeTCP))
	p.Interval, p.Timeout = cmp.Or(p.Interval, defaultInterval), cmp.Or(p.Timeout, defaultTimeout)
	p.Rise, p.Fall = cmp.Or(p.Rise, defaultRise), cmp.Or(p.Fall, defaultFall)
	p.Path = cmp.Or(p.Path, "/")
	p.StatusMin, p.StatusMax = cmp.Or(p.StatusMin, 200), cmp.Or(p.StatusMax, 399)
	return p
}

// options is p as package health takes it.
func (p Probe) options() health.Options {
	return health.Options{
		Probe: health.ProbeType(p.Type), Interval: p.Interval, Timeout: p.Timeout, Port: p.Port, Path: p.Path,
		Status: [2]int{p.StatusMin, p.StatusMax}, HealthName: p.Service,
	}
}

// check refuses what came by the API and would be a burden, or no probe at all.
func (p Probe) check() error {
	p = p.withDefaults()
	switch health.ProbeType(p.Type) {
	case health.ProbeTCP, health.ProbeHTTP, health.ProbeGRPC, health.ProbeNone:
	default:
		return fmt.Errorf("probe type %.40q: tcp, http, grpc and none are allowed", p.Type)
	}
	switch {
	case p.Interval < 100*time.Millisecond || p.Interval > time.Hour:
		return fmt.Errorf("probe interval %v: 100ms to 1h are allowed", p.Interval)
	case p.Timeout < 10*time.Millisecond || p.Timeout > time.Minute:
		return fmt.Errorf("probe timeout %v: 10ms to 1m are allowed", p.Timeout)
	case p.Rise < 1 || p.Rise > 100 || p.Fall < 1 || p.Fall > 100:
		return fmt.Errorf("probe rise %d and fall %d: 1 to 100 are allowed", p.Rise, p.Fall)
	case !strings.HasPrefix(p.Path, "/") || len(p.Path) > 2048 || strings.ContainsFunc(p.Path, func(r rune) bool { return r <= ' ' || r > '~' || r == '#' }):
		return fmt.Errorf("probe path %.80q: a path such as /healthz is allowed", p.Path)
	case p.StatusMin < 100 || p.StatusMax > 599 || p.StatusMin > p.StatusMax:
		return fmt.Errorf("probe status %d-%d: a range within 100-599 is allowed", p.StatusMin, p.StatusMax)
	case len(p.Service) > 253 || strings.ContainsFunc(p.Service, func(r rune) bool { return r <= ' ' || r > '~' }):
		return fmt.Errorf("probe service %.80q: the name of a gRPC service is allowed", p.Service)
	}
	return nil
}

// pulse is what a registration's own probe says (5.2).
type pulse struct {
	up     bool
	since  time.Time // of up; zero: not probed yet
	passes int       // in a row
	fails  int
	cause  string // of the last failure
}

// take notes how a probe ended, and reports whether up changed. A refused connect is a fall at once: nobody listens, whatever the count.
func (p *pulse) take(now time.Time, c health.Check, rise, fall int) bool {
	switch {
	case c.Local:
		return false // no evidence, and no reason to remove a key
	case c.Passed:
		p.passes, p.fails = p.passes+1, 0
	default:
		p.passes, p.fails, p.cause = 0, p.fails+1, c.Cause
	}
	was := p.up
	switch {
	case c.Passed && p.passes >= rise:
		p.up = true
	case !c.Passed && (c.Refused || p.fails >= fall):
		p.up = false
	}
	if p.since.IsZero() || p.up != was {
		p.since = now
	}
	return p.up != was
}

// words say why a registration isn't announced.
func (p *pulse) words() string {
	switch {
	case p.cause == "" && p.passes == 0:
		return "not probed yet"
	case p.passes > 0:
		return "its probe passes, but not often enough in a row yet"
	}
	return "probe fails: " + p.cause
}

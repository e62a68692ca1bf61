package health

import (
	"context"
	"net/netip"
	"syscall"
)

// Check is how one probe ended that belongs to no group.
type Check struct {
	Passed   bool
	Refused  bool   // nobody listens there: the backend itself said so, so that one such answer is enough
	Answered bool   // the backend answered, and said that it isn't well
	Local    bool   // this host could not probe: no evidence at all (2.3)
	Cause    string // in words; empty if it passed
}

// Prober runs probes for those who judge by themselves. Safe for concurrent use.
type Prober struct{ p *prober }

// NewProber returns a Prober; it holds nothing.
func NewProber() *Prober { return &Prober{newProber()} }

// Check probes addr once, as the options say, within their timeout per connection.
func (p *Prober) Check(ctx context.Context, o Options, addr netip.AddrPort) Check {
	if !o.probes() {
		return Check{Passed: true}
	}
	r := p.p.probe(ctx, o.sane(), addr)
	return Check{
		Passed:   r.kind == probePassed,
		Refused:  r.kind == probeUnreachable && r.cause == syscall.ECONNREFUSED.Error(),
		Answered: r.kind == probeAnswered,
		Local:    r.kind == probeLocal,
		Cause:    r.cause,
	}
}

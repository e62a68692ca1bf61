package proxy

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/table"
)

// Connections are those to one backend, of all loops and protocols, since the first one or since the backend came into the list.
type Connections struct {
	Open   int
	Opened uint64 // those that were up; for HTTP/2, whose SETTINGS came
	Closed uint64 // of these
	Failed uint64 // connects that failed
	Ends   []End  // the last few of Closed, the newest first
}

// End is how a connection to a backend ended.
type End struct {
	At       time.Time
	Lasted   time.Duration
	Protocol string // TCP, HTTP/1.1, HTTP/2
	Cause    string // in words
}

// Connections returns those to the backends of a service, of one if only is valid; backends that had none are missing. What a loop knows that doesn't answer before ctx ends is missing, too.
func (p *Proxy) Connections(ctx context.Context, service string, only netip.AddrPort) map[netip.AddrPort]Connections {
	svc := p.table.Lookup(service)
	if svc == nil || !p.running.Load() {
		return nil
	}
	v := svc.View()
	sum := map[netip.AddrPort]Connections{}
	answers := make(chan map[netip.AddrPort]Connections, len(p.workers))
	asked := 0
	for _, w := range p.workers {
		if w.loop.Post(func() { answers <- w.ledger.of(v, only) }) {
			asked++
		}
	}
	add := func(some map[netip.AddrPort]Connections) {
		for addr, c := range some {
			all := sum[addr]
			all.add(&c)
			sum[addr] = all
		}
	}
	add(p.h1.accounts.of(v, only))
	for range asked {
		select {
		case some := <-answers:
			add(some)
		case <-ctx.Done():
			return sum
		}
	}
	return sum
}

// of is what the ledger knows of the backends in v.
func (l *ledger) of(v *table.View, only netip.AddrPort) map[netip.AddrPort]Connections {
	out := map[netip.AddrPort]Connections{}
	for state, a := range l.backends {
		if a.svc != v.Service || only.IsValid() && a.addr != only {
			continue
		}
		if b := v.Find(a.addr); b != nil && b.State == state {
			out[a.addr] = a.export()
		}
	}
	return out
}

func (a *account) export() Connections {
	c := Connections{Open: a.open, Opened: a.opened, Closed: a.closed, Failed: a.failed}
	for i := range min(a.closed, endsKept) {
		e := &a.ends[(a.closed-1-i)%endsKept]
		c.Ends = append(c.Ends, End{At: e.at, Lasted: e.lasted, Protocol: e.protocol.words(), Cause: e.words()})
	}
	return c
}

// add sums up what several loops know.
func (c *Connections) add(o *Connections) {
	c.Open += o.Open
	c.Opened += o.Opened
	c.Closed += o.Closed
	c.Failed += o.Failed
	c.Ends = append(c.Ends, o.Ends...)
	slices.SortStableFunc(c.Ends, func(a, b End) int { return b.At.Compare(a.At) })
	c.Ends = c.Ends[:min(len(c.Ends), endsKept)]
}

package admin

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/lbagent/lbagent/agent/table"
)

// What is kept of the past, for the page: ten minutes in slots of five seconds per service, and in slots of ten per backend. All of it has a bound, whatever the number of services and
// backends: 1,024 services x 2.9 KiB, 12,288 backends x 150 B, 8,192 rings x 240 B, less than 8 MiB together. A service that nobody uses, and a backend that gets no calls, cost next to nothing.
const (
	slotLength = 5 * time.Second
	slots      = 120
	wide       = 2 // slots of a service in one of a backend
	wideSlots  = slots / wide

	maxServices = 1024  // with a past
	maxWatched  = 12288 // backends whose counters are remembered between two slots
	maxRings    = 8192  // backends with a past
)

// sample is one slot of a service.
type sample struct {
	calls, failed uint32        // as callers saw them, those that programs reported included
	p50, p99      time.Duration // of whole calls through the proxy; 0 = there were none
	unknown       bool          // the proxy did not answer in time: the next slot has the calls of this one, too
}

// history is the past of every service that is in use. One goroutine takes samples; readers get copies.
type history struct {
	table *table.Table
	proxy func() Proxy

	mu sync.Mutex

	slot     int64 // the number of the last one; 0 = there is none yet
	times    [slots]time.Time
	services map[string]*past
	watched  int // backends of all services
	rings    int
}

// past is the history of one service.
type past struct {
	ring     [slots]sample
	counted  bool        // last is known
	last     proxyCounts // the proxy's counters at the last slot
	backends map[netip.AddrPort]*backendPast
	seen     int64 // the last slot at which the service was in use
	busy     int64 // the last one with a call
	over     int   // backends that the bounds leave out
}

func newHistory(t *table.Table, proxy func() Proxy) *history {
	return &history{table: t, proxy: proxy, services: make(map[string]*past)}
}

// run takes a sample per slot until ctx ends, and calls after when there is a new one.
func (h *history) run(ctx context.Context, now func() time.Time, after func()) {
	tick := time.NewTicker(slotLength)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		var p Proxy
		if h.proxy != nil {
			p = h.proxy()
		}
		h.take(now(), p, h.table.Services())
		after()
	}
}

// take fills the next slot.
func (h *history) take(now time.Time, p Proxy, services []*table.Service) {
	calls := make(map[string]*Calls, len(p.Services))
	for i := range p.Services {
		calls[p.Services[i].Service] = &p.Services[i]
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slot++
	h.times[h.slot%slots] = now
	for i := range services {
		s := services[(i+int(h.slot))%len(services)] // another one first each time: when room is short, nobody is always too late
		v, c := s.View(), calls[s.Name()]
		if c == nil && (v.Len() == 0 || v.Backend(0).State == nil) {
			continue // nobody has used it
		}
		e := h.services[s.Name()]
		if e == nil {
			if len(h.services) >= maxServices {
				continue
			}
			e = &past{backends: make(map[netip.AddrPort]*backendPast), busy: h.slot}
			h.services[s.Name()] = e
		}
		e.seen = h.slot
		h.sample(e, v, c, &p)
	}
	full := len(h.services) >= maxServices // those that are idle make room, all of them
	for name, e := range h.services {
		if e.seen != h.slot || full && h.slot-e.busy >= slots {
			for addr := range e.backends {
				h.forget(e, addr)
			}
			delete(h.services, name)
		}
	}
}

// sample fills the slot of one service.
func (h *history) sample(e *past, v *table.View, c *Calls, p *Proxy) {
	one := sample{unknown: p.Missing > 0}
	first := !e.counted
	if !one.unknown {
		counts := countsOf(c)
		if !first {
			one = counts.since(&e.last, p.LatencyBounds)
		}
		e.last, e.counted = counts, true
	}
	told := h.backends(e, v, first)
	one.calls += told.calls
	one.failed += told.failed
	if one.calls > 0 {
		e.busy = h.slot
	}
	e.ring[h.slot%slots] = one
}

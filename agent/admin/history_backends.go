package admin

import (
	"net/netip"

	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
)

// backendPast is the history of one backend of a service: the calls that ended there, whoever carried them.
type backendPast struct {
	state     *health.State
	own, told health.Ended       // of state, at the last slot
	ring      *[wideSlots]uint32 // nil until it gets a call
	seen      int64              // the last slot at which the list had it
	busy      int64              // the last one with a call
}

// since is what came since the last look: all calls, and of these the ones that programs reported.
func (b *backendPast) since(s *health.State) (calls uint64, told health.Ended) {
	if b.state != s {
		b.state, b.own, b.told = s, health.Ended{}, health.Ended{} // another life of the address: its counters began at 0
	}
	own, reported := s.Ended()
	told = health.Ended{Calls: reported.Calls - b.told.Calls, Failed: reported.Failed - b.told.Failed}
	calls = own.Calls - b.own.Calls + told.Calls
	b.own, b.told = own, reported
	return calls, told
}

// backends adds what came since the last slot to each backend's ring, and returns what programs reported: the proxy's counters know nothing of it.
func (h *history) backends(e *past, v *table.View, first bool) (told sample) {
	at := h.slot / wide % wideSlots
	e.over = 0
	for _, b := range v.Backends() {
		if b.State == nil {
			continue
		}
		one := e.backends[b.Addr]
		if one == nil {
			if h.watched >= maxWatched {
				e.over++
				continue
			}
			one = &backendPast{}
			e.backends[b.Addr] = one
			h.watched++
			if first { // the service is new here, not the backend: nobody knows when its calls were
				one.since(b.State)
			}
		}
		one.seen = h.slot
		calls, reported := one.since(b.State)
		told.calls += uint32(reported.Calls)
		told.failed += uint32(reported.Failed)
		if calls > 0 && one.ring == nil && h.rings < maxRings {
			one.ring = new([wideSlots]uint32)
			h.rings++
		}
		if calls > 0 && one.ring == nil {
			e.over++
			continue
		}
		if calls > 0 {
			one.busy = h.slot
		}
		one.add(at, uint32(calls), h.slot%wide == 0)
	}
	for addr, one := range e.backends {
		if one.seen != h.slot {
			one.add(at, 0, h.slot%wide == 0) // it left the list; its calls stay in the picture for as long as that shows them
		}
		switch old := h.slot-one.busy >= slots; {
		case one.seen != h.slot && (old || one.ring == nil):
			h.forget(e, addr)
		case old && one.ring != nil:
			one.ring = nil
			h.rings--
		}
	}
	return told
}

func (b *backendPast) add(at int64, calls uint32, first bool) {
	if b.ring == nil {
		return
	}
	if first {
		b.ring[at] = 0
	}
	b.ring[at] += calls
}

func (h *history) forget(e *past, addr netip.AddrPort) {
	if e.backends[addr].ring != nil {
		h.rings--
	}
	delete(e.backends, addr)
	h.watched--
}

package proxy

import "time"

// hop is what a wake-up passes on of a call: its request to a backend, or its response's head to the client. How long that took is known when the wake-up
// has ended, and written what it had to write; so long, what had come waited in this agent.
type hop struct {
	call  *call // of a request; nil for a response, whose call may be over by then
	gen   uint32
	stats *serviceStats // of a response
	delay time.Duration // of its request
}

// passes notes that this wake-up sends a call's request.
func (r *relay) passes(c *call) {
	c.delay = r.loop.Now().Sub(c.start) // waits, and earlier attempts
	r.hops = append(r.hops, hop{call: c, gen: c.gen})
}

// returns notes that this wake-up sends the head of a call's response.
func (r *relay) returns(c *call) {
	r.hops = append(r.hops, hop{stats: c.client.stats, delay: c.delay})
}

// turned counts what this agent added to the calls of a wake-up that took so long.
func (r *relay) turned(took time.Duration) {
	for i := range r.hops {
		h := &r.hops[i]
		switch {
		case h.stats != nil:
			h.stats.added(protoH2, h.delay+took)
		case h.call.gen == h.gen:
			h.call.delay += took
		}
	}
	clear(r.hops)
	r.hops = r.hops[:0]
}

package proxy

import (
	"cmp"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/calls"
	"github.com/lbagent/lbagent/agent/proxy/h2"
	"github.com/lbagent/lbagent/health"
)

// limits.buffered bounds what is parked in the process: chunks, with the DATA that a reader has not taken or that is kept for a retry, the header lists and
// trailers that are kept (as RFC 9113 6.5.2 counts), header blocks of clients that have begun and not ended, and output that the kernel has not taken. Not counted: HTTP/1.1 and TCP, whose buffers are a fixed size per connection.
//
// Each loop counts its own and adds it to one number of the process in steps of parkStep, so that all of the limit is there for whoever needs it, at the cost
// of an atomic addition per 64 chunks (dividing the limit by the loops would cut off the busy ones while others have room). The number is right to parkStep per
// loop. What one wake-up reads comes on top: loops look at the limit once they have handled it.
const (
	parkStep  = 256 << 10
	chunkSize = 4096
	// outputAt: less output than that isn't looked at.
	outputAt = 4 << 10
	// stuckFor is how long a backend's connection may take nothing of its output before it counts as one that takes too little: many clients share it, and a busy
	// one has more output at times than any of them has parked.
	stuckFor = time.Second
)

// park notes n bytes more, or less.
func (r *relay) park(n int) {
	r.parked += int64(n)
	if d := r.parked - r.reported; d >= parkStep || d <= -parkStep {
		r.report()
	}
}

// report adds what changed to the process's number. Over the limit, the loops are asked to shed: whose streams have most can't be known here.
func (r *relay) report() {
	p := r.w.proxy
	total := p.parked.Add(r.parked - r.reported)
	r.reported = r.parked
	if limit := r.limits().Buffered; limit == 0 || total <= limit {
		return
	}
	for _, w := range p.workers {
		if w.shedding.CompareAndSwap(false, true) {
			w.loop.Post(w.relay.shed)
		}
	}
}

// output notes how much of a connection's output is not written; noted is what was said before.
func (r *relay) output(noted *int, n int) {
	if n > outputAt || *noted > 0 {
		r.park(n - *noted)
		*noted = n
	}
}

// holder is what has bytes parked: a call, or the output of one of its connections.
type holder struct {
	bytes   int
	all     int // of its client's connection, with all that runs there: who has little in each of many streams has as much
	call    *call
	gen     uint32
	client  *clientConn
	backend *backendConn
}

// shed resets what has most parked on the client connections that have most, if the process is over its limit, until an eighth is free: not by a little, or
// the next chunk would have all of it looked at again. A loop that has less than its share leaves that to the others.
func (r *relay) shed() {
	p := r.w.proxy
	r.w.shedding.Store(false)
	limit := r.limits().Buffered
	total := p.parked.Add(r.parked - r.reported)
	r.reported = r.parked
	if limit == 0 || total <= limit {
		return
	}
	share := limit / int64(len(p.workers))
	goal := r.parked - min(total-limit/8*7, r.parked-share/8*7)
	for _, h := range r.holders() {
		if r.parked <= goal {
			break
		}
		h.shed(limit)
	}
	p.parked.Add(r.parked - r.reported)
	r.reported = r.parked
}

// holders are all that may be shed, in that order.
func (r *relay) holders() []holder {
	var all []holder
	for c := range r.clients {
		first := len(all)
		if c.noted > 0 {
			all = append(all, holder{bytes: c.noted, client: c})
		}
		for s := range c.h2.All() {
			if k := s.Owner.(*call); k.parked() > 0 {
				all = append(all, holder{bytes: k.parked(), call: k, gen: k.gen})
			}
		}
		sum := 0
		for i := range all[first:] {
			sum += all[first+i].bytes
		}
		for i := range all[first:] {
			all[first+i].all = sum
		}
	}
	for _, p := range r.pools {
		for _, be := range p.backends {
			for _, conn := range be.conns {
				if conn.noted > 0 && r.loop.Now().Sub(conn.took) >= stuckFor {
					all = append(all, holder{bytes: conn.noted, all: conn.noted, backend: conn})
				}
				if conn.h2 == nil {
					continue
				}
				for s := range conn.h2.All() { // whose client has its answer, and no stream any more
					if k := s.Owner.(*call); !k.cs.Open() && k.parked() > 0 {
						all = append(all, holder{bytes: k.parked(), all: k.parked(), call: k, gen: k.gen})
					}
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b holder) int { return cmp.Or(cmp.Compare(b.all, a.all), cmp.Compare(b.bytes, a.bytes)) })
	return all
}

// shed ends h.
func (h *holder) shed(limit int64) {
	const over = "more is parked than limits.buffered allows: "
	switch {
	case h.call != nil && h.call.gen == h.gen:
		k := h.call
		k.relay.w.protect(k.client.rt, protectBuffered, k.client, over+"a stream with most of it was reset", int(limit))
		k.shed()
	case h.client != nil && !h.client.gone:
		c := h.client
		c.relay.w.protect(c.rt, protectBuffered, c, over+"its connection, which takes too little or ends no header block, was closed", int(limit))
		c.lc.Reset()
		c.cut = "its connection took too little: more was parked than limits.buffered allows"
		c.over()
	case h.backend != nil && !h.backend.gone:
		c := h.backend
		c.relay.w.protect(c.be.rt, protectBuffered, c, over+"a connection that takes too little was closed", int(limit))
		c.lc.Reset()
		c.lost("closed, as it took too little of what was sent", closedError)
	}
}

// parked is what the call has parked.
func (c *call) parked() int { return c.held + c.req.parked() + c.resp.parked() }

// parked is the memory that p has.
func (p *pipe) parked() int {
	if p.head == nil {
		return p.held
	}
	size := len(p.head.b)
	return p.held + (p.off+int(p.got-p.base)+size-1)/size*chunkSize
}

// shed resets a call that has too much parked. Nobody is blamed: whoever reads slowly may have a reason.
func (c *call) shed() {
	if c.queued {
		c.unwait()
	}
	c.abandon(h2.Cancel)
	if !c.cs.Open() {
		c.settle()
		return
	}
	c.note.ended(calls.Agent, c.phase(), "more was parked than limits.buffered allows")
	result, cause := health.Neutral, ""
	if c.answered {
		result, cause = c.outcome()
	}
	c.endAttempt(result, c.firstByte, c.expected, cause)
	c.req.keep, c.req.sent = false, c.req.got
	c.req.discard(c.relay, c.req.got)
	c.drop()
	c.dropTrailers()
	if c.answered {
		c.count(statusAborted, codeExhausted)
		c.resetClient(h2.EnhanceYourCalm) // which gRPC takes for RESOURCE_EXHAUSTED
	} else {
		c.abort(503, codeExhausted, "lbagent: "+c.lastName()+" more is parked in the agent than limits.buffered allows, and this call has most of it")
	}
	c.settle()
}

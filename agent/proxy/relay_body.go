package proxy

import "github.com/lbagent/lbagent/agent/proxy/h2"

// chunk holds parked or kept DATA.
type chunk struct {
	next *chunk
	n    int
	b    [4096 - 16]byte
}

func (r *relay) newChunk() *chunk {
	k := r.chunks
	if k == nil {
		k = &chunk{}
	} else {
		r.chunks = k.next
		r.nChunks--
		k.next, k.n = nil, 0
	}
	r.inUse++
	r.park(chunkSize)
	return k
}

func (r *relay) freeChunk(k *chunk) {
	r.inUse--
	r.park(-chunkSize)
	if r.nChunks < freeChunks {
		k.next = r.chunks
		r.chunks = k
		r.nChunks++
	}
}

// pipe is one direction of a call: DATA from the source, in positions since its beginning. What the target has not taken, or what is kept for a retry,
// lies in chunks: [base, got).
type pipe struct {
	head, tail *chunk
	off        int // of base in head

	base, got, sent int64
	marked, granted int64 // credit was asked for, and given back, up to here
	counted         *int  // bytes in chunks are counted there

	keep     bool // what was sent stays: the call may be retried
	end      bool // the source has ended
	trailing bool // by trailers
	trailers []h2.Field
	held     int // bytes of them, in relay.parked
}

// store appends b to the chunks.
func (p *pipe) store(r *relay, b []byte) {
	if p.counted != nil {
		*p.counted += len(b)
	}
	for len(b) > 0 {
		if p.tail == nil || p.tail.n == len(p.tail.b) {
			k := r.newChunk()
			if p.tail == nil {
				p.head = k
			} else {
				p.tail.next = k
			}
			p.tail = k
		}
		n := copy(p.tail.b[p.tail.n:], b)
		p.tail.n += n
		b = b[n:]
	}
}

// at is what lies in one piece from position pos on.
func (p *pipe) at(pos int64) []byte {
	i := int(pos-p.base) + p.off
	for k := p.head; k != nil; k = k.next {
		if i < k.n {
			return k.b[i:k.n]
		}
		i -= k.n
	}
	return nil
}

// discard drops what lies before position to.
func (p *pipe) discard(r *relay, to int64) {
	for p.head != nil && p.base < to {
		k := p.head
		n := min(k.n-p.off, int(to-p.base))
		p.off += n
		p.base += int64(n)
		if p.counted != nil {
			*p.counted -= n
		}
		if p.off < k.n {
			return
		}
		p.head, p.off = k.next, 0
		if p.head == nil {
			p.tail = nil
		}
		r.freeChunk(k)
	}
	p.base = max(p.base, to)
}

// endBy notes that the source has ended by trailers.
func (p *pipe) endBy(r *relay, trailers []h2.Field, size int) {
	r.park(size - p.held)
	p.end, p.trailing = true, true
	p.trailers, p.held = append(p.trailers[:0], trailers...), size
}

// dropTrailers keeps nothing of them.
func (p *pipe) dropTrailers(r *relay) {
	r.park(-p.held)
	p.trailers, p.held = emptied(p.trailers), 0
}

// sizeOf is what a header list counts (RFC 9113 6.5.2).
func sizeOf(fields []h2.Field) (n int) {
	for i := range fields {
		n += len(fields[i].Name) + len(fields[i].Value) + 32
	}
	return n
}

// release drops everything.
func (p *pipe) release(r *relay) {
	p.dropTrailers(r)
	p.discard(r, p.got)
	for k := p.head; k != nil; k = p.head { // not reached while the positions are right
		p.head = k.next
		r.freeChunk(k)
	}
	p.tail = nil
}

// took accounts for b, of which the target took n at once, and parks or keeps the rest.
func (p *pipe) took(r *relay, b []byte, n int) {
	if p.keep && (p.got > keepBytes || *p.counted+len(b) > keepLoop) { // 4.3
		p.keep = false
		p.discard(r, p.sent)
	}
	if p.keep {
		p.store(r, b)
		return
	}
	if p.head == nil {
		p.base = p.got - int64(len(b)-n)
	}
	if n < len(b) {
		p.store(r, b[n:])
	}
}

// requestData takes DATA from the client.
func (c *call) requestData(b []byte, end bool) {
	p := &c.req
	if c.resp.end && !c.bs.Open() { // answered, and nobody reads the rest
		p.end = end
		c.client.h2.Grant(&c.cs, len(b))
		c.client.flush()
		c.settle()
		return
	}
	straight := c.bs.Sending() && p.sent == p.got
	p.got += int64(len(b))
	p.end = end
	n := 0
	if straight {
		n = c.conn.h2.WriteData(&c.bs, b, end)
		p.sent += int64(n)
	}
	p.took(c.relay, b, n)
	if straight {
		c.creditRequest()
		c.conn.flush()
	}
	if straight || end { // the end of a request that was answered already closes the client's stream
		c.settle()
	}
}

// pumpRequest sends the backend what waits for it.
func (c *call) pumpRequest() {
	if !c.bs.Sending() {
		return
	}
	p, conn := &c.req, c.conn
	for p.sent < p.got {
		b := p.at(p.sent)
		last := p.sent+int64(len(b)) == p.got
		n := conn.h2.WriteData(&c.bs, b, last && p.end && !p.trailing)
		p.sent += int64(n)
		if !p.keep {
			p.discard(c.relay, p.sent)
		}
		conn.flush()
		if n < len(b) {
			break
		}
	}
	if p.sent == p.got && p.end && c.bs.Sending() {
		if p.trailing {
			conn.h2.WriteHeaders(&c.bs, p.trailers, true)
			c.dropTrailers()
		} else {
			conn.h2.WriteData(&c.bs, nil, true)
		}
	}
	c.creditRequest()
	conn.flush()
}

// creditRequest notes how far the client will have credit once the backend's socket has taken what is queued now.
func (c *call) creditRequest() {
	p := &c.req
	if p.sent-p.marked >= creditStep && !p.end {
		p.marked = p.sent
		c.conn.credits.push(credit{at: c.conn.lc.Queued(), call: c, gen: c.gen, pos: p.sent})
	}
}

// responseData takes DATA from the backend.
func (c *call) responseData(b []byte, end bool) {
	p := &c.resp
	c.sawData = true
	straight := p.sent == p.got && c.cs.Sending()
	p.got += int64(len(b))
	p.end = end
	n := 0
	if straight {
		n = c.client.h2.WriteData(&c.cs, b, end)
		p.sent += int64(n)
	}
	p.took(c.relay, b, n)
	if straight {
		c.creditResponse()
		c.client.flush()
	}
	c.settle()
}

// pumpResponse sends the client what waits for it.
func (c *call) pumpResponse() {
	if !c.cs.Sending() {
		return
	}
	p, client := &c.resp, c.client
	for p.sent < p.got {
		b := p.at(p.sent)
		last := p.sent+int64(len(b)) == p.got
		n := client.h2.WriteData(&c.cs, b, last && p.end && !p.trailing)
		p.sent += int64(n)
		p.discard(c.relay, p.sent)
		client.flush()
		if n < len(b) {
			break
		}
	}
	if p.sent == p.got && p.end && c.cs.Sending() {
		if p.trailing {
			client.h2.WriteHeaders(&c.cs, p.trailers, true)
		} else {
			client.h2.WriteData(&c.cs, nil, true)
		}
	}
	c.creditResponse()
	client.flush()
}

func (c *call) creditResponse() {
	p := &c.resp
	if p.sent-p.marked >= creditStep && !p.end {
		p.marked = p.sent
		c.client.credits.push(credit{at: c.client.lc.Queued(), call: c, gen: c.gen, pos: p.sent})
	}
}

// credit is what a connection owes a stream on another one: when its socket has taken all that was queued up to at, the source of that stream may send
// up to position pos plus a window.
type credit struct {
	at   uint64
	call *call
	gen  uint32
	pos  int64
}

// credits is a queue of them, in the order of at.
type credits struct {
	q    []credit
	head int
}

func (q *credits) push(c credit) { q.q = append(q.q, c) }

// pop returns the next whose bytes are written.
func (q *credits) pop(written uint64) (credit, bool) {
	if q.head == len(q.q) || q.q[q.head].at > written {
		return credit{}, false
	}
	c := q.q[q.head]
	q.q[q.head] = credit{}
	q.head++
	switch {
	case q.head == len(q.q):
		q.q, q.head = q.q[:0], 0
		if cap(q.q) > 256 {
			q.q = nil
		}
	case q.head > 64 && q.head > len(q.q)/2:
		n := copy(q.q, q.q[q.head:])
		q.q, q.head = q.q[:n], 0
	}
	return c, true
}

// writtenToBackend gives clients the credit whose bytes the backend's socket has taken; writtenToClient likewise the other way.
func (c *call) writtenToBackend(pos int64) {
	if n := pos - c.req.granted; n > 0 {
		c.req.granted = pos
		c.client.h2.Grant(&c.cs, int(n))
		c.client.flush()
	}
}

func (c *call) writtenToClient(pos int64) {
	if n := pos - c.resp.granted; n > 0 && c.conn != nil {
		c.resp.granted = pos
		c.conn.h2.Grant(&c.bs, int(n))
		c.conn.flush()
	}
}

package proxy

import "fmt"

// check compares what the relay keeps twice, for tests and fuzzers: it returns the first contradiction.
func (r *relay) check() error {
	queued, conns, streams := 0, 0, 0
	parked := int64(r.inUse * chunkSize)
	held := func(c *call) int64 { return int64(c.held + c.req.held + c.resp.held) }
	for _, p := range r.pools {
		for state, be := range p.backends {
			n, dialing := 0, 0
			for c := range be.waiting.all() {
				n++
				if !c.queued || c.be != be || c.state != state || c.bs.Open() {
					return fmt.Errorf("%s: a call waits that does not", be.name())
				}
			}
			if n != be.waiting.n {
				return fmt.Errorf("%s: %d calls wait, %d are counted", be.name(), n, be.waiting.n)
			}
			queued += n
			for _, conn := range be.conns {
				conns++
				if !conn.up {
					dialing++
				}
				if conn.gone || conn.be != be {
					return fmt.Errorf("%s: has a connection that is gone", be.name())
				}
				if parked += int64(conn.noted); conn.h2 == nil {
					continue
				}
				if err := conn.h2.Check(); err != nil {
					return fmt.Errorf("%s: %w", be.name(), err)
				}
				for s := range conn.h2.All() {
					streams++
					c := s.Owner.(*call)
					if !c.cs.Open() {
						parked += held(c)
					}
					if &c.bs != s || c.conn != conn || c.state != state || c.queued {
						return fmt.Errorf("%s: stream %d and its call disagree", be.name(), s.ID())
					}
				}
			}
			if dialing != be.dialing {
				return fmt.Errorf("%s: %d dials, %d are counted", be.name(), dialing, be.dialing)
			}
		}
	}
	slots := 0
	for c := range r.clients {
		slots += c.h2.Slots()
		parked += int64(c.noted)
		if err := c.h2.Check(); err != nil {
			return fmt.Errorf("client: %w", err)
		}
		for s := range c.h2.All() {
			k := s.Owner.(*call)
			parked += held(k)
			if &k.cs != s || k.client != c || !k.bs.Open() && !k.queued && !k.resp.end {
				return fmt.Errorf("client: stream %d and its call disagree", s.ID())
			}
		}
	}
	switch {
	case parked != r.parked || r.parked-r.reported >= parkStep || r.reported-r.parked >= parkStep:
		return fmt.Errorf("%d bytes are parked, %d are counted, %d told", parked, r.parked, r.reported)
	case slots > r.calls:
		return fmt.Errorf("%d slots taken by %d calls", slots, r.calls)
	case queued+streams > r.calls:
		return fmt.Errorf("%d calls, but %d wait and %d run", r.calls, queued, streams)
	case r.calls == 0 && (r.inUse != 0 || r.kept != 0):
		return fmt.Errorf("no calls, but %d chunks with %d bytes are in use", r.inUse, r.kept)
	case r.kept < 0 || r.inUse < 0 || r.nChunks > freeChunks || r.nIdle > freeCalls:
		return fmt.Errorf("kept %d, chunks %d, free %d, %d", r.kept, r.inUse, r.nChunks, r.nIdle)
	}
	return nil
}

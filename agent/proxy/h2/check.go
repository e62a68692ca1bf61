package h2

import "fmt"

// Check compares what a Conn keeps twice, for tests and fuzzers: it returns the first contradiction.
func (c *Conn) Check() error {
	n := 0
	for s := c.open; s != nil; s = s.next {
		n++
		switch {
		case s.conn != c:
			return fmt.Errorf("stream %d is listed, but not this connection's", s.id)
		case c.streams.get(s.id) != s:
			return fmt.Errorf("stream %d is listed, but not found", s.id)
		case s.recvEnd && s.sendEnd:
			return fmt.Errorf("stream %d is open with both directions ended", s.id)
		case s.recvWindow < 0 || s.recvWindow > maxWindow || s.sendWindow > maxWindow:
			return fmt.Errorf("stream %d: windows %d, %d", s.id, s.recvWindow, s.sendWindow)
		case s.recvWindow+s.owed > int64(c.cfg.StreamWindow):
			return fmt.Errorf("stream %d: %d credit given, %d advertised", s.id, s.recvWindow+s.owed, c.cfg.StreamWindow)
		case s.next != nil && s.next.prev != s:
			return fmt.Errorf("stream %d: list broken", s.id)
		}
	}
	queued := 0
	for s := c.blocked.first; s != nil; s = s.after {
		queued++
		if !s.queued || s.conn != c || s.after == nil && c.blocked.last != s {
			return fmt.Errorf("stream %d is in the queue, but not waiting here", s.id)
		}
	}
	switch {
	case queued != c.blocked.n:
		return fmt.Errorf("%d streams in the queue, %d counted", queued, c.blocked.n)
	case n != c.streams.n:
		return fmt.Errorf("%d streams listed, %d in the table", n, c.streams.n)
	case n > c.slots:
		return fmt.Errorf("%d streams open, %d slots taken", n, c.slots)
	case !c.cfg.Server && n != c.slots:
		return fmt.Errorf("%d streams open, %d slots taken", n, c.slots)
	case !c.dead && (c.recvWindow < 0 || c.recvWindow+c.owed != int64(max(c.cfg.ConnWindow, defaultWindow))):
		return fmt.Errorf("connection window %d + %d owed is not %d", c.recvWindow, c.owed, c.cfg.ConnWindow)
	case c.held < 0 || c.held > c.cfg.HeldBytes || c.slots == 0 && c.held > 0 || c.budget > budgetFull:
		return fmt.Errorf("%d bytes of header lists held, budget %d", c.held, c.budget)
	case c.sendWindow < 0:
		return fmt.Errorf("sent %d above the connection window", -c.sendWindow)
	}
	return nil
}

package proxy

import (
	"errors"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/h2"
	"github.com/lbagent/lbagent/agent/proxy/loop"
	"golang.org/x/sys/unix"
)

// backendConn is a connection to a backend: loop.Handler for its socket, h2.Handler for its streams.
type backendConn struct {
	relay *relay
	be    *backend
	lc    *loop.Conn
	h2    *h2.Conn // nil until the socket is connected

	credits credits
	timer   loop.Timer
	busy    time.Time // when a call last ended
	answers uint64    // response heads that came
	up      bool      // SETTINGS came: only then is it connected
	retired bool      // takes no new streams
	goaway  string    // what its GOAWAY said, if that was an error
	gone    bool
}

// Connected: loop.Handler. The socket is there; whether a backend is behind it, its SETTINGS say.
func (c *backendConn) Connected() {
	limits := c.relay.limits()
	c.h2 = h2.New(h2.Config{
		StreamWindow: streamWindow, ConnWindow: connWindow, HeaderBytes: limits.HeaderBytes, HeaderFields: limits.HeaderFields,
	}, &c.lc.Out, c)
	c.lc.Flush()
}

// Settings: h2.Handler.
func (c *backendConn) Settings() {
	if !c.up {
		c.up = true
		c.relay.loop.Disarm(&c.timer)
		if idle := c.be.rt.options().idle; idle > 0 {
			c.relay.loop.Arm(&c.timer, idle)
		}
		c.be.connected()
		return
	}
	c.be.pump() // there may be more slots
}

// flush has what was appended written at the end of this wake-up, and holds DATA back while the backend doesn't keep up.
func (c *backendConn) flush() {
	c.lc.Flush()
	if len(c.lc.Out) > fullAt && c.lc.Unwritten() > fullAt {
		c.h2.SetFull(true)
	}
}

// Written: loop.Handler.
func (c *backendConn) Written(total uint64) {
	for {
		k, ok := c.credits.pop(total)
		if !ok {
			break
		}
		if k.call.gen == k.gen && k.call.conn == c {
			k.call.writtenToBackend(k.pos)
		}
	}
	if c.h2 == nil {
		return
	}
	left := c.lc.Unwritten()
	if left == 0 {
		c.h2.Flushed()
	}
	if left <= roomAt {
		c.h2.SetFull(false)
		if c.be.waiting.n > 0 {
			c.be.pump()
		}
	}
}

// Readable: loop.Handler.
func (c *backendConn) Readable(b []byte) int {
	n, err := c.h2.Feed(b)
	if err != nil {
		c.relay.w.protect(c.be.rt, protectionOf(err), c, "connection closed: "+err.Error(), 0)
		c.lc.Flush()
		c.lc.Close()
		c.lost(err.Error())
		return len(b)
	}
	if !c.gone {
		c.flush()
	}
	return n
}

// EOF: loop.Handler. Calls of which nothing was written yet go elsewhere (4.1), so that nothing of them may be written now.
func (c *backendConn) EOF() {
	if c.lc.Unwritten() > 0 {
		c.lc.Reset()
	} else {
		c.lc.Close()
	}
	c.lost("closed by the backend")
}

// Closed: loop.Handler.
func (c *backendConn) Closed(err error) {
	cause := err.Error()
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		cause = errno.Error() // "connection refused", without the call that said so
	}
	c.lost(cause)
}

// lost ends a connection that broke. It's one failure, whatever hung on it, and none if nothing did.
func (c *backendConn) lost(cause string) {
	if c.gone {
		return
	}
	c.gone, c.retired = true, true
	cause += c.goaway
	c.relay.loop.Disarm(&c.timer)
	if !c.up {
		c.be.connectFailed(c, cause)
		return
	}
	c.be.drop(c)
	if c.h2.Streams() > 0 {
		c.be.state.ConnectionLost(c.relay.loop.Now(), cause)
	}
	written := c.lc.Queued() // what the kernel did not take is gone
	for s := c.anyStream(); s != nil; s = c.anyStream() {
		s.Owner.(*call).connLost(cause, written)
	}
	c.credits = credits{}
	c.be.pump()
	c.be.forget()
}

// end closes a connection without streams.
func (c *backendConn) end() {
	if c.gone {
		return
	}
	c.gone, c.retired = true, true
	c.relay.loop.Disarm(&c.timer)
	if c.h2 != nil {
		c.h2.Goaway()
	}
	c.lc.Close()
	if !c.up {
		c.be.dialing--
	}
	c.be.drop(c)
	c.be.forget()
}

// tick is the connection's one timer: SETTINGS that don't come, then idle time (4.8).
func (c *backendConn) tick() {
	if !c.up {
		c.lc.Close()
		if c.h2 == nil {
			c.lost(loop.ErrDialTimeout.Error())
		} else {
			c.lost("no SETTINGS within timeout.connect")
		}
		return
	}
	idle := c.be.rt.options().idle
	if idle <= 0 {
		return
	}
	left := idle - c.relay.loop.Now().Sub(c.busy)
	switch {
	case c.h2.Streams() > 0:
		c.relay.loop.Arm(&c.timer, idle)
	case left > 0:
		c.relay.loop.Arm(&c.timer, left)
	default:
		c.end()
	}
}

// freed notes that a stream is over.
func (c *backendConn) freed() {
	if c.gone {
		return
	}
	if c.h2.Spent() {
		c.retired = true
	}
	if c.h2.Streams() == 0 {
		c.busy = c.relay.loop.Now()
		if c.retired || c.be.removed {
			c.end()
		}
	}
	if c.be.waiting.n > 0 {
		c.be.pump()
	}
}

func (c *backendConn) anyStream() *h2.Stream {
	if c.h2 == nil {
		return nil
	}
	return c.h2.Any()
}

// Goaway: h2.Handler. The streams that the backend never saw go elsewhere, the others end here (4.1). Without an error it's no failure.
func (c *backendConn) Goaway(last uint32, code h2.Code, debug []byte) {
	c.retired = true
	if code != h2.NoError {
		c.goaway = " after GOAWAY " + code.String()
		if len(debug) > 0 {
			c.goaway += ": " + string(debug[:min(len(debug), 100)])
		}
	}
	unseen := c.relay.streams[:0]
	for s := range c.h2.All() {
		if s.ID() > last {
			unseen = append(unseen, s)
		}
	}
	for _, s := range unseen {
		c.h2.Forget(s)
		s.Owner.(*call).unseen()
	}
	clear(unseen)
	c.relay.streams = unseen[:0]
	if c.gone {
		return
	}
	if c.h2.Streams() == 0 {
		c.end()
	}
	if c.be.waiting.n > 0 {
		c.be.pump()
	}
}

// Headers: h2.Handler.
func (c *backendConn) Headers(s *h2.Stream, fields []h2.Field, head *h2.Head, end bool) {
	c.answers++
	s.Owner.(*call).response(fields, head, end)
}

// Data: h2.Handler.
func (c *backendConn) Data(s *h2.Stream, p []byte, end bool) { s.Owner.(*call).responseData(p, end) }

// Trailers: h2.Handler.
func (c *backendConn) Trailers(s *h2.Stream, fields []h2.Field, head *h2.Head) {
	s.Owner.(*call).responseTrailers(fields, head)
}

// Reset: h2.Handler.
func (c *backendConn) Reset(s *h2.Stream, code h2.Code, local bool) {
	if local {
		c.relay.w.protect(c.be.rt, protectMalformed, c, "malformed response reset: "+code.String(), 0)
	}
	s.Owner.(*call).resetByBackend(code, local)
}

// Writable: h2.Handler.
func (c *backendConn) Writable(s *h2.Stream) {
	k := s.Owner.(*call)
	k.pumpRequest()
	k.settle()
}

// Open: h2.Handler, for servers only.
func (c *backendConn) Open() *h2.Stream { return nil }

// Refused: h2.Handler, for servers only.
func (c *backendConn) Refused(h2.Fault) {}

// Drained: h2.Handler, for servers only.
func (c *backendConn) Drained() {}

// peer: peer.
func (c *backendConn) peer() (client, backend string) { return "", c.be.addr.String() }

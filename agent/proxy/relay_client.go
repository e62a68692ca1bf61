package proxy

import (
	"time"

	"github.com/lbagent/lbagent/agent/calls"
	"github.com/lbagent/lbagent/agent/proxy/h2"
	"github.com/lbagent/lbagent/agent/proxy/loop"
)

// clientConn is a client's connection: loop.Handler for its socket, h2.Handler for its streams.
type clientConn struct {
	relay *relay
	rt    *route
	pool  *pool
	stats *serviceStats
	lc    *loop.Conn
	h2    *h2.Conn
	// limits are those that the client was told.
	limits *Limits

	credits credits
	noted   int // of output and of half, in relay.parked
	half    int // bytes of a frame and of a header block that have begun and not ended
	timer   loop.Timer
	due     time.Time // when it fires
	began   time.Time // when it was accepted
	busy    time.Time // when a call last began or ended
	slow    holdUp
	paused  bool
	ending  ending
	gone    bool
	cut     string // why this side ended it at once; empty if it didn't
	who     string // its peer, once a record has named it
}

// ending is how far the graceful end of a connection has come.
type ending uint8

const (
	notEnding ending = iota
	goingAway        // Shutdown: the client may not know yet
	lastCalls        // no new stream can come
	finSent          // waiting for the client's FIN
)

func (c *clientConn) begin(lc *loop.Conn) {
	c.lc = lc
	c.limits = c.relay.limits()
	c.h2 = h2.New(h2.Config{
		Server: true, MaxStreams: c.limits.StreamsPerConnection, StreamWindow: streamWindow, ConnWindow: connWindow,
		HeaderBytes: c.limits.HeaderBytes, HeaderFields: c.limits.HeaderFields,
		Wary:      c.stats.flood.wary(c.relay.loop.Now()),
		NoRefill:  c.relay.noRefill,
		HeldBytes: c.heldMost(),
	}, &lc.Out, c)
	c.timer.F = c.tick
	c.began = c.relay.loop.Now()
	c.busy = c.began
	c.slow.hello = true
	c.rest(c.began)
	if c.relay.draining || c.rt.svc.View().Gone {
		c.shutdown()
	}
	lc.Flush()
}

// heldMost bounds the header lists and trailers that are kept for the calls of this connection; those of one call always fit.
func (c *clientConn) heldMost() int {
	return max(c.limits.StreamsPerConnection*heldPerStream, 2*c.limits.HeaderBytes)
}

// flush has what was appended written at the end of this wake-up, and holds DATA and reading back while the client doesn't keep up.
func (c *clientConn) flush() {
	c.lc.Flush()
	if (len(c.lc.Out) > outputAt || c.half > outputAt || c.noted > 0) && !c.gone {
		c.relay.output(&c.noted, c.lc.Unwritten()+c.half)
	}
	if len(c.lc.Out) > fullAt {
		if n := c.lc.Unwritten(); n > fullAt {
			c.h2.SetFull(true)
			if c.slow.stuck.IsZero() {
				c.wrote(n)
			}
			if n > pauseAt && !c.paused {
				c.paused = true
				c.lc.Pause()
			}
		}
	}
}

// Written: loop.Handler.
func (c *clientConn) Written(total uint64) {
	for {
		k, ok := c.credits.pop(total)
		if !ok {
			break
		}
		if k.call.gen == k.gen {
			k.call.writtenToClient(k.pos)
		}
	}
	left := c.lc.Unwritten()
	c.relay.output(&c.noted, left+c.half)
	c.wrote(left)
	if c.ending == finSent { // it reads on: the last answers are to reach it whole
		c.relay.loop.Arm(&c.timer, goawayPatience)
	}
	if left <= pauseAt/2 && c.paused {
		c.paused = false
		c.lc.Resume()
		if !c.slow.half.IsZero() {
			c.slow.half = c.relay.loop.Now()
		}
	}
	if left <= roomAt {
		c.h2.Flushed()
		c.h2.SetFull(false)
	}
}

// Readable: loop.Handler.
func (c *clientConn) Readable(b []byte) int {
	n, err := c.h2.Feed(c.relay.loop.Now(), b)
	if err != nil {
		kind := protectionOf(err)
		c.stats.flood.note(c.relay.loop.Now(), kind)
		c.relay.w.protect(c.rt, kind, c, "connection closed: "+err.Error(), 0)
		c.cut = "its connection was closed: " + err.Error()
		c.close()
		return len(b)
	}
	if !c.gone {
		rest := len(b) - n
		if c.h2.More() {
			c.lc.Later()
			rest = 0 // it's us who let it wait
		}
		c.received(n, rest)
		c.flush()
	}
	return n
}

// Connected: loop.Handler, not for accepted connections.
func (c *clientConn) Connected() {}

// EOF: nobody can be answered who half-closes; an HTTP/2 connection ends as a whole.
func (c *clientConn) EOF() { c.close() }

// Closed: loop.Handler.
func (c *clientConn) Closed(error) { c.over() }

// close ends the connection now.
func (c *clientConn) close() {
	c.lc.Close()
	c.over()
}

// over cancels what runs for a connection that is gone.
func (c *clientConn) over() {
	if c.gone {
		return
	}
	c.gone = true
	r := c.relay
	r.loop.Disarm(&c.timer)
	for s := c.h2.Any(); s != nil; s = c.h2.Any() {
		c.h2.Forget(s)
		k := s.Owner.(*call)
		if c.cut != "" {
			k.note.ended(calls.Agent, k.phase(), c.cut)
		}
		k.cancelled(h2.Cancel)
	}
	c.credits = credits{}
	r.output(&c.noted, 0)
	delete(r.clients, c)
	c.pool.clients--
	r.dropPool(c.pool)
	r.w.clientDone(c.rt, protoH2)
}

// tick is the connection's one timer: what the client holds up, idle time (4.8), or the patience of a graceful end.
func (c *clientConn) tick() {
	now := c.relay.loop.Now()
	switch c.ending {
	case notEnding, lastCalls:
		if !c.tooSlow(now) {
			c.rest(now)
		}
	case goingAway:
		c.h2.Drain()
		c.lc.Flush()
	case finSent:
		c.close()
	}
}

// rest has tick look at the connection again: soon, while the client holds something up, or when it may have been idle for long enough.
func (c *clientConn) rest(now time.Time) {
	idle := c.rt.options().idle
	left := idle - now.Sub(c.busy)
	if c.h2.Slots() > 0 {
		left = idle
	}
	idles := idle > 0 && c.ending == notEnding
	switch {
	case idles && left <= 0:
		c.shutdown()
	case c.slow.any() && (!idles || left > c.relay.slowness.check):
		c.watch()
	case idles:
		c.alarm(left)
	}
}

// shutdown begins a graceful end: two GOAWAYs, then the running calls, then FIN.
func (c *clientConn) shutdown() {
	if c.ending != notEnding || c.gone {
		return
	}
	c.ending = goingAway
	c.h2.Shutdown()
	c.lc.Flush()
	c.relay.loop.Arm(&c.timer, goawayPatience)
}

// Drained: h2.Handler.
func (c *clientConn) Drained() {
	c.ending = lastCalls
	c.relay.loop.Disarm(&c.timer)
	c.slow.watched = false
	c.watch()
	c.finish()
}

// finish ends the connection after its last call. FIN goes first: close would make the kernel drop answers that the client has not read, if it has
// sent anything meanwhile.
func (c *clientConn) finish() {
	if c.ending == lastCalls && c.h2.Slots() == 0 && !c.gone {
		c.ending = finSent
		c.lc.CloseWrite()
		c.relay.loop.Arm(&c.timer, goawayPatience)
	}
}

// release gives a call's slot back.
func (c *clientConn) release() {
	c.h2.Release()
	c.busy = c.relay.loop.Now()
	c.finish()
}

// Open: h2.Handler.
func (c *clientConn) Open() *h2.Stream {
	k := c.relay.newCall()
	k.client = c
	return &k.cs
}

// Headers: h2.Handler.
func (c *clientConn) Headers(s *h2.Stream, fields []h2.Field, head *h2.Head, end bool) {
	s.Owner.(*call).begin(fields, head, end)
}

// Data: h2.Handler.
func (c *clientConn) Data(s *h2.Stream, p []byte, end bool) { s.Owner.(*call).requestData(p, end) }

// Trailers: h2.Handler.
func (c *clientConn) Trailers(s *h2.Stream, fields []h2.Field, head *h2.Head) {
	s.Owner.(*call).requestTrailers(fields, head)
}

// Reset: h2.Handler.
func (c *clientConn) Reset(s *h2.Stream, code h2.Code, local bool) {
	switch {
	case local && code == h2.EnhanceYourCalm:
		c.relay.w.protect(c.rt, protectHeaders, c, "request reset: its trailers are too large, or too many header lists are kept in bytes", c.heldMost())
	case local:
		c.relay.w.protect(c.rt, protectMalformed, c, "malformed request reset: "+code.String(), 0)
	}
	k := s.Owner.(*call)
	if local {
		k.note.ended(calls.Agent, k.phase(), "what followed the request's head was malformed, or too large")
		code = h2.Cancel
	}
	k.cancelled(code)
}

// Refused: h2.Handler.
func (c *clientConn) Refused(f h2.Fault) {
	w := c.relay.w
	switch f {
	case h2.FaultHeaders:
		w.protect(c.rt, protectHeaders, c, "request refused: too many header lists kept in bytes", c.heldMost())
	case h2.FaultStreams:
		w.protect(c.rt, protectStreams, c, "request refused: too many streams", c.limits.StreamsPerConnection)
	default:
		w.protect(c.rt, protectMalformed, c, "malformed request refused", 0)
	}
}

// name is the peer's, for records.
func (c *clientConn) name() string {
	if c.who == "" {
		c.who = c.lc.Peer()
	}
	return c.who
}

// peer: peer.
func (c *clientConn) peer() (client, backend string) { return c.lc.Peer(), "" }

// Writable: h2.Handler.
func (c *clientConn) Writable(s *h2.Stream) {
	k := s.Owner.(*call)
	k.pumpResponse()
	k.settle()
}

// Settings: h2.Handler.
func (c *clientConn) Settings() {}

// Goaway: h2.Handler. The client opens no more streams: the connection ends with its last call.
func (c *clientConn) Goaway(uint32, h2.Code, []byte) { c.shutdown() }

// Pong: h2.Handler. Clients are asked only by h2's own PING.
func (c *clientConn) Pong(uint64) {}

package proxy

import (
	"errors"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/h2"
	"github.com/lbagent/lbagent/agent/proxy/loop"
	"github.com/lbagent/lbagent/health"
	"golang.org/x/sys/unix"
)

// backendConn is a connection to a backend: loop.Handler for its socket, h2.Handler for its streams.
type backendConn struct {
	relay *relay
	be    *backend
	lc    *loop.Conn
	h2    *h2.Conn // nil until the socket is connected

	credits  credits
	noted    int       // of output, in relay.parked
	took     time.Time // when the backend last took something of it
	timer    loop.Timer
	busy     time.Time // when a call last ended
	frames   uint64    // HEADERS and DATA that came
	calls    uint64    // streams opened
	hang     hangWatch
	watched  bool   // the timer serves hang, not idle time
	resting  bool   // hang looks again so late that what comes first has to wake it
	pingEnd  uint64 // where the last PING ends in the output
	arrived  uint64 // how much of the output the backend's host had then, or as of the last look
	up       bool   // SETTINGS came: only then is it connected
	excused  bool   // it got more time for that
	retired  bool   // takes no new streams
	left     bool   // by GOAWAY
	ourFault bool   // it was left because of our PINGs
	goaway   string // what its GOAWAY said, if that was an error
	bye      string // what it said, in any case
	gone     bool

	account *account
	since   time.Time // it is up
}

// Connected: loop.Handler. The socket is there; whether a backend is behind it, its SETTINGS say.
func (c *backendConn) Connected() {
	c.hang.rtt = c.relay.loop.Now().Sub(c.busy) // until a PING says it better
	limits := c.relay.limits()
	c.h2 = h2.New(h2.Config{
		StreamWindow: streamWindow, ConnWindow: connWindow, HeaderBytes: limits.HeaderBytes, HeaderFields: limits.HeaderFields,
		Wary: c.be.flood.wary(c.relay.loop.Now()), NoRefill: c.relay.noRefill,
	}, &c.lc.Out, c)
	c.lc.Flush()
}

// Settings: h2.Handler.
func (c *backendConn) Settings() {
	if !c.up {
		c.up = true
		c.busy = c.relay.loop.Now()
		c.since = c.busy
		c.rest()
		c.be.connected(c)
		return
	}
	c.be.pump() // there may be more slots
}

// flush has what was appended written at the end of this wake-up, and holds DATA back while the backend doesn't keep up.
func (c *backendConn) flush() {
	c.lc.Flush()
	if (len(c.lc.Out) > outputAt || c.noted > 0) && !c.gone {
		if c.noted == 0 {
			c.took = c.relay.loop.Now()
		}
		c.relay.output(&c.noted, c.lc.Unwritten())
	}
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
	c.took = c.relay.loop.Now()
	c.relay.output(&c.noted, left)
	if left <= roomAt {
		c.h2.Flushed()
		c.h2.SetFull(false)
		if c.be.waiting.n > 0 {
			c.be.pump()
		}
	}
}

// Readable: loop.Handler.
func (c *backendConn) Readable(b []byte) int {
	now := c.relay.loop.Now()
	suspect := c.hang.suspect()
	c.hang.hears(now)
	if c.resting {
		c.look(now)
	}
	n, err := c.h2.Feed(now, b)
	if err != nil {
		kind := protectionOf(err)
		c.be.flood.note(now, kind)
		c.relay.w.protect(c.be.rt, kind, c, "connection closed: "+err.Error(), 0)
		c.lc.Flush()
		c.lc.Close()
		c.lost(err.Error(), closedProtocol)
		return len(b)
	}
	if !c.gone {
		if c.h2.More() {
			c.lc.Later()
		}
		c.flush()
		if suspect && c.be.waiting.n > 0 {
			c.be.pump()
		}
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
	c.lost("closed by the backend", closedFIN)
}

// Closed: loop.Handler.
func (c *backendConn) Closed(err error) {
	if errors.Is(err, loop.ErrEnded) {
		c.lost("the agent stops", closedStop)
		return
	}
	cause := err.Error()
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		cause = errno.Error() // "connection refused", without the call that said so
	}
	c.lost(cause, closedError)
}

// lost ends a connection that broke. It's one failure, whatever hung on it, and none if nothing did (2.11), if we were too curious, or if it's us who end.
func (c *backendConn) lost(cause string, why closeCause) {
	if c.gone {
		return
	}
	if c.left && why == closedFIN {
		why = closedGoaway
	}
	waited := c.unanswered() // before anything of it is ended
	c.gone, c.retired = true, true
	c.relay.output(&c.noted, 0)
	e := c.ending(why, cause)
	cause += c.goaway
	c.relay.loop.Disarm(&c.timer)
	if !c.up {
		c.be.connectFailed(c, cause, why)
		return
	}
	c.be.closed(c, e)
	if why == closedFIN || why == closedError {
		c.be.state.Goodbye()
	}
	if why == closedHang || why == closedProtocol || waited && why != closedStop && !c.ourFault {
		c.be.state.ConnectionLost(c.relay.loop.Now(), cause)
	}
	written := c.lc.Queued() // what the kernel did not take is gone
	for s := c.anyStream(); s != nil; s = c.anyStream() {
		s.Owner.(*call).connLost(cause, written, why == closedStop)
	}
	c.credits = credits{}
	switch why {
	case closedStop: // whoever waits is about to end as well
	case closedHang:
		c.be.giveUp(true, "does not answer")
	default:
		c.be.pump()
	}
	c.be.forget()
}

// unanswered reports whether a call is still to get something of its response here.
func (c *backendConn) unanswered() bool {
	if c.h2 == nil {
		return false
	}
	for s := range c.h2.All() {
		if !s.Owner.(*call).resp.end {
			return true
		}
	}
	return false
}

// end closes a connection without streams.
func (c *backendConn) end(why closeCause) {
	if c.gone {
		return
	}
	c.gone, c.retired = true, true
	c.relay.output(&c.noted, 0)
	c.relay.loop.Disarm(&c.timer)
	if c.h2 != nil {
		c.h2.Goaway()
	}
	c.lc.Close()
	c.be.closed(c, c.ending(why, ""))
	c.be.forget()
}

// ending is how and why the connection ends, for a person: before anything of it is ended.
func (c *backendConn) ending(why closeCause, cause string) connEnd {
	e := connEnd{why: why}
	if !c.up {
		return e
	}
	now := c.relay.loop.Now()
	e.at, e.protocol, e.lasted = now, protoH2, now.Sub(c.since)
	if e.calls = c.h2.Streams(); e.calls == 0 {
		e.idle = now.Sub(c.busy)
	}
	switch why {
	case closedRemoved:
		v := c.be.pool.svc.View()
		e.detail = leaving(v, v.Find(c.be.addr))
	case closedGoaway:
		e.detail = c.bye
	case closedError:
		e.detail = broken(cause)
		if c.left {
			e.detail += " after " + c.bye
		}
	case closedProtocol:
		e.detail = cause
	case closedHang:
		e.idle = now.Sub(c.hang.heard)
	}
	return e
}

// tick is the connection's one timer: SETTINGS that don't come, a backend that hangs, idle time (4.8).
func (c *backendConn) tick() {
	now := c.relay.loop.Now()
	switch {
	case !c.up && !c.excused && c.relay.loop.Lost(c.busy) > 0: // a machine that stood still has not waited that long
		c.excused = true
		c.relay.loop.Arm(&c.timer, min(c.relay.loop.Lost(c.busy), c.be.rt.options().connect))
	case !c.up:
		c.lc.Close()
		if c.h2 == nil {
			c.lost(loop.ErrDialTimeout.Error(), closedError)
		} else {
			c.lost("no SETTINGS within timeout.connect", closedError)
		}
	case c.h2.Streams() > 0 || c.hang.asked:
		c.look(now)
	case c.watched:
		c.rest()
	default:
		c.end(closedIdle)
	}
}

// rest waits for the end of the idle time.
func (c *backendConn) rest() {
	c.watched, c.resting = false, false
	idle := c.be.rt.options().idle
	if c.be.spare(c) && (idle <= 0 || idle > spareIdle) {
		idle = spareIdle
	}
	if idle <= 0 {
		c.relay.loop.Disarm(&c.timer)
		return
	}
	c.relay.loop.Arm(&c.timer, max(0, idle-c.relay.loop.Now().Sub(c.busy)))
}

// begins notes that a stream is about to be opened.
func (c *backendConn) begins() {
	now := c.relay.loop.Now()
	c.hang.opens(now)
	c.calls++
	if !c.watched || c.resting {
		c.look(now)
	}
}

// look asks hang what is to be done.
func (c *backendConn) look(now time.Time) {
	c.watched = true
	do, at := c.hang.look(now, c.frames, c.calls, c.be.pingEvery)
	c.resting = do == hangRest
	switch do {
	case hangPing:
		// Only what lies before it may delay it: if it's alone, its time doesn't depend on what arrives.
		c.arrived = c.lc.Arrived()
		alone := c.arrived == c.lc.Queued()
		c.h2.Ping(c.hang.number)
		c.pingEnd = c.lc.Queued()
		if alone {
			c.arrived = c.pingEnd
		}
		c.flush()
	case hangDead:
		if !c.moves() {
			c.hung(now)
			return
		}
		at = c.hang.wait(now)
	}
	c.relay.loop.Arm(&c.timer, at.Sub(now))
}

// moves reports whether there is a sign of life that the watch can't see: bytes that this loop has not read yet, or a PING that has not got there, behind
// others that do, over a slow way.
func (c *backendConn) moves() bool {
	if c.lc.Unread() > 0 {
		return true
	}
	if c.arrived >= c.pingEnd {
		return false
	}
	before := c.arrived
	c.arrived = c.lc.Arrived()
	return c.arrived > before
}

// hung ends a connection whose backend doesn't answer (2.11). What waits in its socket is of no use any more: RST.
func (c *backendConn) hung(now time.Time) {
	cause := "hangs: nothing came for " + health.Ago(now.Sub(c.hang.heard)) + ", no answer to a PING either"
	c.be.tellHang(now, cause)
	c.lc.Reset()
	c.lost(cause, closedHang)
}

// Pong: h2.Handler.
func (c *backendConn) Pong(n uint64) {
	now := c.relay.loop.Now()
	if c.hang.answers(now, n) && c.watched {
		c.look(now)
	}
}

// freed notes that a stream is over.
func (c *backendConn) freed() {
	if c.gone {
		return
	}
	if c.h2.Streams() == 0 {
		c.busy = c.relay.loop.Now()
		switch {
		case c.be.removed:
			c.end(closedRemoved)
		case c.left:
			c.end(closedGoaway)
		case c.retired:
			c.end(closedReplaced)
		case c.resting: // the idle time doesn't wait for the next look
			c.rest()
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
	c.retired, c.left = true, true
	c.bye = goodbye(code, debug)
	c.be.state.Goodbye()
	switch {
	case code == h2.EnhanceYourCalm && string(debug) == "too_many_pings" && c.hang.number > 0:
		if !c.ourFault {
			c.ourFault = true
			c.be.calm()
		}
	case code != h2.NoError:
		c.goaway = " after GOAWAY " + code.String()
		if len(debug) > 0 {
			c.goaway += ": " + printable(string(debug[:min(len(debug), 100)]))
		}
	}
	unseen := c.relay.streams[:0]
	for s := range c.h2.All() {
		if s.ID() > last {
			unseen = append(unseen, s)
		}
	}
	slices.Reverse(unseen) // the oldest first, as they came
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
		c.end(closedGoaway)
	}
	if c.be.waiting.n > 0 {
		c.be.pump()
	}
}

// goodbye is what a GOAWAY said: gRPC servers say there that a connection has reached its age.
func goodbye(code h2.Code, debug []byte) string {
	switch {
	case len(debug) > 0:
		return "GOAWAY " + code.String() + ": " + printable(string(debug[:min(len(debug), 100)]))
	case code != h2.NoError:
		return "GOAWAY " + code.String()
	}
	return "GOAWAY"
}

// Headers: h2.Handler.
func (c *backendConn) Headers(s *h2.Stream, fields []h2.Field, head *h2.Head, end bool) {
	c.frames++
	s.Owner.(*call).response(fields, head, end)
}

// Data: h2.Handler.
func (c *backendConn) Data(s *h2.Stream, p []byte, end bool) {
	c.frames++
	s.Owner.(*call).responseData(p, end)
}

// Trailers: h2.Handler.
func (c *backendConn) Trailers(s *h2.Stream, fields []h2.Field, head *h2.Head) {
	c.frames++
	s.Owner.(*call).responseTrailers(fields, head)
}

// Reset: h2.Handler.
func (c *backendConn) Reset(s *h2.Stream, code h2.Code, local bool) {
	switch {
	case local && code == h2.EnhanceYourCalm:
		c.relay.w.protect(c.be.rt, protectHeaders, c, "response reset: header list too large in bytes or fields", c.relay.limits().HeaderBytes)
	case local:
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

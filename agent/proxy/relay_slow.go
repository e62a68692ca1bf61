package proxy

import (
	"fmt"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/h2"
)

// slowness is for how long a client may hold things up. What it may hold meanwhile is bounded by other limits, so these are generous. A stream whose window
// stays closed has no limit here: who reads a long answer bit by bit may pause for as long as it likes, until limits.buffered is short.
type slowness struct {
	// frame is for the first SETTINGS, the rest of a frame, and the rest of a header block (nginx and Apache give headers 60 and 20 s; here all is local).
	frame time.Duration
	// ack is for the answer to our SETTINGS (RFC 9113 6.5.3). Programs that are stopped in a debugger right after they connected outlive it.
	ack time.Duration
	// write is how long a socket may take nothing while there is something to write: minutes, since some clients (Python's) read only when the program
	// does (Envoy: 5 min, HAProxy: timeout client).
	write time.Duration
	// glut is the same for a socket with more unwritten than pauseAt: that much is never there but for peers that ask on and on without reading.
	glut time.Duration
	// check is how often a client that holds something up is looked at. While none does, no timer runs for it.
	check time.Duration
}

func defaultSlowness() slowness {
	return slowness{frame: 10 * time.Second, ack: time.Minute, write: 5 * time.Minute, glut: 10 * time.Second, check: 5 * time.Second}
}

// holdUp is what a client holds up.
type holdUp struct {
	hello   bool      // its SETTINGS, or their acknowledgement, have not come
	half    time.Time // since when a frame or a header block has begun and not ended; zero: none
	stuck   time.Time // since when the socket has taken nothing of what there is to write; zero: nothing there
	block   uint32    // the stream of a header block that has begun and not ended
	watched bool      // the connection's timer fires within slowness.check
}

// any reports whether there is anything that a limit holds for.
func (u *holdUp) any() bool { return u.hello || !u.half.IsZero() || !u.stuck.IsZero() }

// read notes what is left of a read: rest bytes, of a frame that has begun. A frame may take its time anew, a header block has to end in time as a whole.
func (u *holdUp) read(now time.Time, consumed, rest int, block uint32) {
	switch {
	case rest == 0 && block == 0:
		u.half = time.Time{}
	case u.half.IsZero() || consumed > 0 && (block == 0 || block != u.block):
		u.half = now
	}
	u.block = block
}

// wrote notes how much is unwritten after the socket has taken something.
func (u *holdUp) wrote(now time.Time, left int) {
	u.stuck = time.Time{}
	if left > 0 {
		u.stuck = now
	}
}

// over says for what, and for how long, a connection that began at began has held things up for too long; "" if it has not. What is still to be read
// doesn't count while paused: it's us who don't read.
func (u *holdUp) over(now, began time.Time, l *slowness, ready, paused bool, unwritten int) (why string, limit time.Duration) {
	passed := func(since time.Time, limit time.Duration) bool { return !since.IsZero() && now.Sub(since) >= limit }
	switch {
	case u.hello && !ready && passed(began, l.frame):
		return "no SETTINGS came", l.frame
	case u.hello && passed(began, l.ack):
		return "our SETTINGS were not acknowledged", l.ack
	case !paused && passed(u.half, l.frame):
		return "the rest of a frame or of a header block did not come", l.frame
	case unwritten > pauseAt && passed(u.stuck, l.glut):
		return "nothing was read, with very much to read", l.glut
	case passed(u.stuck, l.write):
		return "nothing was read", l.write
	}
	return "", 0
}

// received notes what a read left over.
func (c *clientConn) received(consumed, rest int) {
	c.half = rest + c.h2.HalfBlock()
	if c.slow.hello {
		c.slow.hello = !c.h2.Ready() || !c.h2.Acked()
	}
	if rest > 0 || c.h2.MidBlock() != 0 || !c.slow.half.IsZero() {
		c.slow.read(c.relay.loop.Now(), consumed, rest, c.h2.MidBlock())
		c.watch()
	}
}

// wrote notes how much is left after the socket has taken something.
func (c *clientConn) wrote(left int) {
	if left > 0 || !c.slow.stuck.IsZero() {
		c.slow.wrote(c.relay.loop.Now(), left)
		c.watch()
	}
}

// watch has tick look at the connection soon.
func (c *clientConn) watch() {
	if c.slow.watched || c.gone || c.ending == goingAway || c.ending == finSent { // these two end soon
		return
	}
	c.slow.watched = true
	if check := c.relay.slowness.check; !c.timer.Armed() || c.due.Sub(c.relay.loop.Now()) > check {
		c.alarm(check)
	}
}

// alarm sets the connection's timer.
func (c *clientConn) alarm(d time.Duration) {
	c.due = c.relay.loop.Now().Add(d)
	c.relay.loop.Arm(&c.timer, d)
}

// tooSlow ends the connection of a client that holds something up for too long, and reports whether it did.
func (c *clientConn) tooSlow(now time.Time) bool {
	c.slow.watched = false
	why, limit := c.slow.over(now, c.began, &c.relay.slowness, c.h2.Ready(), c.paused, c.lc.Unwritten())
	if why == "" {
		return false
	}
	c.relay.w.protect(c.rt, protectSlow, c, fmt.Sprintf("connection closed: %s for %v", why, limit), 0)
	code := h2.EnhanceYourCalm
	if c.slow.hello {
		code = h2.SettingsTimeout
	}
	c.cut = "its connection was closed: " + why
	c.h2.Fail(code, why)
	c.close()
	return true
}

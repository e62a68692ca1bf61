package proxy

import (
	"errors"
	"io"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/h1"
	"github.com/lbagent/lbagent/agent/proxy/loop"
	"golang.org/x/sys/unix"
)

// errUnread is why a connection ends whose call has gone on elsewhere.
var errUnread = errors.New("nobody needed the rest of its answer")

// http1Backend is a connection to a backend.
type http1Backend struct {
	wire
	reused bool
	head   int       // length of the response's head that is buffered
	since  time.Time // idle

	account *account
	opened  time.Time
	blamed  bool // the two below are known; in a tunnel guarded by exchange.mu
	why     closeCause
	detail  string
}

// vanished reports whether the peer has stopped to acknowledge. TCP_USER_TIMEOUT would end uploads to a backend as well that only takes its time (2.11).
func (c *http1Backend) vanished() (yes bool) {
	c.raw.Control(func(fd uintptr) { yes = loop.Vanished(int(fd)) })
	return yes
}

// blame notes why the connection has to end: the first that is known.
func (c *http1Backend) blame(why closeCause, detail string) {
	if !c.blamed {
		c.why, c.detail, c.blamed = why, detail, true
	}
}

// endIdle closes a connection between two calls.
func (c *http1Backend) endIdle(why closeCause, detail string) {
	c.blame(why, detail)
	now := time.Now()
	c.finish(connEnd{at: now, idle: now.Sub(c.since)})
}

// endCall closes a connection that had a call.
func (c *http1Backend) endCall() {
	c.finish(connEnd{at: time.Now(), calls: 1})
	c.release()
}

func (c *http1Backend) finish(e connEnd) {
	c.Close()
	e.protocol, e.lasted, e.why, e.detail = protoHTTP1, e.at.Sub(c.opened), c.why, c.detail
	c.h.accounts.down(c.account, e)
}

// endUnquiet closes an idle connection that is not quiet, and says why it isn't.
func (c *http1Backend) endUnquiet() {
	why, detail := closedProtocol, "bytes that nobody asked for"
	c.raw.Control(func(fd uintptr) {
		switch n, err := peek(fd); {
		case c.r < c.w:
		case err != nil:
			why, detail = closedError, broken(err.Error())
		case n == 0:
			why, detail = closedFIN, ""
		}
	})
	c.endIdle(why, detail)
}

// blameCall notes why a call's connection can't be used again: because it was ended from here, or err.
func (c *http1Backend) blameCall(ended, err error) {
	switch ended {
	case nil:
		c.blameError(err)
	case errRequestTimeout:
		c.blame(closedCall, "its call was given up: "+errRequestTimeout.Error())
	case errBackendRemoved:
		c.blame(closedRemoved, leaving(c.account.svc.View(), c.account.svc.View().Find(c.account.addr)))
	case errStopped:
		c.blame(closedStop, "")
	case errVanished:
		c.blame(closedError, broken(unix.ETIMEDOUT.Error()))
	default:
		c.blame(closedClient, "")
	}
}

func (c *http1Backend) blameError(err error) {
	_, invalid := errors.AsType[h1.Error](err)
	switch {
	case err == errUnread:
		c.blame(closedCall, err.Error())
	case invalid, errors.Is(err, errUnasked), errors.Is(err, errInterims):
		c.blame(closedProtocol, err.Error())
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		c.blame(closedFIN, "")
	default:
		c.blame(closedError, broken(reason(err)))
	}
}

package loop

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stallCheck is how often connections with bytes on their way are looked at.
	stallCheck = 5 * time.Second
	// stallLimit is how long a peer may acknowledge nothing, in milliseconds (SEMANTICS 2.11).
	stallLimit = 10_000
)

// watch has a patient connection looked at: one that was made, or written to. While there is none, no timer runs.
//
// TCP_USER_TIMEOUT ends a connection whose peer keeps its window closed for 10 s, however alive it is: right for HTTP/2, whose peers always read, wrong for
// bytes that a busy database takes a minute later. What the option is for, a host that vanished with bytes under way, the loop finds by looking at
// TCP_INFO instead. And a connection gets its keepalive when it is looked at first: most are gone by then, and never pay for it.
func (l *Loop) watch(c *Conn) {
	if c.watched > 0 || c.gone {
		return
	}
	l.watched = append(l.watched, c)
	c.watched = len(l.watched)
	if !l.stallTimer.Armed() {
		l.Arm(&l.stallTimer, stallCheck)
	}
}

// unwatch forgets a connection.
func (l *Loop) unwatch(c *Conn) {
	if c.watched == 0 {
		return
	}
	last := len(l.watched) - 1
	moved := l.watched[last]
	l.watched[c.watched-1] = moved
	moved.watched = c.watched
	c.watched = 0
	l.watched[last] = nil
	l.watched = l.watched[:last]
}

// checkStalls ends connections to peers that are gone, and forgets those whose bytes have all arrived.
func (l *Loop) checkStalls() {
	for i := len(l.watched) - 1; i >= 0; i-- { // backwards, as whoever is forgotten is replaced by the last
		if i >= len(l.watched) {
			continue // a handler closed others
		}
		c := l.watched[i]
		if !c.keepalive {
			c.keepalive = true
			keepAlive(c.fd, backendIdle, backendInterval, backendCount)
		}
		info, err := unix.GetsockoptTCPInfo(c.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		switch {
		case err != nil:
			l.unwatch(c)
		case vanished(info):
			c.fail(unix.ETIMEDOUT)
		case info.Unacked == 0 && info.Notsent_bytes == 0:
			l.unwatch(c)
		}
	}
	if len(l.watched) > 0 {
		l.Arm(&l.stallTimer, stallCheck)
	} else if cap(l.watched) > 1024 {
		l.watched = nil
	}
}

// Vanished reports whether the peer of a connected TCP socket is gone: bytes are on their way to it, and it has acknowledged nothing for 10 s (SEMANTICS 2.11).
func Vanished(fd int) bool {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && vanished(info)
}

// vanished reports whether a peer has stopped to answer. One that keeps its window closed answers the probes, so that never more than one is open.
func vanished(i *unix.TCPInfo) bool {
	return (i.Retransmits > 1 || i.Probes > 1) && i.Last_ack_recv > stallLimit
}

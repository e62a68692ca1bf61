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

// Patient lets the peer of a Dial not read for as long as it likes. TCP_USER_TIMEOUT ends a connection whose peer keeps its window closed for 10 s,
// however alive it is: right for HTTP/2, whose peers always read, wrong for bytes that a busy database takes a minute later. What the option is for, a
// host that vanished with bytes under way, the loop finds by looking at TCP_INFO instead.
func (c *Conn) Patient() {
	if !c.gone {
		c.patient = true
		setInt(c.fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 0)
	}
}

// watchStall has a connection that was written to looked at. While there is none, no timer runs.
func (l *Loop) watchStall(c *Conn) {
	c.watched = true
	l.written = append(l.written, c)
	if len(l.written) == 1 {
		l.Arm(&l.stallTimer, stallCheck)
	}
}

// checkStalls ends connections to peers that are gone, and forgets those whose bytes have all arrived.
func (l *Loop) checkStalls() {
	all := l.written
	l.written = nil
	for _, c := range all {
		c.watched = false
		if c.gone {
			continue
		}
		info, err := unix.GetsockoptTCPInfo(c.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		switch {
		case err != nil:
		case vanished(info):
			c.fail(unix.ETIMEDOUT)
		case info.Unacked > 0 || info.Notsent_bytes > 0:
			l.watchStall(c)
		}
	}
	if len(l.written) == 0 {
		l.Disarm(&l.stallTimer)
	}
}

// vanished reports whether a peer has stopped to answer. One that keeps its window closed answers the probes, so that never more than one is open.
func vanished(i *unix.TCPInfo) bool {
	return (i.Retransmits > 1 || i.Probes > 1) && i.Last_ack_recv > stallLimit
}

package loop

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Handler is the protocol's side of a connection.
type Handler interface {
	// Connected ends a Dial that succeeded.
	Connected()
	// Readable hands over received bytes, which stay valid until it returns, and returns how many were consumed; the rest comes again in front of
	// what is received later. At most 64 KiB are kept that way; a handler that consumes nothing of a full buffer, and doesn't pause, is closed with ErrStuck.
	Readable(b []byte) (consumed int)
	// EOF says that the peer ended its direction (FIN). Bytes not consumed are lost.
	EOF()
	// Written says that the kernel took bytes: total is their number since the connection began (credit goes back to senders only then).
	// It's called at the end of a wake-up, after the flush.
	Written(total uint64)
	// Closed ends the connection from outside: a failed Dial, an I/O error, loop end. It's the last call, and isn't made after Conn.Close.
	Closed(err error)
}

// Conn is a socket on a loop. After Close, Reset, Detach or Handler.Closed its methods do nothing.
type Conn struct {
	// Out is what will be written at the end of this wake-up: append to it, then call Flush. It must not be kept or shortened by others.
	Out []byte

	loop *Loop
	h    Handler
	fd   int

	off      int    // Out[:off] is with the kernel
	sent     uint64 // bytes that the kernel took
	received uint64 // bytes that came
	kept     []byte // received, not consumed; a pooled buffer, nil if there is nothing
	current  []byte // what Readable is looking at now
	armed    uint32 // the events that epoll watches for
	timer    Timer  // of a Dial
	dialErr  error  // of a Dial that failed at once
	sink     *Conn  // bytes go there through the kernel (Splice)
	source   *Conn  // whose sink this is
	pipe     *pipe  // holds bytes on their way to this connection

	connecting bool
	paused     bool // by Pause
	eof        bool // the peer's FIN was seen
	full       bool // the kernel took less than it was given: EPOLLOUT is awaited
	finWanted  bool
	finSent    bool
	parked     bool // not in epoll: not yet, or it reports a hang-up that nobody may look at now
	touched    bool // in Loop.touched
	arming     bool // in Loop.arming
	fat        bool // in Loop.fat
	active     bool // wrote since the last trim
	waiting    bool // in Loop.deliver
	patient    bool // a peer that doesn't read is no reason to end
	watched    bool // in Loop.written
	gone       bool // no more handler calls
	reset      bool // close with RST
}

// Add takes over a connected, non-blocking socket, with the bytes that were already received from it: they come by Readable, in this wake-up, or once it
// is resumed. If it fails, fd is still the caller's.
func (l *Loop) Add(fd int, h Handler, received []byte) (*Conn, error) {
	if l.ended {
		return nil, ErrEnded
	}
	if len(received) > readSize {
		return nil, fmt.Errorf("add a connection with %d bytes received: at most %d", len(received), readSize)
	}
	// It enters epoll in the end of this wake-up; one that is paused until then, only when it is resumed.
	c := &Conn{loop: l, h: h, fd: fd, parked: true}
	l.claim(fd, c)
	c.touch()
	l.conns++
	if len(received) > 0 {
		c.keep(received)
		c.received = uint64(len(received))
		c.deliverSoon()
	}
	return c, nil
}

// Flush has Out written at the end of this wake-up, once.
func (c *Conn) Flush() { c.touch() }

// Queued is the number of bytes appended to Out since the connection began, taken by the kernel or not.
func (c *Conn) Queued() uint64 { return c.sent + uint64(c.Unwritten()) }

// Received is the number of bytes that came since the connection began.
func (c *Conn) Received() uint64 { return c.received }

// Unwritten is the number of bytes in Out, or in a pipe before it, that the kernel has not taken.
func (c *Conn) Unwritten() int {
	n := len(c.Out) - c.off
	if c.pipe != nil {
		n += c.pipe.n
	}
	return n
}

// Pause stops reading (EPOLLIN is disarmed); Resume starts it again. Neither costs a system call if the other follows in the same wake-up.
func (c *Conn) Pause() { c.paused = true; c.touch() }

// Resume starts reading again. Bytes that a Readable left unconsumed come again in this wake-up.
func (c *Conn) Resume() {
	c.paused = false
	c.touch()
	if len(c.kept) > 0 {
		c.deliverSoon()
	}
}

// CloseWrite sends FIN once Out is written.
func (c *Conn) CloseWrite() { c.finWanted = true; c.touch() }

// Close writes what is in Out if the kernel takes it at once, and closes at the end of this wake-up. No further Handler call.
func (c *Conn) Close() { c.shut() }

// Reset closes with RST (SO_LINGER 0); what is in Out is dropped.
func (c *Conn) Reset() {
	if !c.gone {
		c.reset = true
		c.Out, c.off = nil, 0
	}
	c.shut()
}

// Detach takes the socket out of the loop, for a library that speaks on it: fd and unconsumed bytes are the caller's from now on. Called within
// Readable, all that it was given counts as unconsumed. Out must be empty; fd is -1 if the connection was closed already.
func (c *Conn) Detach() (fd int, received []byte) {
	if c.gone {
		return -1, nil
	}
	c.gone = true
	c.dropSplice()
	c.leave()
	if c.current != nil {
		received = append(received, c.current...)
	} else {
		received = append(received, c.kept...)
	}
	c.dropBuffers()
	c.loop.conns--
	return c.fd, received
}

// touch has the connection looked at in the end of this wake-up.
func (c *Conn) touch() {
	if !c.touched && !c.gone {
		c.touched = true
		c.loop.touched = append(c.loop.touched, c)
	}
}

func (c *Conn) deliverSoon() {
	if !c.waiting && !c.gone {
		c.waiting = true
		c.loop.deliver = append(c.loop.deliver, c)
	}
}

// deliverFirst makes the handler calls that Add, Dial and Resume could not make themselves.
func (c *Conn) deliverFirst() {
	c.waiting = false
	switch {
	case c.gone:
	case c.dialErr != nil:
		c.fail(c.dialErr)
	case !c.paused && len(c.kept) > 0:
		n := copy(c.loop.rbuf, c.kept)
		c.hand(c.loop.rbuf[:n])
	}
}

// ready handles the events of one wake-up.
func (c *Conn) ready(events uint32) {
	switch {
	case c.gone:
	case c.connecting:
		c.connected(events)
	case events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 && !c.readable():
		c.hungUp()
	default:
		if events&unix.EPOLLOUT != 0 {
			c.full = false
			c.touch()
		}
		if events&(unix.EPOLLIN|unix.EPOLLERR|unix.EPOLLHUP) != 0 && c.readable() {
			c.read()
		}
	}
}

// readable reports whether the handler may be given bytes.
func (c *Conn) readable() bool { return !c.paused && !c.eof && !c.stalled() }

// hungUp handles a hang-up while nobody may read. An error ends the connection at once; both directions ended without one is a state that epoll
// would report for ever, so the descriptor leaves it until reading goes on.
func (c *Conn) hungUp() {
	if e := socketError(c.fd); e != 0 {
		c.fail(e)
		return
	}
	if !c.parked {
		c.parked = true
		c.loop.control(unix.EPOLL_CTL_DEL, c.fd, 0)
	}
	// Writing, if there is anything to write, says more.
	c.full = false
	c.touch()
}

// read takes what is there, at most what fits into the loop's buffer behind what was kept.
func (c *Conn) read() {
	if c.sink != nil && c.splice() {
		return
	}
	buf := c.loop.rbuf
	have := copy(buf, c.kept)
	if have == len(buf) {
		return // resumed in this wake-up: what was kept comes first
	}
	n, e := recv(c.fd, buf[have:])
	switch {
	case e == unix.EAGAIN:
	case e != 0:
		c.fail(e)
	case n == 0:
		c.ended()
	default:
		c.received += uint64(n)
		c.hand(buf[:have+n])
	}
}

// ended handles the peer's FIN.
func (c *Conn) ended() {
	c.eof = true
	c.touch()
	c.h.EOF()
}

// hand gives b to the handler and keeps what it doesn't consume.
func (c *Conn) hand(b []byte) {
	c.current = b
	n := c.h.Readable(b)
	c.current = nil
	switch {
	case c.gone:
	case n == 0 && len(b) == readSize && !c.paused:
		c.fail(ErrStuck)
	default:
		c.keep(b[n:])
		if c.sink != nil {
			c.touch() // not read while the sink has something to write
		}
	}
}

// keep stores unconsumed bytes; none gives the buffer back.
func (c *Conn) keep(rest []byte) {
	if len(rest) > cap(c.kept) || len(rest) == 0 {
		c.loop.buffers.put(c.kept)
		c.kept = nil
	}
	if len(rest) == 0 {
		return
	}
	if c.kept == nil {
		c.kept = c.loop.buffers.get(len(rest))
	}
	c.kept = append(c.kept[:0], rest...)
}

// fail ends the connection from outside.
func (c *Conn) fail(err error) {
	if c.gone {
		return
	}
	c.Out, c.off = nil, 0 // nothing more can be written
	c.shut()
	c.h.Closed(err)
}

// shut ends handler calls and has the descriptor closed at the end of this wake-up: not before, or an event of this wake-up could meet a new connection
// under the same number.
func (c *Conn) shut() {
	if c.gone {
		return
	}
	c.gone = true
	c.loop.Disarm(&c.timer)
	c.dropSplice()
	c.loop.closing = append(c.loop.closing, c)
}

// release closes the descriptor.
func (c *Conn) release() {
	if c.reset {
		unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	} else if !c.connecting && !c.full && c.off < len(c.Out) {
		send(c.fd, c.Out[c.off:])
	}
	c.leave()
	unix.Close(c.fd)
	c.dropBuffers()
	c.loop.conns--
}

// leave takes the descriptor out of epoll and of the table of descriptors.
func (c *Conn) leave() {
	if !c.parked {
		c.loop.unregister(c.fd)
	} else {
		c.loop.fds[c.fd] = slot{}
	}
}

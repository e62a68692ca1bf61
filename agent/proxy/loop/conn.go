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

	off      int        // Out[:off] is with the kernel
	sent     uint64     // bytes that the kernel took
	received uint64     // bytes that came
	kept     []byte     // received, not consumed; a pooled buffer, nil if there is nothing
	current  []byte     // what Readable is looking at now
	timer    Timer      // of a Dial
	dialErr  error      // of a Dial that failed at once
	sink     *Conn      // bytes go there through the kernel (Splice)
	source   *Conn      // whose sink this is
	pipe     *pipe      // holds bytes on their way to this connection
	watched  int        // its place in Loop.watched + 1; 0 = not there
	broken   unix.Errno // of a write: nothing more is written, and the connection ends once it is read to its end

	connecting bool
	more       bool // the kernel may have bytes or an end for us; epoll tells that once
	hup        bool // the peer's end, or an error, comes behind what there is to read
	paused     bool // by Pause
	eof        bool // the peer's FIN was seen
	full       bool // the kernel took less than it was given: EPOLLOUT is awaited
	finWanted  bool
	finSent    bool
	touched    bool // in Loop.touched
	queued     bool // in Loop.reading
	later      bool // kept is to come again, by itself
	fat        bool // in Loop.fat
	active     bool // wrote since the last trim
	waiting    bool // in Loop.deliver
	patient    bool // a peer that doesn't read is no reason to end
	keepalive  bool // a patient one's options are set
	gone       bool // no more handler calls
	reset      bool // close with RST
}

// connEvents are what each connection is registered for, once, from its first moment to its last: edge-triggered, so that pausing, resuming, a full
// socket and an end that nobody wants to read cost no system call and can't spin. In return the connection remembers what it was told (more, full).
const connEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET

// Add takes over a connected, non-blocking socket, with the bytes that were already received from it: they come by Readable, in this wake-up, or once it
// is resumed. If it fails, fd is still the caller's.
func (l *Loop) Add(fd int, h Handler, received []byte) (*Conn, error) {
	if l.ended {
		return nil, ErrEnded
	}
	if len(received) > readSize {
		return nil, fmt.Errorf("add a connection with %d bytes received: at most %d", len(received), readSize)
	}
	c := &Conn{loop: l, h: h, fd: fd}
	if err := l.register(fd, connEvents, c); err != nil {
		return nil, err
	}
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

// Handle has h called from now on, in place of the handler until now. What that one left unconsumed comes again, to h, in this wake-up.
func (c *Conn) Handle(h Handler) {
	c.h = h
	c.deliverSoon()
}

// Pause stops reading; Resume starts it again. Neither is a system call. An error of the connection ends it all the same.
func (c *Conn) Pause() {
	c.paused = true
	if c.broken != 0 {
		c.touch()
	}
}

// Resume starts reading again. Bytes that a Readable left unconsumed, and those that came meanwhile, come in this wake-up.
func (c *Conn) Resume() {
	c.paused = false
	if len(c.kept) > 0 || c.more {
		c.deliverSoon()
	}
}

// Later within Readable has what that leaves unconsumed come again in the next wake-up, and nothing more before: for a handler that has done enough
// for one, as others want their turn.
func (c *Conn) Later() { c.later = true }

// Waiting reports whether the kernel has bytes that no wake-up has read yet.
func (c *Conn) Waiting() bool { return c.Peek(make([]byte, 1)) > 0 }

// Peek copies what the kernel has and no wake-up has read yet, as much as fits, and leaves it there.
func (c *Conn) Peek(b []byte) int {
	if c.gone {
		return 0
	}
	n, _, err := unix.Recvfrom(c.fd, b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err != nil {
		return 0
	}
	return n
}

// Kept is what Readable has left unconsumed; valid until it is called again.
func (c *Conn) Kept() []byte { return c.kept }

// CloseWrite sends FIN once Out is written.
func (c *Conn) CloseWrite() { c.finWanted = true; c.touch() }

// Close writes what is in Out if the kernel takes it at once, and closes at the end of this wake-up. No further Handler call.
func (c *Conn) Close() { c.shut() }

// Reset closes with RST (SO_LINGER 0); what is in Out is dropped.
func (c *Conn) Reset() {
	if !c.gone {
		c.Out, c.off = nil, 0
	}
	c.Abort()
}

// Abort is Reset after what the kernel takes of Out at once: a peer that reads has all that came before the end.
func (c *Conn) Abort() {
	if !c.gone {
		c.reset = true
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
	c.loop.unwatch(c)
	c.loop.unregister(c.fd)
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
	case !c.readable():
	case len(c.kept) > 0:
		n := copy(c.loop.rbuf, c.kept)
		c.hand(c.loop.rbuf[:n])
		c.readSoon()
	case c.more:
		c.read()
	}
}

// ready handles the events of one wake-up.
func (c *Conn) ready(events uint32) {
	switch {
	case c.gone:
	case c.connecting:
		c.connected(events)
	default:
		c.note(events)
		if c.more && !c.queued && c.readable() {
			c.read()
		} else if events&unix.EPOLLERR != 0 && !c.readable() {
			// Nobody may read, and so nobody would meet the error.
			if e := socketError(c.fd); e != 0 {
				c.fail(e)
			}
		}
	}
}

// note remembers what epoll says only once.
func (c *Conn) note(events uint32) {
	if c.full && events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		c.full = false // after an end, writing says more
		c.touch()
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		c.hup, c.more = true, true
	} else if events&unix.EPOLLIN != 0 {
		c.more = true
	}
}

// readable reports whether the handler may be given bytes.
func (c *Conn) readable() bool {
	return !c.gone && !c.paused && !c.eof && !c.connecting && !c.stalled()
}

// pending reports whether there may be bytes to hand over.
func (c *Conn) pending() bool { return c.more || c.later }

// readSoon has the connection read in the next wake-up if there may be more than it was given in this one.
func (c *Conn) readSoon() {
	if c.pending() && !c.queued && c.readable() {
		c.queued = true
		c.loop.reading = append(c.loop.reading, c)
	}
}

// read takes what is there; if it can't be written to any more, it ends with the last of it.
func (c *Conn) read() {
	c.take()
	if c.broken != 0 && !c.pending() {
		c.fail(c.broken)
	}
}

// take takes at most what fits into the loop's buffer behind what was kept. A FIN that is known to come right behind it is taken as well.
func (c *Conn) take() {
	if c.later {
		c.hand(c.loop.rbuf[:copy(c.loop.rbuf, c.kept)])
		c.readSoon()
		return
	}
	for range 2 {
		if c.sink != nil && c.splice() {
			break
		}
		buf := c.loop.room(len(c.kept))
		have := copy(buf, c.kept)
		if have == len(buf) {
			break // resumed in this wake-up: what was kept comes first
		}
		n, e := recv(c.fd, buf[have:])
		if e == unix.EAGAIN {
			c.more = false
			return
		}
		if e != 0 {
			c.fail(e)
			return
		}
		if n == 0 {
			c.ended()
			return
		}
		drained := have+n < len(buf) // else there may be more (epoll(7), question 9)
		c.more = c.hup || !drained
		c.received += uint64(n)
		c.hand(buf[:have+n])
		if !drained || !c.more || c.later || !c.readable() {
			break
		}
	}
	c.readSoon()
}

// ended handles the peer's FIN.
func (c *Conn) ended() {
	c.eof, c.more = true, false
	if c.broken != 0 {
		c.fail(c.broken)
		return
	}
	c.h.EOF()
}

// hand gives b to the handler and keeps what it doesn't consume.
func (c *Conn) hand(b []byte) {
	c.current, c.later = b, false
	n := c.h.Readable(b)
	c.current = nil
	c.later = c.later && n < len(b)
	switch {
	case c.gone:
	case n == 0 && len(b) == readSize && !c.paused:
		c.fail(ErrStuck)
	default:
		c.keep(b[n:])
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
	c.loop.unwatch(c)
	c.dropSplice()
	c.loop.closing = append(c.loop.closing, c)
}

// release closes the descriptor, which takes it out of epoll: nobody else holds it, but for the moment in which a child is made, and an event from there
// carries a generation that is over.
func (c *Conn) release() {
	if !c.connecting && !c.full && c.off < len(c.Out) {
		send(c.fd, c.Out[c.off:])
	}
	if c.reset {
		unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	c.loop.fds[c.fd] = slot{}
	unix.Close(c.fd)
	c.dropBuffers()
	c.loop.conns--
}

package loop

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lean is the write buffer that an idle connection may keep.
	lean = 1 << 10
	// hoard is the largest write buffer that is kept once it is empty, until the connection is idle; a larger one goes at once.
	hoard = 256 << 10
	// trimEvery is how long an empty buffer stays with a connection that writes nothing.
	trimEvery = time.Second
)

// settle flushes one touched connection.
func (c *Conn) settle() {
	c.touched = false
	if c.gone || c.connecting {
		return
	}
	before := c.sent
	c.flush()
	if c.broken != 0 && (!c.pending() || c.paused || c.eof) {
		c.fail(c.broken) // nobody reads the rest
	}
	if c.gone {
		return
	}
	if c.sent != before {
		c.told()
	}
	c.readSoon()
}

// told has the handler's Written called at the end of this round.
func (c *Conn) told() {
	c.active = true
	if c.patient {
		c.loop.watch(c)
	}
	c.loop.wrote = append(c.loop.wrote, c)
}

// flush gives Out to the kernel: one call, as a kernel that takes less than it is given has no room left.
func (c *Conn) flush() {
	if c.broken != 0 {
		return
	}
	if c.pipe != nil && !c.full {
		c.drainPipe()
	}
	if c.pipe == nil && !c.full && c.off < len(c.Out) {
		n, e := send(c.fd, c.Out[c.off:])
		if e != 0 && e != unix.EAGAIN {
			c.cut(e)
			return
		}
		c.off += n
		c.sent += uint64(n)
		c.full = c.off < len(c.Out)
		c.compact()
		if c.source != nil && len(c.Out) == 0 {
			c.source.touch() // it may be read again
		}
	}
	if c.finWanted && !c.finSent && !c.gone && c.Unwritten() == 0 {
		c.finSent = true
		unix.Shutdown(c.fd, unix.SHUT_WR)
	}
}

// cut notes that writing failed. The peer's RST doesn't take back what it said before: that lies in the socket, and may be the answers that it closed after.
func (c *Conn) cut(e unix.Errno) { c.broken, c.hup, c.more = e, true, true }

// compact drops what was written: all of it, or at least half of the buffer, so that each byte is moved at most once on average.
func (c *Conn) compact() {
	switch {
	case c.off == len(c.Out):
		c.off = 0
		if cap(c.Out) > hoard {
			c.Out = nil
			return
		}
		c.Out = c.Out[:0]
		if cap(c.Out) > lean && !c.fat {
			c.fat = true
			c.loop.fatten(c)
		}
	case c.off >= len(c.Out)/2:
		c.Out = c.Out[:copy(c.Out, c.Out[c.off:])]
		c.off = 0
	}
}

// fatten notes a connection whose large buffer is empty. While none is noted, no timer runs.
func (l *Loop) fatten(c *Conn) {
	l.fat = append(l.fat, c)
	if len(l.fat) == 1 {
		l.Arm(&l.trim, trimEvery)
	}
}

// trimBuffers takes the empty buffers of those that wrote nothing for a while: an idle connection holds none.
func (l *Loop) trimBuffers() {
	stay := l.fat[:0]
	for _, c := range l.fat {
		if c.gone {
			c.fat = false
			continue
		}
		if c.active || len(c.Out) > 0 {
			c.active = false
			stay = append(stay, c)
			continue
		}
		c.fat = false
		c.Out = nil
	}
	clear(l.fat[len(stay):])
	l.fat = stay
	if len(stay) > 0 {
		l.Arm(&l.trim, trimEvery)
	} else if cap(l.fat) > 1024 {
		l.fat = nil
	}
}

func (c *Conn) dropBuffers() {
	c.loop.buffers.put(c.kept)
	c.Out, c.off, c.kept, c.current = nil, 0, nil, nil
}

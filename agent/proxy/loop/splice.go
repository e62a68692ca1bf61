package loop

import "golang.org/x/sys/unix"

const (
	// maxPipes of one loop, and how many of these are large ones: together 16 MiB of what pipes may hold. An unprivileged user may have 64 MiB of it
	// (pipe(7), pipe-user-pages-soft), and there are at most 4 loops.
	maxPipes, maxLarge = 144, 16
	// sparePipes is how many empty pipes wait for the next use; the others are closed.
	sparePipes = 16
	// spliceSize is what one connection moves per wake-up, and what a large pipe holds. With 64 KiB a byte costs 1.3 to 1.5 times as much CPU time. To move
	// it takes 100 us, for which the others on the loop wait.
	spliceSize = 512 << 10
)

// pipe carries bytes from one socket to another inside the kernel.
type pipe struct {
	r, w  int
	n     int // bytes in it
	large bool
}

// pipes lends pipes, each only while bytes are in it.
type pipes struct {
	free    []*pipe
	used    int
	open    int
	large   int  // of these
	refused bool // the kernel made none larger; the next new one tries again
}

func (p *pipes) get() *pipe {
	var b *pipe
	if k := len(p.free); k > 0 {
		b = p.free[k-1]
		p.free = p.free[:k-1]
	} else if b = p.make(); b == nil {
		return nil
	}
	p.used++
	if !b.large && p.large < maxLarge && !p.refused {
		p.enlarge(b, spliceSize)
	}
	return b
}

func (p *pipes) make() *pipe {
	if p.open >= maxPipes {
		return nil
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		return nil
	}
	p.open++
	p.refused = false
	return &pipe{r: fds[0], w: fds[1]}
}

// enlarge makes an empty pipe hold size bytes. One that the kernel leaves as it was does as well.
func (p *pipes) enlarge(b *pipe, size int) {
	if _, err := unix.FcntlInt(uintptr(b.w), unix.F_SETPIPE_SZ, size); err != nil {
		p.refused = true
		return
	}
	b.large = true
	p.large++
}

// put takes a pipe back; one that still has bytes is closed with them.
func (p *pipes) put(b *pipe) {
	p.used--
	if b.n > 0 || len(p.free) >= sparePipes {
		p.drop(b)
		return
	}
	p.free = append(p.free, b)
}

func (p *pipes) drop(b *pipe) {
	unix.Close(b.r)
	unix.Close(b.w)
	p.open--
	if b.large {
		p.large--
	}
}

func (p *pipes) close() {
	for _, b := range p.free {
		p.drop(b)
	}
	p.free = nil
}

// Splice moves what c receives to `to` inside the kernel from now on, as long as there is a pipe for it; else Readable gets the bytes as before, and has
// to append them to to.Out. While the kernel doesn't take what was received before, c isn't read. EOF and Written are called as ever. Both belong to the
// same loop. Readable must leave no bytes unconsumed from now on.
func (c *Conn) Splice(to *Conn) {
	if c.gone || to.gone {
		return
	}
	c.sink, to.source = to, c
}

// stalled reports whether c may not be read because its sink has not written what came before.
func (c *Conn) stalled() bool { return c.sink != nil && c.sink.Unwritten() > 0 }

// splice handles a readable connection that has a sink; false if it has to be read as usual.
func (c *Conn) splice() bool {
	to := c.sink
	if len(c.kept) > 0 || to.connecting || to.finWanted {
		return false
	}
	p := c.loop.pipes.get()
	if p == nil {
		return false
	}
	n, e := splice(c.fd, p.w, spliceSize)
	switch {
	case e == unix.EAGAIN:
		c.more = false
		c.loop.pipes.put(p)
		return true
	case e == unix.EINVAL: // a socket that can't
		c.loop.pipes.put(p)
		return false
	case e != 0:
		c.loop.pipes.put(p)
		c.fail(e)
		return true
	case n == 0:
		c.loop.pipes.put(p)
		c.ended()
		return true
	}
	c.received += uint64(n)
	p.n = n
	to.pipe = p
	to.touch()
	return true
}

// drainPipe moves bytes from the pipe to the socket, and lends the pipe to others once it is empty.
func (c *Conn) drainPipe() {
	for c.pipe.n > 0 {
		n, e := splice(c.pipe.r, c.fd, c.pipe.n)
		if e == unix.EAGAIN {
			c.full = true
			return
		}
		if e != 0 {
			c.cut(e)
			return
		}
		c.pipe.n -= n
		c.sent += uint64(n)
	}
	c.loop.pipes.put(c.pipe)
	c.pipe = nil
	if c.source != nil {
		c.source.touch() // it may be read again
	}
}

// dropSplice ends both roles of a connection that goes.
func (c *Conn) dropSplice() {
	if c.pipe != nil {
		c.loop.pipes.put(c.pipe)
		c.pipe = nil
	}
	if c.sink != nil {
		c.sink.source = nil
		c.sink = nil
	}
	if c.source != nil {
		c.source.sink = nil
		c.source.touch()
		c.source = nil
	}
}

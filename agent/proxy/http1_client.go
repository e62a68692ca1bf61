package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/h1"
)

const (
	// lingerMost and lingerTime bound what is still read from a client that gets an answer and the end of its connection, while it sends: without that, the
	// reset for what nobody read would destroy the answer on its way.
	lingerMost = 1 << 20
	lingerTime = time.Second
	// partTime is the same for a connection that is ended while it is idle: a request that was on its way then is read, and the client sees an end instead of a reset.
	partTime = 50 * time.Millisecond
	// coarse: deadlines are set anew when a sixteenth of them has passed, and are as much longer.
	coarse = 16
)

// http1Client is a client connection. Its goroutine owns it, but for what an exchange shares.
type http1Client struct {
	s *http1Server
	wire
	idle bool       // guarded by http1Server.mu: between two requests
	work *http1Work // of the request that runs; nil between two, and in a tunnel

	answered bool // the last request has all of its answer
	unread   bool // the client may go on to send it
	parting  bool // it was ended from here while it was idle

	watch   *time.Timer // begins the watch of exchange.watchSoon
	watched *exchange   // set while watch is armed
	seen    chan error  // the watch's end

	readUntil, writeUntil time.Time // when the deadlines were set; guarded by exchange.mu while there is one
}

// run serves requests, one after the other.
func (c *http1Client) run() {
	for first := true; ; first = false {
		if !first || len(c.buffered()) == 0 { // a first request that is here is answered, whatever has come to an end meanwhile
			if !c.another(first) {
				return
			}
		}
		c.answered = false
		c.work = c.h.works.Get().(*http1Work)
		again := c.serve(c.work)
		c.freeWork()
		if !again {
			return
		}
	}
}

func (c *http1Client) freeWork() {
	if c.work != nil {
		c.h.works.Put(c.work)
		c.work = nil
	}
}

// another waits until a request begins, with a deadline of timeout.idle (4.8); false if none does. That this side ends the connection meanwhile is no reason to lose a request that is
// here by then: it is answered, as the last one.
func (c *http1Client) another(first bool) bool {
	if len(c.buffered()) == 0 {
		c.setRead(time.Now(), c.s.rt.options().idle) // before setIdle: then shutdown sets the deadline
	}
	if c.s.setIdle(c, true) {
		err := c.wire.wait()
		c.s.setIdle(c, false)
		if err == nil && !c.s.draining.Load() {
			return true
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		}
	} else if first { // it was accepted before the end began
		c.SetReadDeadline(time.Now().Add(sniffTimeout))
		_ = c.wire.wait()
	}
	if len(c.buffered()) == 0 && !c.waiting() {
		c.parting = true
		return false
	}
	c.readUntil = time.Time{}
	c.SetReadDeadline(time.Time{}) // it may be shutdown's
	return c.wire.wait() == nil
}

// setRead gives reads d from now on, roughly.
func (c *http1Client) setRead(now time.Time, d time.Duration) {
	switch {
	case d == 0 && c.readUntil.IsZero():
	case d == 0:
		c.readUntil = time.Time{}
		c.SetReadDeadline(time.Time{})
	default:
		if until := now.Add(d); until.After(c.readUntil) {
			c.readUntil = until.Add(d / coarse)
			c.SetReadDeadline(c.readUntil)
		}
	}
}

// setWrite is setRead for writes.
func (c *http1Client) setWrite(now time.Time, d time.Duration) {
	switch {
	case d == 0 && c.writeUntil.IsZero():
	case d == 0: // that of say
		c.writeUntil = time.Time{}
		c.SetWriteDeadline(time.Time{})
	default:
		if until := now.Add(d); until.After(c.writeUntil) {
			c.writeUntil = until.Add(d / coarse)
			c.SetWriteDeadline(c.writeUntil)
		}
	}
}

// serve reads a head and has its request answered. It reports whether another one may follow.
func (c *http1Client) serve(work *http1Work) bool {
	end, err := c.readHead(&work.req)
	if err != nil {
		return c.refuse(err)
	}
	x := &exchange{c: c, s: c.s, work: work, opts: c.s.rt.options(), began: time.Now()}
	x.read(end)
	defer x.end()
	return x.run()
}

// readHead reads the head of a request, of which something is there, and returns its length.
func (c *http1Client) readHead(head *h1.Head) (int, error) {
	limits := c.h.p.limits.Load()
	if bytes.HasPrefix(c.buffered(), []byte("\r\n")) {
		c.skip(2) // one empty line before a request is to be ignored (RFC 9112, 2.2)
	}
	for seen := 0; ; {
		b := c.buffered()
		end, err := h1.End(b, seen)
		switch {
		case err != nil:
			return 0, err
		case end > limits.HeaderBytes, end == 0 && len(b) > limits.HeaderBytes:
			if bytes.IndexByte(b[:limits.HeaderBytes], '\n') < 0 {
				return 0, h1.ErrLineTooLong
			}
			return 0, h1.ErrTooLong
		case end > 0:
			if seen > 0 {
				c.setRead(time.Time{}, 0)
			}
			return end, head.Request(b[:end], limits.HeaderFields)
		}
		if seen == 0 {
			c.readUntil = time.Now().Add(c.h.headers)
			c.SetReadDeadline(c.readUntil)
		}
		seen = len(b)
		if err := c.fill(limits.HeaderBytes); err != nil {
			return 0, err
		}
	}
}

// statusOf is what a client is told that sent something wrong; 0 if there is nobody to tell.
func statusOf(err error) (int, string) {
	if e, ok := errors.AsType[h1.Error](err); ok {
		return e.Status(), e.Error()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return http.StatusRequestTimeout, "the client took too long"
	}
	return 0, ""
}

// refuse answers what is no request, and ends the connection: where the next one would begin is anybody's guess.
func (c *http1Client) refuse(err error) bool {
	status, reason := statusOf(err)
	if status == 0 {
		return false
	}
	c.h.count(c.s.rt, func(st *serviceStats) { st.http(protoHTTP1, status, 0) })
	c.tellRefused(status, reason)
	c.unread = true
	c.say(status, fmt.Sprintf("lbagent: %s: %s", c.s.rt.name, reason), true, false)
	return false
}

// say answers in the agent's own words.
func (c *http1Client) say(status int, text string, last, head bool) bool {
	c.writeUntil = time.Now().Add(headerTimeout)
	c.SetWriteDeadline(c.writeUntil)
	option := ""
	if last {
		option = "Connection: close\r\n"
	}
	b := fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n%s\r\n", status, http.StatusText(status), len(text)+1, option)
	if !head {
		b = append(append(b, text...), '\n')
	}
	_, err := c.Write(b)
	c.answered = err == nil
	return c.answered
}

// linger ends the connection so that the client can read its last answer, also if it has sent what nobody reads any more.
func (c *http1Client) linger() {
	enough := lingerTime
	switch {
	case c.parting:
		enough = partTime
	case !c.answered || !c.unread && len(c.buffered()) == 0 && !c.waiting():
		return
	}
	if c.CloseWrite() != nil {
		return
	}
	c.SetReadDeadline(time.Now().Add(enough))
	c.release()
	io.CopyN(io.Discard, c.Conn, lingerMost)
}

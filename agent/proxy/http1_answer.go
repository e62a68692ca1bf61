package proxy

import (
	"io"
	"net"
	"net/http"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/h1"
)

const (
	// spliceAt is how much of a body has to be left for the kernel to copy it.
	spliceAt = 256 << 10
	// splicePart is how much it copies at once: a client has timeout.idle for as much.
	splicePart = 1 << 20
)

// relay passes the response on whose head was read. It reports whether the client's connection goes on.
func (x *exchange) relay(a *attempt) bool {
	resp, conn := &x.work.resp, a.conn
	x.status = resp.Status
	if resp.Upgrade {
		return x.tunnel(a)
	}
	body := wireBody{w: &conn.wire, limits: x.s.h.p.limits.Load(), chunked: resp.Chunked, left: resp.Length}
	framing := h1.AsLength
	switch {
	case !resp.HasBody(x.isHead):
		body.chunked, body.left = false, 0
	case resp.Chunked, resp.Length < 0:
		body.close = !resp.Chunked
		framing = h1.AsChunks
		if x.minor == 0 {
			framing = h1.UntilClose
		}
	}
	// What of the request isn't sent by now may never be: 100 (Continue) was refused, or the answer didn't wait for it.
	asked := x.up != nil || x.ended.Load()
	again := x.alive && asked && framing != h1.UntilClose && !x.s.draining.Load()
	reusable := !resp.Close && (resp.Minor > 0 || resp.Alive) && !body.close && (resp.Status != 204 || resp.Length <= 0 && !resp.Chunked)
	x.replay.vain.Store(true)

	done, fromBackend, err := false, false, error(nil)
	out := resp.AppendResponse(x.work.out[:0], framing, x.option(again))
	conn.skip(conn.head)
	x.told = false // interim responses are no part of it
	if x.begin() {
		done, fromBackend, err = x.copyAnswer(a, &body, out, framing == h1.AsChunks)
	} else {
		err = x.why()
	}
	x.out = body.got
	if err != nil && (fromBackend || !x.told) {
		a.broke(err)
	}
	whole := x.stopUpload()
	if !done && !x.told { // it was ended just before: there is a better answer
		a.end(nil)
		return x.failed(err)
	}
	if !done {
		cause := x.why()
		if cause == nil && !fromBackend {
			cause = errClientGone
		}
		x.noteEnd(cause, err)
		if framing == h1.UntilClose {
			reset(x.c.Conn) // or the client would take the end for the end
		}
		return false
	}
	switch {
	case !reusable:
		conn.blame(closedLast, "")
		conn = nil
	case !whole:
		conn.blame(closedCall, "it was answered before the whole request was sent")
		conn = nil
	case len(conn.buffered()) > 0:
		conn.blame(closedProtocol, "bytes behind its answer")
		conn = nil
	}
	a.end(conn)
	x.c.answered, x.c.unread = true, !whole
	return again && whole && x.finish()
}

// option is what Connection tells the client.
func (x *exchange) option(again bool) string {
	switch resp := &x.work.resp; {
	case !again:
		return h1.OptionClose
	case resp.Status == http.StatusUpgradeRequired:
		return h1.OptionUpgrade // it says to what
	case x.minor == 0:
		return h1.OptionAlive
	}
	return ""
}

// copyAnswer sends out, and the body behind it, as it comes: nothing waits for more. fromBackend tells whose error it is.
func (x *exchange) copyAnswer(a *attempt, body *wireBody, out []byte, chunked bool) (done, fromBackend bool, err error) {
	stuck := false // what is buffered is no more than a part of the framing
	for last := !chunked && !body.close && !body.chunked && body.left <= 0; ; {
		if cap(out)-len(out) < 1024 || len(out) > 0 && (last || stuck || len(body.w.buffered()) == 0) {
			if err := x.send(out); err != nil {
				x.cancel(errClientGone)
				return false, false, err
			}
			if !x.returned {
				x.returned = true
				x.delay += time.Since(a.picked) - a.first
			}
			out = x.work.out[:0]
		}
		if last {
			return true, false, nil
		}
		if !chunked && !body.close && !body.chunked && body.left >= spliceAt && len(out) == 0 && len(body.w.buffered()) == 0 {
			return x.spliceAnswer(a, body)
		}
		before := len(out)
		body.hasty = before > 0
		out, last, err = body.appendBody(out, chunked)
		stuck = len(out) == before
		if err != nil {
			if len(out) > 0 {
				_ = x.send(out) // the answer ends with the other error
			}
			return false, true, err
		}
	}
}

// spliceAnswer has the kernel copy a long body.
func (x *exchange) spliceAnswer(a *attempt, body *wireBody) (done, fromBackend bool, err error) {
	from := io.LimitedReader{R: a.conn.Conn}
	to, ok := x.c.Conn.(io.ReaderFrom)
	for body.left > 0 {
		from.N = min(body.left, splicePart)
		before := from.N
		if err := x.send(nil); err != nil {
			return false, false, err
		}
		var n int64
		if ok {
			n, err = to.ReadFrom(&from)
		} else {
			n, err = io.CopyBuffer(struct{ io.Writer }{x.c.Conn}, struct{ io.Reader }{&from}, x.work.out[:])
		}
		body.left -= n
		body.got += n
		if err == nil && n < before {
			return false, true, io.ErrUnexpectedEOF
		}
		if err != nil {
			if !a.conn.ended() { // the kernel doesn't say whose error it is
				x.cancel(errClientGone)
				return false, false, err
			}
			return false, true, err
		}
	}
	return true, false, nil
}

// reset has a connection end so that it can't be taken for a regular end.
func reset(c net.Conn) {
	if c, ok := c.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
}

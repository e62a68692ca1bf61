package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/h1"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"golang.org/x/sys/unix"
)

// connectError is a failed dial.
type connectError struct{ err error }

func (e *connectError) Error() string { return e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

// attempt is one try of a call at one backend.
type attempt struct {
	x      *exchange
	b      *table.Backend
	view   *table.View // that it was picked from
	picked time.Time
	conn   *http1Backend
	drain  *time.Timer // guarded by http1Server.mu

	result health.Result
	cause  string
	heard  bool          // a byte of a response came
	passed bool          // an interim response was passed on
	first  time.Duration // until the response's head
	sample bool          // the request had ended before it
	ended  bool
}

// hasLeft reports whether the client has closed, also behind bytes that wait to be read.
func (c *http1Client) hasLeft() bool {
	state := c.state()
	return state == unix.BPF_TCP_CLOSE_WAIT || state == unix.BPF_TCP_CLOSE
}

// try sends the request to the attempt's backend, until the final head of its response has come.
func (a *attempt) try() error {
	x := a.x
	a.b.State.Begin()
	conn := x.s.begin(a)
	for {
		if conn == nil {
			var err error
			if conn, err = a.dial(); err != nil {
				return a.failed(err)
			}
		}
		a.conn = conn
		if !x.attach(conn) {
			return a.failed(errStopped)
		}
		written, err := a.ask()
		if err == nil {
			a.answered()
			return nil
		}
		x.stopUpload()
		x.detach()
		conn.blameCall(x.why(), err)
		conn.endCall()
		a.conn = nil
		// 4.1: a reused connection that closed before a byte of the answer, if the method is idempotent or nothing was written.
		if conn.reused && !a.heard && (x.idempotent || !written) && x.why() == nil && x.replayable() {
			x.s.forget(a.b.Addr) // the others will be as old
			conn = nil
			continue
		}
		if conn.reused && !a.heard && x.idempotent && x.replay.failed {
			err = fmt.Errorf("%w (%w)", err, errBodySent)
		}
		return a.failed(err)
	}
}

// ask sends the request and reads heads up to the final one. written tells whether anything went out.
func (a *attempt) ask() (written bool, err error) {
	x, conn := a.x, a.conn
	host := x.authority
	if host == noAuthority {
		host = a.b.Addr.String()
	}
	host = authority(x.opts, a.b, host)
	out := h1.AppendHost(x.work.out[:0], x.head, x.hostAt, host)
	if x.note != nil {
		x.note.wait = max(1, time.Since(x.began))
	}
	x.replay.on = x.idempotent && (conn.reused || x.opts.retry != nil)
	if n, err := conn.Write(out); err != nil {
		return n > 0, err
	}
	x.delay = time.Since(x.began) // waits for a connection, and earlier attempts
	waiting := false
	switch {
	case x.hasBody && x.expects && len(x.replay.kept) == 0:
		waiting = true
		x.backendDeadline(time.Now().Add(continueTimeout))
	case x.hasBody:
		x.upload(conn)
	case len(x.c.buffered()) == 0:
		x.watchSoon()
	}
	for interim := 0; ; {
		err := a.readHead()
		if waiting && errors.Is(err, os.ErrDeadlineExceeded) && x.why() == nil {
			// The client may wait for ever for what this backend never says.
			if err := x.send([]byte("HTTP/1.1 100 Continue\r\n\r\n")); err != nil {
				x.cancel(errClientGone)
				return true, err
			}
			waiting = false
			a.goAhead()
			continue
		}
		if err != nil {
			return true, err
		}
		resp := &x.work.resp
		switch {
		case resp.Status == http.StatusSwitchingProtocols:
			if !x.upgrade {
				return true, errUnasked
			}
			return true, nil
		case resp.Status >= 200:
			if waiting {
				x.backendDeadline(time.Time{})
			}
			return true, nil
		}
		if interim++; interim > maxInterim {
			return true, errInterims
		}
		if err := a.interim(); err != nil {
			return true, err
		}
		if waiting && resp.Status == http.StatusContinue {
			waiting = false
			a.goAhead()
		}
	}
}

// goAhead sends the body that waited for 100 (Continue).
func (a *attempt) goAhead() {
	a.x.backendDeadline(time.Time{})
	a.x.upload(a.conn)
}

// readHead reads one head of a response.
func (a *attempt) readHead() error {
	limits, conn := a.x.s.h.p.limits.Load(), a.conn
	for seen := 0; ; {
		b := conn.buffered()
		a.heard = a.heard || len(b) > 0
		end, err := h1.End(b, seen)
		switch {
		case err != nil:
			return err
		case end > limits.HeaderBytes, end == 0 && len(b) > limits.HeaderBytes:
			return h1.ErrTooLong
		case end > 0:
			if err := a.x.work.resp.Response(b[:end], limits.HeaderFields); err != nil {
				return err
			}
			conn.head = end
			return nil
		}
		seen = len(b)
		if err := conn.fill(limits.HeaderBytes); err != nil {
			return err
		}
	}
}

// interim passes a 1xx response on; HTTP/1.0 knows none (RFC 9110, 15.2).
func (a *attempt) interim() error {
	x := a.x
	var err error
	if x.minor > 0 {
		a.passed = true
		out := x.work.resp.AppendResponse(x.work.out[:0], h1.AsLength, "")
		if err = x.send(out); err != nil {
			x.cancel(errClientGone)
		}
	}
	a.conn.skip(a.conn.head)
	return err
}

// answered judges a response's head (the table of SEMANTICS 2).
func (a *attempt) answered() {
	a.first = max(1, time.Since(a.picked))
	if n := a.x.note; n != nil {
		n.first = a.picked.Sub(a.x.began) + a.first
	}
	a.sample = a.x.ended.Load()
	switch a.x.work.resp.Status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		a.result = health.Failure
	case http.StatusTooManyRequests:
		a.result = health.Overloaded
	case http.StatusInternalServerError:
		a.result = health.AppError
	}
	if a.result != health.Success {
		a.cause = fmt.Sprintf("HTTP %d", a.x.work.resp.Status)
	}
	if a.result != health.Failure {
		a.b.State.Answered() // 2.7: a trial doesn't wait for the end of a long answer
	}
}

// failed judges an attempt without a response, and returns the error with what it means.
func (a *attempt) failed(err error) error {
	cause := a.x.why()
	status, _ := statusOf(cause)
	switch {
	case errors.As(err, new(*connectError)):
		a.result = health.Neutral // the dial has been told already
		return err
	case cause == errRequestTimeout:
		a.result, a.first, a.sample = health.Timeout, time.Since(a.picked), a.x.ended.Load()
	case cause == errBackendRemoved, cause == errStopped, status != 0: // the last: the client's side failed
		a.result = health.Neutral
	case cause == errClientGone: // the caller's cancel
		a.result, a.first, a.sample = health.Neutral, time.Since(a.picked), a.x.ended.Load()
	default:
		if cause != nil {
			err = cause
		}
		a.result, a.cause = health.Failure, reason(err)
		if errors.Is(err, errBodySent) {
			return fmt.Errorf("%s: %s; %w", a.b.Addr, a.cause, errBodySent)
		}
		return fmt.Errorf("%s: %s", a.b.Addr, a.cause)
	}
	return err
}

// broke judges a response that ended before its end.
func (a *attempt) broke(err error) {
	a.conn.blameCall(a.x.why(), err)
	if a.result != health.Success {
		return
	}
	switch cause := a.x.why(); cause {
	case nil, errVanished:
		a.result = health.Neutral
		a.b.State.ConnectionLost(time.Now(), reason(err))
	case errRequestTimeout:
		a.result = health.Timeout
	}
}

// reason is the innermost error, for a person: `connection reset by peer` rather than the path to it.
func reason(err error) string {
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return e.Error()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "connection closed before an answer"
	}
	if isTimeout(err) {
		return "connect timed out"
	}
	return err.Error()
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// end is called once the call is over, or goes elsewhere. conn, if it is given, may be used again.
func (a *attempt) end(conn *http1Backend) {
	if a.ended {
		return
	}
	a.ended = true
	if a.x.detach() {
		conn = nil
	}
	if a.conn != nil && conn == nil {
		a.conn.blameCall(a.x.why(), errUnread)
		a.conn.endCall()
	}
	a.conn = nil
	a.x.s.over(a, conn)
	now := time.Now()
	a.excuse(now)
	a.b.State.End(now, a.result, a.first, a.sample, a.cause)
}

// excuse takes back a timeout that came so late that this process was stopped.
func (a *attempt) excuse(now time.Time) {
	if a.result != health.Timeout {
		return
	}
	if late := now.Sub(a.x.began.Add(a.x.opts.request)); overslept(late, now.Sub(a.picked)) {
		a.result, a.sample = health.Neutral, false
	}
}

// dial connects to the attempt's backend, and tells its State how that went.
func (a *attempt) dial() (*http1Backend, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	x := a.x
	x.mu.Lock()
	x.dialing = cancel
	ended := x.cause != nil
	x.mu.Unlock()
	if ended {
		return nil, errStopped
	}
	d := net.Dialer{
		Timeout:         x.opts.connect,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: time.Second, Count: 3}, // 2.11
	}
	d.SetMultipathTCP(false) // slower on loopback
	begun := time.Now()
	conn, err := d.DialContext(ctx, "tcp", a.b.Addr.String())
	x.mu.Lock()
	x.dialing = nil
	x.mu.Unlock()
	c := &http1Backend{}
	if err == nil {
		err = c.init(x.s.h, conn)
	}
	switch {
	case err == nil:
		c.opened = time.Now()
		a.b.State.Connected(c.opened)
		c.account = x.s.h.accounts.up(x.s.rt, a.b, c.opened)
		return c, nil
	case ctx.Err() != nil:
		return nil, err
	case isTimeout(err) && overslept(time.Since(begun)-d.Timeout, time.Since(begun)): // nobody's fault
	case !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) && !errors.Is(err, unix.EADDRNOTAVAIL):
		now, cause := time.Now(), reason(err)
		a.b.State.ConnectFailed(now, cause)
		x.s.h.accounts.refused(x.s.rt, a.b, now, cause)
	}
	return nil, &connectError{err}
}

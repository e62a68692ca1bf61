package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"golang.org/x/sys/unix"
)

// idlePerBackend is how many idle HTTP/1.1 connections to one backend are kept.
const idlePerBackend = 32

// noBackend says that no candidate is left, in the words of 4.5.
type noBackend struct{ words string }

func (e *noBackend) Error() string { return e.words }

// connectError is a failed dial.
type connectError struct{ err error }

func (e *connectError) Error() string { return e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

// backends are the connections to a route's backends, and the requests that run on them.
type backends struct {
	mu sync.Mutex

	transports map[netip.AddrPort]*http.Transport
	running    map[*attempt]struct{}
	none       *sync.Cond // no attempt runs
}

func (b *backends) init() {
	b.transports = map[netip.AddrPort]*http.Transport{}
	b.running = map[*attempt]struct{}{}
	b.none = sync.NewCond(&b.mu)
}

// attempt is one try of a call at one backend.
type attempt struct {
	c      *exchange
	b      *table.Backend
	picked time.Time
	drain  *time.Timer // guarded by backends.mu

	result health.Result
	cause  string
	first  time.Duration // until the response's head
	sample bool          // the request had ended before it
	once   sync.Once
}

type attemptKey struct{}

// staleMost bounds how often one attempt meets a reused connection that is dead.
const staleMost = 3

// RoundTrip sends a request to one candidate after the other, until one can be connected (4.1). What fails later isn't tried again.
func (s *http1Server) RoundTrip(r *http.Request) (*http.Response, error) {
	c := r.Context().Value(exchangeKey{}).(*exchange)
	if r.Body != nil && r.Body != http.NoBody {
		c.body = newReplay(s.h, r.Body)
	}
	for {
		now := time.Now()
		v := s.rt.svc.View()
		b := v.Pick(now, c.tried)
		if b == nil {
			s.h.count(s.rt, func(st *serviceStats) { st.noBackend++ })
			return nil, &noBackend{v.Unusable(now)}
		}
		again := len(c.tried) > 0
		s.h.count(s.rt, func(st *serviceStats) {
			st.picks++
			if again {
				st.retried++
			}
		})
		c.tried = append(c.tried, b.State)
		resp, err := c.try(r, b, now)
		if err == nil || !errors.As(err, new(*connectError)) || r.Context().Err() != nil || !c.replayable() {
			return resp, err
		}
	}
}

// replayable reports whether the request can be sent once more.
func (c *exchange) replayable() bool { return c.body == nil || c.body.rewind() }

// try sends the request to b.
func (c *exchange) try(r *http.Request, b *table.Backend, now time.Time) (*http.Response, error) {
	a := &attempt{c: c, b: b, picked: now}
	c.now = a
	b.State.Begin()
	t := c.s.begin(a)
	for stale := 0; ; stale++ {
		var used use
		resp, err := t.RoundTrip(a.request(r, &used))
		if err == nil {
			a.answered(resp)
			return resp, nil
		}
		if used.stale(r.Method) && stale < staleMost && c.ctx.Err() == nil && c.replayable() {
			t.CloseIdleConnections() // the others will be as old
			continue
		}
		err = a.failed(err)
		a.end()
		return nil, err
	}
}

// request is r for the attempt's backend.
func (a *attempt) request(r *http.Request, used *use) *http.Request {
	ctx := context.WithValue(r.Context(), attemptKey{}, a)
	out := r.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: used.got, GotFirstResponseByte: used.first}))
	u := *r.URL
	u.Host = a.b.Addr.String()
	out.URL = &u
	out.Host = authority(a.c.opts, a.b, r.Host)
	out.Trailer = a.c.in.Trailer // filled when the client's body ends
	if a.c.body != nil {
		out.Body, out.GetBody = a.c.body.reader(), a.c.body.again
	}
	return out
}

// use is what became of the connection that a request got.
type use struct {
	conn     *countedConn
	reused   bool
	before   int64 // bytes that had been written to it
	answered atomic.Bool
}

func (u *use) got(i httptrace.GotConnInfo) {
	u.conn, _ = i.Conn.(*countedConn)
	u.reused = i.Reused
	if u.conn != nil {
		u.before = u.conn.written.Load()
	}
}

func (u *use) first() { u.answered.Store(true) }

// stale reports whether a failed request met a dead connection, and may be sent again: a reused one that closed before a byte of the answer, if the method is
// idempotent or nothing was written (4.1).
func (u *use) stale(method string) bool {
	return u.conn != nil && u.reused && !u.answered.Load() && (idempotent(method) || u.conn.written.Load() == u.before)
}

// countedConn counts what is written to a backend.
type countedConn struct {
	net.Conn
	written atomic.Int64
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.written.Add(int64(n))
	return n, err
}

// CloseWrite lets an upgraded connection end one direction.
func (c *countedConn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// answered judges a response's head (the table of SEMANTICS 2).
func (a *attempt) answered(resp *http.Response) {
	a.first = max(1, time.Since(a.picked))
	a.sample = a.c.body == nil || a.c.body.ended()
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		a.result = health.Failure
	case http.StatusTooManyRequests:
		a.result = health.Overloaded
	case http.StatusInternalServerError:
		a.result = health.AppError
	}
	if a.result != health.Success {
		a.cause = fmt.Sprintf("HTTP %d", resp.StatusCode)
	}
	if a.c.body != nil {
		a.c.body.release()
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		resp.Body = &watched{ReadCloser: resp.Body, a: a}
	}
}

// failed judges an attempt without a response, and returns the error with what it means.
func (a *attempt) failed(err error) error {
	cause := context.Cause(a.c.ctx)
	switch {
	case errors.As(err, new(*connectError)):
		a.result = health.Neutral // the dial has been told already
		return err
	case cause == errRequestTimeout:
		a.result, a.first, a.sample = health.Timeout, time.Since(a.picked), true
	case cause == errBackendRemoved, cause == errStopped:
		a.result = health.Neutral
	case cause != nil: // the caller's cancel
		a.result, a.first, a.sample = health.Neutral, time.Since(a.picked), true
	case a.c.body != nil && a.c.body.broken():
		a.result = health.Neutral // the client's side failed
	default:
		a.result = health.Failure
		a.cause = reason(err)
		return fmt.Errorf("%s: %w", a.b.Addr, err)
	}
	return err
}

// reason is the innermost error, for a person: `connection reset by peer` rather than the path to it.
func reason(err error) string {
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return e.Error()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "connection closed before an answer"
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return "connect timed out"
	}
	return err.Error()
}

// end is called once the call is over, or goes elsewhere.
func (a *attempt) end() {
	a.once.Do(func() {
		a.c.s.over(a)
		a.b.State.End(time.Now(), a.result, a.first, a.sample, a.cause)
	})
}

// watched notes that a backend broke in the middle of a body.
type watched struct {
	io.ReadCloser
	a *attempt
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.ReadCloser.Read(b)
	if err != nil && err != io.EOF && w.a.result == health.Success {
		switch cause := context.Cause(w.a.c.ctx); cause {
		case nil:
			w.a.result = health.Neutral
			w.a.b.State.ConnectionLost(time.Now(), reason(err))
		case errRequestTimeout:
			w.a.result = health.Timeout
		}
	}
	return n, err
}

// begin notes a running attempt and returns its backend's transport.
func (s *http1Server) begin(a *attempt) *http.Transport {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running[a] = struct{}{}
	t := s.transports[a.b.Addr]
	if t == nil {
		t = s.transport()
		s.transports[a.b.Addr] = t
	}
	return t
}

func (s *http1Server) over(a *attempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, a)
	if a.drain != nil {
		a.drain.Stop()
	}
	if len(s.running) == 0 {
		s.none.Broadcast()
	}
}

// transport keeps the connections to one backend.
func (s *http1Server) transport() *http.Transport {
	var only http.Protocols
	only.SetHTTP1(true)
	return &http.Transport{
		DialContext: s.dial, Protocols: &only,
		DisableCompression:     true, // or it would ask for gzip on its own
		MaxIdleConnsPerHost:    idlePerBackend,
		IdleConnTimeout:        s.idle,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: int64(s.header),
	}
}

// dial connects to a backend, and tells its State how that went.
func (s *http1Server) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{
		Timeout:         s.rt.options().connect,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: time.Second, Count: 3}, // 2.11
		Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 10_000)
			})
		},
	}
	d.SetMultipathTCP(false) // slower on loopback
	conn, err := d.DialContext(ctx, network, addr)
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	switch {
	case a == nil:
	case err == nil:
		a.b.State.Connected(time.Now())
	case ctx.Err() == nil && !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) && !errors.Is(err, unix.EADDRNOTAVAIL):
		a.b.State.ConnectFailed(time.Now(), reason(err))
	}
	if err != nil {
		if ctx.Err() == nil {
			err = &connectError{err}
		}
		return nil, err
	}
	return &countedConn{Conn: conn}, nil
}

// viewChanged closes idle connections to backends that are gone or going, and gives their running requests the time of the drain (4.7).
func (s *http1Server) viewChanged() {
	leaving := s.rt.svc.View().Leaving
	s.mu.Lock()
	defer s.mu.Unlock()
	for addr, t := range s.transports {
		if leaving(addr) {
			t.CloseIdleConnections() // and those that become idle, as it gets no further request
			delete(s.transports, addr)
		}
	}
	for a := range s.running {
		switch out := leaving(a.b.Addr); {
		case out && a.drain == nil:
			a.drain = time.AfterFunc(s.rt.options().drain, func() { a.c.cancel(errBackendRemoved) })
		case !out && a.drain != nil && a.drain.Stop():
			a.drain = nil
		}
	}
}

// cancelAll ends every running request.
func (s *http1Server) cancelAll(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a := range s.running {
		a.c.cancel(cause)
	}
}

// waitUpgraded returns when no attempt runs: http.Server doesn't wait for upgraded connections.
func (s *http1Server) waitUpgraded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.running) > 0 {
		s.none.Wait()
	}
}

func (s *http1Server) closeIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.transports {
		t.CloseIdleConnections()
	}
}

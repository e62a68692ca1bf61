package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/agent/calls"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
)

const (
	// clientGone is the status under which a call is counted whose caller went away; nginx made it up.
	clientGone = 499
	// watchAfter is how long an answer may take before the client is watched for leaving. Watching costs more than relaying a short answer.
	watchAfter = 2 * time.Millisecond
	// continueTimeout is how long a client that asked for 100 (Continue) waits for a backend that never says it.
	continueTimeout = time.Second
	// maxInterim bounds the 1xx responses to one request.
	maxInterim = 32
)

// Why a running request was ended from here.
var (
	errBackendRemoved = errors.New("backend removed")
	errRequestTimeout = errors.New("timeout.request has passed")
	errStopped        = errors.New("the agent is stopping")
	errClientGone     = errors.New("the client has gone")
	errUnasked        = errors.New("the backend switched protocols unasked")
	errInterims       = errors.New("too many interim responses")
	errVanished       = errors.New("connection timed out") // the words of ETIMEDOUT: the backend acknowledges nothing (2.11)
)

// exchange is one request, with all its attempts.
type exchange struct {
	c     *http1Client
	s     *http1Server
	work  *http1Work
	opts  *options
	began time.Time

	head       []byte // as backends get it, but for Host; then the body, if it came with the head
	hostAt     int
	authority  string // as it came
	key        uint64 // 3.10
	isHead     bool   // its method
	idempotent bool   // so is that
	minor      int
	alive      bool // the client may send another request
	hasBody    bool
	upgrade    bool
	expects    bool // 100-continue, for a body that isn't there

	tried []*health.State
	first [4]*health.State // of tried
	now   *attempt         // the one that runs, or gave the response
	one   attempt          // the first
	timer *time.Timer      // of timeout.request

	body   wireBody // what of the request is still to come
	replay replay
	up     chan error  // the upload, or the watch for the client: what it ended with, nil for well; nil = none runs
	ended  atomic.Bool // all of the body has been sent
	half   atomic.Bool // one direction of a tunnel has ended
	watch  *time.Timer // begins the watch
	status int
	told   bool // the client has a part of the answer

	retries int // by the policy

	delay    time.Duration // what this agent added: until the request was written to the backend, and from its response's head until that was
	returned bool          // that was

	note    *note // nil: nobody wants its record
	in, out int64 // bytes of bodies; of in, what is not in body.got

	mu sync.Mutex

	cause    error // why it was ended from here
	conn     *http1Backend
	dialing  context.CancelFunc
	begun    bool // an answer has begun
	stopping bool // the client side's goroutine has to end
	tunnels  bool
}

// read takes the request over from the client's buffer.
func (x *exchange) read(end int) {
	c, req := x.c, &x.work.req
	x.tried = x.first[:0]
	x.head, x.hostAt = req.AppendRequest(x.work.head[:0])
	x.authority = string(req.Host)
	if x.authority == "" && req.Minor == 0 {
		x.authority = noAuthority
	}
	x.key = h1Key(x.opts.hash, req.Fields)
	x.isHead = string(req.Method) == "HEAD"
	x.idempotent = idempotent(string(req.Method))
	x.minor = req.Minor
	x.alive = !req.Close && (req.Minor > 0 || req.Alive)
	x.upgrade = req.Upgrade
	if x.s.h.p.calls.Wants(x.s.rt.name) {
		x.note = newNote(string(req.Method), string(req.Target), string(req.Host))
		x.note.trace = trace1(req.Fields)
	}
	x.hasBody = req.Chunked || req.Length > 0
	c.skip(end)
	if n := req.Length; !req.Chunked && n > 0 && int64(len(c.buffered())) >= n {
		x.head = append(x.head, c.buffered()[:n]...)
		c.skip(int(n))
		x.in = n
		x.hasBody = false
	}
	if x.hasBody {
		x.body = wireBody{w: &c.wire, limits: c.h.p.limits.Load(), extend: x.extendRead, chunked: req.Chunked, left: max(0, req.Length)}
		x.expects = req.Continue
	} else {
		x.ended.Store(true)
	}
	x.replay.h = c.h
}

// noAuthority stands for the host of a request that has none, as HTTP/1.0's may.
const noAuthority = "\x00"

// run answers the request. It reports whether the connection goes on.
func (x *exchange) run() bool {
	if d := x.opts.request; d > 0 {
		x.timer = time.AfterFunc(d, func() { x.cancel(errRequestTimeout) })
		defer x.timer.Stop()
	}
	if p := x.opts.retry; p != nil {
		x.s.rt.budget.earn(p.percent)
	}
	why, next, before := becauseConnect, (*table.Backend)(nil), ""
	now := x.began
	for ; ; now = time.Now() {
		v := x.s.rt.svc.View()
		b := next
		if b == nil {
			b = v.PickFor(now, x.key, x.tried)
		}
		if b == nil {
			x.s.h.count(x.s.rt, func(st *serviceStats) { st.noBackend++ })
			text := v.Unusable(now) + before
			x.note.ended(calls.Agent, calls.Connect, text)
			return x.fail(http.StatusServiceUnavailable, text)
		}
		again := len(x.tried) > 0
		x.s.h.count(x.s.rt, func(st *serviceStats) {
			st.picks++
			if again {
				st.retried[why]++
			}
		})
		x.note.tried()
		x.tried = append(x.tried, b.State)
		a := &x.one
		if again {
			a = new(attempt)
		}
		*a = attempt{x: x, b: b, view: v, picked: now}
		x.now = a
		err := a.try()
		unreached := errors.As(err, new(*connectError))
		whyNot := ""
		why, next = becauseConnect, nil
		if !unreached && x.opts.retry != nil {
			if next, whyNot = x.another(a, err); next != nil {
				why, before = becausePolicy, "; "+b.Addr.String()+" failed before: "+a.cause
			}
		}
		switch {
		case next != nil:
		case err == nil:
			return x.relay(a)
		case !unreached || x.why() != nil || !x.replayable():
			a.end(nil)
			return x.failed(fmt.Errorf("%w%s", err, whyNot))
		}
		a.end(nil)
	}
}

// another is the backend for one more attempt, if the policy wants one after a that failed with err, or answered (4.2). What is not uploaded by then is not
// sent any more to the backend of a.
func (x *exchange) another(a *attempt, err error) (b *table.Backend, whyNot string) {
	p := x.opts.retry
	wanted := err != nil && p.reset || err == nil && p.answers(x.work.resp.Status, -1)
	if !wanted || !x.idempotent || a.passed || x.why() != nil { // RFC 9110 9.2.2
		return nil, ""
	}
	x.stopUpload()
	if x.why() != nil {
		return nil, ""
	}
	now := time.Now()
	b, whyNot = x.s.rt.another(p, now, x.key, x.tried, x.retries, x.replayable())
	switch {
	case b != nil:
		x.retries++
	case whyNot == overBudget:
		x.s.h.count(x.s.rt, func(st *serviceStats) { st.denied++ })
		x.s.h.p.tellDenied(x.s.rt, p.percent, now)
	}
	return b, whyNot
}

// replayable reports whether the request can be sent once more; no upload runs.
func (x *exchange) replayable() bool { return !x.replay.failed }

// failed answers for a backend.
func (x *exchange) failed(err error) bool {
	cause := x.why()
	x.noteEnd(cause, err)
	text := fmt.Sprintf("lbagent: %s: %v", x.s.rt.name, err)
	if cause != nil {
		text = fmt.Sprintf("lbagent: %s: %v", x.s.rt.name, cause)
	}
	switch status, _ := statusOf(cause); {
	case cause == nil, cause == errVanished:
		return x.fail(http.StatusBadGateway, text)
	case cause == errRequestTimeout:
		return x.fail(http.StatusGatewayTimeout, text)
	case cause == errBackendRemoved, cause == errStopped:
		return x.fail(http.StatusServiceUnavailable, text)
	case status != 0:
		return x.fail(status, text)
	}
	x.status = clientGone // for the counters: nobody reads it
	return false
}

// fail answers in the agent's own words. The connection goes on only if the whole request was read.
func (x *exchange) fail(status int, text string) bool {
	x.status = status
	if !x.isHead {
		x.out = int64(len(text)) + 1
	}
	whole := x.stopUpload()
	again := x.alive && x.minor > 0 && whole && !x.s.draining.Load()
	x.c.unread = !whole
	return x.c.say(status, text, !again, x.isHead) && again
}

// end settles the accounts.
func (x *exchange) end() {
	if x.now != nil {
		x.now.end(nil)
	}
	x.replay.drop()
	took := time.Since(x.began)
	if x.note != nil {
		x.tell(took)
	}
	x.s.h.count(x.s.rt, func(st *serviceStats) {
		st.http(protoHTTP1, x.status, took)
		if x.returned {
			st.added(protoHTTP1, x.delay)
		}
	})
}

// cancel ends a running request: whatever it waits for ends with an error. From any goroutine.
func (x *exchange) cancel(cause error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.cause != nil {
		return
	}
	x.cause = cause
	if x.dialing != nil {
		x.dialing()
	}
	if x.conn != nil {
		x.conn.SetDeadline(past())
	}
	if x.begun {
		x.c.SetDeadline(past())
	}
}

// why is the cause of a cancel, nil if there was none.
func (x *exchange) why() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.cause
}

// attach makes conn the one that a cancel ends; false if it came already.
func (x *exchange) attach(conn *http1Backend) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.cause != nil {
		return false
	}
	x.conn = conn
	return true
}

// detach makes the attached connection nobody's to end; it reports whether a cancel has done so already.
func (x *exchange) detach() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.conn = nil
	return x.cause != nil
}

// begin notes that an answer begins: from here on a cancel ends the client's connection, as there is no other way to say it.
func (x *exchange) begin() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.begun = x.cause == nil
	return x.begun
}

// finish notes that the answer has been sent: a cancel that comes later is too late to end the client's connection, one that came earlier has.
func (x *exchange) finish() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.begun = false
	return x.cause == nil
}

// backendDeadline bounds the wait for a backend, unless it is ended already.
func (x *exchange) backendDeadline(t time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.cause == nil && x.conn != nil {
		x.conn.SetReadDeadline(t)
	}
}

// extendRead gives the client timeout.idle for the next bytes of its body.
func (x *exchange) extendRead() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.stopping {
		return os.ErrDeadlineExceeded
	}
	x.c.setRead(time.Now(), x.opts.idle)
	return nil
}

// send writes to the client, which has timeout.idle to take it.
func (x *exchange) send(b []byte) error {
	x.mu.Lock()
	if x.cause == nil {
		x.c.setWrite(time.Now(), x.opts.idle)
	}
	x.mu.Unlock()
	n, err := x.c.Write(b)
	x.told = x.told || n > 0
	return err
}

// look ends a request whose backend has vanished, or whose client left while nobody could read what it had sent.
func (x *exchange) look() {
	x.mu.Lock()
	conn := x.conn
	var gone, left bool
	if conn != nil && x.cause == nil {
		gone = conn.vanished()
		left = !gone && !x.tunnels && x.c.hasLeft() // a tunnel reads on, and may be half-closed
	}
	x.mu.Unlock()
	switch {
	case gone:
		x.cancel(errVanished)
	case left:
		x.cancel(errClientGone)
	}
}

package proxy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/calls"
	"github.com/lbagent/lbagent/agent/proxy/h2"
	"github.com/lbagent/lbagent/agent/proxy/loop"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
)

// call joins a client's stream with a stream to a backend. An attempt begins at a pick and ends with endAttempt, once; a call has one after the other.
type call struct {
	relay  *relay
	client *clientConn
	cs, bs h2.Stream // to the client, to the backend
	gen    uint32    // rises when the call is given back

	conn  *backendConn  // of bs; nil while there is none
	be    *backend      // of the attempt
	state *health.State // of the attempt: Begin was called, End was not
	tried []*health.State
	spare *health.State // of tried: may be tried once more

	lastWhy string // why the last backend could not take the call
	before  string // how the backend before answered, if the policy did not take that for the answer (4.2)

	opts      *options
	key       uint64     // 3.10
	fields    []h2.Field // the request's header list, kept for retries until a response begins
	held      int        // bytes of it, in relay.parked
	req, resp pipe

	start, began time.Time // of the call, of the attempt
	deadline     time.Time // of grpc-timeout; zero: none
	firstByte    time.Duration
	delay        time.Duration // from the call's arrival until its request was written to the attempt's backend
	timer        loop.Timer
	waitUntil    time.Time // for a stream slot

	status     int    // :status of the final response
	grpcStatus int    // -1: none
	reason     string // grpc-message, still encoded
	note       *note  // nil: nobody wants its record
	sentAt     uint64 // where the attempt begins in its connection's output

	grpc       bool
	head       bool
	idempotent bool
	expected   bool // the request's end was sent before response headers came
	touched    bool // something of a response was passed on
	answered   bool // final response headers were passed on
	sized      bool // with content-length
	sawData    bool
	onlyHead   bool        // trailers-only
	reused     bool        // the attempt's connection had answered before
	again      bool        // spare was used
	retries    int         // by the policy
	why        retryReason // of the next attempt
	queued     bool        // in be.waiting
	counted    bool

	next, prev *call // in lane, or the free list
	lane       *lane // of be.waiting
}

// begin takes a new request.
func (c *call) begin(fields []h2.Field, head *h2.Head, end bool) {
	r := c.relay
	c.start = r.loop.Now()
	c.opts = c.client.rt.options()
	c.fields = append(c.fields[:0], fields...)
	c.held = head.Size
	r.park(c.held)
	c.key = h2Key(c.opts.hash, c.fields)
	c.grpc = strings.HasPrefix(head.ContentType, "application/grpc")
	c.grpcStatus = -1
	c.head = head.Method == "HEAD"
	c.idempotent = idempotent(head.Method)
	c.req.keep, c.req.end = true, end
	c.req.counted = &r.kept
	if r.w.proxy.calls.Wants(c.client.rt.name) {
		c.note = newNote(head.Method, head.Path, head.Authority)
		c.note.trace = trace(c.fields)
	}
	if head.TooLarge {
		c.tooLarge()
		return
	}
	if d, ok := parseTimeout(head.GRPCTimeout); ok && c.grpc {
		c.deadline = c.start.Add(d)
	}
	if c.opts.request > 0 {
		r.loop.Arm(&c.timer, c.opts.request)
	}
	if p := c.opts.retry; p != nil {
		c.client.rt.budget.earn(p.percent)
	}
	c.dispatch()
}

// tooLarge answers a request whose header list is over a limit (RFC 6585 5).
func (c *call) tooLarge() {
	l := c.client.limits
	c.relay.w.protect(c.client.rt, protectHeaders, c.client, "request refused: header list too large in bytes or fields", l.HeaderBytes)
	c.note.ended(calls.Agent, calls.Request, "the request's header list is too large")
	c.answer(431, codeExhausted, fmt.Sprintf("lbagent: %s: the request's header list is above limits.header_bytes (%d) or limits.header_fields (%d)",
		c.client.rt.name, l.HeaderBytes, l.HeaderFields))
	c.settle()
}

// dispatch picks a backend and sends the call there; without one, it's answered (4.1, 4.5).
func (c *call) dispatch() { c.dispatchTo(nil) }

// dispatchTo sends the call to b first, if that isn't nil.
func (c *call) dispatchTo(b *table.Backend) {
	r := c.relay
	now := r.loop.Now()
	v := c.client.rt.svc.View()
	for ; !v.Gone && len(c.tried) < maxTries; b = nil {
		if b == nil {
			b = v.PickFor(now, c.key, c.tried)
		}
		if b == nil && c.spare != nil {
			c.tried = slices.DeleteFunc(c.tried, func(s *health.State) bool { return s == c.spare })
			c.spare, c.again = nil, true
			b = v.PickFor(now, c.key, c.tried)
		}
		if b == nil {
			break
		}
		c.client.stats.picks++
		c.note.tried()
		if len(c.tried) > 0 || c.again {
			c.client.stats.retried[c.why]++
		}
		c.why = becauseConnect
		c.tried = append(c.tried, b.State)
		c.state, c.began = b.State, now
		b.State.Begin()
		c.be = c.client.pool.backend(b, c.client.rt)
		why := c.be.take(c, b.Verdict.Usable())
		if why == "" {
			return
		}
		c.lastWhy = why
		c.endAttempt(health.Neutral, 0, false, "")
	}
	c.client.stats.noBackend++
	text := v.Unusable(now)
	if v.Usable > 0 && c.lastWhy != "" {
		text += "; " + c.be.addr.String() + " " + c.lastWhy
	}
	if c.before != "" {
		text += "; " + c.before
	}
	c.note.ended(calls.Agent, calls.Connect, text)
	c.answer(503, codeUnavailable, text)
	c.settle()
}

// wait queues the call for a stream to be (4.4).
func (c *call) wait(be *backend) {
	be.waiting.push(c)
	c.queued = true
	now := c.relay.loop.Now()
	c.waitUntil = now.Add(c.opts.connect)
	c.arm(now)
}

// unwait takes the call out of the queue.
func (c *call) unwait() {
	c.be.waiting.remove(c)
	c.queued = false
	c.arm(c.relay.loop.Now())
}

// arm sets the timer to what ends first: the wait for a stream and, during it, the caller's deadline; and timeout.request.
func (c *call) arm(now time.Time) {
	var at time.Time
	sooner := func(t time.Time) {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	if c.opts.request > 0 {
		sooner(c.start.Add(c.opts.request))
	}
	if c.queued {
		sooner(c.waitUntil)
		if !c.deadline.IsZero() {
			sooner(c.deadline)
		}
	}
	if at.IsZero() {
		c.relay.loop.Disarm(&c.timer)
	} else {
		c.relay.loop.Arm(&c.timer, at.Sub(now))
	}
}

// timeUp: the timer fired.
func (c *call) timeUp() {
	now := c.relay.loop.Now()
	switch {
	case !c.cs.Open(): // the backend takes nothing of the rest of a request that it has answered
		c.abandon(h2.Cancel)
		c.settle()
	case c.opts.request > 0 && !now.Before(c.start.Add(c.opts.request)):
		c.timedOut("timeout.request of the service passed")
	case c.queued && !c.deadline.IsZero() && !now.Before(c.deadline):
		c.timedOut("the caller's deadline passed while the call waited for a connection to " + c.be.name())
	case c.queued && !now.Before(c.waitUntil):
		c.moveOn("had no stream for the call within timeout.connect")
	default:
		c.arm(now)
	}
}

// moveOn ends the wait for a backend's stream and sends the call elsewhere.
func (c *call) moveOn(why string) {
	c.unwait()
	if why != "" {
		c.lastWhy = why
	}
	c.endAttempt(health.Neutral, 0, false, "")
	c.dispatch()
}

// timedOut ends a call whose time is over.
func (c *call) timedOut(why string) {
	now := c.relay.loop.Now()
	c.note.ended(calls.Agent, c.phase(), why)
	result := health.Timeout
	if c.queued {
		c.unwait()
		result = health.Neutral // the backend never had it
	}
	elapsed, sample := now.Sub(c.began), c.bs.Open() && c.sentWhole()
	if c.answered {
		elapsed, sample = c.firstByte, c.expected
	}
	c.abandon(h2.Cancel)
	c.endAttempt(result, elapsed, sample, why)
	c.abort(504, codeDeadline, "lbagent: "+why)
	c.settle()
}

// send opens a stream on conn and sends what there is of the request.
func (c *call) send(conn *backendConn) {
	c.conn = conn
	c.reused = conn.frames > 0
	c.sentAt = conn.lc.Queued()
	if c.opts.authority != "" && c.opts.authority != "keep" {
		c.rewriteAuthority()
	}
	if c.note != nil {
		c.note.wait = max(1, c.relay.loop.Now().Sub(c.start))
	}
	conn.begins()
	c.relay.passes(c)
	conn.h2.OpenStream(&c.bs, c.head)
	p := &c.req
	whole := p.end && p.got == 0 && !p.trailing
	conn.h2.WriteHeaders(&c.bs, c.fields, whole)
	if !whole && (p.got > 0 || p.end) {
		c.pumpRequest()
	}
	conn.flush()
}

// requestTrailers ends the request.
func (c *call) requestTrailers(fields []h2.Field, head *h2.Head) {
	c.req.endBy(c.relay, fields, head.Size)
	c.pumpRequest()
	c.settle()
}

// response takes a response's header list, informational or final.
func (c *call) response(fields []h2.Field, head *h2.Head, end bool) {
	if c.opts.retry != nil && !c.touched && c.retryAnswer(head, end) {
		return
	}
	c.touched = true
	tooLarge := head.Size > c.client.h2.HeaderLimit()
	if head.Status < 200 {
		// No window bounds these: a client that doesn't read gets no more of them.
		if !tooLarge && c.cs.Sending() && c.client.lc.Unwritten() <= fullAt {
			c.client.h2.WriteHeaders(&c.cs, fields, false)
			c.client.flush()
		}
		return
	}
	if tooLarge {
		c.tooLargeForClient()
		return
	}
	now := c.relay.loop.Now()
	c.answered, c.status, c.sized = true, head.Status, head.HasLength
	c.firstByte = max(now.Sub(c.began), 1)
	c.expected = !c.bs.Sending()
	c.relay.returns(c)
	if c.note != nil {
		c.note.first = max(1, now.Sub(c.start))
	}
	c.drop() // from now on there is no retry
	if c.req.keep {
		c.req.keep = false
		c.req.discard(c.relay, c.req.sent)
	}
	c.dropTrailers()
	if end {
		c.onlyHead = true
		c.noteStatus(head)
		c.resp.end = true
	} else if c.state != nil && c.status != 502 && c.status != 503 && c.status != 504 {
		c.state.Answered() // 2.7: a trial doesn't wait for the end of a long call
	}
	if c.cs.Sending() {
		c.client.h2.WriteHeaders(&c.cs, fields, end)
		c.client.flush()
	}
	if end {
		c.settle()
	}
}

// tooLargeForClient ends a call whose response has a larger header list than the client takes: many would end the connection for it.
func (c *call) tooLargeForClient() {
	name := c.be.name()
	c.note.ended(calls.Agent, c.phase(), "the response's header list is larger than the client takes")
	c.abandon(h2.Cancel)
	c.endAttempt(health.Neutral, 0, false, "")
	c.abort(502, codeExhausted, "lbagent: "+name+" answered with a larger header list than the client takes (SETTINGS_MAX_HEADER_LIST_SIZE)")
	c.settle()
}

// responseTrailers ends the response.
func (c *call) responseTrailers(fields []h2.Field, head *h2.Head) {
	c.noteStatus(head)
	if head.Size > c.client.h2.HeaderLimit() {
		r := c.relay
		fields = append(r.scratch[:0], h2.Field{Name: "grpc-status", Value: strconv.Itoa(codeExhausted)})
		if !c.grpc {
			fields = fields[:0]
		}
		r.scratch = fields
	}
	p := &c.resp
	p.end = true
	if p.sent == p.got && c.cs.Sending() { // the usual case, without a copy
		c.client.h2.WriteHeaders(&c.cs, fields, true)
		c.client.flush()
	} else {
		p.endBy(c.relay, fields, sizeOf(fields))
	}
	c.settle()
}

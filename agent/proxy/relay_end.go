package proxy

import (
	"github.com/lbagent/lbagent/agent/calls"
	"github.com/lbagent/lbagent/agent/proxy/h2"
	"github.com/lbagent/lbagent/health"
)

// drop lets go of the request's header list.
func (c *call) drop() {
	c.client.h2.Drop(c.held)
	c.relay.park(-c.held)
	c.held = 0
	c.fields = emptied(c.fields)
}

// dropTrailers lets go of the request's trailers, if they have no way to go any more.
func (c *call) dropTrailers() {
	if p := &c.req; !p.keep && !c.bs.Sending() {
		c.client.h2.Drop(p.held)
		p.dropTrailers(c.relay)
	}
}

// resetByBackend: the backend reset the stream, or (local) sent what had to be reset.
func (c *call) resetByBackend(code h2.Code, local bool) {
	switch {
	case c.resp.end: // all of the response is here: only the rest of the request is unwanted (RFC 9113 8.1)
		c.settle()
		return
	case code == h2.RefusedStream && !local && !c.touched:
		c.endAttempt(health.Neutral, 0, false, "")
		c.retryOr(becauseRefused, "refused the call")
		return
	}
	why := "reset the call: " + code.String()
	if local {
		why = "sent a malformed response"
		if code == h2.EnhanceYourCalm {
			why = "sent a header list above limits.header_bytes or limits.header_fields"
		}
	}
	result, cause := health.Failure, why+" before response headers"
	first, sample := c.firstByte, c.expected
	now := c.relay.loop.Now()
	if c.answered {
		if result, cause = c.outcome(); result == health.Success && code != h2.NoError {
			result, cause = health.AppError, why+" in its response" // a failure for who called, and no sign that the backend is gone
		}
	} else if c.late(now) { // backends end calls at their deadline too, as the caller does
		result, cause, first, sample = health.Timeout, "the caller's deadline passed", now.Sub(c.began), c.sentWhole()
	}
	name := c.be.name()
	b, whyNot := c.another(!c.touched && c.opts.retry.retriesReset())
	c.endAttempt(result, first, sample, cause)
	if b != nil {
		c.resend(b, why)
		return
	}
	c.note.ended(calls.Backend, c.phaseSent(), why)
	if local {
		c.abort(502, codeUnavailable, "lbagent: "+name+" "+why+whyNot)
	} else {
		c.count(statusAborted, codeUnavailable)
		c.resetClient(passCode(code))
	}
	c.settle()
}

// unseen: the backend said by GOAWAY that it never saw the stream, which may be a lie.
func (c *call) unseen() {
	if c.touched {
		if !c.resp.end {
			c.endAttempt(health.Failure, c.firstByte, false, "GOAWAY denies a stream that was answered")
			c.failed("denies the call that it began to answer")
			return
		}
		c.settle()
		return
	}
	c.endAttempt(health.Neutral, 0, false, "")
	c.retrySame()
	c.retryOr(becauseGoaway, "went away")
}

// connLost: the connection broke; of its output, bytes up to written went to the kernel. final: the call goes nowhere any more.
func (c *call) connLost(cause string, written uint64, final bool) {
	c.conn.h2.Forget(&c.bs)
	if c.resp.end {
		c.settle()
		return
	}
	unsent := written <= c.sentAt
	c.endAttempt(health.Neutral, 0, false, "")
	if !final && !c.touched && (unsent || c.reused && c.idempotent) {
		if c.reused {
			c.retrySame()
		}
		c.retryOr(becauseLost, "connection lost: "+cause)
		return
	}
	b, whyNot := c.another(!final && !c.touched && c.opts.retry.retriesReset())
	if b != nil {
		c.resend(b, "connection lost: "+cause)
		return
	}
	c.failed("connection lost: " + cause + whyNot)
}

// retrySame lets the call go once more to a backend that said nothing against it, if there is no other: its connection was old, or going away (4.1).
func (c *call) retrySame() {
	if !c.again && len(c.tried) > 0 {
		c.spare = c.tried[len(c.tried)-1]
	}
}

// retryOr sends the call elsewhere, or says why not.
func (c *call) retryOr(r retryReason, why string) {
	if c.req.base > 0 {
		c.failed(why + notKept)
		return
	}
	c.lastWhy = why
	c.why = r
	c.rewind()
	c.dispatch()
}

// failed ends a call that can't go on.
func (c *call) failed(why string) {
	c.note.ended(calls.Backend, c.phaseSent(), why)
	c.abort(502, codeUnavailable, "lbagent: "+c.lastName()+" "+why)
	c.settle()
}

// backendRemoved ends a call whose backend is gone for longer than drain: gRPC by its trailers, HTTP/2 by a reset (4.7).
func (c *call) backendRemoved() {
	c.abandon(h2.Cancel)
	if c.resp.end { // only the rest of the request was on its way
		c.settle()
		return
	}
	c.note.ended(calls.Agent, c.phase(), "backend removed, and the time of its drain is over")
	c.endAttempt(health.Neutral, 0, false, "")
	if c.grpc {
		c.abort(502, codeUnavailable, "lbagent: "+c.lastName()+" backend removed")
	} else {
		c.count(statusAborted, codeUnavailable)
		c.resetClient(h2.Cancel)
	}
	c.settle()
}

// cancelled: the client reset its stream, or is gone.
func (c *call) cancelled(code h2.Code) {
	now := c.relay.loop.Now()
	if c.queued {
		c.unwait()
	}
	late := c.late(now)
	c.noteCancel(late)
	c.abandon(passCode(code))
	if c.state != nil {
		c.endAttempt(c.gaveUp(now, late))
	}
	if late {
		c.count(statusAborted, codeDeadline)
	} else {
		c.count(statusAborted, codeCancelled)
	}
	c.settle()
}

// abandon resets the backend's stream.
func (c *call) abandon(code h2.Code) {
	if c.bs.Open() {
		c.conn.h2.Reset(&c.bs, code)
		c.conn.flush()
	}
}

// settle ends what is over after an event: the attempt, the rest of an unwanted request, the call.
func (c *call) settle() {
	if c.queued || c.bs.Open() && c.cs.Open() {
		return
	}
	if c.conn != nil && !c.bs.Open() {
		result, cause := c.outcome()
		c.endAttempt(result, c.firstByte, c.expected, cause)
	}
	if c.bs.Open() { // the caller has its answer; the rest of its request is still on its way, for as long as some of it is taken
		c.relay.loop.Arm(&c.timer, restPatience)
	}
	if c.state != nil || c.bs.Open() {
		return
	}
	if c.cs.Open() && !c.cs.Sending() {
		// The answer is out, and the backend takes no more of the request (RFC 9113 8.1).
		c.client.h2.Reset(&c.cs, h2.NoError)
		c.client.flush()
	}
	if !c.cs.Open() {
		if c.resp.end {
			c.countResponse()
		}
		if c.note != nil {
			c.tell()
		}
		client := c.client
		c.drop()
		c.req.keep = false
		c.dropTrailers()
		c.relay.freeCall(c)
		client.release()
	}
}

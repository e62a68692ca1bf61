package proxy

import (
	"strconv"

	"github.com/lbagent/lbagent/agent/proxy/h2"
	"github.com/lbagent/lbagent/agent/table"
)

// retryAnswer sends the call to another backend if the policy doesn't take this response for the answer (4.2). Nothing of it has been passed on.
func (c *call) retryAnswer(head *h2.Head, end bool) bool {
	code := -1
	if c.grpc && end {
		c.noteStatus(head)
		code = c.grpcStatus
	}
	b, _ := c.another(c.opts.retry.answers(head.Status, code))
	if b == nil {
		return false
	}
	c.status, c.onlyHead = head.Status, end
	result, cause := c.outcome()
	first, sample := max(c.relay.loop.Now().Sub(c.began), 1), !c.bs.Sending()
	c.abandon(h2.Cancel) // the rest of the response, or of the request
	c.status, c.onlyHead, c.grpcStatus, c.reason = 0, false, -1, ""
	c.endAttempt(result, first, sample, cause)
	if cause == "" {
		cause = "gRPC status " + strconv.Itoa(code)
	}
	c.resend(b, "answered "+cause)
	return true
}

// another is the backend for one more attempt, if the policy wants one; else it says why there is none, for the end of a sentence. An answer at hand is better
// than a try at a backend that is out.
func (c *call) another(wanted bool) (b *table.Backend, whyNot string) {
	now := c.relay.loop.Now()
	// A proxy must not send a request twice whose method isn't idempotent (RFC 9110 9.2.2). What a gRPC method is, the service's owner says by asking for
	// retries.
	if !wanted || !c.grpc && !c.idempotent || c.late(now) || len(c.tried) >= maxTries {
		return nil, ""
	}
	b, whyNot = c.client.rt.another(c.opts.retry, now, c.key, c.tried, c.retries, c.req.keep && c.req.base == 0)
	switch {
	case b != nil:
		c.retries++
	case whyNot == overBudget:
		c.client.stats.denied++
		c.relay.w.proxy.tellDenied(c.client.rt, c.opts.retry.percent, now)
	}
	return b, whyNot
}

// resend sends the call to b, after the attempt before ended as why says.
func (c *call) resend(b *table.Backend, why string) {
	c.before = c.be.addr.String() + " " + why
	c.why = becausePolicy
	c.rewind()
	c.dispatchTo(b)
}

// rewind begins the request anew; all of it is kept.
func (c *call) rewind() {
	c.req.sent = 0
	c.req.marked = c.req.granted
}

package proxy

import (
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lbagent/lbagent/agent/proxy/h2"
	"github.com/lbagent/lbagent/health"
)

// gRPC status codes that this package gives or looks at.
const (
	codeCancelled   = 1
	codeUnknown     = 2
	codeDeadline    = 4
	codeExhausted   = 8
	codeAborted     = 10
	codeInternal    = 13
	codeUnavailable = 14
	codeDataLoss    = 15
)

// statusAborted counts HTTP calls that ended without a whole response: the client's cancel, or a reset.
const statusAborted = 499

// deadlineSlack is how much earlier than its deadline a cancel may come and still count as one because of it: the caller's clock began before ours.
const deadlineSlack = 2 * time.Millisecond

// endAttempt notes how the attempt went; its stream must be closed.
func (c *call) endAttempt(result health.Result, firstByte time.Duration, sample bool, cause string) {
	if c.state == nil {
		return
	}
	now := c.relay.loop.Now()
	if overslept(c.relay.loop.Lost(c.began), now.Sub(c.began)) {
		sample = false
		if result == health.Timeout {
			result = health.Neutral
		}
	}
	c.state.End(now, result, firstByte, sample, cause)
	c.state = nil
	if conn := c.conn; conn != nil {
		c.conn = nil
		conn.freed()
	}
}

// overslept reports whether so much of a time was lost by this process, which was stopped, that it says nothing about a backend: neither that it timed out, nor how
// long it took. Or a machine that stood still for seconds would have half of its backends ejected by the timeouts of what was under way (2.5).
func overslept(lost, of time.Duration) bool { return lost >= 100*time.Millisecond && lost >= of/4 }

// noteStatus keeps what the end of a gRPC response says.
func (c *call) noteStatus(head *h2.Head) {
	c.grpcStatus = -1
	if n, err := strconv.Atoi(head.GRPCStatus); err == nil && n >= 0 {
		c.grpcStatus = n
	}
	c.reason = head.GRPCMessage
}

// outcome is what a whole response says about the backend (SEMANTICS 2): only :status and grpc-status count.
func (c *call) outcome() (health.Result, string) {
	switch c.status {
	case 502, 503, 504:
		return health.Failure, "HTTP " + strconv.Itoa(c.status)
	case 429:
		return health.Overloaded, "HTTP 429"
	case 500:
		return health.AppError, "HTTP 500"
	}
	if !c.grpc || c.grpcStatus == 0 {
		return health.Success, ""
	}
	if c.grpcStatus < 0 && c.resp.end && c.status == 200 { // the caller takes it for UNKNOWN
		return health.AppError, "gRPC UNKNOWN: a response without a grpc-status"
	}
	switch c.grpcStatus {
	case codeUnavailable:
		if c.onlyHead {
			return health.Failure, c.inWords("UNAVAILABLE")
		}
	case codeExhausted:
		return health.Overloaded, c.inWords("RESOURCE_EXHAUSTED")
	case codeUnknown:
		return health.AppError, c.inWords("UNKNOWN")
	case codeInternal:
		return health.AppError, c.inWords("INTERNAL")
	case codeDataLoss:
		return health.AppError, c.inWords("DATA_LOSS")
	case codeDeadline:
		if c.late(c.relay.loop.Now()) {
			return health.Timeout, "the caller's deadline passed"
		}
	}
	return health.Success, ""
}

func (c *call) inWords(code string) string {
	if c.reason == "" {
		return "gRPC " + code
	}
	return "gRPC " + code + ": " + printable(c.reason[:min(len(c.reason), 200)])
}

// late reports whether the caller's deadline has passed.
func (c *call) late(now time.Time) bool {
	return !c.deadline.IsZero() && !now.Before(c.deadline.Add(-deadlineSlack))
}

// gaveUp is what a caller's cancel says about the backend: nothing, if it came before the deadline, and the backend had not said otherwise. A timeout weighs by the
// time to the response headers, if they came: a stream that runs until its deadline is no slow answer.
func (c *call) gaveUp(now time.Time, late bool) (result health.Result, firstByte time.Duration, sample bool, cause string) {
	result, firstByte, sample = health.Neutral, c.firstByte, c.expected
	if c.answered {
		if said, why := c.outcome(); c.resp.end || said != health.Success {
			return said, firstByte, sample, why
		}
	} else {
		firstByte, sample = now.Sub(c.began), c.conn != nil && c.sentWhole()
	}
	if late {
		if !c.answered {
			firstByte = now.Sub(c.began)
		}
		return health.Timeout, firstByte, sample && !c.answered, "the caller's deadline passed"
	}
	return result, firstByte, sample, ""
}

// sentWhole reports whether the backend was sent all of the request: only then does its latency say something (3.4).
func (c *call) sentWhole() bool { return c.req.end && c.req.sent == c.req.got }

// count counts the call, once, as ended by this agent or the caller.
func (c *call) count(status, code int) {
	if c.counted {
		return
	}
	c.counted = true
	if c.note != nil {
		c.note.status, c.note.code = status, code
	}
	d := c.relay.loop.Now().Sub(c.start)
	switch {
	case !c.grpc:
		c.client.stats.http(protoH2, status, d)
	case code == codeUnavailable:
		c.client.stats.unavailable(d)
	default:
		c.client.stats.grpc(code, d)
	}
}

// countResponse counts a call that a backend answered.
func (c *call) countResponse() {
	if c.counted {
		return
	}
	c.counted = true
	d, code := c.relay.loop.Now().Sub(c.start), c.grpcStatus
	if code < 0 {
		code = codeUnknown
	}
	if c.note != nil {
		c.note.status, c.note.code = c.status, code
	}
	if c.grpc {
		c.client.stats.grpc(code, d)
	} else {
		c.client.stats.http(protoH2, c.status, d)
	}
}

// printable is what a peer said, fit for a log, a terminal and an answer's text: nothing in it can be taken for a line end or a command.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

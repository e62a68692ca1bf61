package proxy

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/h2"
)

// answerHead is more than the header list of an answer has, without its text.
const answerHead = 300

// answer gives the client a response of our own: gRPC trailers-only, or HTTP with text (4.5).
func (c *call) answer(status, code int, text string) {
	if !c.cs.Sending() {
		return
	}
	c.count(status, code)
	c.answered, c.touched = true, true
	r, client := c.relay, c.client
	if client.h2.HeaderLimit() < answerHead+len(text) {
		c.resp.end = true
		c.resetClient(h2.InternalError)
		return
	}
	if c.grpc {
		r.scratch = append(r.scratch[:0],
			h2.Field{Name: ":status", Value: "200"},
			h2.Field{Name: "content-type", Value: "application/grpc"},
			h2.Field{Name: "grpc-status", Value: strconv.Itoa(code)},
			h2.Field{Name: "grpc-message", Value: percentEncode(text)})
		client.h2.WriteHeaders(&c.cs, r.scratch, true)
		c.resp.end = true
		client.flush()
		return
	}
	text += "\n"
	r.scratch = append(r.scratch[:0],
		h2.Field{Name: ":status", Value: strconv.Itoa(status)},
		h2.Field{Name: "content-type", Value: "text/plain; charset=utf-8"},
		h2.Field{Name: "content-length", Value: strconv.Itoa(len(text))})
	client.h2.WriteHeaders(&c.cs, r.scratch, c.head)
	c.resp.end = true
	if !c.head {
		c.resp.store(r, []byte(text))
		c.resp.got += int64(len(text))
		c.pumpResponse()
	}
	client.flush()
}

// abort ends a call that can't be served: by an answer; if a response has begun, by trailers for gRPC, by a reset else.
func (c *call) abort(status, code int, text string) {
	switch {
	case !c.cs.Sending() || c.resp.end:
	case !c.answered:
		c.answer(status, code, text)
	case c.grpc && !c.sized:
		c.count(status, code)
		trailers := []h2.Field{{Name: "grpc-status", Value: strconv.Itoa(code)}, {Name: "grpc-message", Value: percentEncode(text)}}
		c.resp.endBy(c.relay, trailers, sizeOf(trailers))
		c.pumpResponse()
	default:
		c.count(statusAborted, code)
		c.resetClient(h2.InternalError)
	}
}

// resetClient resets the client's stream.
func (c *call) resetClient(code h2.Code) {
	if c.cs.Open() {
		c.client.h2.Reset(&c.cs, code)
		c.client.flush()
	}
}

// lastName names the backend of the last attempt.
func (c *call) lastName() string {
	if c.be == nil {
		return c.client.rt.name + ":"
	}
	return c.be.name()
}

// rewriteAuthority sets :authority, and host beside it, for the attempt's backend (4.6).
func (c *call) rewriteAuthority() {
	v := c.opts.authority
	if v == "host" {
		v = c.be.host
		if v == "" {
			v = c.be.addr.String()
		}
	}
	found := false
	for i := range c.fields {
		if n := c.fields[i].Name; n == ":authority" || n == "host" {
			c.fields[i].Value = v
			found = true
		}
	}
	if !found {
		c.fields = slices.Insert(c.fields, 0, h2.Field{Name: ":authority", Value: v})
	}
}

// idempotent methods may be sent twice (RFC 9110 9.2.2).
func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// passCode is the error code with which a reset goes on: what is between a peer and this agent stays there.
func passCode(code h2.Code) h2.Code {
	switch code {
	case h2.NoError, h2.InternalError, h2.RefusedStream, h2.Cancel, h2.EnhanceYourCalm, h2.InadequateSecurity, h2.HTTP11Required, h2.ConnectError:
		return code
	}
	return h2.InternalError
}

// parseTimeout reads grpc-timeout: at most 8 digits and a unit.
func parseTimeout(v string) (time.Duration, bool) {
	if len(v) < 2 || len(v) > 9 {
		return 0, false
	}
	n := time.Duration(0)
	for _, d := range []byte(v[:len(v)-1]) {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = n*10 + time.Duration(d-'0')
	}
	var unit time.Duration
	switch v[len(v)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, false
	}
	if n > (1<<63-1)/unit {
		return 1<<63 - 1, true
	}
	return n * unit, true
}

// percentEncode encodes a grpc-message.
func percentEncode(s string) string {
	plain := func(b byte) bool { return b >= ' ' && b <= '~' && b != '%' }
	var b strings.Builder
	for i := range len(s) {
		if plain(s[i]) {
			b.WriteByte(s[i])
		} else {
			const hex = "0123456789ABCDEF"
			b.WriteByte('%')
			b.WriteByte(hex[s[i]>>4])
			b.WriteByte(hex[s[i]&15])
		}
	}
	return b.String()
}

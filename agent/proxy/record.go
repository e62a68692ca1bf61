package proxy

import (
	"net/netip"
	"time"

	"github.com/lbagent/lbagent/agent/calls"
	"github.com/lbagent/lbagent/agent/proxy/h1"
	"github.com/lbagent/lbagent/agent/proxy/h2"
	"github.com/lbagent/lbagent/agent/proxy/loop"
)

// note is what the record of a call needs beside what the call itself keeps. Calls that nobody wants to see have none: its methods take nil.
type note struct {
	method, path, host string
	trace              string
	attempts           int
	wait, first        time.Duration // as in calls.Record
	status, code       int           // as the call was counted

	broken bool // it did not end by a whole answer
	by     calls.Party
	phase  calls.Phase
	cause  string
}

// newNote is the note of a call that begins.
func newNote(method, target, host string) *note {
	return &note{method: calls.Text(method), path: calls.Path(target), host: calls.Text(host), code: -1}
}

// trace is the trace of a request of HTTP/2.
func trace(fields []h2.Field) string {
	for i := range fields {
		if fields[i].Name == "traceparent" {
			return calls.TraceID(fields[i].Value)
		}
	}
	return ""
}

// trace1 is that of HTTP/1.1.
func trace1(fields []h1.Field) string {
	for i := range fields {
		if h1.Is(fields[i].Name, "traceparent") {
			return calls.TraceID(string(fields[i].Value))
		}
	}
	return ""
}

// tried notes that an attempt begins.
func (n *note) tried() {
	if n != nil {
		n.attempts++
		n.wait, n.first = 0, 0
	}
}

// ended notes who ends the call before it is done, and why; the first one counts.
func (n *note) ended(by calls.Party, phase calls.Phase, cause string) {
	if n != nil && !n.broken {
		n.broken, n.by, n.phase, n.cause = true, by, phase, printable(calls.Text(cause))
	}
}

// record is what is the same for all protocols with requests.
func (n *note) record(rt *route, began time.Time, backend netip.AddrPort) *calls.Record {
	r := &calls.Record{
		Time: began, Service: rt.name, Method: n.method, Path: n.path, Host: n.host, Backend: backend, Attempts: n.attempts,
		Trace: n.trace, Status: n.status, GRPC: -1, Wait: n.wait, FirstByte: n.first, Phase: calls.Done,
	}
	if n.broken {
		r.By, r.Phase, r.Cause = n.by, n.phase, n.cause
	}
	if r.Status == 0 {
		r.Status = statusAborted
	}
	return r
}

// phase is how far the call has come, in the words of records.
func (c *call) phase() calls.Phase {
	switch {
	case c.answered:
		return calls.Answer
	case c.conn != nil:
		return calls.Wait
	}
	return calls.Connect
}

// phaseSent is phase for a call that a backend had, also if that attempt has been ended already.
func (c *call) phaseSent() calls.Phase { return max(c.phase(), calls.Wait) }

// noteCancel notes that the client has gone. It loses nothing if it had all of the answer.
func (c *call) noteCancel(late bool) {
	switch {
	case c.note == nil || c.resp.end && c.resp.sent == c.resp.got:
	case late:
		c.note.ended(calls.Client, c.phase(), "the caller's deadline passed")
	default:
		c.note.ended(calls.Client, c.phase(), "the caller cancelled, or went away")
	}
}

// tell gives the record of a call that is over to those who want it.
func (c *call) tell() {
	n, client := c.note, c.client
	var backend netip.AddrPort
	if c.be != nil {
		backend = c.be.addr
	}
	rt := client.rt
	r := n.record(rt, c.start, backend)
	r.Protocol, r.Client = protoH2.String(), client.name()
	r.Total = c.relay.loop.Now().Sub(c.start)
	r.In, r.Out = c.req.got, c.resp.got
	if c.grpc {
		r.Protocol, r.GRPC = "grpc", n.code
		switch {
		case c.status > 0:
			r.Status = c.status
		case c.answered:
			r.Status = 200 // with a status of our own
		}
	}
	c.relay.w.proxy.calls.Ended(r)
}

// noteEnd notes how a request ended whose answer isn't whole: cause is why it was ended from here, if it was, and err what that came to.
func (x *exchange) noteEnd(cause, err error) {
	if x.note == nil {
		return
	}
	phase := calls.Connect
	switch {
	case x.told:
		phase = calls.Answer
	case x.note.wait > 0:
		phase = calls.Wait
	}
	by := calls.Agent
	switch status, _ := statusOf(cause); {
	case cause == nil, cause == errVanished, cause == errUnasked, cause == errInterims:
		by = calls.Backend
	case cause == errClientGone, status != 0:
		by = calls.Client
	}
	if cause != nil {
		err = cause
	}
	x.note.ended(by, phase, reason(err))
}

// tell gives the record of a request that is over to those who want it.
func (x *exchange) tell(took time.Duration) {
	var backend netip.AddrPort
	if x.now != nil {
		backend = x.now.b.Addr
	}
	x.note.status = x.status
	r := x.note.record(x.s.rt, x.began, backend)
	r.Protocol, r.Client = protoHTTP1.String(), x.c.peerName()
	r.Total, r.In, r.Out = took, x.in+x.body.got, x.out
	x.s.h.p.calls.Ended(r)
}

// tellRefused gives the record of what was no request.
func (c *http1Client) tellRefused(status int, why string) {
	if p := c.h.p; p.calls.Wants(c.s.rt.name) {
		p.calls.Ended(&calls.Record{
			Time: time.Now(), Service: c.s.rt.name, Protocol: protoHTTP1.String(), Client: c.peerName(), Status: status, GRPC: -1,
			By: calls.Agent, Phase: calls.Request, Cause: why,
		})
	}
}

// peerName is who is at the other end, as loop.Conn.Peer says it.
func (c *http1Client) peerName() string {
	var who string
	c.raw.Control(func(fd uintptr) { who = loop.Peer(int(fd)) })
	return who
}

// tell gives the record of a connection that is over to those who want it.
func (s *session) tell(in, out uint64) {
	p := s.w.proxy
	if !p.calls.Wants(s.rt.name) {
		return
	}
	r := &calls.Record{
		Time: s.began, Service: s.rt.name, Protocol: protoTCP.String(), Client: s.client, Backend: s.addr, Attempts: s.attempts, GRPC: -1,
		Total: s.w.loop.Now().Sub(s.began), In: int64(in), Out: int64(out),
		By: s.by, Cause: s.cause, Phase: calls.Done,
	}
	if s.up {
		r.Wait = max(1, s.connected)
	}
	if s.first > 0 {
		r.FirstByte = s.picked.Sub(s.began) + s.first
	}
	switch {
	case s.cause == "":
	case !s.up:
		r.Phase = calls.Connect
	case s.first > 0:
		r.Phase = calls.Answer
	default:
		r.Phase = calls.Wait
	}
	p.calls.Ended(r)
}

// endedBy notes which side of a connection ended it: the first one that said so, or the first of those that broke it, which cause tells.
func (s *session) endedBy(by calls.Party, cause string) {
	if s.cause == "" && (cause != "" || !s.ended) {
		s.by, s.cause, s.ended = by, cause, true
	}
}

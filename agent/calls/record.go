// Package calls is the record of a call that the proxy relayed, and who wants to see such records: `lbagent tap` and the access log.
package calls

import (
	"net/netip"
	"strings"
	"time"
)

// MaxText bounds the path, the host and the cause of a record, in bytes: they come from peers.
const MaxText = 256

// Record is one call, or one connection that was relayed as bytes, after its end.
type Record struct {
	Time     time.Time // when it began
	Service  string
	Protocol string // http1, h2, grpc, tcp
	Client   string // address of who called, or its process on a unix socket; empty if it was gone
	Method   string // empty for tcp
	Path     string // without the query, which may hold secrets; empty for tcp
	Host     string // :authority or Host

	Backend  netip.AddrPort // of the last attempt; invalid if there was none
	Attempts int            // 0: there was no backend to try

	Status int // the HTTP status that it is counted by: what the client got, or 499 if it got nothing, or not all; 0 for tcp
	GRPC   int // likewise the grpc-status; -1 if it wasn't gRPC

	Wait      time.Duration // from the begin until a backend was sent it, or connected to for it; 0 = never
	FirstByte time.Duration // from the begin until the response's head, or the backend's first byte; 0 = never
	Total     time.Duration // from the begin to the end
	In, Out   int64         // bytes of bodies from the client, and to it; of tcp, all bytes

	By    Party  // who ended it
	Phase Phase  // how far it had come
	Cause string // in words; empty if it ended as it should

	Trace string // the trace-id of its traceparent; empty without one
}

// Party is who ended a call. The words are part of the API.
type Party uint8

// Who may end a call.
const (
	Backend Party = iota // also by an answer, which is how a call should end
	Client               // by a cancel, or it went away; a tcp client by its end
	Agent                // no backend, a timeout, a limit, a drain, the agent's stop
)

func (p Party) String() string { return [...]string{"backend", "client", "agent"}[p] }

// Phase is how far a call had come when it ended. The words are part of the API.
type Phase uint8

// The phases, in the order of a call's life.
const (
	Request Phase = iota // its head was read, and not taken for one
	Connect              // no backend had it: none was found, reached, or had room
	Wait                 // a backend had it, and had not begun to answer
	Answer               // the answer had begun
	Done                 // the client got all of it, as far as this host can tell
)

func (p Phase) String() string {
	return [...]string{"request", "connect", "wait", "answer", "done"}[p]
}

// Flags are By and Phase in two letters, as logs have them: "--" for a call that ended as it should, else who ended it (B, C, A) and when (R, C, W, A).
func (r *Record) Flags() string {
	if r.Phase == Done {
		return "--"
	}
	return string([]byte{"BCA"[r.By], "RCWA"[r.Phase]})
}

// Failed reports whether the call failed by what a backend or this agent did: HTTP 5xx, a grpc-status that isn't the caller's doing, a connection that broke or had
// no backend. A client that went away, or asked for what can't be, is no failure.
func (r *Record) Failed() bool {
	switch {
	case r.Phase == Request, r.Phase != Done && r.By == Client:
		return false
	case r.Phase != Done:
		return true
	case r.GRPC >= 0:
		return !callersDoing(r.GRPC)
	}
	return r.Status >= 500
}

// callersDoing reports whether a grpc-status is OK, or says that the caller asked for something wrong or gave up (gRPC's status codes).
func callersDoing(code int) bool {
	switch code {
	case 0, 1, 3, 5, 6, 7, 9, 10, 11, 16:
		return true
	}
	return false
}

// Text is what a peer said, fit for a record: at most MaxText bytes of UTF-8, which keep nothing else of s in memory.
func Text(s string) string {
	return strings.ToValidUTF8(strings.Clone(s[:min(len(s), MaxText)]), "?")
}

// Path is the path of a request's target, without the query.
func Path(target string) string {
	path, _, _ := strings.Cut(target, "?")
	return Text(path)
}

// Package health turns targets and outcomes into verdicts: who is up, and who is out, since when and why (SEMANTICS 2).
// It knows nothing of services, lists or protocols' relays; groups are opaque names.
package health

import (
	"time"
)

// Result is how one real call, or one attempt at it, ended (the table of outcomes in SEMANTICS 2).
type Result uint8

// Every Result. A hard failure counts in the streak of 2.5.
const (
	Success    Result = iota // response headers came, and nothing below applies
	Neutral                  // says nothing about the backend: the caller's cancel, REFUSED_STREAM, a stream that hung on a lost connection
	Timeout                  // the caller's deadline or timeout.request passed: a failure in the rate window only
	Failure                  // hard: HTTP 502/503/504, trailers-only gRPC 14, reset or close before response headers
	Overloaded               // 429, RESOURCE_EXHAUSTED: penalty only
	AppError                 // HTTP 500, gRPC UNKNOWN, INTERNAL, DATA_LOSS: dynamic weight only
)

// State is what is known of one (service, address). It is made once by the table, pointed to by every view and survives
// them. All methods are safe for concurrent use, wait for nobody and allocate nothing on the success path: event loops and
// API handlers write it in place. Only a crossing (a streak reached, a trial decided) wakes the Monitor.
type State struct{}

// NewState returns the state of a backend about which nothing is known: usable (2.2). now anchors its monotonic clock.
func NewState(now time.Time) *State { panic("unwritten") }

// Begin notes that a call was assigned: outstanding rises at the pick, before any dial (3.5).
func (s *State) Begin() {}

// End notes that a call that began is over. firstByte is the time from the pick to the response headers, 0 if none came;
// sample is false if the request had not ended before them (3.4: such a latency says nothing about the backend). cause is a short text
// for a person ("HTTP 503"), used only if result isn't Success.
func (s *State) End(now time.Time, result Result, firstByte time.Duration, sample bool, cause string) {
}

// Connected notes that a connection was made and, for HTTP/2, that SETTINGS came.
func (s *State) Connected(now time.Time) {}

// ConnectFailed notes one failed dial: refused, no route, timeout, no SETTINGS in time. One hard failure of the unreachable kind (2.4),
// whatever number of calls waited for it.
func (s *State) ConnectFailed(now time.Time, cause string) {}

// ConnectionLost notes one connection that broke under running calls: one hard failure, whatever hung on it.
func (s *State) ConnectionLost(now time.Time, cause string) {}

// TryTrial claims the one trial that ends an ejection whose hold-down has passed (2.7); true for one caller only. The claimant's next
// End or ConnectFailed decides it.
func (s *State) TryTrial(now time.Time) bool { return false }

// Outstanding is the number of calls assigned and not over.
func (s *State) Outstanding() int { return 0 }

// ConnectFailedAgo is the time since the last failed connect; a very long time if there was none, or one succeeded since (2.9).
func (s *State) ConnectFailedAgo(now time.Time) time.Duration { return 0 }

// Latency is the EWMA of the time to response headers (3.4), and whether the last sample is younger than 5 s.
func (s *State) Latency(now time.Time) (ewma time.Duration, fresh bool) { return 0, false }

// Penalty is 0..10: +1 per failure, halving every 2 s (3.6).
func (s *State) Penalty(now time.Time) float64 { return 0 }

// Snapshot is a copy of what is known, for Explain and metrics.
type Snapshot struct {
	Outstanding         int
	Latency             time.Duration
	LatencyFresh        bool
	Penalty             float64
	Successes, Failures uint64 // since the state was made; Failures counts hard ones
	Streak              int    // hard failures in a row
	LastFailure         string
	LastFailureAt       time.Time // zero if none
	Parts               []Part    // every verdict that applies, the weightiest first (2.8)
}

// Snapshot copies the state.
func (s *State) Snapshot(now time.Time) Snapshot { return Snapshot{} }

package health

import "time"

// Kind is a verdict; of several that apply, the smallest wins (2.8).
type Kind uint8

// Every verdict, in order of precedence. Draining, Muted and Orphaned come from the list or the operator, the others from this package.
const (
	Draining Kind = iota
	Muted
	Orphaned
	Down
	Unreachable
	Ejected
	Up
)

// Kinds is every Kind in order of precedence.
const Kinds = 7

// String is the word used in the API, in metrics and in logs.
func (k Kind) String() string {
	return [...]string{"draining", "muted", "orphaned", "down", "unreachable", "ejected", "up"}[k]
}

// Usable reports whether new calls go there outside panic. An orphan is used like a listed backend (1.10).
func (k Kind) Usable() bool { return k == Up || k == Orphaned }

// Part is one verdict that applies to a backend, with its evidence.
type Part struct {
	Kind  Kind
	Since time.Time
	Cause string    // the evidence: `5 failures in a row`, `probe failed 3 times`
	Last  string    // the last error, as it was seen: `connection reset`
	At    time.Time // when Last was seen
	Next  time.Time // next trial or probe; zero if none is planned
}

// Words is the part as a sentence for a person at time now:
// `ejected: 5 failures in a row, last "connection reset", 12 s ago, trial in 3 s` (2.8).
func (p Part) Words(now time.Time) string { panic("unwritten") }

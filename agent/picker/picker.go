// Package picker chooses one of the usable backends (SEMANTICS 3); one file per policy. A pick takes no lock and allocates nothing.
package picker

import (
	"time"

	"github.com/lbagent/lbagent/health"
)

// Candidate is one backend that may be picked.
type Candidate struct {
	Weight float64 // effective weight w of 3.2, > 0; the table multiplies its factors
	State  *health.State
}

// Policy names a picker; the words are those of the configuration.
type Policy string

// Every policy that is built.
const (
	P2C        Policy = "p2c"
	RoundRobin Policy = "round_robin"
)

// Picker picks among the candidates that it was made for. Safe for concurrent use.
type Picker interface {
	// Pick returns an index into the candidates, never one whose State is in not; -1 if none is left.
	Pick(now time.Time, not []*health.State) int
}

// Median is a service's median latency, written once a second by the table and read by p2c (3.4); shared by all pickers of the service.
type Median struct { /* one atomic */
}

// New returns the picker of policy over candidates, which it keeps and never writes.
func New(policy Policy, candidates []Candidate, median *Median) (Picker, error) { panic("unwritten") }

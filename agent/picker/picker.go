// Package picker chooses one of the usable backends (SEMANTICS 3); one file per policy. A pick takes no lock and allocates nothing.
package picker

import (
	"fmt"
	"math"
	"slices"
	"sync/atomic"
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
	P2C          Policy = "p2c"
	RoundRobin   Policy = "round_robin"
	LeastRequest Policy = "least_request"
	Weighted     Policy = "random"
	Hash         Policy = "hash" // by key; made by NewHash, and what has no key goes as with P2C
)

// Known reports whether p is one of them.
func (p Policy) Known() bool {
	switch p {
	case P2C, RoundRobin, LeastRequest, Weighted, Hash:
		return true
	}
	return false
}

// Picker picks among the candidates that it was made for. Safe for concurrent use.
type Picker interface {
	// Pick returns an index into the candidates, never one whose State is in not; -1 if none is left. key says where a call belongs under Hash (KeyOf), 0 = nowhere.
	Pick(now time.Time, key uint64, not []*health.State) int
}

// Median is a service's median latency, written once a second by the table and read by p2c (3.4); shared by all pickers of the service.
type Median struct {
	Random Random // what those pickers draw from; not to be set once there is one

	bits atomic.Uint64 // float64, nanoseconds
}

// Set stores the median of the backends' EWMAs; 0 if none is fresh.
func (m *Median) Set(d time.Duration) { m.bits.Store(math.Float64bits(float64(d))) }

// Get is the median as it was set last.
func (m *Median) Get() time.Duration { return time.Duration(m.load()) }

func (m *Median) load() float64 { return math.Float64frombits(m.bits.Load()) }

// New returns the picker of policy over candidates, which it keeps and never writes. Without candidates, every Pick is -1.
func New(policy Policy, candidates []Candidate, median *Median) (Picker, error) {
	if median == nil {
		median = new(Median)
	}
	w := sumUp(candidates)
	if !(w.low > 0) || math.IsInf(w.top, 1) {
		return nil, fmt.Errorf("candidate weights from %v to %v: want positive numbers", w.low, w.top)
	}
	switch policy {
	case P2C, Hash:
		return newP2C(candidates, w, median), nil
	case RoundRobin:
		return newRoundRobin(candidates, w, median.Random), nil
	case LeastRequest:
		return &leastRequest{newWeighted(candidates, w, median.Random), w.mean(len(candidates))}, nil
	case Weighted:
		return new(newWeighted(candidates, w, median.Random)), nil
	}
	return nil, fmt.Errorf("policy %q is unknown", policy)
}

// weights is what the candidates' weights come to.
type weights struct {
	sum, low, top float64 // low is NaN if one is, 1 without candidates
}

// equal reports whether they are all the same.
func (w *weights) equal() bool { return w.low == w.top }

func (w *weights) mean(n int) float64 { return w.sum / float64(max(1, n)) }

func sumUp(candidates []Candidate) weights {
	if len(candidates) == 0 {
		return weights{low: 1, top: 1}
	}
	w := weights{low: candidates[0].Weight, top: candidates[0].Weight}
	for i := range candidates {
		weight := candidates[i].Weight
		w.sum += weight
		if weight < w.low {
			w.low = weight
		}
		if weight > w.top {
			w.top = weight
		}
	}
	if math.IsNaN(w.sum) {
		w.low = math.NaN()
	}
	return w
}

// tries is how often a pick draws again before it falls back to a way that is slower and always ends (3.11).
const tries = 8

func excluded(not []*health.State, s *health.State) bool {
	return len(not) != 0 && slices.Contains(not, s)
}

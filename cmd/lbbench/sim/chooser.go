package sim

import (
	"math"
	"slices"
	"time"

	"github.com/lbagent/lbagent/health"
)

// chooser is how one host's calls come to their backends.
type chooser interface {
	pick(c *call) int                                             // -1 = there is none left for it
	refused(c *call)                                              // its connect was
	ended(c *call, result health.Result, firstByte time.Duration) // its attempt
	lost(backend int)                                             // a connection broke under running calls
	closed(backend int)                                           // all connections are, used or not
	unanswered(c *call)                                           // its connect was, for connectTime; c is one of those that waited for it
	carries() bool                                                // calls go through it, so that it sees connections; else callers only ask, and report
}

// bare is what choosers have that learn nothing.
type bare struct{}

func (bare) refused(*call)                             {}
func (bare) ended(*call, health.Result, time.Duration) {}
func (bare) lost(int)                                  {}
func (bare) closed(int)                                {}
func (bare) unanswered(*call)                          {}
func (bare) carries() bool                             { return true }

// robin is round robin from a random start, without any idea of health.
type robin struct {
	bare

	n, next int
}

func newRobin(w *world) chooser {
	return &robin{n: len(w.backends), next: w.picks.IntN(len(w.backends))}
}

func (r *robin) pick(c *call) int {
	for range r.n {
		if r.next++; r.next >= r.n {
			r.next = 0
		}
		if !slices.Contains(c.tried, r.next) {
			return r.next
		}
	}
	return -1
}

// least is least request of two drawn by chance, as in Envoy and gRPC, without any idea of health.
type least struct {
	w           *world
	outstanding []int
}

func newLeast(w *world) chooser { return &least{w: w, outstanding: make([]int, len(w.backends))} }

func (l *least) pick(c *call) int {
	n := len(l.outstanding)
	if len(c.tried) == n {
		return -1
	}
	draw := func() int {
		for {
			if i := l.w.picks.IntN(n); !slices.Contains(c.tried, i) {
				return i
			}
		}
	}
	a, b := draw(), draw()
	if l.outstanding[b] < l.outstanding[a] {
		a = b
	}
	l.outstanding[a]++
	return a
}

func (l *least) refused(c *call)                                 { l.outstanding[c.to]-- }
func (l *least) ended(c *call, _ health.Result, _ time.Duration) { l.outstanding[c.to]-- }
func (l *least) lost(int)                                        {}
func (l *least) closed(int)                                      {}
func (l *least) unanswered(*call)                                {}
func (l *least) carries() bool                                   { return true }

// oracle knows the true state of every backend at this moment, queues that the calls of other hosts make included. No real balancer can.
type oracle struct {
	bare

	w *world
}

func newOracle(w *world) chooser { return &oracle{w: w} }

func (o *oracle) pick(c *call) int {
	n := len(o.w.backends)
	best, least := -1, math.Inf(1)
	for k, i := 0, o.w.picks.IntN(n); k < n; k, i = k+1, (i+1)%n {
		b := o.w.backends[i]
		if b.refuses || b.hangs || slices.Contains(c.tried, i) {
			continue
		}
		cost := float64(b.wait(o.w.clock.now)) + float64(o.w.cfg.Mean)*b.slowness() + b.fail*float64(o.w.cfg.Timeout)
		if cost < least {
			best, least = i, cost
		}
	}
	return best
}

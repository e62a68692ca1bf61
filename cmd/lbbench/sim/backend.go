package sim

import (
	"math"
	"math/rand/v2"
	"time"
)

const (
	// wireTime is what the way to a backend and back adds to each attempt; a refused connect costs as much.
	wireTime = 500 * time.Microsecond

	// fastFailure is how soon a backend fails that doesn't even try.
	fastFailure = time.Millisecond

	// full is how long a call waits for a server at most: if it would be longer, it's turned away at once.
	full = 500 * time.Millisecond
)

// condition is the true state of a backend; the zero value is that of a good one.
type condition struct {
	slow     float64 // service times are multiplied by it; 0 = 1
	capacity float64 // the share of its servers that work; 0 = all
	fail     float64 // the share of calls that fail: HTTP 503, after the time of a good one
	fast     bool    // what fails does so after fastFailure, without a server
	refuses  bool    // its process is dead: connects are refused, running calls end with a reset
	hangs    bool    // its process stands still: the kernel takes connects, and nothing is answered
}

// bad reports whether calls should rather go elsewhere.
func (c *condition) bad() bool { return *c != condition{} }

// slowness is what service times are multiplied by.
func (c *condition) slowness() float64 {
	if c.slow == 0 {
		return 1
	}
	return c.slow
}

// backend is some servers with one row of waiting calls, first come, first served. When a call will be done is known as it comes, since nothing overtakes it.
type backend struct {
	condition

	weight  float64
	all     int             // servers that work while it's good
	servers []time.Duration // a heap of when each is free
	running []*call         // those that the death of its process would end
	since   time.Duration   // when its condition changed last
	was     bool            // it has been bad before
}

func newBackend(servers int, weight float64) *backend {
	return &backend{all: servers, servers: make([]time.Duration, servers), weight: weight}
}

// turn gives the backend another condition; if other servers work then, they begin empty.
func (b *backend) turn(now time.Duration, to condition) {
	if b.capacity != to.capacity || b.refuses != to.refuses {
		n := b.all
		if to.capacity > 0 {
			n = max(1, int(math.Round(float64(n)*to.capacity)))
		}
		b.servers = make([]time.Duration, n)
	}
	b.was = b.was || b.bad()
	b.condition, b.since = to, now
}

// wait is how long a call that comes now waits for a server.
func (b *backend) wait(now time.Duration) time.Duration { return max(0, b.servers[0]-now) }

// serve takes a call that needs a server for work, and returns when it will be done; false if too many are waiting.
func (b *backend) serve(now, work time.Duration) (done time.Duration, ok bool) {
	wait := b.wait(now)
	if wait > full {
		return 0, false
	}
	done = now + wait + time.Duration(float64(work)*b.slowness())
	b.servers[0] = done
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(b.servers); child++ {
			if b.servers[child] < b.servers[least] {
				least = child
			}
		}
		if least == i {
			return done, true
		}
		b.servers[i], b.servers[least] = b.servers[least], b.servers[i]
		i = least
	}
}

// hold and release keep the running calls.
func (b *backend) hold(c *call) {
	c.slot = len(b.running)
	b.running = append(b.running, c)
}

func (b *backend) release(c *call) {
	last := len(b.running) - 1
	moved := b.running[last]
	b.running[c.slot], moved.slot = moved, c.slot
	b.running[last] = nil
	b.running = b.running[:last]
}

// Distribution is what service times are like.
type Distribution string

// Every Distribution; the mean is the same.
const (
	Constant    Distribution = "constant"
	Exponential Distribution = "exp"       // p99 is 4.6 times the mean
	Lognormal   Distribution = "lognormal" // sigma 1: p99 is 6.2 times the mean, p99.9 13 times
	Bimodal     Distribution = "bimodal"   // 95 of 100 take half of the mean, 5 take 10.5 times the mean
)

// Distributions is every Distribution.
func Distributions() []Distribution {
	return []Distribution{Constant, Exponential, Lognormal, Bimodal}
}

// draw is a service time in means.
func (d Distribution) draw(r *rand.Rand) float64 {
	switch d {
	case Exponential:
		return r.ExpFloat64()
	case Lognormal:
		return math.Exp(r.NormFloat64() - 0.5)
	case Bimodal:
		if r.Float64() < 0.05 {
			return 10.5
		}
		return 0.5
	default:
		return 1
	}
}

package table

import (
	"time"

	"github.com/lbagent/lbagent/health"
)

// slowFrom is the weight that slow start begins with (3.7). Lower spares a cold process more, higher lets it learn sooner.
const slowFrom = 0.1

// slowFactor rises in a line from slowFrom to 1 while slow start lasts.
func slowFactor(since time.Duration, lasts time.Duration) float32 {
	if since >= lasts {
		return 1
	}
	return float32(slowFrom + (1-slowFrom)*float64(max(since, 0))/float64(lasts))
}

// slowSince is how long ago a slow start began that has come to f.
func slowSince(f float32, lasts time.Duration) time.Duration {
	return time.Duration((float64(f) - slowFrom) / (1 - slowFrom) * float64(lasts))
}

// slowly begins the slow start of a backend that has joined, or that gets calls again. Whether it has one is decided with the view, when it is known how many do.
func (s *Service) slowly(now time.Time, b *Backend) {
	if b.life != nil && s.Spec().SlowStart > 0 {
		b.life.slow, b.factors.SlowStart, s.slow = now, slowFrom, true
	}
}

// moved begins the slow start of a backend whose verdict was another, if it gets calls again. What had cut its dynamic weight is what it was taken out for, and over:
// slow start leads it back, not the 5 points a sample that would take minutes where there are few calls.
func (s *Service) moved(now time.Time, b *Backend, was *health.Part) {
	if was.Usable() || !b.Verdict.Usable() || b.life == nil {
		return
	}
	if was.Kind != health.Muted && was.Kind != health.Draining {
		b.life.dynamic, b.life.told = newDynamic(), 1 // its return is told as a verdict
		s.refresh(now, b)
	}
	s.slowly(now, b)
}

// slowStart moves what is in its slow start, and reports whether anything is. When that is more than half of what can be used, there is none: the few others would
// have to carry everything (3.7).
func (s *Service) slowStart(now time.Time, e *edit) (slow bool) {
	lasts := s.Spec().SlowStart
	starting := 0
	for k, c := range e.chunks {
		if c.sums.slow == 0 {
			continue
		}
		backends := e.writeChunk(k)
		for i := range backends {
			b := &backends[i]
			if b.factors.SlowStart == 1 {
				continue
			}
			b.factors.SlowStart = slowFactor(now.Sub(b.life.slow), lasts)
			b.reweigh()
			if b.factors.SlowStart < 1 {
				slow = true
				if b.Verdict.Usable() {
					starting++
				}
			}
		}
	}
	if starting*2 > e.sums.usable {
		slow = false
		s.full(e)
	}
	e.seal()
	return slow
}

// full ends all slow starts.
func (s *Service) full(e *edit) {
	for k, c := range e.chunks {
		if c.sums.slow == 0 {
			continue
		}
		backends := e.writeChunk(k)
		for i := range backends {
			if b := &backends[i]; b.factors.SlowStart != 1 {
				b.factors.SlowStart = 1
				b.reweigh()
			}
		}
	}
}

package proxy

import "time"

// reconnect says when a backend is connected to again (4.10): after a failed connect, not before a random time of up to base, twice that after the next
// one, at most max (full jitter). Each loop has its own; whoever has one, its goroutine is the only one to use it.
type reconnect struct {
	failures int       // connects that failed in a row
	tried    time.Time // the last connect
	notUntil time.Time
}

// may reports whether a connect may begin. For a backend that is out of the picks by its verdict, the Monitor says when it is tried again: the time
// between connects is for those that it still holds for well; such a call only keeps base away from the last try.
func (r *reconnect) may(now time.Time, usable bool, base time.Duration) bool {
	if usable {
		return !now.Before(r.notUntil)
	}
	return r.failures == 0 || !now.Before(r.tried.Add(base))
}

// failed notes a failed connect. random returns a number in [0, n).
func (r *reconnect) failed(now time.Time, base, max time.Duration, random func(n time.Duration) time.Duration) {
	limit := max
	if r.failures < 30 && base<<r.failures>>r.failures == base {
		limit = min(max, base<<r.failures)
	}
	r.failures++
	r.notUntil = now.Add(random(limit + 1))
}

// reset forgets the failures: a connect succeeded, the backend is new in the list, or its verdict became up.
func (r *reconnect) reset() { r.failures, r.notUntil = 0, time.Time{} }

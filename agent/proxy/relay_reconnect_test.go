package proxy

import (
	"math"
	"testing"
	"time"
)

// 4.10: full jitter, doubled with each failure, bounded, and reset by success.
func TestReconnect(t *testing.T) {
	const base, most = 100 * time.Millisecond, 10 * time.Second
	now := time.Unix(1000, 0)
	var limits []time.Duration
	longest := func(n time.Duration) time.Duration { limits = append(limits, n-1); return n - 1 }
	shortest := func(time.Duration) time.Duration { return 0 }

	var r reconnect
	if !r.may(now, true, base) || !r.may(now, false, base) {
		t.Error("the first connect has to wait")
	}
	for i, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000} {
		want *= time.Millisecond
		r.tried = now
		r.failed(now, base, most, longest)
		if limits[i] != want {
			t.Errorf("failure %d: up to %v, want %v", i+1, limits[i], want)
		}
		if r.may(now.Add(want-1), true, base) || !r.may(now.Add(want), true, base) {
			t.Errorf("failure %d: the wait isn't %v", i+1, want)
		}
		// What is tried although it's out, because nothing better is left, or as a trial.
		if r.may(now.Add(base-1), false, base) || !r.may(now.Add(base), false, base) {
			t.Errorf("failure %d: an unusable backend doesn't wait for base", i+1)
		}
		now = now.Add(want)
	}
	r.reset()
	if !r.may(now, true, base) || !r.may(now, false, base) {
		t.Error("a reset one has to wait")
	}
	r.failed(now, base, most, shortest)
	if !r.may(now, true, base) {
		t.Error("full jitter begins at 0")
	}
	for range 100 { // never an overflow
		r.failed(now, math.MaxInt64/3, math.MaxInt64-1, func(n time.Duration) time.Duration {
			if n <= 0 {
				t.Fatalf("up to %v", n)
			}
			return 0
		})
	}
}

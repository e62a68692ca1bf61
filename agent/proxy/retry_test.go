package proxy

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestRetryPolicy(t *testing.T) {
	all := []string{"unavailable", "resource_exhausted", "aborted", "cancelled", "internal", "unknown", "429", "500", "502", "503", "504", "reset"}
	for _, c := range []struct {
		on               []string
		status, grpcCode int
		want             bool
	}{
		{[]string{"503"}, 503, -1, true},
		{[]string{"503"}, 502, -1, false},
		{[]string{"503"}, 200, -1, false},
		{[]string{"unavailable"}, 503, -1, false}, // a word each: HTTP's 503 is not gRPC's UNAVAILABLE
		{[]string{"unavailable"}, 200, 14, true},
		{[]string{"unavailable"}, 200, 13, false},
		{[]string{"unavailable"}, 200, -1, false}, // not trailers-only
		{[]string{"cancelled"}, 200, 1, true},
		{[]string{"unknown"}, 200, 2, true},
		{[]string{"resource_exhausted"}, 200, 8, true},
		{[]string{"aborted"}, 200, 10, true},
		{[]string{"internal"}, 200, 13, true},
		{all, 200, 0, false},
		{all, 200, 5, false},
		{all, 200, 4, false},
		{all, 200, 14 + 32, false},
		{all, 200, 1 << 30, false},
		{all, 404, -1, false},
		{all, 429, -1, true},
		{all, 500, -1, true},
		{all, 504, -1, true},
	} {
		p, err := retryPolicyOf(Retry{On: c.on, Max: 1, BudgetPercent: 20})
		if err != nil {
			t.Fatal(err)
		}
		if got := p.answers(c.status, c.grpcCode); got != c.want {
			t.Errorf("on %v: status %d, grpc-status %d: %v", c.on, c.status, c.grpcCode, got)
		}
		if got, want := p.retriesReset(), len(c.on) > 1; got != want {
			t.Errorf("on %v: reset %v", c.on, got)
		}
	}
	for _, never := range []Retry{{}, {Max: 2, BudgetPercent: 20}, {On: all, BudgetPercent: 20}} {
		if p, err := retryPolicyOf(never); p != nil || err != nil || p.retriesReset() {
			t.Errorf("%+v is %+v, %v", never, p, err)
		}
	}
	if _, err := retryPolicyOf(Retry{On: []string{"ok"}, Max: 1}); err == nil || !strings.Contains(err.Error(), `"ok"`) {
		t.Errorf("error %v", err)
	}
}

// A budget as a story: calls earn, retries take, time gives three a second.
func TestRetryBudget(t *testing.T) {
	type step struct {
		at    time.Duration
		calls int // that earn 20 % of a retry each
		want  int // retries that there are then
	}
	for name, steps := range map[string][]step{
		"three at once without calls":     {{0, 0, 3}, {0, 0, 0}},
		"three per second":                {{0, 0, 3}, {333 * time.Millisecond, 0, 0}, {334 * time.Millisecond, 0, 1}, {667 * time.Millisecond, 0, 1}, {10 * time.Second, 0, 3}},
		"a fifth of the calls beside":     {{0, 50, 13}, {0, 4, 0}, {0, 1, 1}, {0, 5, 1}, {time.Hour, 5, 4}},
		"at most 100 are saved":           {{0, 100_000, 103}, {time.Hour, 0, 3}},
		"what was saved lasts":            {{0, 10, 5}, {0, 10, 2}, {time.Hour, 0, 3}},
		"a clock that goes back is borne": {{time.Hour, 0, 3}, {time.Minute, 0, 0}, {time.Hour, 5, 1}},
	} {
		start := time.Now()
		b := retryBudget{born: start}
		for i, s := range steps {
			for range s.calls {
				b.earn(20)
			}
			got := 0
			for b.take(start.Add(s.at)) {
				got++
			}
			if got != s.want {
				t.Errorf("%s: step %d: %d retries, want %d", name, i, got, s.want)
			}
		}
	}
}

// Loops share a budget, and none of it is given away twice.
func TestRetryBudgetIsShared(t *testing.T) {
	now := time.Now()
	b := retryBudget{born: now}
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				b.earn(10)
				if b.take(now) {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if got := taken.Load() + b.earned.Load()/100; got != 4000/10+freeRetries {
		t.Errorf("%d retries of 4000 calls", got)
	}
}

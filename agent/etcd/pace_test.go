package etcd

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// In the first minute of an outage an endpoint is tried at least every 1.5 s, so that lists are right within 2 s of its end; later with full jitter up to 30 s, as 1.4
// has it for a fleet; and when etcd has answered and is lost again, as in the beginning.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now() // of the outage
		var mu sync.Mutex
		var dials []time.Duration
		c, err := Dial(t.Context(), Config{
			Endpoints: []string{"unix:///nobody/is/here"},
			lost: func() time.Duration {
				mu.Lock()
				defer mu.Unlock()
				return time.Since(began)
			},
		}, func(error) {
			mu.Lock()
			defer mu.Unlock()
			dials = append(dials, time.Since(began))
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		outage := func() (first, later []time.Duration) {
			mu.Lock()
			began, dials = time.Now(), nil
			mu.Unlock()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Hour)
			defer cancel()
			_ = c.Ready(ctx)
			mu.Lock()
			defer mu.Unlock()
			at := time.Duration(0)
			for _, d := range dials {
				if gap := d - at; at < shortOutage {
					first = append(first, gap)
				} else {
					later = append(later, gap)
				}
				at = d
			}
			return first, later
		}
		for range 2 {
			first, later := outage()
			if len(first) < 40 {
				t.Errorf("%d dials in the first minute", len(first))
			}
			for _, gap := range first[:len(first)-1] { // the last one may reach into the second minute
				if gap > 1500*time.Millisecond {
					t.Errorf("no dial for %v in the first minute", gap)
				}
			}
			// 225 are expected, of a mean wait of 15 s and half of grpc's.
			if len(later) < 150 || len(later) > 300 {
				t.Errorf("%d dials in the hour after the first minute", len(later))
			}
			for _, gap := range later {
				if gap > MaxBackoff+1500*time.Millisecond {
					t.Errorf("no dial for %v", gap)
				}
			}
		}
	})
}

// What a person sees of an outage is why an endpoint can't be reached, also while its next try is put off.
func TestPaceTellsWhy(t *testing.T) {
	p := &pace{lost: func() time.Duration { return time.Hour }}
	now := time.Now()
	refused := context.Canceled // any
	for _, endpoint := range []string{"a", "b"} {
		if err := p.due(endpoint, now); err != nil {
			t.Fatalf("%s: %v", endpoint, err)
		}
	}
	p.failed("a", refused)
	if err := p.due("a", now); err != refused {
		t.Errorf("a: %v", err)
	}
	if err := p.due("b", now); err != errLater {
		t.Errorf("b: %v", err)
	}
	if err := p.due("a", now.Add(MaxBackoff)); err != nil {
		t.Errorf("a, 30 s later: %v", err)
	}
}

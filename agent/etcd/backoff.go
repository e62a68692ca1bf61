package etcd

import (
	"cmp"
	"context"
	"math/rand/v2"
	"time"
)

// MinBackoff and MaxBackoff are the bounds of a wait after a failure (SEMANTICS 1.4). The lower one also spreads the re-reads of a fleet after an etcd member went away.
const (
	MinBackoff = 100 * time.Millisecond
	MaxBackoff = 30 * time.Second
)

// Backoff gives waits with full jitter: each uniform below a bound that doubles with every failure. The zero value is ready.
type Backoff struct{ bound, max time.Duration } // max 0 = MaxBackoff

// Next is the time to wait now.
func (b *Backoff) Next() time.Duration {
	b.bound = min(max(2*b.bound, MinBackoff), cmp.Or(b.max, MaxBackoff))
	return rand.N(b.bound)
}

// Reset has the waits begin anew, after a success.
func (b *Backoff) Reset() { b.bound = 0 }

// Most has the next wait be up to MaxBackoff.
func (b *Backoff) Most() { b.bound = MaxBackoff }

// Sleep waits for d, or until ctx or one of the channels ends.
func Sleep(ctx context.Context, d time.Duration, early <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-early:
	case <-ctx.Done():
	}
}

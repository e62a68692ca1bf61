package discovery

import (
	"context"
	"math/rand/v2"
	"time"
)

// The bounds of a wait after a failure (SEMANTICS 1.4). The lower one also spreads the re-reads of a fleet after an etcd member went away.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 30 * time.Second
)

// backoff gives waits with full jitter: each uniform below a bound that doubles with every failure. The zero value is ready.
type backoff struct{ bound time.Duration }

func (b *backoff) next() time.Duration {
	b.bound = min(max(2*b.bound, minBackoff), maxBackoff)
	return rand.N(b.bound)
}

func (b *backoff) reset() { b.bound = 0 }

// sleep waits for d, or until ctx or one of the channels ends.
func sleep(ctx context.Context, d time.Duration, early <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-early:
	case <-ctx.Done():
	}
}

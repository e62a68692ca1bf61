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

// How often a follower that lost a good watch may begin its waits anew; else it waits up to maxBackoff. Higher costs etcd more when something ends each watch as soon as it is made, lower makes lists
// late after several short outages in a row.
const (
	budgetMost  = 20
	budgetEvery = 5 * time.Second
)

// budget holds up to budgetMost tokens and gets one per budgetEvery. The zero value is full.
type budget struct {
	taken float64
	last  time.Time
}

func (b *budget) take(now time.Time) bool {
	b.taken = max(0, b.taken-float64(now.Sub(b.last))/float64(budgetEvery))
	b.last = now
	if b.taken > budgetMost-1 {
		return false
	}
	b.taken++
	return true
}

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

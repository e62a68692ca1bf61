package etcd

import (
	"sync"
	"time"
)

// watchGuard gives a watch up that etcd has not made within the silence of 1.3, for which nobody else sets a limit. While etcd says something on another
// watch it goes on waiting: etcd makes one watch after the other, so that of many on a slow etcd the last has to wait for long.
type watchGuard struct {
	mu sync.Mutex

	timer *time.Timer // nil once it is stopped
}

func newWatchGuard(l *Link, giveUp func()) *watchGuard {
	g := &watchGuard{}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.timer = time.AfterFunc(silence, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.timer == nil {
			return
		}
		if left := silence - time.Since(l.Heard()); left > 0 {
			g.timer.Reset(left)
			return
		}
		giveUp()
	})
	return g
}

func (g *watchGuard) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
}

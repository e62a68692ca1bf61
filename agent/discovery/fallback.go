package discovery

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/service"
)

// fallbackAfter is how long a service may be without a list before its fallback's is given alone (1.16, 6.4): etcd can't be reached, and the spool has nothing.
const fallbackAfter = 2 * time.Second

// fallbackSuffix tells the follower of a fallback from that of the service, in the spool and in logs. No service's name has a %.
const fallbackSuffix = "%fallback"

// service is the name of the service that f follows, or whose fallback it follows.
func (f *follower) service() string { return strings.TrimSuffix(f.follow.Name, fallbackSuffix) }

// runFallback follows the fallback too; the returned func waits for its end.
func (f *follower) runFallback(ctx context.Context) (wait func()) {
	if f.fallback == nil {
		return func() {}
	}
	go f.fallback.run(ctx)
	alone := time.AfterFunc(fallbackAfter, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.late = true
		f.remakeLocked(time.Now())
	})
	return func() {
		alone.Stop()
		<-f.fallback.done
	}
}

// alone is the list of a service of which nothing is known but its fallback; nil if that isn't known either, has been given already, or it is not yet time.
func (f *follower) alone(now time.Time) *service.List {
	if l := f.spare.Load(); !f.late || l == nil || l == f.joined {
		return nil
	}
	return &service.List{Service: f.follow.Name, Source: service.FromFallback, Confirmed: now}
}

// join adds the backends of the fallback to l. An address that is in both is the service's own.
func (f *follower) join(l *service.List) *service.List {
	f.joined = f.spare.Load()
	if f.joined == nil {
		return l
	}
	out := *l
	out.Backends = slices.Clone(l.Backends)
	for _, b := range f.joined.Backends {
		b = new(*b)
		b.Fallback = true
		out.Backends = append(out.Backends, b)
	}
	slices.SortStableFunc(out.Backends, byAddr)
	out.Backends = slices.CompactFunc(out.Backends, func(a, b *service.Backend) bool { return a.Addr == b.Addr })
	out.Bad = firstOf(l.Bad, f.joined.Bad)
	out.BadCount += f.joined.BadCount
	out.Lost = firstOf(l.Lost, f.joined.Lost)
	out.LostCount += f.joined.LostCount
	return &out
}

// firstOf is a and b, cut at what a list may name.
func firstOf[T any](a, b []T) []T {
	all := slices.Concat(a, b)
	return all[:min(len(all), service.MaxBadRecords)]
}

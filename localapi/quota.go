package localapi

import "sync"

// quota shares something that callers can make the agent hold. Each caller has a bound, and so have all of them together; but who has next to nothing gets that little
// when the others have taken all there is. So the most that is ever held is all, and floor for each other caller.
type quota struct {
	all, each, floor int

	mu sync.Mutex

	sum int
	of  map[caller]int
}

func newQuota(all, each, floor int) *quota {
	return &quota{all: all, each: each, floor: floor, of: map[caller]int{}}
}

// over is a bound that was reached.
type over int

const (
	within  over = iota // none was
	overOwn             // the caller's
	overAll             // that of all callers together
)

// take takes n of it if no bound is reached by that.
func (q *quota) take(who caller, n int) over {
	q.mu.Lock()
	defer q.mu.Unlock()
	has := q.of[who] + n
	switch {
	case n == 0:
		return within
	case has > q.each:
		return overOwn
	case q.sum+n > q.all && has > q.floor:
		return overAll
	}
	q.of[who] = has
	q.sum += n
	return within
}

// give gives back what was taken.
func (q *quota) give(who caller, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sum -= n
	if q.of[who] -= n; q.of[who] <= 0 {
		delete(q.of, who)
	}
}

func (q *quota) held() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.sum
}

// quotas are those of one door: the doors are counted apart, so that nobody can lock the operator out, and nobody from elsewhere the users of this host.
type quotas struct {
	connections, streams *quota
	unfinished           *quota // bytes of requests that have not ended
}

func newQuotas(l Limits) quotas {
	return quotas{
		connections: newQuota(l.Connections, l.ConnectionsPerUID, l.Connections/512),
		streams:     newQuota(l.Streams, l.StreamsPerUID, l.Streams/128),
		unfinished:  newQuota(l.UnfinishedBytes, l.UnfinishedBytesPerUID, 4*l.MessageBytes),
	}
}

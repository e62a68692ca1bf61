package localapi

import (
	"fmt"
	"sync"
)

// quota bounds the connections of one socket, all and per caller.
type quota struct {
	most, mostPerCaller int

	mu sync.Mutex

	all       int
	perCaller map[caller]int
}

func newQuota(l Limits) *quota {
	return &quota{most: l.Connections, mostPerCaller: l.ConnectionsPerUID, perCaller: map[caller]int{}}
}

// take takes a place; "" if there was one, else a sentence that says which limit was reached.
func (q *quota) take(who caller) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.perCaller[who] >= q.mostPerCaller {
		return fmt.Sprintf("%v has %d connections to the agent's socket, which is the most; close some, or share one", who, q.mostPerCaller)
	}
	if q.all >= q.most {
		return fmt.Sprintf("the agent's socket has %d connections, which is the most", q.most)
	}
	q.all++
	q.perCaller[who]++
	return ""
}

func (q *quota) give(who caller) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all--
	if q.perCaller[who]--; q.perCaller[who] <= 0 {
		delete(q.perCaller, who)
	}
}

func (q *quota) open() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.all
}

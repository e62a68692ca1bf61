package localapi

import (
	"fmt"
	"sync"
)

// quota bounds the connections of one socket, all and per uid.
type quota struct {
	most, mostPerUID int

	mu sync.Mutex

	all    int
	perUID map[uint32]int
}

func newQuota(l Limits) *quota {
	return &quota{most: l.Connections, mostPerUID: l.ConnectionsPerUID, perUID: map[uint32]int{}}
}

// take takes a place; "" if there was one, else a sentence that says which limit was reached.
func (q *quota) take(uid uint32) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.perUID[uid] >= q.mostPerUID {
		return fmt.Sprintf("uid %d has %d connections to the agent's socket, which is the most; close some, or share one", uid, q.mostPerUID)
	}
	if q.all >= q.most {
		return fmt.Sprintf("the agent's socket has %d connections, which is the most", q.most)
	}
	q.all++
	q.perUID[uid]++
	return ""
}

func (q *quota) give(uid uint32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all--
	if q.perUID[uid]--; q.perUID[uid] <= 0 {
		delete(q.perUID, uid)
	}
}

func (q *quota) open() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.all
}

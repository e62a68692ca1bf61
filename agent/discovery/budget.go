package discovery

import "time"

// How often a follower that lost a good watch may begin its waits anew; else it waits up to etcd.MaxBackoff. Higher costs etcd more when something ends each
// watch as soon as it is made, lower makes lists late after several short outages in a row.
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

package etcd

import "time"

// How often who lost what was well, a watch or a client, may begin the waits anew; else they go on to grow. Higher costs etcd more when something ends each of them as soon
// as it is made, lower makes lists late after several short outages in a row.
const (
	BudgetMost  = 20
	BudgetEvery = 5 * time.Second
)

// Budget holds up to BudgetMost tokens and gets one per BudgetEvery. The zero value is full.
type Budget struct {
	taken float64
	last  time.Time
}

// Take takes a token; it is false if there is none.
func (b *Budget) Take(now time.Time) bool {
	b.taken = max(0, b.taken-float64(now.Sub(b.last))/float64(BudgetEvery))
	b.last = now
	if b.taken > BudgetMost-1 {
		return false
	}
	b.taken++
	return true
}

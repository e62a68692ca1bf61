package health

import "time"

// At most 200 probes start in any second, give or take a wakeGrain (2.3), and no more than a quarter of them at once.
const (
	paceBurst = 50
	paceTime  = 250 * time.Millisecond
)

// paced is now as the pace counts: in steps of wakeGrain from where the grid begins. A wake-up is late by some of that, once more and once less, and what began at one point of the grid has
// to make room for as many at the one that is paceTime later; else 1,000 backends would have their probes in twenty wake-ups a second instead of four.
func (c *core) paced(now time.Time) time.Time {
	if c.gridFrom.IsZero() {
		return now
	}
	return now.Add(-(now.Sub(c.gridFrom) % wakeGrain))
}

// pace lets at most paceBurst things happen in any paceTime: it holds when the last of them did.
type pace struct {
	last [paceBurst]time.Time
	next int // the oldest
}

func (p *pace) take(now time.Time) bool {
	if now.Before(p.free()) {
		return false
	}
	p.last[p.next] = now
	p.next = (p.next + 1) % paceBurst
	return true
}

// free is from when on take is true.
func (p *pace) free() time.Time {
	if oldest := p.last[p.next]; !oldest.IsZero() {
		return oldest.Add(paceTime)
	}
	return time.Time{}
}

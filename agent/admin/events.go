package admin

import (
	"sync"

	"github.com/lbagent/lbagent/agent/event"
)

// seen is the highest event ID of the last scrape.
type seen struct {
	mu sync.Mutex

	id uint64
}

// total is the number of events since the start: IDs rise by one from 1.
func (s *seen) total(log *event.Log) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if events, _ := log.Since(s.id); len(events) > 0 {
		s.id = events[len(events)-1].ID
	}
	return s.id
}

package e2e

import (
	"sync"
	"time"
)

// late is how this machine kept time while a soak ran: a goroutine that is due every few milliseconds, and how much later it came. Whoever judges what the agent should have known
// by when adds what this one was late by at that time, which has as little to do and the same processors.
type late struct {
	stop chan struct{}
	done sync.WaitGroup

	of []lateness
}

type lateness struct {
	at time.Time
	by time.Duration
}

// lateTick is how often it is due, and lateLeast what is not worth a note.
const (
	lateTick  = 10 * time.Millisecond
	lateLeast = 10 * time.Millisecond
)

func watchLateness() *late {
	l := &late{stop: make(chan struct{})}
	l.done.Go(func() {
		due := time.Now().Add(lateTick)
		for {
			select {
			case <-l.stop:
				return
			case <-time.After(time.Until(due)):
			}
			now := time.Now()
			if by := now.Sub(due); by > lateLeast {
				l.of = append(l.of, lateness{now, by})
			}
			due = now.Add(lateTick)
		}
	})
	return l
}

func (l *late) end() {
	close(l.stop)
	l.done.Wait()
}

// slack is what is added to what somebody had to know soon after at: he is woken up some times until he does.
func slack(of []lateness, at time.Time) (most time.Duration) {
	const wakeups = 4
	for _, l := range of {
		if l.at.After(at.Add(-seen)) && l.at.Add(-l.by).Before(at.Add(found)) {
			most = max(most, wakeups*l.by)
		}
	}
	return most
}

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
	// lateJudged is how late the machine may be while a call runs that is judged for its end, and lateBefore for how long before. Connects and answers are given a second in many
	// places, and each needs several processes in turn.
	lateJudged, lateBefore = 200 * time.Millisecond, 2 * time.Second
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

// mostLate is the longest lateness in a span of time.
func mostLate(of []lateness, from, to time.Time) (most time.Duration) {
	for _, l := range of {
		if l.at.After(from) && l.at.Add(-l.by).Before(to) {
			most = max(most, l.by)
		}
	}
	return most
}

// slack is what is added to what somebody had to know soon after at: he is woken up some times until he does.
func slack(of []lateness, at time.Time) time.Duration {
	const wakeups = 4
	return wakeups * mostLate(of, at.Add(-seen), at.Add(found))
}

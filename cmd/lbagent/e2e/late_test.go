package e2e

import (
	"sync"
	"time"
)

// late is how this machine keeps time while the tests run: a goroutine that is due every few milliseconds, and how much later it came. A hypervisor that takes the processors away,
// for a slice or for seconds, or a machine that has too much to do, shows there. Whoever judges what should have happened by when adds what this one was late by at that time, which
// has as little to do and the same processors.
type late struct {
	mu sync.Mutex
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

// watch takes notes for as long as the process lives.
func (l *late) watch() {
	due := time.Now().Add(lateTick)
	for {
		<-time.After(time.Until(due))
		now := time.Now()
		if by := now.Sub(due); by > lateLeast {
			l.mu.Lock()
			l.of = append(l.of, lateness{now, by})
			l.mu.Unlock()
		}
		due = now.Add(lateTick)
	}
}

// between is what it noted of a span of time.
func (l *late) between(from, to time.Time) (out []lateness) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.of {
		if n.at.After(from) && n.at.Add(-n.by).Before(to) {
			out = append(out, n)
		}
	}
	return out
}

// undecided reports whether what began and ended then may have failed, or taken so long, for no other reason than that the machine stood still, or nearly so.
func (l *late) undecided(begun, ended time.Time) bool {
	return l.most(begun.Add(-lateBefore), ended) > lateJudged
}

// most is the longest lateness in a span of time.
func (l *late) most(from, to time.Time) time.Duration { return mostLate(l.between(from, to), from, to) }

// lost is all of the time in a span in which it should have run and did not.
func (l *late) lost(from, to time.Time) (sum time.Duration) {
	for _, n := range l.between(from, to) {
		began, ended := n.at.Add(-n.by), n.at
		if began.Before(from) {
			began = from
		}
		if ended.After(to) {
			ended = to
		}
		sum += ended.Sub(began)
	}
	return sum
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

package loop

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A loop that was stopped reads what came meanwhile before any timer judges, also what is still under way then; and a loop that always is late has its timers all the same.
func TestLateLoopReadsFirst(t *testing.T) {
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l.ep)
	defer unix.Close(l.box.fd)
	fired := 0
	var timer Timer
	timer.F = func() { fired++; l.Arm(&timer, time.Second) }
	l.Arm(&timer, time.Second)
	at := func(d time.Duration) {
		t.Helper()
		now := l.start.Add(d)
		l.noticeLate(now)
		l.turn(now, nil)
	}
	want := func(n int, lost time.Duration) {
		t.Helper()
		if got := l.Lost(l.start); fired != n || got != lost {
			t.Fatalf("fired %d times, lost %v, want %d, %v", fired, got, n, lost)
		}
	}
	ms := time.Millisecond
	at(1000*ms + lateMost) // a busy loop, no more
	want(1, 0)
	late := 2100*ms + 700*ms // due at 2.1 s
	at(late)
	want(1, 700*ms)
	if due, _ := l.timers.next(); l.late.fires(due) != late+lateGrace {
		t.Errorf("it goes on at %v", l.late.fires(due))
	}
	at(late + lateGrace/2) // something else woke it
	want(1, 700*ms)
	if got := l.Lost(l.start.Add(late - 300*ms)); got != 300*ms {
		t.Errorf("who began meanwhile lost %v", got)
	}
	if got := l.Lost(l.start.Add(late)); got != 0 {
		t.Errorf("who began later lost %v", got)
	}
	at(late + 5*time.Second) // and it was stopped once more
	want(2, 5700*ms-lateGrace)
	for n := range 10 { // always
		at(late + time.Duration(10+4*n)*time.Second)
		at(late + time.Duration(11+4*n)*time.Second)
		if fired != 3+n {
			t.Fatalf("fired %d times", fired)
		}
	}
}

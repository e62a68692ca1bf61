package loop

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// The heap against a sorted slice, on random arms, re-arms and disarms.
func TestTimersAgainstSlice(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	l := &Loop{start: time.Now()}
	l.now = l.start
	timers := make([]Timer, 200)
	due := make([]time.Duration, len(timers))
	var fired []int
	for i := range timers {
		timers[i].F = func() { fired = append(fired, i) }
		due[i] = -1
	}
	now := time.Duration(0)
	for range 20_000 {
		i := rng.IntN(len(timers))
		switch rng.IntN(4) {
		case 0, 1:
			d := time.Duration(rng.IntN(1000))
			l.Arm(&timers[i], d)
			due[i] = now + d
		case 2:
			l.Disarm(&timers[i])
			due[i] = -1
		case 3:
			now += time.Duration(rng.IntN(100))
			l.now = l.start.Add(now)
			var want []int
			for j, d := range due {
				if d >= 0 && d <= now {
					want = append(want, j)
				}
			}
			fired = nil
			l.timers.run(now)
			for k := 1; k < len(fired); k++ {
				if due[fired[k-1]] > due[fired[k]] {
					t.Fatal("fired out of order")
				}
			}
			slices.Sort(fired)
			if !slices.Equal(fired, want) {
				t.Fatalf("fired %v, want %v", fired, want)
			}
			for _, j := range fired {
				due[j] = -1
			}
		}
		if timers[i].Armed() != (due[i] >= 0) {
			t.Fatalf("timer %d: armed %v, due %v", i, timers[i].Armed(), due[i])
		}
	}
}

func TestTimerFuncMayArmItselfAgain(t *testing.T) {
	l := &Loop{start: time.Now()}
	l.now = l.start
	n := 0
	timer := &Timer{}
	timer.F = func() { n++; l.Arm(timer, 0) }
	l.Arm(timer, 0)
	l.timers.run(0)
	if n != 1 || !timer.Armed() {
		t.Errorf("fired %d times in one wake-up, armed %v", n, timer.Armed())
	}
}

func TestTimerWakesTheLoop(t *testing.T) {
	l := startLoop(t)
	fired := make(chan time.Duration, 1)
	begin := time.Now()
	timer := &Timer{F: func() { fired <- time.Since(begin) }}
	do(t, l, func() { l.Arm(timer, 20*time.Millisecond) })
	if d := receive(t, fired); d < 20*time.Millisecond {
		t.Errorf("fired after %v: too early", d)
	}
}

func TestTimersAllocateNothing(t *testing.T) {
	l := &Loop{start: time.Now()}
	l.now = l.start
	timers := make([]Timer, 100)
	for i := range timers {
		timers[i].F = func() {}
		l.Arm(&timers[i], time.Second)
	}
	if n := testing.AllocsPerRun(100, func() {
		for i := range timers {
			l.Arm(&timers[i], time.Duration(i)*time.Millisecond)
		}
		for i := range timers {
			l.Disarm(&timers[i])
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

package loop

import (
	"testing"
	"time"
)

// TestOnTurn: each wake-up tells once how long it took, and the loop counts that as work.
func TestOnTurn(t *testing.T) {
	told := make(chan time.Duration, 100)
	l, err := New(Config{OnTurn: func(took time.Duration) { told <- took }})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Run(t.Context()) }()
	t.Cleanup(func() { <-ended })
	const work = 20 * time.Millisecond
	ran := make(chan struct{})
	if !l.Post(func() { <-time.After(work); close(ran) }) {
		t.Fatal("the loop has ended")
	}
	<-ran
	long := false
	for !long {
		long = <-told >= work
	}
	stats := make(chan Stats, 1)
	l.Post(func() { stats <- l.Stats() })
	if s := <-stats; s.Busy < work || s.Wakeups == 0 {
		t.Errorf("after a turn of %v: %+v", work, s)
	}
}

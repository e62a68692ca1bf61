package table

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
)

// A service that comes into use is attended to at once, and costs the others nothing: their weights wait for their second.
func TestUseDoesNotMoveOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		slow, asked := spec("slow"), spec("asked")
		slow.SlowStart, asked.InUse = 15*time.Second, false
		r.SetSpec(r.now, slow, asked)
		r.Apply(r.now, list("slow", ids(10)...))
		r.Apply(r.now, list("slow", ids(11)...)) // the last one begins slowly: each second makes a new view
		r.Apply(r.now, list("asked", ids(3)...))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		advance(time.Second / 2)

		before := r.Lookup("slow").View()
		r.Lookup("asked").Asked(time.Now())
		synctest.Wait()
		if !r.active["asked"] {
			t.Error("a service that was asked for was not told to health at once")
		}
		if r.Lookup("slow").View() != before {
			t.Error("one service came into use, and another one's weights were made anew")
		}
		advance(time.Second)
		if r.Lookup("slow").View() == before {
			t.Error("a slow start has not moved in a second")
		}
		cancel()
		<-ended
	})
}

// A new list waits for the second of one service at most, not for that of all.
func TestSecondLetsListsIn(t *testing.T) {
	const services = 500
	start := time.Now()
	var at atomic.Int32 // services whose second is over, or runs
	var applied atomic.Int32
	var table *Table
	done := make(chan struct{})
	r, err := New(Config{Log: hclog.NewNullLogger(), Events: event.NewLog(10), OnActive: func(_ string, active bool) {
		if active {
			return
		}
		if at.Add(1) == 1 {
			go func() {
				defer close(done)
				table.Apply(start, list("s0", ids(2)...))
				applied.Store(at.Load())
			}()
		}
		for began := time.Now(); time.Since(began) < 50*time.Microsecond; { // what much work is
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	table = r
	for i := range services {
		sp := spec(fmt.Sprint("s", i))
		sp.InUse = false
		table.SetSpec(start, sp)
		table.Lookup(sp.Name).Asked(start)
	}
	table.Second(start)
	table.Second(start.Add(2 * askedUse)) // all uses are over
	<-done
	if n := applied.Load(); at.Load() != services || n == services {
		t.Errorf("a list that came during the first of %d services (of %d) was in place after %d of them", at.Load(), services, n)
	}
}

package table

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/health"
)

// Picks go on, and are right, while lists, verdicts and specs change.
func TestPicksWhileAllChanges(t *testing.T) {
	r, s := user(t, 20)
	stop := make(chan struct{})
	var pickers, writers sync.WaitGroup
	var picks atomic.Int64
	for range 8 {
		pickers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				now := time.Now()
				s.Asked(now)
				v := r.Lookup("user").View()
				b := v.Pick(now, nil)
				if b == nil {
					t.Error("nothing to pick, in a list that is never empty and panics")
					return
				}
				if !b.Verdict.Kind.Usable() && !v.Panic {
					t.Errorf("picked %v, which is %v", b.Addr, b.Verdict.Kind)
					return
				}
				b.State.Begin()
				second := v.Pick(now, []*health.State{b.State})
				if second != nil && second.State == b.State {
					t.Error("picked what was excluded")
					return
				}
				b.State.End(now, health.Success, time.Millisecond, true, "")
				if v.Find(b.Addr) != b {
					t.Error("the view lost a backend")
					return
				}
				_ = v.Unusable(now)
				picks.Add(1)
			}
		})
	}
	rnd := func(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }
	writers.Go(func() {
		rnd := rnd(1)
		for range 500 {
			from := rnd.IntN(10)
			r.Apply(time.Now(), list("user", ids(20)[from:from+1+rnd.IntN(10)]...))
		}
	})
	writers.Go(func() {
		rnd := rnd(2)
		for range 500 {
			v := s.View()
			b := v.Backend(rnd.IntN(v.Len()))
			r.SetVerdicts(time.Now(), []health.Change{{Group: "user", Addr: b.Addr, State: b.State, From: *b.Verdict,
				To: []health.Part{isUp, ejected, unreachable, downSoft}[rnd.IntN(4)]}})
		}
	})
	writers.Go(func() {
		for i := range 200 {
			sp := spec("user")
			sp.Policy = []picker.Policy{picker.P2C, picker.RoundRobin}[i%2]
			r.SetSpec(time.Now(), sp)
		}
	})
	writers.Wait()
	close(stop)
	pickers.Wait()
	if picks.Load() == 0 {
		t.Error("nobody picked")
	}
}

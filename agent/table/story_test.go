package table

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbagent/lbagent/health"
)

// The whole of picking and judging in virtual time: four of five backends die for 10 s and come back. No call fails, since one is left; the dead ones cost
// next to nothing; and the shares are even again soon after.
func TestKillFourOfFive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.now = time.Now()
		sp := spec("user")
		sp.Health.Probe = health.ProbeNone // calls alone have to find out: the harder way
		r.SetSpec(r.now, sp)
		r.Apply(r.now, list("user", ids(5)...))
		s := r.Lookup("user")
		defer monitor(t, r, s)()

		dead := map[int]bool{}
		answered, refused := map[int]int{}, 0
		second := func() {
			for range 500 {
				advance(2 * time.Millisecond)
				i, tries := call(t, s.View(), dead)
				answered[i]++
				refused += tries
			}
			s.setMedian(time.Now(), nil)
		}
		run := func(seconds int) {
			clear(answered)
			refused = 0
			for range seconds {
				second()
			}
		}
		even := func(when string, tolerance float64) {
			t.Helper()
			total := 0
			for _, n := range answered {
				total += n
			}
			for i := range 5 {
				if share := 5 * float64(answered[i]) / float64(total); share < 1-tolerance || share > 1+tolerance {
					t.Errorf("%s: backend %d has %.2f of an even share (%v)", when, i, share, answered)
				}
			}
		}
		run(10)
		even("all well", 0.15)

		dead = map[int]bool{1: true, 2: true, 3: true, 4: true}
		run(10)
		if answered[0] != 5000 {
			t.Errorf("answered %v", answered)
		}
		if refused > 5*20 {
			t.Errorf("%d refused connects in 10 s", refused)
		}

		clear(dead)
		run(20)
		run(10)
		even("20 s after the return", 0.15)
		if refused != 0 {
			t.Errorf("%d refused connects with all well", refused)
		}
	})
}

// call makes one call, trying every candidate once (4.1), and returns who answered after how many that refused.
func call(t *testing.T, v *View, dead map[int]bool) (answered, refused int) {
	t.Helper()
	var tried []*health.State
	for {
		now := time.Now()
		b := v.Pick(now, tried)
		if b == nil {
			t.Fatalf("a call failed: %s", v.Unusable(now))
		}
		tried = append(tried, b.State)
		b.State.Begin()
		if dead[number(b)] {
			b.State.ConnectFailed(now, "connection refused")
			b.State.End(now, health.Neutral, 0, true, "")
			refused++
			continue
		}
		b.State.Connected(now)
		b.State.End(now, health.Success, time.Millisecond, true, "")
		return number(b), refused
	}
}

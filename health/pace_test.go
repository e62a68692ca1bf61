package health

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// 1,000 backends at the default interval are as many as the pace allows: they are probed in about four wake-ups a second, however late each of these is. Wake-ups are what a probe costs beside
// the connect itself, and with a pace that counts exact times each lateness splits the probes of a point of the grid in two, for good: twenty a second.
func TestProbesOfAThousandShareWakeUps(t *testing.T) {
	var counters stats
	random := rand.New(rand.NewPCG(1, 2))
	c := newCore(newInbox(), random.Float64, &counters, hclog.NewNullLogger())
	now := epoch
	c.setGroup(now, "g", defaults(), targets(now, 1000))
	c.setActive(now, "g", true)
	const seconds = 60
	wakeUps, probes := 0, 0
	for now.Before(epoch.Add(seconds * time.Second)) {
		jobs := c.tick(now)
		wakeUps++
		probes += len(jobs)
		for _, p := range jobs {
			c.probed(now.Add(ms), result{t: p.t})
		}
		next, ok := c.next(now)
		if !ok {
			t.Fatal("nothing is due")
		}
		now = latest(next, now.Add(wakeGrain)).Add(time.Duration(random.Int64N(int64(20 * ms)))) // as Run does, and late
	}
	if probes < seconds*180 {
		t.Errorf("%d probes in %d s", probes, seconds)
	}
	if wakeUps > seconds*6 {
		t.Errorf("%d wake-ups in %d s for %d probes: want about four a second", wakeUps, seconds, probes)
	}
}

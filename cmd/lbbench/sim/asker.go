package sim

import (
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"github.com/lbagent/lbagent/localapi"
)

const (
	askedBatch = 8                // picks of one Pick
	askedFor   = 10 * time.Second // valid_for
)

// asker is lbagent on a host whose callers make their calls themselves: they spend batches of picks, which a new view revokes (Watch), and report each call. The agent sees
// nothing but that, and its probes.
type asker struct {
	*agent

	view  *table.View // that the batch was cut from
	picks []*table.Backend
	until time.Duration
}

func newAsker(w *world, h *host) (*asker, error) {
	a, err := newAgent(w, h)
	return &asker{agent: a}, err
}

func (a *asker) pick(*call) int {
	now := a.w.clock.time()
	if v := a.service.View(); v != a.view || len(a.picks) == 0 || a.w.clock.now >= a.until {
		a.ask(now, v)
	}
	if len(a.picks) == 0 {
		return -1
	}
	b := a.picks[0]
	a.picks = a.picks[1:]
	return number(b.Addr)
}

// ask is one Pick.
func (a *asker) ask(now time.Time, v *table.View) {
	a.service.Asked(now)
	a.view, a.picks, a.until = v, nil, a.w.clock.now+askedFor
	for _, s := range localapi.Batch(v, now, askedBatch, picker.NewRandom(a.w.picks)) {
		for range s.N {
			a.picks = append(a.picks, s.Backend)
		}
	}
	if len(a.picks) == 0 {
		if b := v.Advise(now, 0, nil); b != nil {
			a.picks = append(a.picks, b)
		}
	}
}

func (a *asker) ended(c *call, result health.Result, firstByte time.Duration) {
	if result == health.Neutral { // the caller doesn't know that other calls hung on the same connection
		result = health.Failure
	}
	b := a.service.View().Find(address(c.to))
	if b == nil {
		return
	}
	if result == health.Failure {
		firstByte = 0
	}
	b.State.Report(a.w.clock.time(), uint32(a.host.index), result, firstByte, 1, "reported: call failed")
	a.step()
}

// Nobody tells it of connections.
func (a *asker) carries() bool { return false }
func (a *asker) lost(int)      {}
func (a *asker) closed(int)    {}

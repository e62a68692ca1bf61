package health

import (
	"fmt"
	"time"
)

// When this host suspects itself (2.10).
const (
	suspectBackends = 10 // with evidence in the last interval, at least ...
	suspectGroups   = 3  // ... of as many services
	suspectPercent  = 70 // more have turned bad: suspicion begins
	trustPercent    = 50 // fewer are bad: it ends

	suspectGrain = 100 * time.Millisecond // how old an answer to the question may be while backends fail. Lower costs a look at every target more often
	trustEvery   = time.Second            // how often it is asked while there is suspicion

	// staleIntervals is for how many intervals a backend that could not be reached stays so while there is suspicion, if nothing is heard of it: a host that is ill, or has no processor,
	// also looks less often, and having seen nothing is no reason to trust it again.
	staleIntervals = 5
)

// suspicion is whether it is this host that is ill, and not its backends: a network that is cut here fails every probe at once (2.10).
type suspicion struct {
	on     bool
	cut    bool // and not one backend was reached in the last interval: no verdict of any kind can make a pick better
	since  time.Time
	words  string    // what began it
	looked time.Time // when the last census was taken
	untold bool      // on changed since the Monitor told
}

// census is what the backends in use have shown in their last interval.
type census struct {
	backends int // with evidence
	groups   int // that have such backends
	bad      int // of backends: what was seen last is that they can't be reached
	turned   int // of bad: were reached one interval before
}

// suspicious reports whether that many at once are this host's doing.
func (n census) suspicious() bool {
	return n.backends >= suspectBackends && n.groups >= suspectGroups && n.bad*100 > suspectPercent*n.backends && n.turned*2 > n.bad
}

// trusted reports whether a suspicion is over.
func (n census) trusted() bool { return n.backends == 0 || n.bad*100 < trustPercent*n.backends }

func (n census) words() string {
	return fmt.Sprintf("%d of %d backends of %d services can't be reached, %d of them could just before", n.bad, n.backends, n.groups, n.turned)
}

// evidence is when the backend was last reached, and when it last was not, on its state's clock, 0 for never. An answer is an answer here, whatever it says:
// a host whose network is cut gets none.
func (t *target) evidence() (reached, missed int64) {
	return max(t.reached, t.state.good.Load()), max(t.missed, t.state.connFailed.Load())
}

// window is the time in which a backend of this group is probed at least once, and the probe is over.
func (o *Options) window() time.Duration {
	return time.Duration(float64(o.Interval)*(1+probeJitter)) + o.Timeout
}

func (c *core) census(now time.Time) (n census) {
	for _, g := range c.groups {
		window, seen := int64(g.options.window()), false
		for _, t := range g.targets {
			if !g.active && !t.orphan.is.Load() {
				continue
			}
			reached, missed := t.evidence()
			at := t.state.at(now)
			bad, lasts := missed > reached, window
			if bad && c.suspicion.on {
				lasts *= staleIntervals
			}
			if last := max(reached, missed); last == 0 || at-last > lasts {
				continue
			}
			n.backends++
			seen = true
			if bad {
				n.bad++
				if reached != 0 && at-reached <= 2*window {
					n.turned++
				}
			}
		}
		if seen {
			n.groups++
		}
	}
	return n
}

// suspects reports whether this host is under suspicion now. It is asked whenever a backend could not be reached.
func (c *core) suspects(now time.Time) bool {
	if s := &c.suspicion; s.looked.IsZero() || now.Sub(s.looked) >= suspectGrain {
		c.look(now)
	}
	return c.suspicion.on
}

// look takes a census, and with it suspicion begins, goes on or ends.
func (c *core) look(now time.Time) {
	s, n := &c.suspicion, c.census(now)
	s.looked = now
	cut := s.cut
	s.cut = s.on && n.bad == n.backends
	switch {
	case !s.on && n.suspicious():
		s.on, s.untold, s.since, s.words = true, true, now, n.words()
	case s.on && n.trusted():
		s.on, s.untold = false, true
		c.release(now)
	case cut && !s.cut:
		c.release(now) // one was reached: who isn't may be unreachable, but for what comes now
	}
	s.cut = s.on && n.bad == n.backends
}

// withhold notes that a verdict on t did not fall, since this host is under suspicion.
func (c *core) withhold(t *target) {
	if !t.withheld {
		t.withheld = true
		c.stats.withheld.Add(1)
	}
}

// release forgets what was seen of backends whose verdicts were withheld: it was this host's doing. What is bad will show it again. So was what fell on some of them just
// before there were enough of them to become suspicious: who was ejected then is back, and who is out otherwise is looked at now.
func (c *core) release(now time.Time) {
	for _, g := range c.groups {
		from := c.suspicion.since.Add(-g.options.window())
		for _, t := range g.targets {
			if t.down != nil || t.unreachable != nil {
				c.planNow(now, t, doubtGap)
				c.due.set(t)
			}
			if t.ejected != nil && t.ejected.Since.After(from) {
				t.withheld = true
				t.rounds = max(0, t.rounds-1)
				c.endEjection(now, t)
				t.state.move(streaks.unfailed)
			}
			if !t.withheld {
				continue
			}
			t.withheld = false
			t.orphan.refused = 0
			if t.down == nil {
				t.fails = 0
			}
			if t.unreachable == nil && t.ejected == nil {
				t.state.forgive()
				if t.window != nil {
					t.window.restart(now, t.state.totals())
				}
			}
			c.judge(now, t)
		}
	}
}

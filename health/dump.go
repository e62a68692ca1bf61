package health

import (
	"math"
	"time"
)

// Dump is what is known of a backend, for the process that takes this one's place (SEMANTICS 6.3). Times since something are -1 if it never was.
type Dump struct {
	Failures      int           `json:"failures,omitempty"` // hard ones in a row, after connects
	Connects      int           `json:"connects,omitempty"` // failed connects of calls in a row
	Probes        int           `json:"probes,omitempty"`   // failed connects of probes in a row
	Reports       int           `json:"reports,omitempty"`  // reported hard failures in a row
	Latency       time.Duration `json:"latency,omitempty"`
	Samples       float64       `json:"samples,omitempty"` // that Latency stands for
	Sampled       time.Duration `json:"sampled"`
	Penalty       float64       `json:"penalty,omitempty"`
	ConnectFailed time.Duration `json:"connect_failed"`
	Good          time.Duration `json:"good"`
	Successes     uint64        `json:"successes,omitempty"`
	Failed        uint64        `json:"failed,omitempty"`
	Returned      time.Duration `json:"returned"`
	LastFailure   string        `json:"last_failure,omitempty"`
	LastFailureAt time.Time     `json:"last_failure_at,omitzero"`
	Parts         []Part        `json:"parts,omitempty"`
}

// trialRestored is the trial of a state that another process knew: whoever watches it first takes its parts over.
const trialRestored = trialFailed + 1

// Dump copies what is known.
func (s *State) Dump(now time.Time) Dump {
	at := s.at(now)
	ago := func(then int64) time.Duration {
		if then == 0 {
			return -1
		}
		return time.Duration(max(0, at-then))
	}
	k, c := streaks(s.streaks.Load()), s.Snapshot(now)
	returned := int64(0)
	if y := s.tally.Load(); y != nil {
		returned = y.returned.Load()
	}
	return Dump{
		Failures: k.failures(), Connects: k.connects(), Probes: k.probes(), Reports: k.reports(), Returned: ago(returned),
		Latency: c.Latency, Samples: latency(s.latency.Load()).samples(), Sampled: ago(s.sampled.Load()), Penalty: c.Penalty,
		ConnectFailed: ago(s.connFailed.Load()), Good: ago(s.good.Load()),
		Successes: c.Successes, Failed: c.Failures, LastFailure: c.LastFailure, LastFailureAt: c.LastFailureAt, Parts: c.Parts,
	}
}

// Restore returns the state that d was dumped of, at time then. A part that doesn't make sense is as if it weren't there.
func Restore(now, then time.Time, d Dump) *State {
	s := NewState(now)
	s.base = s.base.Add(-restoredPast) // so that what was before now has a time
	at, passed := s.at(now), max(0, now.Sub(then))
	when := func(ago time.Duration) int64 {
		if ago < 0 || ago > restoredPast-passed {
			return 0
		}
		return max(1, at-int64(ago+passed))
	}
	count := func(n int) streaks { return streaks(min(max(n, 0), streakTop)) }
	s.streaks.Store(uint64(count(d.Reports)<<reportsAt | count(d.Failures)<<failuresAt | count(d.Connects)<<connectsAt | count(d.Probes)<<probesAt))
	if d.Latency > 0 {
		s.latency.Store(uint64(newLatency(float64(d.Latency), max(1, d.Samples))))
		s.sampled.Store(when(d.Sampled))
	}
	if level := min(d.Penalty, penaltyMax); level > 0 {
		s.penalty.Store(at - int64(passed) + int64(float64(penaltyHalving)*math.Log2(level)))
	}
	s.connFailed.Store(when(d.ConnectFailed))
	s.good.Store(when(d.Good))
	s.successes.Store(d.Successes)
	if d.Failed > 0 {
		s.bad().own.failures.Store(d.Failed)
	}
	if d.Returned > 0 {
		s.bad().returned.Store(when(d.Returned))
	}
	if d.LastFailure != "" {
		s.failed.Store(&failure{d.LastFailure, d.LastFailureAt})
	}
	var parts []Part
	for _, p := range d.Parts {
		if p.Kind == Down || p.Kind == Unreachable || p.Kind == Ejected {
			parts = append(parts, p)
		}
	}
	if len(parts) > 0 {
		s.parts.Store(&parts)
		s.trial.Store(trialRestored)
	}
	return s
}

// restoredPast is how far back a restored state can tell times; nothing looks at older ones.
const restoredPast = time.Hour

// takeOver has t begin with the verdicts that its state was restored with.
func (t *target) takeOver() {
	parts := t.state.parts.Load()
	if parts == nil || !t.state.trial.CompareAndSwap(trialRestored, trialNone) {
		return
	}
	for _, p := range *parts {
		switch p.Kind {
		case Down:
			t.down = &p
		case Unreachable:
			t.unreachable = &p
			if !t.group.options.probes() {
				t.hold, t.retries = p.Next, 1
			}
		case Ejected:
			t.ejected = &p
			t.hold, t.rounds = p.Next, 1
		}
		t.lastError, t.lastErrorAt = p.Last, p.At
	}
}

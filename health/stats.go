package health

import (
	"sync/atomic"
	"time"
)

// Stats are counters for metrics.
type Stats struct {
	Probes, ProbeFailures uint64 // that were run, that failed
	Results               ProbeResults
	Lateness              Histogram // how long probes waited between being due and their start: for the pace of 2.3, or for a processor
	Durations             Histogram // how long probes took until their end was seen, which for tcp probes is up to 50 ms later (wakeGrain)
	ProbesSpared          uint64    // a good outcome stood for them (2.3)
	ProbesPutOff          uint64    // this host could not run them: out of descriptors or ports
	ProbesRunning         int
	ProbesWaiting         int // due, but held back by the limit per second (2.3)
	Watches               int // connections on which backends say how they are (2.1)
	Suspicion             Suspicion
	Suspicions            uint64          // times that this host began to suspect itself (2.10)
	Withheld              uint64          // verdicts that did not fall for that
	Ejections             [Reasons]uint64 // by Reason
	WouldEject            [Reasons]uint64 // that `eject: observe` did not let happen
	EjectionsHeldBack     uint64          // by max_percent, or the last one usable (2.6)
	Targets               int
}

// ProbeResults counts probes by how they ended.
type ProbeResults struct {
	Passed      uint64
	Answered    uint64 // the backend answered, and says that it isn't well
	Unreachable uint64 // no connection, or no SETTINGS
	Silent      uint64 // connected, but no answer
	PutOff      uint64 // this host could not run them
}

// LatenessBounds are the buckets of Lateness.
func LatenessBounds() []time.Duration {
	return []time.Duration{100 * time.Millisecond, time.Second, 5 * time.Second, 30 * time.Second}
}

// DurationBounds are the buckets of Durations.
func DurationBounds() []time.Duration {
	return []time.Duration{60 * time.Millisecond, 250 * time.Millisecond, time.Second, 5 * time.Second}
}

// Histogram counts durations in buckets by its bounds; the last is above all of them.
type Histogram struct {
	Buckets [5]uint64
	Sum     time.Duration
}

type stats struct {
	probes, probeFailures, probesSpared, probesPutOff atomic.Uint64
	ejections, wouldEject                             [Reasons]atomic.Uint64
	heldBack, suspicions, withheld                    atomic.Uint64
	running, waiting, targets, watches                atomic.Int64
	results                                           [probeLocal + 1]atomic.Uint64
	lateness, durations                               histogram
}

type histogram struct {
	buckets [5]atomic.Uint64
	sum     atomic.Int64
}

func (l *histogram) export() (out Histogram) {
	for i := range out.Buckets {
		out.Buckets[i] = l.buckets[i].Load()
	}
	out.Sum = time.Duration(l.sum.Load())
	return out
}

func (l *histogram) add(d time.Duration, bounds []time.Duration) {
	i := 0
	for i < len(bounds) && d > bounds[i] {
		i++
	}
	l.buckets[i].Add(1)
	l.sum.Add(int64(max(0, d)))
}

// Stats returns the counters of now.
func (m *Monitor) Stats() Stats {
	s := &m.stats
	out := Stats{
		Probes: s.probes.Load(), ProbeFailures: s.probeFailures.Load(),
		Results: ProbeResults{
			Passed: s.results[probePassed].Load(), Answered: s.results[probeAnswered].Load(), Unreachable: s.results[probeUnreachable].Load(),
			Silent: s.results[probeSilent].Load(), PutOff: s.results[probeLocal].Load(),
		},
		Lateness: s.lateness.export(), Durations: s.durations.export(),
		ProbesSpared: s.probesSpared.Load(), ProbesPutOff: s.probesPutOff.Load(),
		ProbesRunning: int(s.running.Load()), ProbesWaiting: int(s.waiting.Load()),
		Watches: int(s.watches.Load()), Suspicion: m.Suspicion(), Suspicions: s.suspicions.Load(), Withheld: s.withheld.Load(),
		EjectionsHeldBack: s.heldBack.Load(), Targets: int(s.targets.Load()),
	}
	for i := range Reasons {
		out.Ejections[i], out.WouldEject[i] = s.ejections[i].Load(), s.wouldEject[i].Load()
	}
	return out
}

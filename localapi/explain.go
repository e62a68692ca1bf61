package localapi

import (
	"context"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// Outlooks answers when backends are probed and tried next.
type Outlooks func(ctx context.Context, service string, only netip.AddrPort) map[netip.AddrPort]health.Outlook

// evidenceWithin bounds the wait for what other stages know: an explanation without it is better than none.
const evidenceWithin = 500 * time.Millisecond

// Connections answers which connections the proxy has to the backends of a service, to one if only is valid.
type Connections func(ctx context.Context, service string, only netip.AddrPort) map[netip.AddrPort]*lbagentv1.BackendConnections

// evidence is what other stages know of the backends of a service.
type evidence struct {
	outlooks    map[netip.AddrPort]health.Outlook
	connections map[netip.AddrPort]*lbagentv1.BackendConnections
}

func (s *Server) evidence(ctx context.Context, service string, only netip.AddrPort) evidence {
	ctx, cancel := context.WithTimeout(ctx, evidenceWithin)
	defer cancel()
	var e evidence
	if s.cfg.Outlooks != nil {
		e.outlooks = s.cfg.Outlooks(ctx, service, only)
	}
	if s.cfg.Connections != nil {
		e.connections = s.cfg.Connections(ctx, service, only)
	}
	return e
}

// explainer explains the backends of one view.
type explainer struct {
	v      *table.View
	now    time.Time
	usable []bool
	subset func(i int) (bool, string) // nil: there is none
	evidence
}

func newExplainer(v *table.View, now time.Time, e evidence) *explainer {
	return &explainer{v: v, now: now, usable: usable(v), subset: v.SubsetWords(), evidence: e}
}

// explain is b, the one at i, with its evidence.
func (x *explainer) explain(i int, b table.Placed) *lbagentv1.BackendExplanation {
	e := &lbagentv1.BackendExplanation{
		Backend:         backendInfo(b, x.usable[i], x.now),
		Key:             b.Key,
		Revision:        b.Modified,
		CreatedRevision: b.Created,
		Tier:            uint32(b.Priority),
		StaticWeight:    b.Backend.Weight,
	}
	f := b.Factors
	e.WeightFactors = &lbagentv1.WeightFactors{Dynamic: float64(f.Dynamic), SlowStart: float64(f.SlowStart), Zone: float64(f.Zone), Load: float64(f.Load)}
	if x.subset != nil {
		inside, why := x.subset(i)
		e.Subset, e.SubsetReason = lbagentv1.Subset_SUBSET_OUTSIDE, why
		if inside {
			e.Subset = lbagentv1.Subset_SUBSET_INSIDE
		}
	}
	for _, p := range x.v.Parts(x.now, b.Backend) {
		e.Parts = append(e.Parts, &lbagentv1.VerdictPart{Verdict: p.Kind.String(), Words: p.Standing(x.now), Since: stamp(p.Since), Next: stamp(p.Next)})
	}
	x.measured(e, b.Backend)
	e.Sentence = sentence(x.v, b, x.usable[i], e.LatencyFactor, x.now)
	e.Connections = x.connections[b.Addr]
	if p, ok := x.outlooks[b.Addr]; ok {
		e.Outlook = &lbagentv1.Outlook{Words: p.Words(x.now), NextProbe: stamp(p.Probe), NextTrial: stamp(p.Trial), HeldBack: p.HeldBack}
	}
	return e
}

// measured adds what calls have shown.
func (x *explainer) measured(e *lbagentv1.BackendExplanation, b *table.Backend) {
	e.LatencyFactor = 1
	if b.State == nil {
		return // nobody has used the service yet
	}
	snap := b.State.Snapshot(x.now)
	e.Outstanding, e.Penalty, e.Streak = int32(snap.Outstanding), snap.Penalty, int32(snap.Streak)
	e.Successes, e.Failures = snap.Successes, snap.Failures
	e.LastFailure, e.LastFailureAt = snap.LastFailure, stamp(snap.LastFailureAt)
	e.LatencyFactor = b.State.Lag(x.now, x.v.Service.Median())
	if snap.LatencyFresh {
		e.Latency = durationpb.New(snap.Latency)
	}
	if snap.Recent > 0 {
		e.RecentCalls, e.RecentFailed = snap.Recent, snap.RecentFailed
		e.SuccessPercent = new(100 * (1 - snap.RecentFailed/snap.Recent))
	}
	e.LastSuccessAt = stamp(b.State.LastSuccess(x.now))
	for _, o := range b.State.Outcomes() {
		past := &lbagentv1.PastOutcome{At: stamp(o.At), Result: o.Result.String(), Cause: o.Cause, Reported: o.Reported, Count: uint32(o.Calls)}
		if o.Elapsed > 0 {
			past.Latency = durationpb.New(o.Elapsed)
		}
		e.LastOutcomes = append(e.LastOutcomes, past)
	}
}

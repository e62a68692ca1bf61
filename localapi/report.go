package localapi

import (
	"context"
	"math"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// maxReportedLatency is the longest time to a first byte that is believed.
const maxReportedLatency = 10 * time.Minute

// Report takes outcomes of calls that the agent didn't carry. They are hearsay: what they may do to a backend is health.State.Report's to say.
func (l lookupService) Report(ctx context.Context, r *lbagentv1.ReportRequest) (*lbagentv1.ReportResponse, error) {
	s, now := l.s, l.s.now()
	if len(r.Outcomes) > maxOutcomes {
		return nil, invalid("", "%d outcomes in one report, the most is %d", len(r.Outcomes), maxOutcomes)
	}
	p, err := peerOf(ctx)
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	for i, o := range r.Outcomes {
		if _, ok := resultOf(o.Result); !ok {
			return nil, invalid(o.Service, "outcome %d: result is %v, want one that is known", i, o.Result)
		}
	}
	if !s.report[p.door()].allow(p.caller(), len(r.Outcomes), s.limits.OutcomesPerSecond, now) {
		return nil, failure(codes.ResourceExhausted, reasonTooManyReports, "",
			"%v reports more than %d outcomes a second; nothing of this report was taken", p.caller(), s.limits.OutcomesPerSecond)
	}
	resp := &lbagentv1.ReportResponse{}
	for _, o := range r.Outcomes {
		if !s.take(now, p.UID, o) {
			resp.Unknown++
		}
	}
	return resp, nil
}

// take hands one outcome to the backend's state; false if there is no such backend.
func (s *Server) take(now time.Time, uid uint32, o *lbagentv1.Outcome) bool {
	svc := s.cfg.Table.Lookup(o.Service)
	if svc == nil {
		return false
	}
	addr, err := netip.ParseAddrPort(o.Address)
	if err != nil {
		return false
	}
	b := svc.View().Find(addr)
	if b == nil {
		return false
	}
	svc.Asked(now)
	if b.State == nil { // nobody had asked before
		if b = svc.View().Find(addr); b == nil || b.State == nil {
			return false // gone meanwhile
		}
	}
	s.reports.Add(1)
	result, _ := resultOf(o.Result)
	latency := time.Duration(0)
	if o.Latency.IsValid() {
		latency = min(max(0, o.Latency.AsDuration()), maxReportedLatency)
	}
	b.State.Report(now, uid, result, latency, int(min(o.Count, math.MaxInt32)), reportCause(o.Result))
	return true
}

func resultOf(r lbagentv1.Result) (health.Result, bool) {
	switch r {
	case lbagentv1.Result_RESULT_SUCCESS:
		return health.Success, true
	case lbagentv1.Result_RESULT_FAILURE, lbagentv1.Result_RESULT_CONNECT_FAILURE:
		return health.Failure, true
	case lbagentv1.Result_RESULT_TIMEOUT:
		return health.Timeout, true
	case lbagentv1.Result_RESULT_OVERLOADED:
		return health.Overloaded, true
	case lbagentv1.Result_RESULT_APPLICATION_ERROR:
		return health.AppError, true
	}
	return 0, false
}

func reportCause(r lbagentv1.Result) string {
	if r == lbagentv1.Result_RESULT_CONNECT_FAILURE {
		return "reported: no connection"
	}
	return "reported: call failed"
}

// reportLimit bounds outcomes per caller of a door and second: for each caller the time at which all it reported so far would have been in rate (GCRA). A time that has
// passed says nothing and may be dropped.
type reportLimit struct {
	mu sync.Mutex

	due map[caller]time.Time
}

const maxReporters = 1024

func (l *reportLimit) allow(who caller, n, perSecond int, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	due := l.due[who]
	if due.Before(now) {
		due = now
	}
	next := due.Add(time.Duration(n) * time.Second / time.Duration(perSecond))
	if next.Sub(now) > time.Second && next.Sub(now) > time.Duration(n)*time.Second/time.Duration(perSecond) {
		return false
	}
	if l.due == nil {
		l.due = map[caller]time.Time{}
	}
	if _, known := l.due[who]; !known && len(l.due) >= maxReporters {
		for u, t := range l.due {
			if t.Before(now) {
				delete(l.due, u)
			}
		}
		if len(l.due) >= maxReporters {
			return false
		}
	}
	l.due[who] = next
	return true
}

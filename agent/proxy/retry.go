package proxy

import (
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
)

// Retry is when a call that has reached a backend is sent to another one (4.2). The zero value is never.
type Retry struct {
	On            []string // words of retryPolicyOf
	Max           int      // of one call
	BudgetPercent int      // of the service's calls, beside 3 per second
}

// retryReason is why a call was sent on. The words are those of metrics.
type retryReason uint8

const (
	becauseConnect retryReason = iota // no connection, or no stream on one, in time (4.1, 4.4)
	becauseRefused                    // REFUSED_STREAM
	becauseGoaway                     // GOAWAY with a lower last stream id
	becauseLost                       // a connection that closed before a byte of the answer, or before anything was written
	becausePolicy                     // 4.2
	reasons
)

func (r retryReason) String() string {
	return [...]string{"connect", "refused_stream", "goaway", "connection_lost", "policy"}[r]
}

// retryPolicy is a checked Retry; nil is never.
//
// There is no time between attempts: a retry goes to another backend, which has done nothing to be spared, and the budget is what keeps an outage from being
// doubled.
type retryPolicy struct {
	grpc    uint32 // bit n: trailers-only with grpc-status n
	http    []int
	reset   bool // no answer at all
	max     int
	percent int
}

// retryPolicyOf reads the words of retry.on.
func retryPolicyOf(r Retry) (*retryPolicy, error) {
	p := &retryPolicy{max: r.Max, percent: r.BudgetPercent}
	for _, w := range r.On {
		switch w {
		case "reset":
			p.reset = true
		case "429", "500", "502", "503", "504":
			n, _ := strconv.Atoi(w)
			p.http = append(p.http, n)
		case "cancelled":
			p.grpc |= 1 << codeCancelled
		case "unknown":
			p.grpc |= 1 << codeUnknown
		case "resource_exhausted":
			p.grpc |= 1 << codeExhausted
		case "aborted":
			p.grpc |= 1 << codeAborted
		case "internal":
			p.grpc |= 1 << codeInternal
		case "unavailable":
			p.grpc |= 1 << codeUnavailable
		default:
			return nil, fmt.Errorf("retry on %q: not an answer that can be retried", w)
		}
	}
	if len(r.On) == 0 || r.Max <= 0 {
		return nil, nil
	}
	return p, nil
}

// answers reports whether a response is to be retried. grpcStatus is that of trailers-only, -1 for any other response: what has begun with a message can't
// be taken back.
func (p *retryPolicy) answers(status, grpcStatus int) bool {
	return slices.Contains(p.http, status) || grpcStatus > 0 && grpcStatus < 32 && p.grpc>>grpcStatus&1 != 0
}

// retriesReset reports whether no answer at all is to be retried.
func (p *retryPolicy) retriesReset() bool { return p != nil && p.reset }

const (
	// freeRetries per second are allowed whatever the number of calls is, so that a service with few calls has retries too.
	freeRetries = 3
	// savedRetries bounds what calls without a retry save up: as many may come at once when a backend dies.
	savedRetries = 100
)

// retryBudget bounds the policy retries of one service, over all loops. Two atomic numbers and no lock: loops and HTTP/1.1 share it, and only services that ask
// for retries pay for it, one addition per call.
type retryBudget struct {
	born   time.Time    // beginning of next's time
	earned atomic.Int64 // hundredths of retries, by calls
	next   atomic.Int64 // when the free ones will all be there again, since born
}

// earn notes a call of which percent hundredths may be retried.
func (b *retryBudget) earn(percent int) {
	if b.earned.Load() < savedRetries*100 { // loops that add at once may exceed it by a call each
		b.earned.Add(int64(percent))
	}
}

// take reports whether there is a retry left, and takes it.
func (b *retryBudget) take(now time.Time) bool {
	for {
		n := b.earned.Load()
		if n < 100 {
			break
		}
		if b.earned.CompareAndSwap(n, n-100) {
			return true
		}
	}
	t := int64(now.Sub(b.born))
	for {
		next := b.next.Load()
		then := max(next, t) + int64(time.Second/freeRetries)
		if then > t+int64(time.Second) {
			return false
		}
		if b.next.CompareAndSwap(next, then) {
			return true
		}
	}
}

const (
	// notKept ends the sentence about a call that could have gone elsewhere (4.3), overBudget that about one that could have been retried.
	notKept    = "; more of the request was sent than is kept for a retry"
	overBudget = "; the budget for retries is used up"
)

// another is the backend for one more attempt of a call that policy p wants to retry, out of the budget; else it says why there is none, for the end of a sentence.
// An answer at hand is better than a try at a backend that is out.
func (rt *route) another(p *retryPolicy, now time.Time, key uint64, tried []*health.State, retries int, kept bool) (b *table.Backend, whyNot string) {
	switch {
	case retries >= p.max:
		return nil, fmt.Sprintf("; it was the last of %d retries", retries)
	case !kept:
		return nil, notKept
	}
	b = rt.svc.View().PickFor(now, key, tried)
	switch {
	case b == nil || !b.Verdict.Usable():
		return nil, "; no other backend is usable"
	case !rt.budget.take(now):
		return nil, overBudget
	}
	return b, ""
}

// tellDenied tells that a service's budget is used up, at most once in 10 s.
func (p *Proxy) tellDenied(rt *route, percent int, now time.Time) {
	period := now.Unix() / int64(tellEvery/time.Second)
	if p.events == nil || rt.denied.Swap(period) == period {
		return
	}
	p.log.Warn("the budget for retries is used up: what fails is not tried again", "service", rt.name, "budget_percent", percent)
	p.events.Add(event.Event{
		Time: now, Kind: event.Retry, Service: rt.name,
		Detail: fmt.Sprintf("the budget for retries is used up (%d%% of the calls and %d/s): what fails is not tried again", percent, freeRetries),
	})
}

package localapi

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/lbagent/lbagent/agent/calls"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

const (
	maxTaps       = 8    // at once: each call that they want costs each of them something
	tapPerSecond  = 100  // more than a person reads
	tapMost       = 1000 // of a program
	tapBuffer     = 256  // calls for a reader that falls behind
	tellLeftEvery = time.Second
)

// Tap sends calls as they end.
func (a adminService) Tap(r *lbagentv1.TapRequest, stream grpc.ServerStreamingServer[lbagentv1.TapResponse]) error {
	s, ctx := a.s, stream.Context()
	if s.cfg.Calls == nil {
		return status.Error(codes.Unimplemented, "this agent can't show calls")
	}
	f, err := newCallFilter(r)
	if err != nil {
		return invalid(r.Service, "%v", err)
	}
	if r.Service != "" && s.cfg.Table.Lookup(r.Service) == nil {
		return failure(codes.NotFound, reasonUnknown, r.Service, "service %q isn't followed; `lbagent services` names those that are", r.Service)
	}
	defer s.taps.Add(-1)
	if s.taps.Add(1) > maxTaps {
		return failure(codes.ResourceExhausted, reasonTooManyStreams, r.Service, "%d taps are open already, which is the most", maxTaps)
	}
	t := &callTap{callFilter: f, most: int64(r.PerSecond), found: make(chan calls.Record, tapBuffer)}
	defer s.cfg.Calls.Add(r.Service, t.see)()
	if err := stream.SendHeader(metadata.MD{}); err != nil { // from now on nothing is missed
		return err
	}
	return t.send(ctx, s, stream)
}

// callTap is one who looks at calls.
type callTap struct {
	callFilter
	most   int64 // a second
	found  chan calls.Record
	left   atomic.Uint64 // calls that were left out, and not told of yet
	second atomic.Int64
	taken  atomic.Int64 // in that second
}

// see runs on event loops: it copies a call into the buffer, if there is room.
func (t *callTap) see(r *calls.Record) {
	if !t.wants(r) {
		return
	}
	if t.take(r.Time.Add(r.Total).Unix()) {
		select {
		case t.found <- *r:
			return
		default:
		}
	}
	t.left.Add(1)
}

// take counts a call of this second. Loops that begin a second at once may let a call too many pass each.
func (t *callTap) take(second int64) bool {
	if last := t.second.Load(); second > last && t.second.CompareAndSwap(last, second) {
		t.taken.Store(0)
	}
	return t.taken.Add(1) <= t.most
}

// send sends what was found until ctx ends.
func (t *callTap) send(ctx context.Context, s *Server, stream grpc.ServerStreamingServer[lbagentv1.TapResponse]) error {
	tick := time.NewTicker(tellLeftEvery)
	defer tick.Stop()
	for {
		resp := &lbagentv1.TapResponse{}
		select {
		case r := <-t.found:
			resp.Call = callInfo(&r)
		case <-tick.C:
			if t.left.Load() == 0 {
				continue
			}
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.stopping.Done():
			return s.goodbyeError()
		}
		resp.LeftOut = t.left.Swap(0)
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// callInfo is r in the API's form.
func callInfo(r *calls.Record) *lbagentv1.Call {
	c := &lbagentv1.Call{
		Time: stamp(r.Time), Service: r.Service, Protocol: r.Protocol, Client: r.Client, Method: r.Method, Path: r.Path, Host: r.Host,
		Attempts: uint32(r.Attempts), Status: int32(r.Status), Total: durationpb.New(r.Total), BytesIn: r.In, BytesOut: r.Out,
		EndedBy: r.By.String(), Phase: r.Phase.String(), Cause: r.Cause,
	}
	if r.Backend.IsValid() {
		c.Address = r.Backend.String()
	}
	if r.GRPC >= 0 {
		c.GrpcStatus = new(int32(r.GRPC))
	}
	if r.Wait > 0 {
		c.Wait = durationpb.New(r.Wait)
	}
	if r.FirstByte > 0 {
		c.FirstByte = durationpb.New(r.FirstByte)
	}
	return c
}

// callFilter says which calls somebody wants to see.
type callFilter struct {
	backend netip.AddrPort
	slow    time.Duration
	any     bool // of whatever status
	failed  bool
	http    []int // statuses, and classes: 5 is 5xx
	grpc    []int
}

func newCallFilter(r *lbagentv1.TapRequest) (f callFilter, err error) {
	if f.backend, err = parseOnly(r.Address); err != nil {
		return f, err
	}
	if r.PerSecond > tapMost {
		return f, fmt.Errorf("per_second is %d, the most is %d", r.PerSecond, tapMost)
	}
	if r.PerSecond == 0 {
		r.PerSecond = tapPerSecond
	}
	if f.slow = r.Slow.AsDuration(); f.slow < 0 {
		return f, fmt.Errorf("slow: %v is negative", f.slow)
	}
	f.any = len(r.Statuses) == 0
	for _, word := range r.Statuses {
		if !f.add(strings.ToLower(word)) {
			return f, fmt.Errorf("status %q: an HTTP status (503), a class (5xx), a gRPC status (unavailable, 14), or error", word)
		}
	}
	return f, nil
}

// add reads one word.
func (f *callFilter) add(word string) bool {
	if word == "error" {
		f.failed = true
		return true
	}
	if class, ok := strings.CutSuffix(word, "xx"); ok {
		n, err := strconv.Atoi(class)
		f.http = append(f.http, n)
		return err == nil && n >= 1 && n <= 5
	}
	n, err := strconv.Atoi(word)
	if err == nil && n >= 100 && n <= 999 {
		f.http = append(f.http, n)
		return true
	}
	names := grpcStatuses()
	if err != nil {
		n = slices.Index(names, strings.NewReplacer("-", "_", "canceled", "cancelled").Replace(word))
	}
	f.grpc = append(f.grpc, n)
	return n >= 0 && n < len(names)
}

// grpcStatuses are the words of gRPC's statuses, by number.
func grpcStatuses() []string {
	return []string{
		"ok", "cancelled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists", "permission_denied", "resource_exhausted",
		"failed_precondition", "aborted", "out_of_range", "unimplemented", "internal", "unavailable", "data_loss", "unauthenticated",
	}
}

func (f *callFilter) wants(r *calls.Record) bool {
	switch {
	case r.Total < f.slow, f.backend.IsValid() && r.Backend != f.backend:
		return false
	case f.any, f.failed && r.Failed():
		return true
	case r.GRPC >= 0 && slices.Contains(f.grpc, r.GRPC):
		return true
	}
	return r.Status > 0 && (slices.Contains(f.http, r.Status) || slices.Contains(f.http, r.Status/100))
}

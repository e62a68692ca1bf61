package localapi

import (
	"math"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/lbagent/lbagent/agent/table"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

const (
	maxStats      = 64 // streams at once: each second of one is a look at all services
	statsEvery    = time.Second
	statsLeast    = 200 * time.Millisecond
	statsMost     = time.Minute
	trafficStale  = 100 * time.Millisecond // how old an answer of all loops may be: they are asked once for all streams
	recentSeconds = 10                     // the window of health.Snapshot.Recent
)

// ServiceTraffic is what has gone through the proxy to one service since its start.
type ServiceTraffic struct {
	Service       string
	Calls, Errors uint64
	In, Out       uint64 // bytes of tcp
	Connections   int    // of clients, now
	// Latency counts requests, not connections of tcp: Latency[i] those up to Bounds[i] and above the bound before; the last has no bound.
	Latency    []uint64
	Bounds     []time.Duration
	LatencySum time.Duration
}

// trafficCache keeps the last answer of all loops for a moment.
type trafficCache struct {
	mu sync.Mutex

	at  time.Time
	all map[string]*ServiceTraffic
}

// traffic returns what has gone through the proxy, by service.
func (s *Server) trafficNow() map[string]*ServiceTraffic {
	if s.cfg.Traffic == nil {
		return nil
	}
	c := &s.traffic
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := s.now(); c.all == nil || now.Sub(c.at) >= trafficStale {
		list := s.cfg.Traffic()
		c.at, c.all = now, make(map[string]*ServiceTraffic, len(list))
		for i := range list {
			c.all[list[i].Service] = &list[i]
		}
	}
	return c.all
}

// Stats sends counters and rates again and again.
func (t statusService) Stats(r *lbagentv1.StatsRequest, stream grpc.ServerStreamingServer[lbagentv1.StatsResponse]) error {
	s, ctx := t.s, stream.Context()
	every := statsEvery
	if r.Interval != nil {
		every = r.Interval.AsDuration()
	}
	if every < statsLeast || every > statsMost {
		return invalid(r.Service, "interval: %v, allowed are %v to %v", every, statsLeast, statsMost)
	}
	defer s.watched.Add(-1)
	if s.watched.Add(1) > maxStats {
		return failure(codes.ResourceExhausted, reasonTooManyStreams, r.Service, "%d streams of counters are open already, which is the most", maxStats)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	before := moment{}
	for {
		now := moment{at: s.now(), traffic: s.trafficNow()}
		resp, err := s.stats(r.Service, before, now)
		if err != nil {
			return err
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
		before = now
		select {
		case <-tick.C:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.stopping.Done():
			return s.goodbyeError()
		}
	}
}

// moment is what was counted by some time.
type moment struct {
	at      time.Time
	traffic map[string]*ServiceTraffic
}

// stats is one answer: what is counted now, and the rates since before.
func (s *Server) stats(only string, before, now moment) (*lbagentv1.StatsResponse, error) {
	resp := &lbagentv1.StatsResponse{Time: stamp(now.at)}
	over := time.Duration(0)
	if !before.at.IsZero() {
		over = max(now.at.Sub(before.at), time.Millisecond)
		resp.Over = durationpb.New(over)
	}
	services := s.cfg.Table.Services()
	if only != "" {
		svc := s.cfg.Table.Lookup(only)
		if svc == nil {
			return nil, failure(codes.NotFound, reasonUnknown, only, "service %q isn't followed; `lbagent services` names those that are", only)
		}
		services = []*table.Service{svc}
		resp.Backends = s.backendStats(svc.View(), now.at)
	}
	for _, svc := range services {
		resp.Services = append(resp.Services, serviceStats(svc, before.traffic[svc.Name()], now.traffic[svc.Name()], over))
	}
	return resp, nil
}

// serviceStats is one service's part. was and is may be nil: nothing came to it.
func serviceStats(svc *table.Service, was, is *ServiceTraffic, over time.Duration) *lbagentv1.ServiceStats {
	v := svc.View()
	out := &lbagentv1.ServiceStats{Name: svc.Name(), Backends: uint32(v.Total), Usable: uint32(v.Usable), Ready: v.Ready, Panic: v.Panic}
	if is == nil {
		return out
	}
	out.Calls, out.Errors, out.BytesIn, out.BytesOut, out.Connections = is.Calls, is.Errors, is.In, is.Out, uint32(is.Connections)
	if over == 0 {
		return out
	}
	if was == nil {
		was = &ServiceTraffic{Latency: make([]uint64, len(is.Latency))}
	}
	// A loop that did not answer in time is missing in a sum: then that has gone down, and says nothing.
	if is.Calls < was.Calls || is.Errors < was.Errors || len(was.Latency) != len(is.Latency) || len(is.Bounds) == 0 {
		return out
	}
	out.CallsPerSecond = float64(is.Calls-was.Calls) / over.Seconds()
	out.ErrorsPerSecond = float64(is.Errors-was.Errors) / over.Seconds()
	counts, n := make([]uint64, len(is.Latency)), uint64(0)
	for i := range counts {
		if is.Latency[i] >= was.Latency[i] {
			counts[i] = is.Latency[i] - was.Latency[i]
			n += counts[i]
		}
	}
	if n > 0 {
		out.Mean = durationpb.New(max(0, is.LatencySum-was.LatencySum) / time.Duration(n))
		out.P50 = durationpb.New(quantile(0.5, counts, is.Bounds))
		out.P99 = durationpb.New(quantile(0.99, counts, is.Bounds))
	}
	return out
}

// quantile estimates the q-quantile of a histogram, within a bucket by the logarithm, as its bounds are a geometric row. What is above the last bound counts as that.
func quantile(q float64, counts []uint64, bounds []time.Duration) time.Duration {
	total := uint64(0)
	for _, n := range counts {
		total += n
	}
	rank, below := q*float64(total), 0.0
	for i, n := range counts {
		if n == 0 || below+float64(n) < rank {
			below += float64(n)
			continue
		}
		if i >= len(bounds) {
			break
		}
		high := float64(bounds[i])
		low := high / 2
		if i > 0 {
			low = float64(bounds[i-1])
		}
		return time.Duration(low * math.Pow(high/low, (rank-below)/float64(n)))
	}
	return bounds[len(bounds)-1]
}

// backendStats is what each backend of a view got.
func (s *Server) backendStats(v *table.View, now time.Time) []*lbagentv1.BackendStats {
	infos := s.backends(v, now)
	out := make([]*lbagentv1.BackendStats, v.Len())
	sum := 0.0
	for i, b := range v.Backends() {
		snap := b.State.Snapshot(now)
		sum += snap.Recent
		out[i] = &lbagentv1.BackendStats{
			Backend: infos[i], CallsPerSecond: snap.Recent / recentSeconds, FailedPerSecond: snap.RecentFailed / recentSeconds, Share: snap.Recent,
			Outstanding: uint32(max(0, snap.Outstanding)),
		}
		if snap.LatencyFresh {
			out[i].Latency = durationpb.New(snap.Latency)
		}
	}
	for _, b := range out {
		if sum > 0 {
			b.Share /= sum
		}
	}
	return out
}

package proxy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/loop"
)

// collectPatience bounds how long Stats waits for all loops together.
const collectPatience = time.Second

// Stats are counters of the proxy since its start.
type Stats struct {
	Services      []ServiceStats // sorted by name; those that had a connection
	Loops         []LoopStats
	Clients       int    // client connections now
	ClientsLimit  int    // the most that they may be; 0 = none is set
	Refused       uint64 // client connections over the limit
	Buffered      int64  // bytes parked for peers that don't take them, HTTP/2 (limits.buffered)
	BufferedLimit int64  // the most that Buffered may be; 0 = none is set
	Missing       int    // loops that did not answer in time; their counters are missing
}

// LoopStats are counters of one event loop.
type LoopStats struct {
	Index int
	loop.Stats
}

// ServiceStats are counters of one service.
type ServiceStats struct {
	Service string
	Calls   []CallCount // those that are not 0
	Latency []Latency   // of whole calls; for tcp, of whole connections
	// Overhead is what this agent added to calls of HTTP: from their arrival until they were written to the backend that answered, waits for a connection
	// and earlier attempts included, and from the arrival of the response's head until that was written.
	Overhead  []Latency
	Active    map[string]int
	Sniffed   map[string]uint64 // connections told apart by their first bytes: h2, http1, tcp
	Silent    uint64            // of these, the ones that said nothing for 200 ms (4.9)
	Picks     uint64
	NoBackend uint64            // calls and connections without a usable backend (4.5)
	Retried   map[string]uint64 // attempts after the first, by the reason: connect, refused_stream, goaway, connection_lost, policy
	Denied    uint64            // policy retries that the budget had no room for (4.2)
	In, Out   uint64            // tcp: bytes from clients, and to them
	// Protections counts what was not put up with, by kind: resets, frames, headers, malformed, streams, slow, connections, buffered.
	Protections map[string]uint64
	Backends    BackendConns
}

// BackendConns are the HTTP/2 connections to the backends of one service, of all loops.
type BackendConns struct {
	Open   int
	Opened uint64            // those whose SETTINGS came
	Closed map[string]uint64 // of these, by cause: idle, backend_removed, replaced, goaway, closed, error, protocol, hang, stop
	Failed uint64            // connects that failed
}

// CallCount is a number of calls. Protocol is http1, h2, grpc or tcp; Class is 2xx to 5xx, for gRPC ok, client_error, server_error or unavailable (said by
// the agent), for tcp ok or failed.
type CallCount struct {
	Protocol, Class string
	Count           uint64
}

// Failed reports whether they failed by the doing of a backend or of the agent.
func (c CallCount) Failed() bool {
	switch c.Class {
	case "5xx", "server_error", "unavailable", "failed":
		return true
	}
	return false
}

// Latency is a histogram of one protocol: http1, h2 (gRPC as well) or tcp.
type Latency struct {
	Protocol string
	Histogram
}

// snapshot is what one worker, or HTTP/1.1, has.
type snapshot struct {
	services map[string]serviceStats
	loop     LoopStats
}

// Stats collects the counters of all loops. It waits at most a second; a loop that has ended gives its last ones.
func (p *Proxy) Stats() Stats {
	out := Stats{Clients: int(p.clients.Load()), Refused: p.refused.Load(), Buffered: max(0, p.parked.Load())}
	l := p.limits.Load()
	out.ClientsLimit, out.BufferedLimit = l.Connections, l.Buffered
	if !p.running.Load() {
		return out
	}
	sum := map[string]*serviceStats{}
	merge := func(s snapshot) {
		for name, one := range s.services {
			if sum[name] == nil {
				sum[name] = &serviceStats{}
			}
			sum[name].add(&one)
		}
	}
	answers := make(chan snapshot, len(p.workers))
	patience := time.NewTimer(collectPatience)
	defer patience.Stop()
	for _, w := range p.workers {
		if !w.loop.Post(func() { answers <- w.snapshot() }) {
			<-w.ended // it refuses posts only on its way out
			answers <- w.snapshot()
		}
	}
	for range p.workers {
		select {
		case s := <-answers:
			merge(s)
			out.Loops = append(out.Loops, s.loop)
			continue
		case <-patience.C:
			out.Missing = len(p.workers) - len(out.Loops)
		}
		break
	}
	merge(p.h1.snapshot())
	slices.SortFunc(out.Loops, func(a, b LoopStats) int { return cmp.Compare(a.Index, b.Index) })
	for _, name := range slices.Sorted(maps.Keys(sum)) {
		out.Services = append(out.Services, export(name, sum[name]))
	}
	return out
}

// snapshot copies the counters; on the loop, or after its end.
func (w *worker) snapshot() snapshot {
	s := snapshot{services: make(map[string]serviceStats, len(w.stats)), loop: LoopStats{Index: w.index, Stats: w.loop.Stats()}}
	for name, one := range w.stats {
		s.services[name] = one.clone()
	}
	return s
}

func export(name string, s *serviceStats) ServiceStats {
	out := ServiceStats{
		Service: name, Silent: s.silent, Picks: s.picks, NoBackend: s.noBackend, Retried: map[string]uint64{}, Denied: s.denied, In: s.in, Out: s.out,
		Active: map[string]int{}, Sniffed: map[string]uint64{}, Protections: map[string]uint64{},
	}
	out.Backends = BackendConns{Open: s.backendConns, Opened: s.backendOpened, Closed: map[string]uint64{}, Failed: s.connectsFailed}
	for why := range closeCauses {
		out.Backends.Closed[why.String()] = s.backendClosed[why]
	}
	for k := range protections {
		out.Protections[k.String()] = s.guards[k].count
	}
	for i, n := range s.retried {
		out.Retried[retryReason(i).String()] = n
	}
	for k := range protocols {
		for c := range classes {
			if n := s.calls[k][c]; n > 0 {
				out.Calls = append(out.Calls, CallCount{c.label(k), c.String(), n})
			}
		}
		if h := s.latency[k]; h != nil {
			out.Latency = append(out.Latency, Latency{k.String(), h.export()})
		}
		if h := s.overhead[k]; h != nil {
			out.Overhead = append(out.Overhead, Latency{k.String(), h.export()})
		}
		out.Active[k.String()] = s.active[k]
		out.Sniffed[k.String()] = s.sniffed[k]
	}
	return out
}

// Hints are sentences for `explain` about how a service's connections were understood (4.9).
func (p *Proxy) Hints(service string) []string {
	for _, s := range p.Stats().Services {
		if s.Service == service && s.Silent > 0 {
			n, were := fmt.Sprintf("%d connections", s.Silent), "were"
			if s.Silent == 1 {
				n, were = "1 connection", "was"
			}
			return []string{fmt.Sprintf("%s %s silent for 200 ms and treated as tcp; set protocol: tcp to skip the wait", n, were)}
		}
	}
	return nil
}

package agent

import (
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/agent/admin"
	"github.com/lbagent/lbagent/agent/proxy"
	"github.com/lbagent/lbagent/localapi"
)

// proxyStats is what went through the proxy, in the words of metrics.
func (a *Agent) proxyStats() admin.Proxy {
	stats := a.proxy.Stats()
	out := admin.Proxy{
		LatencyBounds: proxy.LatencyBounds(), OverheadBounds: proxy.OverheadBounds(), Clients: stats.Clients, ClientsLimit: stats.ClientsLimit,
		Refused: stats.Refused, Buffered: stats.Buffered, BufferedLimit: stats.BufferedLimit, Missing: stats.Missing,
	}
	for _, l := range stats.Loops {
		out.Loops = append(out.Loops, admin.Loop{Index: l.Index, Busy: l.Busy, Wakeups: l.Wakeups, Conns: l.Conns})
	}
	for _, s := range stats.Services {
		calls := admin.Calls{
			Service: s.Service, Active: s.Active, NoBackend: s.NoBackend, Retried: s.Retried, Denied: s.Denied, In: s.In, Out: s.Out, Protections: s.Protections,
			Sniffed: s.Sniffed, Silent: s.Silent, Latencies: latencies(s.Latency), Overheads: latencies(s.Overhead),
			Backends: admin.BackendConns{Open: s.Backends.Open, Opened: s.Backends.Opened, Failed: s.Backends.Failed, Closed: s.Backends.Closed},
		}
		for _, c := range s.Calls {
			calls.Codes = append(calls.Codes, admin.Code{Protocol: c.Protocol, Class: c.Class, Count: c.Count})
		}
		out.Services = append(out.Services, calls)
	}
	return out
}

func latencies(all []proxy.Latency) []admin.Latency {
	out := make([]admin.Latency, 0, len(all))
	for _, l := range all {
		out = append(out, admin.Latency{Protocol: l.Protocol, Histogram: admin.Histogram{Buckets: l.Buckets, Native: l.Native, None: l.None, Sum: l.Sum}})
	}
	return out
}

// askStats is what the ask door has to do, in the words of metrics.
func (a *Agent) askStats() admin.Ask {
	s := a.api.Stats()
	out := admin.Ask{Connections: s.Connections, Refused: s.Refused, Picks: s.Picks, Reports: s.Reports}
	for _, m := range s.Methods {
		out.Methods = append(out.Methods, admin.Method{Name: m.Name, Open: m.Open, Ended: m.Ended})
	}
	return out
}

// counts are what the process did with its configuration and its successors.
type counts struct {
	generation, reloads, refused, upgradesFailed atomic.Uint64
	applied                                      atomic.Int64 // when the configuration in force came into force
}

// inForce notes that another configuration is.
func (c *counts) inForce(now time.Time) {
	c.generation.Add(1)
	c.applied.Store(now.UnixNano())
}

// processStats is what is known of the process.
func (a *Agent) processStats() admin.Process {
	c := &a.counts
	return admin.Process{
		Generation: c.generation.Load(), Reloads: c.reloads.Load(), Refused: c.refused.Load(), Applied: time.Unix(0, c.applied.Load()),
		CrashLoop: int(a.loop.Load()), TookOver: a.from != nil, Predecessor: a.follows.Load(), UpgradesFailed: c.upgradesFailed.Load(),
	}
}

// traffic is the same in the words of the local API.
func (a *Agent) traffic() []localapi.ServiceTraffic {
	all := a.proxy.Stats().Services
	out := make([]localapi.ServiceTraffic, len(all))
	bounds := proxy.LatencyBounds()
	for i, s := range all {
		t := localapi.ServiceTraffic{Service: s.Service, In: s.In, Out: s.Out, Bounds: bounds, Latency: make([]uint64, len(bounds)+1)}
		for _, c := range s.Calls {
			t.Calls += c.Count
			if c.Failed() {
				t.Errors += c.Count
			}
		}
		for _, n := range s.Active {
			t.Connections += n
		}
		for _, l := range s.Latency {
			if l.Protocol == "tcp" {
				continue // how long a connection lasts says nothing
			}
			for j, n := range l.Buckets {
				t.Latency[j] += n
			}
			t.LatencySum += l.Sum
		}
		out[i] = t
	}
	return out
}

package agent

import (
	"github.com/lbagent/lbagent/agent/admin"
	"github.com/lbagent/lbagent/agent/proxy"
)

// proxyStats is what went through the proxy, in the words of metrics.
func (a *Agent) proxyStats() admin.Proxy {
	stats := a.proxy.Stats()
	out := admin.Proxy{LatencyBounds: proxy.LatencyBounds(), Clients: stats.Clients, Refused: stats.Refused, Buffered: stats.Buffered, Missing: stats.Missing}
	for _, s := range stats.Services {
		calls := admin.Calls{
			Service: s.Service, Active: s.Active, NoBackend: s.NoBackend, Retried: s.Retried, Denied: s.Denied, In: s.In, Out: s.Out, Protections: s.Protections,
			Backends: admin.BackendConns{Open: s.Backends.Open, Opened: s.Backends.Opened, Failed: s.Backends.Failed, Closed: s.Backends.Closed},
		}
		for _, c := range s.Calls {
			calls.Codes = append(calls.Codes, admin.Code{Protocol: c.Protocol, Class: c.Class, Count: c.Count})
		}
		for _, l := range s.Latency {
			calls.Latencies = append(calls.Latencies, admin.Latency{Protocol: l.Protocol, Buckets: l.Buckets, Sum: l.Sum})
		}
		out.Services = append(out.Services, calls)
	}
	return out
}

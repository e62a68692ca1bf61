package agent

import (
	"context"
	"net/netip"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// connections are the proxy's connections to the backends of a service, in the words of the API.
func (a *Agent) connections(ctx context.Context, service string, only netip.AddrPort) map[netip.AddrPort]*lbagentv1.BackendConnections {
	out := map[netip.AddrPort]*lbagentv1.BackendConnections{}
	for addr, c := range a.proxy.Connections(ctx, service, only) {
		b := &lbagentv1.BackendConnections{Open: uint32(c.Open), Opened: c.Opened, Closed: c.Closed, Failed: c.Failed}
		for _, e := range c.Ends {
			b.LastEnded = append(b.LastEnded, &lbagentv1.EndedConnection{
				At: timestamppb.New(e.At), Lasted: durationpb.New(e.Lasted), Protocol: e.Protocol, Cause: e.Cause,
			})
		}
		out[addr] = b
	}
	return out
}

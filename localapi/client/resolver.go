package client

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// Scheme is that of targets: `lbagent:///user`.
const Scheme = "lbagent"

// roundRobin is what the resolver suggests; a ClientConn's own default service config is used only if the resolver suggests none.
const roundRobin = `{"loadBalancingConfig":[{"round_robin":{}}]}`

// NewResolverBuilder returns a builder for grpc.WithResolvers, which keeps the ClientConn's addresses those of the agent's usable backends. Nothing is
// registered globally. Close the ClientConns before c.
//
//	c, err := client.New(client.Config{})
//	cc, err := grpc.NewClient("lbagent:///user", grpc.WithResolvers(client.NewResolverBuilder(c)), ...)
func NewResolverBuilder(c *Client) resolver.Builder { return builder{c} }

type builder struct{ c *Client }

// Scheme returns Scheme.
func (builder) Scheme() string { return Scheme }

// Build follows the target's service.
func (b builder) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	service := target.Endpoint()
	if service == "" || target.URL.Host != "" {
		return nil, fmt.Errorf("lbagent client: target %q: want %s:///SERVICE", target.String(), Scheme)
	}
	w, err := b.c.Watch(service)
	if err != nil {
		return nil, err
	}
	r := &follower{w: w, cc: cc}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.wg.Go(func() { r.run(ctx) })
	return r, nil
}

// follower is the resolver of one ClientConn.
type follower struct {
	w      *Watch
	cc     resolver.ClientConn
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (r *follower) run(ctx context.Context) {
	config := r.cc.ParseServiceConfig(roundRobin)
	for {
		list, err := r.w.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrClosed):
			r.cc.ReportError(err)
			return
		case err != nil:
			// Without the code: grpc turns what a resolver may not say of a call, such as NotFound, into Internal. This way it is Unavailable, and calls that
			// wait for ready go on waiting.
			r.cc.ReportError(errors.New("lbagent: " + status.Convert(err).Message()))
		default:
			state := stateOf(list)
			state.ServiceConfig = config
			_ = r.cc.UpdateState(state) // an error asks for ResolveNow, and the watch needs no asking
		}
	}
}

// stateOf gives the usable backends; in panic the agent says that all which may be tried are.
func stateOf(list *lbagentv1.WatchResponse) resolver.State {
	var s resolver.State
	for _, b := range list.Backends {
		if b.Usable {
			a := resolver.Address{Addr: b.Address}
			s.Addresses = append(s.Addresses, a)
			s.Endpoints = append(s.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{a}})
		}
	}
	return s
}

// ResolveNow does nothing: changes come by themselves.
func (r *follower) ResolveNow(resolver.ResolveNowOptions) {}

// Close ends this follower only.
func (r *follower) Close() {
	r.cancel()
	r.wg.Wait()
	r.w.Close()
}

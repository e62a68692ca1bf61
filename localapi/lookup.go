package localapi

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// How long a batch may be spent. In panic the agent knows least, and learns fast.
const (
	validFor        = 10 * time.Second
	validForInPanic = time.Second
)

// askedEvery is how often a watch says that its service is in use (2.3 forgets after 5 min).
const askedEvery = time.Minute

type lookupService struct {
	lbagentv1.UnimplementedLookupServiceServer
	s *Server
}

// service returns the named service with a list, following it on demand. The first ask waits for the first list, but not long (1.15).
func (s *Server) service(ctx context.Context, now time.Time, name string) (*table.Service, *table.View, error) {
	svc, err := s.followed(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	svc.Asked(now)
	v := svc.View()
	if v.Ready && !v.Gone {
		return svc, v, nil
	}
	// Only asks within FirstList of the service's beginning wait; later ones hear at once that there is no list.
	wait := time.NewTimer(v.At.Add(s.limits.FirstList).Sub(now))
	defer wait.Stop()
	s.hasten(v)
	for {
		v, changed := svc.Changed()
		switch {
		case v.Gone:
			return nil, nil, gone(name)
		case v.Ready:
			return svc, v, nil
		}
		select {
		case <-changed:
		case <-wait.C:
			return nil, nil, failure(codes.Unavailable, reasonNotReady, name,
				"%s: no list has come yet; `lbagent status` says whether etcd is reached", name)
		case <-ctx.Done():
			return nil, nil, status.FromContextError(ctx.Err()).Err()
		case <-s.stopping.Done():
			return nil, nil, s.goodbyeError()
		}
	}
}

// hasten has the first list of a service come, if that depends on nobody else.
func (s *Server) hasten(v *table.View) {
	if !v.Ready && !v.Gone && s.cfg.Hasten != nil {
		s.cfg.Hasten(v.Service.Name())
	}
}

// followed returns the named service, which may have no list yet.
func (s *Server) followed(ctx context.Context, name string) (*table.Service, error) {
	if svc := s.cfg.Table.Lookup(name); svc != nil {
		return svc, nil
	}
	if !service.ValidName(name) {
		return nil, invalid("", "service %q: a name has 1 to %d of A-Z a-z 0-9 . _ : @ -", name, service.MaxNameLength)
	}
	if s.cfg.Follow == nil {
		return nil, failure(codes.NotFound, reasonUnknown, name, "no such service: %q is not configured; `lbagent services` names those that are", name)
	}
	p, err := peerOf(ctx)
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	err = s.cfg.Follow(ctx, name, p.UID)
	switch {
	case err == nil:
	case errors.Is(err, ErrUnknownService):
		return nil, failure(codes.NotFound, reasonUnknown, name, "%v", err)
	case errors.Is(err, ErrTooManyServices):
		return nil, failure(codes.ResourceExhausted, reasonTooManyServices, name, "service %q: %v", name, err)
	default:
		return nil, failure(codes.Unavailable, reasonNotReady, name, "service %q can't be followed: %v", name, err)
	}
	if svc := s.cfg.Table.Lookup(name); svc != nil {
		return svc, nil
	}
	return nil, gone(name) // removed in between
}

func gone(name string) error {
	return failure(codes.NotFound, reasonUnknown, name, "service %q was removed", name)
}

func (s *Server) goodbyeError() error {
	return failure(codes.Unavailable, reasonStopping, "", "%v", context.Cause(s.stopping))
}

// Pick gives one backend, or a batch. It doesn't touch what is outstanding: the agent won't see the calls (3.5).
func (l lookupService) Pick(ctx context.Context, r *lbagentv1.PickRequest) (*lbagentv1.PickResponse, error) {
	switch {
	case r.Count > maxCount:
		return nil, invalid(r.Service, "count is %d, the most is %d", r.Count, maxCount)
	case len(r.Exclude) > maxExclude:
		return nil, invalid(r.Service, "exclude has %d addresses, the most is %d", len(r.Exclude), maxExclude)
	case len(r.HashKey) > maxHashKey:
		return nil, invalid(r.Service, "hash_key has %d bytes, the most is %d", len(r.HashKey), maxHashKey)
	}
	s, now := l.s, l.s.now()
	_, v, err := s.service(ctx, now, r.Service)
	if err != nil {
		return nil, err
	}
	tried, err := excluded(v, r)
	if err != nil {
		return nil, err
	}
	resp := &lbagentv1.PickResponse{Provenance: provenance(v, now), ValidFor: durationpb.New(validFor)}
	if v.Panic {
		resp.ValidFor = durationpb.New(validForInPanic)
	}
	key := uint64(0)
	if v.Service.Spec().Policy == picker.Hash {
		key = picker.KeyOf(r.HashKey)
	}
	if r.Count > 1 && key == 0 {
		resp.Picks = s.batch(v, now, int(r.Count), tried)
	}
	if resp.Picks == nil {
		count := uint32(1)
		if key != 0 { // all of them belong there
			count = max(1, r.Count)
		}
		b := v.Advise(now, key, tried)
		if b == nil {
			return nil, failure(codes.Unavailable, reasonNoBackend, r.Service, "%s", v.Unusable(now))
		}
		resp.Picks = []*lbagentv1.Picked{{Address: b.Addr.String(), Host: b.Host, Count: count, Metadata: b.Metadata}}
		s.picks.Add(uint64(count))
		v.Service.CountPicks(uint64(count) - 1) // one is counted already
	}
	return resp, nil
}

// excluded finds the states of the addresses that the caller doesn't want; those that v doesn't have are no matter.
func excluded(v *table.View, r *lbagentv1.PickRequest) ([]*health.State, error) {
	var states []*health.State
	for _, text := range r.Exclude {
		addr, err := netip.ParseAddrPort(text)
		if err != nil {
			return nil, invalid(r.Service, "exclude: %q is no host:port address", text)
		}
		if b := v.Find(addr); b != nil {
			states = append(states, b.State)
		}
	}
	return states, nil
}

// batch cuts n picks from the plan; nil if no backend of it is left, so that one pick of last resort is made.
func (s *Server) batch(v *table.View, now time.Time, n int, tried []*health.State) []*lbagentv1.Picked {
	p := s.planOf(v, now).without(tried)
	if len(p.backends) == 0 {
		return nil
	}
	shares := p.cut(n, picker.Random{})
	picked := make([]lbagentv1.Picked, len(shares))
	out := make([]*lbagentv1.Picked, len(shares))
	text := make([]string, len(p.backends))
	for i, sh := range shares {
		b := p.backends[sh.index]
		if text[sh.index] == "" {
			text[sh.index] = b.Addr.String()
		}
		out[i] = &picked[i]
		out[i].Address, out[i].Host, out[i].Count, out[i].Metadata = text[sh.index], b.Host, uint32(sh.n), b.Metadata
	}
	s.picks.Add(uint64(n))
	v.Service.CountPicks(uint64(n))
	return out
}

// List returns every backend with its verdict.
func (l lookupService) List(ctx context.Context, r *lbagentv1.ListRequest) (*lbagentv1.ListResponse, error) {
	now := l.s.now()
	_, v, err := l.s.service(ctx, now, r.Service)
	if err != nil {
		return nil, err
	}
	return &lbagentv1.ListResponse{Service: r.Service, Backends: l.s.backends(v, now), Provenance: provenance(v, now)}, nil
}

// Watch sends each view; one that is published while a slow reader still takes the last is skipped for the next.
func (l lookupService) Watch(r *lbagentv1.WatchRequest, stream grpc.ServerStreamingServer[lbagentv1.WatchResponse]) error {
	s, ctx := l.s, stream.Context()
	svc, err := s.followed(ctx, r.Service)
	if err != nil {
		return err
	}
	svc.Asked(s.now())
	s.hasten(svc.View())
	asked := time.NewTicker(askedEvery)
	defer asked.Stop()
	var sent *table.View
	for {
		v, changed := svc.Changed()
		if v.Gone {
			return gone(r.Service)
		}
		if v.Ready && v != sent {
			now := s.now()
			sent = v
			if err := stream.Send(&lbagentv1.WatchResponse{Service: r.Service, Backends: s.backends(v, now), Provenance: provenance(v, now)}); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-asked.C:
			svc.Asked(s.now())
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.stopping.Done():
			return s.goodbyeError()
		}
	}
}

// Services returns what is followed.
func (l lookupService) Services(context.Context, *lbagentv1.ServicesRequest) (*lbagentv1.ServicesResponse, error) {
	return &lbagentv1.ServicesResponse{Services: l.s.services(l.s.now())}, nil
}

func (s *Server) services(now time.Time) []*lbagentv1.ServiceInfo {
	all := s.cfg.Table.Services()
	out := make([]*lbagentv1.ServiceInfo, len(all))
	for i, svc := range all {
		out[i] = serviceInfo(svc, svc.View(), now)
	}
	return out
}

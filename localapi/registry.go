package localapi

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lbagent/lbagent/agent/registrar"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

const (
	// toldWithin bounds how long an answer waits for etcd to have been told; the caller hears what is missing.
	toldWithin = 3 * time.Second
	maxWait    = time.Minute
)

type registryService struct {
	lbagentv1.UnimplementedRegistryServiceServer
	s *Server
	r *registrar.Registrar
}

// who is the caller, who may register service; "" asks for any.
func (g registryService) who(ctx context.Context, service string) (registrar.Who, error) {
	p, err := peerOf(ctx)
	if err != nil {
		return registrar.Who{}, failure(codes.PermissionDenied, reasonForbidden, service, "%v", err)
	}
	return registrar.Who{UID: p.UID, Admin: p.Admin}, g.s.rights.mayRegister(p, service)
}

// Register takes a registration in and waits for etcd as long as the caller wants.
func (g registryService) Register(ctx context.Context, r *lbagentv1.RegisterRequest) (*lbagentv1.RegisterResponse, error) {
	reg := registration(r.GetRegistration())
	who, err := g.who(ctx, reg.Service)
	if err != nil {
		return nil, err
	}
	if err := g.r.Register(reg, who); err != nil {
		return nil, registryError(reg.Service, err)
	}
	ctx, cancel := context.WithTimeout(ctx, min(max(r.GetWait().AsDuration(), 0), maxWait))
	defer cancel()
	return &lbagentv1.RegisterResponse{Status: registrationStatus(g.r.AwaitAnnounced(ctx, reg.Service, reg.Address))}, nil
}

// Deregister ends registrations of a service, or takes all of the host's out of etcd.
func (g registryService) Deregister(ctx context.Context, r *lbagentv1.DeregisterRequest) (*lbagentv1.DeregisterResponse, error) {
	who, err := g.who(ctx, r.GetService())
	if err != nil {
		return nil, err
	}
	resp := &lbagentv1.DeregisterResponse{}
	if r.GetAll() {
		if !who.Admin {
			return nil, failure(codes.PermissionDenied, reasonForbidden, "", "all registrations are for those who may use the admin socket (%s)", g.s.rights.adminPath)
		}
		for _, s := range g.r.Status() {
			if s.Announced {
				resp.Gone = append(resp.Gone, registrationStatus(s))
			}
		}
		if err := g.r.Withdraw(); err != nil {
			return nil, registryError("", err)
		}
	} else {
		gone, err := g.r.Deregister(r.GetService(), r.GetAddress(), who)
		if err != nil {
			return nil, registryError(r.GetService(), err)
		}
		for _, s := range gone {
			resp.Gone = append(resp.Gone, registrationStatus(s))
		}
	}
	resp.Pending = g.s.told(ctx)
	return resp, nil
}

// told waits until etcd has been told of all changes so far, and says why it hasn't.
func (s *Server) told(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, toldWithin)
	defer cancel()
	if err := s.cfg.Registry.Await(ctx); err != nil {
		return err.Error()
	}
	return ""
}

// Hold registers until the stream ends (5.4). That the agent stops is no end: the registration waits for its holder then.
func (g registryService) Hold(r *lbagentv1.HoldRequest, stream grpc.ServerStreamingServer[lbagentv1.HoldResponse]) error {
	reg := registration(r.GetRegistration())
	who, err := g.who(stream.Context(), reg.Service)
	if err != nil {
		return err
	}
	held, err := g.r.Hold(reg, who)
	if err != nil {
		return registryError(reg.Service, err)
	}
	defer func() {
		if g.s.stopping.Err() == nil {
			held.Release()
		}
	}()
	var told registrar.Status
	for first := true; ; first = false {
		now, changed := held.Status()
		if first || now != told {
			if err := stream.Send(&lbagentv1.HoldResponse{Status: registrationStatus(now)}); err != nil {
				return err
			}
			told = now
		}
		select {
		case <-changed:
		case <-held.Ended():
			return registryError(reg.Service, held.Err())
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-g.s.stopping.Done():
			return g.s.goodbyeError()
		}
	}
}

// Update notes a load.
func (g registryService) Update(ctx context.Context, r *lbagentv1.UpdateRequest) (*lbagentv1.UpdateResponse, error) {
	who, err := g.who(ctx, r.GetService())
	if err != nil {
		return nil, err
	}
	if err := g.r.Update(r.GetService(), r.GetAddress(), int(min(r.GetLoad(), 101)), who); err != nil {
		return nil, registryError(r.GetService(), err)
	}
	return &lbagentv1.UpdateResponse{}, nil
}

// registryError is err as the API says it.
func registryError(service string, err error) error {
	code, reason := codes.Internal, ""
	switch {
	case errors.Is(err, registrar.ErrInvalid):
		code, reason = codes.InvalidArgument, reasonInvalid
	case errors.Is(err, registrar.ErrTaken):
		code, reason = codes.AlreadyExists, reasonTaken
	case errors.Is(err, registrar.ErrReplaced):
		code, reason = codes.Aborted, reasonTaken
	case errors.Is(err, registrar.ErrUnknown):
		code, reason = codes.NotFound, reasonNotRegistered
	case errors.Is(err, registrar.ErrTooMany):
		code, reason = codes.ResourceExhausted, reasonTooManyRegs
	case errors.Is(err, registrar.ErrHandedOn):
		code, reason = codes.Unavailable, reasonStopping
	}
	return failure(code, reason, service, "%v", err)
}

// registration is r as the registrar takes it, and checks it.
func registration(r *lbagentv1.Registration) registrar.Registration {
	p := r.GetProbe()
	return registrar.Registration{
		Service: r.GetService(), Address: r.GetAddress(), Format: r.GetFormat(), Weight: r.GetWeight(), Zone: r.GetZone(), Region: r.GetRegion(),
		Metadata: r.GetMetadata(), HostLoad: r.GetHostLoad(),
		Probe: registrar.Probe{
			Type: p.GetType(), Interval: p.GetInterval().AsDuration(), Timeout: p.GetTimeout().AsDuration(), Rise: small(p.GetRise()), Fall: small(p.GetFall()),
			Port: uint16(min(p.GetPort(), 65535)), Path: p.GetPath(), StatusMin: small(p.GetStatusMin()), StatusMax: small(p.GetStatusMax()), Service: p.GetService(),
		},
	}
}

// small is n as an int that is too large if n is.
func small(n uint32) int { return int(min(n, 1<<20)) }

func registrationStatus(s registrar.Status) *lbagentv1.RegistrationStatus {
	out := &lbagentv1.RegistrationStatus{
		Service: s.Service, Address: s.Address, Key: s.Key, Announced: s.Announced, Draining: s.Draining, Why: s.Why, Since: stamp(s.Since),
		Origin: string(s.Origin), Uid: s.UID, Unclaimed: s.Unclaimed,
	}
	if s.Addr.IsValid() {
		out.ResolvedAddress = s.Addr.String()
	}
	return out
}

// Drain takes the registrations of a service out of service (5.6).
func (a adminService) Drain(ctx context.Context, r *lbagentv1.DrainRequest) (*lbagentv1.DrainResponse, error) {
	if a.s.cfg.Registry == nil {
		return nil, status.Error(codes.Unimplemented, "this agent registers nothing")
	}
	if err := a.s.cfg.Registry.Drain(r.GetService(), r.GetRemove()); err != nil {
		return nil, registryError(r.GetService(), err)
	}
	return &lbagentv1.DrainResponse{Pending: a.s.told(ctx)}, nil
}

// Undrain ends Drain.
func (a adminService) Undrain(ctx context.Context, r *lbagentv1.UndrainRequest) (*lbagentv1.UndrainResponse, error) {
	if a.s.cfg.Registry == nil {
		return nil, status.Error(codes.Unimplemented, "this agent registers nothing")
	}
	was, err := a.s.cfg.Registry.Undrain(r.GetService())
	if err != nil {
		return nil, registryError(r.GetService(), err)
	}
	return &lbagentv1.UndrainResponse{WasDrained: was, Pending: a.s.told(ctx)}, nil
}

package localapi

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lbagent/lbagent/agent/mute"
	"github.com/lbagent/lbagent/agent/service"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// Mute takes a backend out by hand.
func (a adminService) Mute(ctx context.Context, r *lbagentv1.MuteRequest) (*lbagentv1.MuteResponse, error) {
	s := a.s
	if s.cfg.Mutes == nil {
		return nil, status.Error(codes.Unimplemented, "this agent can't mute")
	}
	length := r.Duration.AsDuration()
	if r.Duration != nil && length == 0 {
		return nil, invalid(r.Service, "duration: a mute of no time is none; leave it out for %v", mute.DefaultFor)
	}
	author, err := authorOf(ctx, r.OnBehalfOf)
	if err != nil {
		return nil, err
	}
	if r.Fleet {
		// How much of the service that takes has to be known. Without a list it needs force, so that the error is no news.
		_, _, _ = s.service(ctx, s.now(), r.Service)
	}
	answer, err := s.cfg.Mutes.Mute(ctx, s.now(), mute.Request{
		Service: r.Service, Address: r.Address, For: length, Reason: r.Reason, Author: author, Fleet: r.Fleet, Force: r.Force,
	})
	if err != nil {
		return nil, muteFailure(r.Service, err)
	}
	return &lbagentv1.MuteResponse{Mute: muteInfo(&answer.Mute), Warnings: answer.Warnings}, nil
}

// Unmute takes a mute back.
func (a adminService) Unmute(ctx context.Context, r *lbagentv1.UnmuteRequest) (*lbagentv1.UnmuteResponse, error) {
	s := a.s
	if s.cfg.Mutes == nil {
		return nil, status.Error(codes.Unimplemented, "this agent can't mute")
	}
	author, err := authorOf(ctx, r.OnBehalfOf)
	if err != nil {
		return nil, err
	}
	answer, err := s.cfg.Mutes.Unmute(ctx, s.now(), mute.Request{Service: r.Service, Address: r.Address, Author: author, Fleet: r.Fleet})
	if err != nil {
		return nil, muteFailure(r.Service, err)
	}
	return &lbagentv1.UnmuteResponse{WasMuted: answer.Was, Warnings: answer.Warnings}, nil
}

// Mutes returns what is muted.
func (t statusService) Mutes(context.Context, *lbagentv1.MutesRequest) (*lbagentv1.MutesResponse, error) {
	return &lbagentv1.MutesResponse{Mutes: t.s.mutes()}, nil
}

func (s *Server) mutes() []*lbagentv1.MuteInfo {
	if s.cfg.Mutes == nil {
		return nil
	}
	var out []*lbagentv1.MuteInfo
	for _, m := range s.cfg.Mutes.List() {
		out = append(out, muteInfo(&m))
	}
	return out
}

func muteInfo(m *service.Mute) *lbagentv1.MuteInfo {
	return &lbagentv1.MuteInfo{
		Service: m.Service, Address: m.Addr.String(), Fleet: m.Fleet, Author: m.Author, Host: m.Host, Reason: m.Reason, Since: stamp(m.Since), Until: stamp(m.Until),
	}
}

func muteFailure(name string, err error) error {
	for _, of := range []struct {
		is     error
		code   codes.Code
		reason string
	}{
		{mute.ErrInvalid, codes.InvalidArgument, reasonInvalid},
		{mute.ErrTooMany, codes.ResourceExhausted, reasonTooManyMutes},
		{mute.ErrNeedsForce, codes.FailedPrecondition, reasonNeedsForce},
		{mute.ErrNoFleet, codes.FailedPrecondition, reasonNoFleet},
		{mute.ErrEtcd, codes.Unavailable, reasonEtcdFailed},
	} {
		if errors.Is(err, of.is) {
			return failure(of.code, of.reason, name, "%v", err)
		}
	}
	return status.Error(codes.Internal, err.Error())
}

// authorOf is the name of who calls. Root may say for whom it acts: whoever is root could be anybody, and "root" tells the one who finds a mute nothing.
func authorOf(ctx context.Context, onBehalfOf string) (string, error) {
	p, err := peerOf(ctx)
	if err != nil {
		return "", failure(codes.PermissionDenied, reasonForbidden, "", "%v", err)
	}
	uid := strconv.FormatUint(uint64(p.UID), 10)
	name := "uid " + uid
	if u, err := user.LookupId(uid); err == nil && u.Username != "" {
		name = u.Username
	}
	if p.UID == 0 && onBehalfOf != "" && onBehalfOf != name {
		return fmt.Sprintf("%s (%s)", onBehalfOf, name), nil
	}
	return name, nil
}

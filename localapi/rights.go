package localapi

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// rights says who may change things.
type rights struct {
	self      uint32
	gid       uint32 // 0 = no group
	adminPath string
	register  *atomic.Pointer[[]RegisterRule]
}

func newRights(cfg Config) rights {
	r := rights{self: uint32(os.Getuid()), gid: cfg.AdminGID, adminPath: cfg.AdminSocket, register: new(atomic.Pointer[[]RegisterRule])}
	if cfg.AdminListener != nil {
		r.adminPath = cfg.AdminListener.Addr().String()
	}
	return r
}

// identify returns who connected. Groups are asked for only where they decide something.
func (r rights) identify(raw net.Conn, from kind) (Peer, error) {
	if from == doorTCP {
		return remotePeer(raw)
	}
	c, adminSocket := raw.(*net.UnixConn), from == doorAdmin
	cred, err := peerCred(c)
	if err != nil {
		return Peer{}, err
	}
	p := Peer{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid, Socket: adminSocket}
	if !adminSocket {
		p.groups, err = r.registerGroups(c)
		return p, err
	}
	p.Admin = p.UID == 0 || p.UID == r.self || (r.gid != 0 && p.GID == r.gid)
	if !p.Admin && r.gid != 0 {
		groups, err := peerGroups(c)
		if err != nil {
			return Peer{}, err
		}
		p.Admin = slices.Contains(groups, r.gid)
	}
	return p, nil
}

// remotePeer is who connected by TCP.
func remotePeer(c net.Conn) (Peer, error) {
	from, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return Peer{}, fmt.Errorf("address of the caller: %w", err)
	}
	return Peer{UID: RemoteUID, GID: RemoteUID, Addr: from.Addr().Unmap().WithZone("")}, nil
}

// openTo reports whether p may call the methods of the service, whoever it is. What isn't named here is for administrators.
func openTo(p Peer, service string) bool {
	switch service {
	case lbagentv1.LookupService_ServiceDesc.ServiceName, healthpb.Health_ServiceDesc.ServiceName,
		reflectionv1.ServerReflection_ServiceDesc.ServiceName, reflectionv1alpha.ServerReflection_ServiceDesc.ServiceName:
		return true
	case lbagentv1.StatusService_ServiceDesc.ServiceName:
		return !p.Addr.IsValid()
	}
	return false
}

// authorise is the one gate of both faces and all sockets.
func (s *Server) authorise(ctx context.Context, method string) error {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	p, err := peerOf(ctx)
	switch {
	case err != nil:
		return failure(codes.PermissionDenied, reasonForbidden, "", "%s: %v", method, err)
	case openTo(p, service):
		return nil
	case p.Addr.IsValid():
		return failure(codes.PermissionDenied, reasonForbidden, "", "%s is not served by TCP (api.listen), which has %s only; ask by the agent's sockets on its host",
			service, lbagentv1.LookupService_ServiceDesc.ServiceName)
	case p.Admin:
		return nil
	case service == lbagentv1.RegistryService_ServiceDesc.ServiceName:
		return s.rights.mayRegister(p, "")
	case !p.Socket:
		return failure(codes.PermissionDenied, reasonForbidden, "", "%s is served on the admin socket only (%s)", service, s.rights.adminPath)
	}
	return failure(codes.PermissionDenied, reasonForbidden, "",
		"%s is for root, the agent's user and the agent's group; the caller has uid %d, gid %d", service, p.UID, p.GID)
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	ended := s.counts.begin(info.FullMethod)
	defer func() { ended(err) }()
	if err := s.authorise(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	defer s.recovered(info.FullMethod, &err)
	return handler(ctx, req)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	ended := s.counts.begin(info.FullMethod)
	defer func() { ended(err) }()
	if err := s.authorise(ss.Context(), info.FullMethod); err != nil {
		return err
	}
	defer s.recovered(info.FullMethod, &err)
	return handler(srv, ss)
}

// recovered turns a panic of a handler into an error of that call: a mistake in an answer must not take the proxy's traffic with it.
func (s *Server) recovered(method string, err *error) {
	if r := recover(); r != nil {
		s.log.Error("api handler panicked", "method", method, "cause", r, "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "the agent failed to answer; its log says why")
	}
}

type tapHandle = tap.ServerInHandle

// tap bounds the streams of one caller over all its connections, and those of all, with their headers: each may hold an unfinished request. It runs before the first byte of a
// request is kept.
func (s *Server) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	p, err := peerOf(ctx)
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	who, q, headers := p.caller(), s.quotas[p.door()], headerBytes(info.Header)
	switch q.streams.take(who, 1) {
	case overOwn:
		return nil, status.Errorf(codes.ResourceExhausted, "%v has %d calls open, which is the most", who, q.streams.each)
	case overAll:
		return nil, status.Errorf(codes.ResourceExhausted, "all callers together have %d calls open, which is the most", q.streams.all)
	}
	if q.unfinished.take(who, headers) != within {
		q.streams.give(who, 1)
		return nil, status.Errorf(codes.ResourceExhausted, "the open calls of %v hold too many bytes", who)
	}
	context.AfterFunc(ctx, func() {
		q.streams.give(who, 1)
		q.unfinished.give(who, headers)
	})
	return ctx, nil
}

// headerBytes is the size of a list of headers as RFC 9113 6.5.2 counts it.
func headerBytes(md metadata.MD) (n int) {
	for name, values := range md {
		for _, v := range values {
			n += len(name) + len(v) + 32
		}
	}
	return n
}

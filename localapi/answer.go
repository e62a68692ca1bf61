package localapi

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// The reasons of ErrorInfo; words of the API.
const (
	errorDomain           = "lbagent"
	reasonUnknown         = "SERVICE_UNKNOWN"
	reasonNoBackend       = "NO_USABLE_BACKEND"
	reasonNotReady        = "NOT_READY"
	reasonTooManyServices = "TOO_MANY_SERVICES"
	reasonTooManyReports  = "TOO_MANY_REPORTS"
	reasonInvalid         = "INVALID"
	reasonForbidden       = "FORBIDDEN"
	reasonStopping        = "STOPPING"
	reasonNotReloaded     = "NOT_RELOADED"
	reasonUpgradeFailed   = "UPGRADE_FAILED"
	reasonUpgradeBusy     = "UPGRADE_BUSY"
	reasonNeedsForce      = "NEEDS_FORCE"
	reasonNoFleet         = "NO_FLEET"
	reasonEtcdFailed      = "ETCD_FAILED"
	reasonTooManyMutes    = "TOO_MANY_MUTES"
	reasonNotRegistered   = "NOT_REGISTERED"
	reasonTaken           = "REGISTERED_BY_ANOTHER"
	reasonTooManyRegs     = "TOO_MANY_REGISTRATIONS"
	reasonTooManyStreams  = "TOO_MANY_STREAMS"
)

// failure is an error with a reason for programs and a sentence for people.
func failure(code codes.Code, reason, service, format string, args ...any) error {
	info := &errdetails.ErrorInfo{Reason: reason, Domain: errorDomain}
	if service != "" {
		info.Metadata = map[string]string{"service": service}
	}
	st := status.New(code, fmt.Sprintf(format, args...))
	if with, err := st.WithDetails(info); err == nil {
		st = with
	}
	return st.Err()
}

func invalid(service, format string, args ...any) error {
	return failure(codes.InvalidArgument, reasonInvalid, service, format, args...)
}

// provenance says how old v is and where it comes from.
func provenance(v *table.View, now time.Time) *lbagentv1.Provenance {
	p := &lbagentv1.Provenance{
		Epoch:    v.List.Epoch,
		Revision: v.List.Revision,
		Source:   string(v.Source()),
		Panic:    v.Panic,
	}
	if v.Ready {
		p.Age = durationpb.New(v.Service.Age(now))
	}
	return p
}

// backendInfo is b for callers; usable says whether new calls go there.
func backendInfo(b table.Placed, usable bool, now time.Time) *lbagentv1.Backend {
	out := &lbagentv1.Backend{
		Address:  b.Addr.String(),
		Host:     b.Host,
		Weight:   b.Weight,
		Verdict:  b.Verdict.Kind.String(),
		Since:    stamp(b.Verdict.Since),
		Zone:     b.Zone,
		Region:   b.Region,
		Metadata: b.Metadata,
		Usable:   usable,
	}
	if b.Verdict.Kind != health.Up {
		out.Cause = b.Evidence().Words(now)
	}
	return out
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// answersLive bounds how long a view's answer is kept: its causes say how long ago something was, and when the next probe is.
const answersLive = time.Second

// viewAnswer is a view in the API's form, kept so that a thousand watchers cost one conversion per change.
type viewAnswer struct {
	view     *table.View
	at       time.Time
	backends []*lbagentv1.Backend // shared by answers, never written
}

// backends returns v's backends, in list order.
func (s *Server) backends(v *table.View, now time.Time) []*lbagentv1.Backend {
	name := v.Service.Name()
	if a, ok := s.answers.get(name); ok && a.view == v && now.Sub(a.at) < answersLive {
		return a.backends
	}
	a := viewAnswer{view: v, at: now, backends: make([]*lbagentv1.Backend, v.Len())}
	usable := usable(v)
	for i, b := range v.Backends() {
		a.backends[i] = backendInfo(b, usable[i], now)
	}
	s.answers.put(name, a, s.isFollowed)
	return a.backends
}

func (s *Server) isFollowed(name string) bool { return s.cfg.Table.Lookup(name) != nil }

// serviceInfo is one line of `services`.
func serviceInfo(svc *table.Service, v *table.View, now time.Time) *lbagentv1.ServiceInfo {
	spec := svc.Spec()
	origin := "configured"
	if spec.OnDemand {
		origin = "on-demand"
	}
	if spec.Fleet {
		origin = "fleet"
	}
	return &lbagentv1.ServiceInfo{
		Name:       svc.Name(),
		Listeners:  spec.Listeners,
		Backends:   uint32(v.Total),
		Usable:     uint32(v.Usable),
		Origin:     origin,
		Provenance: provenance(v, now),
		Ready:      v.Ready,
		Protocol:   spec.Protocol,
		Policy:     string(spec.Policy),
		Orphans:    uint32(v.Orphans()),
	}
}

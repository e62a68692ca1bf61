package localapi

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

type statusService struct {
	lbagentv1.UnimplementedStatusServiceServer
	s *Server
}

// StatusService answers as the sockets do, for the page of this process.
func (s *Server) StatusService() lbagentv1.StatusServiceServer { return statusService{s: s} }

// Status is what the agent says of itself, and every service.
func (t statusService) Status(context.Context, *lbagentv1.StatusRequest) (*lbagentv1.StatusResponse, error) {
	resp := &lbagentv1.StatusResponse{}
	if t.s.cfg.Status != nil {
		resp = t.s.cfg.Status()
	}
	if resp.Pid == 0 {
		resp.Pid = int32(os.Getpid())
	}
	resp.Services = t.s.services(t.s.now())
	resp.Mutes = t.s.mutes()
	if t.s.cfg.Registry != nil {
		for _, r := range t.s.cfg.Registry.Status() {
			resp.Registrations = append(resp.Registrations, registrationStatus(r))
		}
	}
	return resp, nil
}

// Explain says why each backend is in or out. It is for looking: it follows no service that nobody asked for.
func (t statusService) Explain(ctx context.Context, r *lbagentv1.ExplainRequest) (*lbagentv1.ExplainResponse, error) {
	s, now := t.s, t.s.now()
	svc := s.cfg.Table.Lookup(r.Service)
	if svc == nil {
		why := ""
		if s.cfg.Hints != nil {
			for _, hint := range s.cfg.Hints(r.Service) {
				why += "; " + hint
			}
		}
		return nil, failure(codes.NotFound, reasonUnknown, r.Service,
			"service %q isn't followed; `lbagent services` names those that are, and a lookup follows one on demand%s", r.Service, why)
	}
	v := svc.View()
	resp := &lbagentv1.ExplainResponse{Service: serviceInfo(svc, v, now), Summary: summary(svc, v, now), BadRecordCount: uint32(v.List.BadCount)}
	for _, bad := range v.List.Bad {
		resp.BadRecords = append(resp.BadRecords, &lbagentv1.BadRecord{Key: bad.Key, Reason: bad.Reason})
	}
	resp.Hints = append(tierHints(v), listHints(v.List, now)...)
	if words, _ := v.ZoneWords(); words != "" {
		resp.Hints = append(resp.Hints, words)
	}
	if n := v.Subset(); n > 0 {
		resp.Hints = append(resp.Hints, fmt.Sprintf("this host calls a subset of %d of the %d backends", n, v.Total))
	}
	if s.cfg.Hints != nil {
		resp.Hints = append(resp.Hints, s.cfg.Hints(r.Service)...)
	}
	if r.EtcdNow {
		resp.EtcdNow = s.etcdNow(ctx, r.Service)
	}
	only, err := parseOnly(r.Address)
	if err != nil {
		return nil, invalid(r.Service, "%v", err)
	}
	e := newExplainer(v, now, s.evidence(ctx, r.Service, only))
	for i, b := range v.Backends() {
		if !only.IsValid() || b.Addr == only {
			resp.Backends = append(resp.Backends, e.explain(i, b))
		}
	}
	if only.IsValid() && resp.Backends == nil {
		return nil, failure(codes.NotFound, reasonUnknown, r.Service, "service %q has no backend %s", r.Service, only)
	}
	return resp, nil
}

// listHints are sentences about what a list leaves out.
func listHints(l *service.List, now time.Time) []string {
	var hints []string
	if l.LeftOut > 0 {
		hints = append(hints, fmt.Sprintf("select leaves out %d of the %d addresses that its records name", l.LeftOut, l.LeftOut+len(l.Backends)))
	}
	for _, n := range l.Lost {
		hint := fmt.Sprintf("host name %s can't be resolved: %s, for %s", n.Host, n.Cause, health.Ago(now.Sub(n.Since)))
		if !n.Answered.IsZero() {
			hint += fmt.Sprintf("; the answer of %s ago is used", health.Ago(now.Sub(n.Answered)))
		}
		hints = append(hints, hint)
	}
	if more := l.LostCount - len(l.Lost); more > 0 {
		hints = append(hints, fmt.Sprintf("%d more host names can't be resolved", more))
	}
	return hints
}

func parseOnly(address string) (netip.AddrPort, error) {
	if address == "" {
		return netip.AddrPort{}, nil
	}
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return a, fmt.Errorf("address: %q is no host:port address", address)
	}
	return a, nil
}

// summary is one sentence about the service.
func summary(svc *table.Service, v *table.View, now time.Time) string {
	if !v.Ready {
		return fmt.Sprintf("%s: no list has come yet", svc.Name())
	}
	from := "list from " + sourceWords(v.List)
	if v.List.Source != service.FromStatic { // which does not grow old
		from += fmt.Sprintf(", confirmed %s ago", health.Ago(svc.Age(now)))
	}
	what := "backends"
	if v.Fallback {
		what = "backends of the fallback"
		from = "none of the service's own is usable, " + from
	}
	switch {
	case v.Panic:
		return fmt.Sprintf("%s: %d of %d %s usable; PANIC: that is fewer than %d %%, so doubtful ones get calls, too; %s",
			svc.Name(), v.Usable, v.Total, what, svc.Spec().PanicPercent, from)
	case v.Usable == 0:
		return fmt.Sprintf("%s; %s", v.Unusable(now), from)
	}
	return fmt.Sprintf("%s: %d of %d %s usable; %s", svc.Name(), v.Usable, v.Total, what, from)
}

// tierHints say which tier takes how much, if there are several (3.8).
func tierHints(v *table.View) []string {
	var hints []string
	for _, t := range v.Tiers {
		does := "stands by"
		if t.Load > 0 {
			does = fmt.Sprintf("takes %.0f %% of the calls", t.Load*100)
		}
		hints = append(hints, fmt.Sprintf("tier %d %s, %d of %d backends usable", t.Priority, does, t.Usable, t.Backends))
	}
	return hints
}

// sourceWords is where a list came from, for a person.
func sourceWords(l *service.List) string {
	switch l.Source {
	case service.FromStatic:
		return "the configuration"
	case service.FromSpool:
		return fmt.Sprintf("the spool, etcd's at revision %d", l.Revision)
	}
	return fmt.Sprintf("%s at revision %d", l.Source, l.Revision)
}

// standbyFor says who goes before a backend that could get calls.
func standbyFor(v *table.View, b table.Placed) string {
	switch {
	case b.Fallback && !v.Fallback:
		return "as fallback"
	case v.Fallback && !b.Fallback:
		return "until it has been usable for 10 s: the fallback is used"
	}
	return fmt.Sprintf("as tier %d", b.Priority)
}

// weightWords is the effective weight, and what it is made of: `12.5 (100 x dynamic 0.25 x slow start 0.5)`.
func weightWords(b table.Placed) string {
	text := strconv.FormatFloat(b.Weight, 'g', 4, 64)
	parts := ""
	for _, f := range []struct {
		of   float32
		name string
	}{{b.Factors.Dynamic, "dynamic"}, {b.Factors.SlowStart, "slow start"}, {b.Factors.Zone, "zone"}, {b.Factors.Load, "load"}} {
		if f.of != 1 {
			parts += fmt.Sprintf(" x %s %.3g", f.name, f.of)
		}
	}
	if parts == "" {
		return text
	}
	return fmt.Sprintf("%s (%d%s)", text, b.Backend.Weight, parts)
}

// sentence says whether a backend gets calls, and why; lag is by how much less it is picked for its latency.
func sentence(v *table.View, b table.Placed, usable bool, lag float64, now time.Time) string {
	words := b.Evidence().Standing(now)
	switch {
	case b.Outside && b.Verdict.Usable():
		return fmt.Sprintf("gets no calls from this host, whose subset is %d others; %s", v.Subset(), words)
	case b.Standby && b.Verdict.Usable():
		return "stands by, " + standbyFor(v, b) + "; " + words
	case usable && b.Verdict.Usable():
		weight := weightWords(b)
		if lag > 1 {
			weight += fmt.Sprintf(", picked %.1f x less for its latency", lag)
		}
		return fmt.Sprintf("gets calls, weight %s; %s", weight, words)
	case usable:
		return "gets calls although it isn't well, because too few are (panic); " + words
	case v.Panic && mayBeTried(b.Verdict):
		return "gets no calls while another can be reached, although the service is in panic; " + words
	}
	return "gets no calls; " + words
}

// Events sends the kept events, then new ones. A reader that is slower than the ring misses some and sees it from the ids.
func (t statusService) Events(r *lbagentv1.EventsRequest, stream grpc.ServerStreamingServer[lbagentv1.EventsResponse]) error {
	s, ctx, after := t.s, stream.Context(), r.After
	for {
		events, more := s.cfg.Events.Since(after)
		for _, e := range events {
			after = e.ID
			if r.Service != "" && e.Service != r.Service {
				continue
			}
			if err := stream.Send(&lbagentv1.EventsResponse{
				Id: e.ID, Time: stamp(e.Time), Kind: string(e.Kind), Service: e.Service, Backend: e.Backend, Detail: e.Detail,
			}); err != nil {
				return err
			}
		}
		if !r.Follow {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.stopping.Done():
			return s.goodbyeError()
		}
	}
}

type adminService struct {
	lbagentv1.UnimplementedAdminServiceServer
	s *Server
}

// Reload reads the configuration again.
func (a adminService) Reload(ctx context.Context, _ *lbagentv1.ReloadRequest) (*lbagentv1.ReloadResponse, error) {
	if a.s.cfg.Reload == nil {
		return nil, status.Error(codes.Unimplemented, "this agent can't reload")
	}
	changes, err := a.s.cfg.Reload(ctx)
	if err != nil {
		return nil, failure(codes.FailedPrecondition, reasonNotReloaded, "", "%v", err)
	}
	return &lbagentv1.ReloadResponse{Changes: changes}, nil
}

// Upgrade has a successor take this agent's place.
func (a adminService) Upgrade(ctx context.Context, _ *lbagentv1.UpgradeRequest) (*lbagentv1.UpgradeResponse, error) {
	if a.s.cfg.Upgrade == nil {
		return nil, status.Error(codes.Unimplemented, "this agent can't be upgraded without a restart")
	}
	out, err := a.s.cfg.Upgrade(ctx)
	if errors.Is(err, ErrUpgradeBusy) {
		return nil, failure(codes.FailedPrecondition, reasonUpgradeBusy, "", "%v", err)
	}
	if err != nil {
		return nil, failure(codes.FailedPrecondition, reasonUpgradeFailed, "", "%v", err)
	}
	return out, nil
}

package main

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// moment is the time of all golden tests.
func moment() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func before(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(moment().Add(-d)) }

// fakeAgent answers by both sockets with what a busy agent could say. The real one is asked in the end-to-end tests; this one says rare things at will.
type fakeAgent struct {
	lbagentv1.UnimplementedLookupServiceServer
	lbagentv1.UnimplementedStatusServiceServer
	lbagentv1.UnimplementedAdminServiceServer
	lbagentv1.UnimplementedRegistryServiceServer

	socket string
	silent chan struct{} // of "slow": never closed
	empty  bool          // an agent with nothing to do

	began  time.Time                      // its start; the one of all golden tests if it is zero
	events chan *lbagentv1.EventsResponse // of those who follow; closed: the stream ends
	calls  chan *lbagentv1.TapResponse    // likewise
	tapped *lbagentv1.TapRequest          // what the last tap asked for
}

// startFake serves f on a socket until the test ends.
func startFake(t *testing.T, f *fakeAgent) *fakeAgent {
	t.Helper()
	f.serve(t, filepath.Join(t.TempDir(), "a.sock"))
	return f
}

// serve serves f on a socket until stop is called, or the test ends.
func (f *fakeAgent) serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	f.socket, f.silent = socket, make(chan struct{})
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	lbagentv1.RegisterLookupServiceServer(s, f)
	lbagentv1.RegisterStatusServiceServer(s, f)
	lbagentv1.RegisterAdminServiceServer(s, f)
	lbagentv1.RegisterRegistryServiceServer(s, f)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	stop = sync.OnceFunc(func() {
		s.Stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// refuse is an error as the agent says it.
func refuse(code codes.Code, reason, text string, service ...string) error {
	info := &errdetails.ErrorInfo{Reason: reason, Domain: "lbagent"}
	if len(service) > 0 {
		info.Metadata = map[string]string{"service": service[0]}
	}
	st, err := status.New(code, text).WithDetails(info)
	if err != nil {
		return err
	}
	return st.Err()
}

// named answers for the services whose names say what goes wrong.
func (f *fakeAgent) named(ctx context.Context, service string) error {
	switch service {
	case "nosuch":
		return refuse(codes.NotFound, "SERVICE_UNKNOWN", `no such service "nosuch"`)
	case "down":
		return refuse(codes.Unavailable, "NO_USABLE_BACKEND", "lbagent: down: 1 backend, 0 usable; 10.0.0.1:80 unreachable: connection refused (2 s ago)")
	case "new":
		return refuse(codes.Unavailable, "NOT_READY", "no list of new has come yet")
	case "many":
		return refuse(codes.ResourceExhausted, "TOO_MANY_SERVICES", "256 services are followed on demand already")
	case "bad name":
		return refuse(codes.InvalidArgument, "INVALID", `"bad name" can't name a service`)
	case "slow":
		select {
		case <-f.silent:
		case <-ctx.Done():
		}
		return status.FromContextError(ctx.Err()).Err()
	case "gone":
		return status.Error(codes.Unavailable, "upgraded, reconnect")
	case "usr":
		return refuse(codes.NotFound, "SERVICE_UNKNOWN", `no such service "usr"`, "usr")
	case "evil":
		return refuse(codes.NotFound, "SERVICE_UNKNOWN", "\x1b[31mred\x07")
	}
	return nil
}

func (f *fakeAgent) infos() []*lbagentv1.ServiceInfo {
	if f.empty {
		return nil
	}
	etcd := &lbagentv1.Provenance{Epoch: 9, Revision: 812, Age: durationpb.New(1500 * time.Millisecond), Source: "etcd"}
	return []*lbagentv1.ServiceInfo{
		{
			Name: "cart-of-a-team-with-long-names", Listeners: []string{"127.0.0.1:7002", "[::1]:7002", "unix:/run/lbagent/cart-of-a-team-with-long-names.sock"},
			Backends: 3, Usable: 1, Origin: "configured", Ready: true, Protocol: "auto", Policy: "round_robin",
			Provenance: &lbagentv1.Provenance{Revision: 5, Age: durationpb.New(90 * time.Minute), Source: "spool", Panic: true},
		},
		{Name: "mail", Origin: "on-demand", Protocol: "auto", Policy: "p2c", Provenance: &lbagentv1.Provenance{}},
		{Name: "only.sock", Listeners: []string{"unix:/run/lbagent/only.sock"}, Origin: "configured", Ready: true, Protocol: "h2", Policy: "p2c", Provenance: etcd},
		{
			Name: "user", Listeners: []string{"[::1]:7001", "127.0.0.1:7001"}, Backends: 4, Usable: 2, Origin: "configured", Ready: true, Protocol: "h2", Policy: "p2c",
			Provenance: etcd,
		},
	}
}

func (f *fakeAgent) backends() []*lbagentv1.Backend {
	return []*lbagentv1.Backend{
		{Address: "10.0.0.1:8080", Weight: 100, Verdict: "up", Usable: true, Since: before(26 * time.Hour), Zone: "eu-1a"},
		{Address: "10.0.0.2:8080", Weight: 33.5, Verdict: "up", Usable: true, Since: before(50 * time.Hour), Zone: "eu-1b", Metadata: map[string]string{"role": "primary"}},
		{
			Address: "10.0.0.3:8080", Weight: 100, Verdict: "ejected", Since: before(12 * time.Second), Zone: "eu-1a",
			Cause: `ejected: 5 failures in a row, last "connection reset", 12 s ago, trial in 3 s`,
		},
		{
			Address: "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535", Weight: 100, Verdict: "unreachable", Since: before(3 * time.Minute), Zone: "eu-1a",
			Cause: "unreachable: 3 connects failed in a row, last \"connection refused\", \x1b[2J 1 s ago",
		},
	}
}

func (f *fakeAgent) provenance() *lbagentv1.Provenance { return f.infos()[3].GetProvenance() }

func (f *fakeAgent) Services(context.Context, *lbagentv1.ServicesRequest) (*lbagentv1.ServicesResponse, error) {
	return &lbagentv1.ServicesResponse{Services: f.infos()}, nil
}

func (f *fakeAgent) Pick(ctx context.Context, r *lbagentv1.PickRequest) (*lbagentv1.PickResponse, error) {
	if err := f.named(ctx, r.GetService()); err != nil {
		return nil, err
	}
	picks := []*lbagentv1.Picked{{Address: "10.0.0.1:8080", Count: 1}}
	if r.GetCount() > 1 {
		picks = []*lbagentv1.Picked{{Address: "10.0.0.1:8080", Count: r.GetCount() - 1}, {Address: "[2001:db8::1]:80", Count: 1}}
	}
	return &lbagentv1.PickResponse{Picks: picks, ValidFor: durationpb.New(time.Second), Provenance: f.provenance()}, nil
}

func (f *fakeAgent) List(ctx context.Context, r *lbagentv1.ListRequest) (*lbagentv1.ListResponse, error) {
	if err := f.named(ctx, r.GetService()); err != nil {
		return nil, err
	}
	if r.GetService() == "static" {
		return &lbagentv1.ListResponse{Service: "static", Provenance: &lbagentv1.Provenance{Source: "static"}}, nil
	}
	if r.GetService() == "panic" {
		p := &lbagentv1.Provenance{Source: "spool", Revision: 4, Age: durationpb.New(time.Hour), Panic: true}
		b := f.backends()[2:3]
		b[0].Usable = true
		return &lbagentv1.ListResponse{Service: "panic", Provenance: p, Backends: b}, nil
	}
	return &lbagentv1.ListResponse{Service: r.GetService(), Backends: f.backends(), Provenance: f.provenance()}, nil
}

func (f *fakeAgent) Watch(r *lbagentv1.WatchRequest, stream grpc.ServerStreamingServer[lbagentv1.WatchResponse]) error {
	if err := f.named(stream.Context(), r.GetService()); err != nil {
		return err
	}
	first, second := f.backends()[:3], f.backends()
	second = second[1:]
	second[0].Weight = 10
	second[1].Verdict, second[1].Usable, second[1].Cause = "up", true, ""
	panicked := &lbagentv1.Provenance{Source: "etcd", Revision: 813, Panic: true}
	spooled := &lbagentv1.Provenance{Source: "spool", Revision: 813, Age: durationpb.New(time.Minute)}
	for _, one := range []*lbagentv1.WatchResponse{
		{Service: "user", Backends: first, Provenance: f.provenance()},
		{Service: "user", Backends: second, Provenance: f.provenance()},
		{Service: "user", Backends: second, Provenance: panicked},
		{Service: "user", Backends: second, Provenance: spooled},
	} {
		if err := stream.Send(one); err != nil {
			return err
		}
	}
	return status.Error(codes.Unavailable, "upgraded, reconnect")
}

func (f *fakeAgent) Status(context.Context, *lbagentv1.StatusRequest) (*lbagentv1.StatusResponse, error) {
	if !f.began.IsZero() {
		return &lbagentv1.StatusResponse{Version: "v1.2.3", Started: timestamppb.New(f.began), Ready: true, ConfigOk: true}, nil
	}
	if f.empty {
		return &lbagentv1.StatusResponse{
			Version: "v1.2.3", Started: before(3 * time.Second), Ready: true, ConfigOk: true, Node: "web-17", Pid: 812, Etcd: &lbagentv1.EtcdStatus{},
			ConfigFiles: []string{"/etc/lbagent/lbagent.yaml"},
		}, nil
	}
	return &lbagentv1.StatusResponse{
		Version: "v1.2.3", Started: before(3 * time.Hour), Missing: []string{"mail"}, Node: "web-17", Pid: 812,
		ConfigError: "/etc/lbagent/lbagent.yaml:3: services[user].listn: unknown key (did you mean \"listen\"?)\n/etc/lbagent/lbagent.yaml:9: etcd: endpoints are missing",
		ConfigFiles: []string{"/etc/lbagent/lbagent.yaml", "/etc/lbagent/services.d/10-user.yaml"},
		Etcd: &lbagentv1.EtcdStatus{
			Configured: true, Endpoints: []string{"https://etcd-1:2379", "https://etcd-2:2379"}, LastError: "dial tcp 10.1.1.1:2379: connection refused",
			LastContact: before(4 * time.Minute),
		},
		Mutes:    f.muted(),
		Services: f.infos(), Warnings: []string{"the spool can't be written, so a restart while etcd is down would begin without lists: no space left on device"},
	}, nil
}

func (f *fakeAgent) Explain(ctx context.Context, r *lbagentv1.ExplainRequest) (*lbagentv1.ExplainResponse, error) {
	if err := f.named(ctx, r.GetService()); err != nil {
		return nil, err
	}
	backends := []*lbagentv1.BackendExplanation{
		{
			Backend: f.backends()[0], Sentence: "gets calls, weight 100, picked 2.5 x less for its latency; up for 26 h", Key: "/prod/services/user/10.0.0.1:8080", StaticWeight: 100,
			Outstanding: 3, Latency: durationpb.New(1234567 * time.Nanosecond), Successes: 12345, Revision: 812, CreatedRevision: 700, Tier: 2,
			WeightFactors: &lbagentv1.WeightFactors{Dynamic: 1, SlowStart: 1, Zone: 0.0816, Load: 1}, LatencyFactor: 2.5, LastSuccessAt: before(time.Second),
			RecentCalls: 40, RecentFailed: 1, SuccessPercent: new(97.5), Outlook: &lbagentv1.Outlook{Words: "probe in 3 s", NextProbe: before(-3 * time.Second)},
			Subset: lbagentv1.Subset_SUBSET_INSIDE, SubsetReason: "one of the first 16 usable backends of zone eu-1a in this host's order",
		},
		{
			Backend:  f.backends()[2],
			Sentence: `gets no calls; ejected for 12 s: 5 failures in a row, last "connection reset", 12 s ago`, StaticWeight: 100, Penalty: 4.25, Successes: 10, Failures: 5, Streak: 5,
			Parts: []*lbagentv1.VerdictPart{
				{Verdict: "unreachable", Words: `unreachable for 10 s: 3 connects failed`, Since: before(10 * time.Second)}, {Verdict: "ejected", Words: `ejected for 12 s: 5 failures in a row, last "connection reset", 12 s ago`, Since: before(12 * time.Second)},
			},
			LastFailure: "connection reset", LastFailureAt: before(12 * time.Second),
			LastOutcomes: []*lbagentv1.PastOutcome{
				{At: before(12 * time.Second), Result: "failure", Cause: "connection\x1b[2Jreset", Count: 1},
				{At: before(13 * time.Second), Result: "app_error", Cause: "HTTP 500", Latency: durationpb.New(20 * time.Millisecond), Count: 1},
				{At: before(2 * time.Minute), Result: "timeout", Count: 20, Reported: true},
			},
			Outlook: &lbagentv1.Outlook{Words: "probe in 400 ms, after 2 probes that failed; trial in 3 s, by a probe", NextTrial: before(-3 * time.Second)},
		},
	}
	backends[1].Backend.Host = "db.internal"
	if r.GetAddress() != "" {
		if r.GetAddress() != backends[1].GetBackend().GetAddress() {
			return nil, refuse(codes.NotFound, "SERVICE_UNKNOWN", `service "user" has no backend `+r.GetAddress(), "user")
		}
		backends = backends[1:]
	}
	return &lbagentv1.ExplainResponse{
		EtcdNow: f.etcdNow(r), Service: f.infos()[3], Summary: "user: 1 of 2 backends usable; list from etcd at revision 812, confirmed 2 s ago", Backends: backends,
		BadRecords:     []*lbagentv1.BadRecord{{Key: "/prod/services/user/x", Reason: "neither an address nor JSON: invalid character 'x' looking for beginning of value, at byte 1"}},
		BadRecordCount: 3, Hints: []string{"2 connections were silent for 200 ms and treated as tcp; set protocol: tcp to skip the wait"},
	}, nil
}

// etcdNow differs from the list, but for one backend.
func (f *fakeAgent) etcdNow(r *lbagentv1.ExplainRequest) *lbagentv1.EtcdNow {
	switch {
	case !r.GetEtcdNow():
		return nil
	case r.GetAddress() != "":
		return &lbagentv1.EtcdNow{At: before(3 * time.Second), Revision: 815, ListRevision: 812, Keys: 2}
	}
	return &lbagentv1.EtcdNow{
		At: before(0), Revision: 815, ListRevision: 812, Keys: 23, Missing: []string{"/prod/services/user/10.0.0.9:8080", "/prod/services/user/10.0.0.8:8080"}, MissingCount: 22,
		Gone: []string{"/prod/services/user/10.0.0.1:8080"}, GoneCount: 1,
	}
}

// Stats sends two answers, then nothing more.
func (f *fakeAgent) Stats(r *lbagentv1.StatsRequest, stream grpc.ServerStreamingServer[lbagentv1.StatsResponse]) error {
	if err := f.named(stream.Context(), r.GetService()); err != nil {
		return err
	}
	one := &lbagentv1.StatsResponse{Services: []*lbagentv1.ServiceStats{
		{Name: "cart-of-a-team-with-long-names", Backends: 3, Usable: 1, Ready: true, Panic: true, Calls: 100, Connections: 2},
		{Name: "mail"},
		{
			Name: "user", Backends: 4, Usable: 2, Ready: true, Calls: 1234567, Errors: 42, Connections: 12, CallsPerSecond: 1234.6, ErrorsPerSecond: 0.5,
			Mean: durationpb.New(1234567 * time.Nanosecond), P50: durationpb.New(900 * time.Microsecond), P99: durationpb.New(45 * time.Millisecond),
		},
	}}
	if r.GetService() != "" {
		one.Services = one.Services[2:]
		for i, b := range f.backends() {
			one.Backends = append(one.Backends, &lbagentv1.BackendStats{
				Backend: b, CallsPerSecond: float64(100 * i), FailedPerSecond: float64(i) / 10, Share: float64(i) / 6, Outstanding: uint32(i), Latency: durationpb.New(time.Duration(i) * time.Millisecond),
			})
		}
		one.Backends[0].Latency = nil
	}
	if err := stream.Send(one); err != nil {
		return err
	}
	one.Over = durationpb.New(time.Second)
	if err := stream.Send(one); err != nil {
		return err
	}
	<-stream.Context().Done()
	return status.FromContextError(stream.Context().Err()).Err()
}

// Tap sends what the test has, or some calls of all kinds.
func (f *fakeAgent) Tap(r *lbagentv1.TapRequest, stream grpc.ServerStreamingServer[lbagentv1.TapResponse]) error {
	if err := f.named(stream.Context(), r.GetService()); err != nil {
		return err
	}
	f.tapped = r
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	if f.calls != nil {
		for m := range f.calls {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		return status.Error(codes.Unavailable, "the agent is stopping; connect again")
	}
	ms := func(n float64) *durationpb.Duration {
		return durationpb.New(time.Duration(n * float64(time.Millisecond)))
	}
	for _, c := range []*lbagentv1.Call{
		{
			Service: "user", Protocol: "grpc", Method: "POST", Path: "/shop.User/Get", Address: "10.0.0.1:8080", Attempts: 1, Status: 200, GrpcStatus: new(int32(0)),
			Wait: ms(0.02), FirstByte: ms(1.1), Total: ms(1.25), EndedBy: "backend", Phase: "done",
		},
		{Service: "user", Protocol: "http1", Method: "GET", Path: "/a\x1b[2J", Address: "10.0.0.2:8080", Attempts: 2, Status: 503, Wait: ms(2), FirstByte: ms(150), Total: ms(151.2), EndedBy: "backend", Phase: "done"},
		{
			Service: "user", Protocol: "grpc", Path: "/shop.User/Get", Attempts: 3, Status: 200, GrpcStatus: new(int32(14)), Total: ms(12),
			EndedBy: "agent", Phase: "connect", Cause: "lbagent: user: 3 backends, 0 usable",
		},
		{Service: "user", Protocol: "tcp", Address: "10.0.0.1:8080", Attempts: 1, Wait: ms(0.5), Total: ms(15000), BytesIn: 10, BytesOut: 2048, EndedBy: "client", Phase: "wait", Cause: "reset"},
	} {
		c.Time = before(time.Second)
		if err := stream.Send(&lbagentv1.TapResponse{Call: c}); err != nil {
			return err
		}
	}
	return stream.Send(&lbagentv1.TapResponse{LeftOut: 7})
}

func (f *fakeAgent) Events(r *lbagentv1.EventsRequest, stream grpc.ServerStreamingServer[lbagentv1.EventsResponse]) error {
	if f.events != nil && r.GetFollow() {
		for e := range f.events {
			if e.GetId() <= r.GetAfter() {
				return status.Error(codes.Internal, "asked for what comes after an event, and sent that")
			}
			if err := stream.Send(e); err != nil {
				return err
			}
		}
		return status.Error(codes.Unavailable, "the agent is stopping; connect again")
	}
	for _, e := range []*lbagentv1.EventsResponse{
		{Id: 1, Time: before(time.Minute), Kind: "agent", Detail: "started"},
		{Id: 2, Time: before(12 * time.Second), Kind: "verdict", Service: "user", Backend: "10.0.0.3:8080", Detail: `was up, now ejected: 5 failures in a row, last "connection reset", trial after 10 s`},
		{Id: 4, Time: before(11 * time.Second), Kind: "connection", Service: "user", Backend: "10.0.0.1:8080", Detail: "connected (HTTP/2)"},
		{Id: 5, Time: before(time.Second), Kind: "panic", Service: "cart", Detail: "panic began: 1 of 3 backends usable, doubtful ones get calls, too"},
	} {
		if r.GetService() != "" && r.GetService() != e.GetService() {
			continue
		}
		if err := stream.Send(e); err != nil {
			return err
		}
	}
	return nil // an end of a stream that follows is the agent's stop
}

func (f *fakeAgent) Reload(context.Context, *lbagentv1.ReloadRequest) (*lbagentv1.ReloadResponse, error) {
	if f.empty {
		return &lbagentv1.ReloadResponse{}, nil
	}
	return &lbagentv1.ReloadResponse{Changes: []string{"service user: changed", "service cart: added"}}, nil
}

// muted is what this agent has been asked to mute, and what somebody with odd words has.
func (f *fakeAgent) muted() []*lbagentv1.MuteInfo {
	if f.empty {
		return nil
	}
	out := []*lbagentv1.MuteInfo{
		{Service: "user", Address: "10.0.0.1:8080", Author: "bob", Host: "web-17", Since: before(time.Minute), Until: before(-59 * time.Minute)},
		{
			Service: "user", Address: "[2001:db8::1]:80", Fleet: true, Author: "alice (root)", Host: "web-1", Since: before(time.Hour), Until: before(-3 * 24 * time.Hour),
			Reason: "bad disk\x1b[2J; the replacement comes on Monday, ask in #ops before you take this back, please",
		},
	}
	for range 10 {
		out = append(out, &lbagentv1.MuteInfo{Service: "zoo", Address: "10.0.0.9:1", Author: "bob", Host: "web-17", Since: before(0), Until: before(-time.Second)})
	}
	return out
}

func (f *fakeAgent) Mutes(context.Context, *lbagentv1.MutesRequest) (*lbagentv1.MutesResponse, error) {
	return &lbagentv1.MutesResponse{Mutes: f.muted()}, nil
}

func (f *fakeAgent) Mute(ctx context.Context, r *lbagentv1.MuteRequest) (*lbagentv1.MuteResponse, error) {
	if err := f.named(ctx, r.GetService()); err != nil {
		return nil, err
	}
	if r.GetFleet() && !r.GetForce() {
		return nil, refuse(codes.FailedPrecondition, "NEEDS_FORCE", "2 of the 3 backends of user would be muted on every host; --force says that it is meant")
	}
	length := time.Hour
	if r.GetDuration() != nil {
		length = r.GetDuration().AsDuration()
	}
	resp := &lbagentv1.MuteResponse{Mute: &lbagentv1.MuteInfo{
		Service: r.GetService(), Address: r.GetAddress(), Fleet: r.GetFleet(), Author: r.GetOnBehalfOf(), Host: "web-17", Reason: r.GetReason(),
		Since: before(0), Until: before(-length),
	}}
	if r.GetAddress() == "10.0.0.2:80" {
		resp.Warnings = []string{"NO BACKEND OF user IS USABLE NOW on this host; its calls fail while none of those that aren't muted can be reached", "and another"}
	}
	return resp, nil
}

func (f *fakeAgent) Unmute(_ context.Context, r *lbagentv1.UnmuteRequest) (*lbagentv1.UnmuteResponse, error) {
	if r.GetFleet() {
		return &lbagentv1.UnmuteResponse{WasMuted: true}, nil
	}
	return &lbagentv1.UnmuteResponse{Warnings: []string{
		`it stays muted by alice on web-1 for 1 h (fleet): "bad disk", until 14:03; "lbagent unmute user 10.0.0.1:80 --fleet" ends that`,
	}}, nil
}

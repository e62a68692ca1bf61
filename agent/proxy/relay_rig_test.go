package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/calls"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// patience bounds every wait of a test; nothing takes nearly as long, but for floods with the race detector on a machine that has twenty times as much to do as it can.
const patience = 3 * time.Minute

// rig is a proxy on real loops before a real table, with one service "user".
type rig struct {
	t     testing.TB
	table *table.Table
	proxy *Proxy
	addr  string
	svc   *table.Service

	events *event.Log
	user   Service // as configured
}

func newRig(t testing.TB, change func(s *Service)) *rig {
	t.Helper()
	r := &rig{t: t, events: event.NewLog(100)}
	monitor, err := health.New(health.Config{Log: hclog.NewNullLogger(), OnChange: func(now time.Time, c []health.Change) { r.table.SetVerdicts(now, c) }})
	if err != nil {
		t.Fatal(err)
	}
	r.table, err = table.New(table.Config{
		Log: hclog.NewNullLogger(), Events: event.NewLog(100), OnTargets: monitor.SetGroup, OnActive: monitor.SetActive,
		OnPublish: func(s *table.Service) {
			if r.proxy != nil {
				r.proxy.Publish(s)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.table.SetSpec(time.Now(), table.Spec{
		Name: "user", Policy: picker.RoundRobin, PanicPercent: 50, InUse: true, Drain: 30 * time.Second,
		Health: health.Options{
			Probe: health.ProbeNone, HTTP2: true, Interval: 5 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3,
			Eject: true, Consecutive: 5, EjectBase: 100 * time.Millisecond, EjectMax: time.Second, MaxPercent: 100,
		},
	})
	r.svc = r.table.Lookup("user")
	p, err := New(Config{Table: r.table, Loops: 1, Events: r.events, Calls: new(calls.Taps)})
	if err != nil {
		t.Fatal(err)
	}
	r.proxy = p
	for _, w := range p.workers { // scripted backends read only when the script says so: see realSilence
		w.relay.silence = time.Hour
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // a free port
	if err != nil {
		t.Fatal(err)
	}
	r.addr = l.Addr().String()
	l.Close()
	s := Service{
		Name: "user", Protocol: "h2", Authority: "keep", Listen: []Addr{{TCP: netip.MustParseAddrPort(r.addr)}},
		Connect: patience, Idle: 5 * time.Minute, Drain: 30 * time.Second,
		ReconnectBase: 100 * time.Millisecond, ReconnectMax: 10 * time.Second,
	}
	if change != nil {
		change(&s)
	}
	r.user = s
	c, err := p.Prepare([]Service{s})
	if err != nil {
		t.Fatal(err)
	}
	c.Commit()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	var judge sync.WaitGroup
	judge.Go(func() { monitor.Run(ctx) })
	go func() {
		err := p.Run(ctx)
		judge.Wait()
		ended <- err
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("told: %+v", r.told())
		}
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("the proxy did not stop")
		}
	})
	return r
}

// backends publishes a list.
func (r *rig) backends(addrs ...string) {
	r.t.Helper()
	l := &service.List{Service: "user", Source: service.FromStatic, Confirmed: time.Now()}
	for _, a := range addrs {
		l.Backends = append(l.Backends, &service.Backend{Addr: netip.MustParseAddrPort(a), Weight: 100})
	}
	slices.SortFunc(l.Backends, func(a, b *service.Backend) int { return a.Addr.Compare(b.Addr) })
	r.table.Apply(time.Now(), l)
}

// realSilence has backends that hang found as fast as in production (2.11).
func (r *rig) realSilence() { r.onLoop(func(k *relay) { k.silence = hangSilence }) }

// noRefill has peers get nothing of their budget back by time: on a machine that is slow, or has its processors taken away, a flood may come slower than what is allowed for ever.
func (r *rig) noRefill() { r.onLoop(func(k *relay) { k.noRefill = true }) }

// state is what is known of a backend.
func (r *rig) state(addr string) *health.State {
	return r.svc.View().Find(netip.MustParseAddrPort(addr)).State
}

// onLoop runs f on the relay's loop.
func (r *rig) onLoop(f func(*relay)) {
	r.t.Helper()
	done := make(chan struct{})
	w := r.proxy.workers[0]
	if !w.loop.Post(func() { f(w.relay); close(done) }) {
		r.t.Fatal("the loop has ended")
	}
	select {
	case <-done:
	case <-time.After(patience):
		r.t.Fatal("the loop hangs")
	}
}

// await waits until what holds on the loop.
func (r *rig) await(what string, f func(*relay) bool) {
	r.t.Helper()
	await(r.t, what, func() (ok bool) {
		r.onLoop(func(k *relay) { ok = f(k) })
		return ok
	})
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("never: %s", what)
		}
	}
}

// quiet waits until no call runs, and checks that nothing of any call is left.
func (r *rig) quiet() {
	r.t.Helper()
	r.await("no call runs", func(k *relay) bool { return k.calls == 0 })
	r.onLoop(func(k *relay) {
		if err := k.check(); err != nil {
			r.t.Error(err)
		}
	})
	for _, b := range r.svc.View().Backends() {
		if n := b.State.Outstanding(); n != 0 {
			r.t.Errorf("%s: %d outstanding", b.Addr, n)
		}
	}
}

// dial is a grpc-go client of the proxy.
func (r *rig) dial(opts ...grpc.DialOption) testpb.TestServiceClient {
	r.t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+r.addr, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { cc.Close() })
	return testpb.NewTestServiceClient(cc)
}

func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// grpcBackend is a grpc-go server.
type grpcBackend struct {
	testpb.UnimplementedTestServiceServer
	addr   string
	server *grpc.Server
	lis    net.Listener
	calls  atomic.Int64
	ended  chan error // of calls to Hang

	mu   sync.Mutex
	last metadata.MD
}

func newGRPC(t testing.TB, opts ...grpc.ServerOption) *grpcBackend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveGRPC(t, l, opts...)
}

func serveGRPC(t testing.TB, l net.Listener, opts ...grpc.ServerOption) *grpcBackend {
	b := &grpcBackend{addr: l.Addr().String(), lis: l, ended: make(chan error, 100)}
	b.server = grpc.NewServer(opts...)
	testpb.RegisterTestServiceServer(b.server, b)
	go b.server.Serve(l)
	t.Cleanup(b.server.Stop)
	return b
}

func (b *grpcBackend) note(ctx context.Context) {
	b.calls.Add(1)
	md, _ := metadata.FromIncomingContext(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = md
}

func (b *grpcBackend) metadata() metadata.MD {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

// EmptyCall hangs until the caller gives up.
func (b *grpcBackend) EmptyCall(ctx context.Context, _ *testpb.Empty) (*testpb.Empty, error) {
	b.note(ctx)
	<-ctx.Done()
	b.ended <- ctx.Err()
	return nil, ctx.Err()
}

// UnaryCall answers with as many bytes as are asked for, or the status that is asked for.
func (b *grpcBackend) UnaryCall(ctx context.Context, in *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	b.note(ctx)
	grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "t"))
	if s := in.GetResponseStatus(); s != nil {
		return nil, status.Error(codes.Code(s.Code), s.Message)
	}
	return &testpb.SimpleResponse{ServerId: b.addr, Payload: &testpb.Payload{Body: make([]byte, in.ResponseSize)}}, nil
}

// FullDuplexCall answers each message with one of the asked size, and ends with its caller.
func (b *grpcBackend) FullDuplexCall(s testpb.TestService_FullDuplexCallServer) error {
	b.note(s.Context())
	for {
		in, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			b.ended <- err
			return err
		}
		for _, p := range in.ResponseParameters {
			body := make([]byte, p.Size)
			for i := range body {
				body[i] = byte(i)
			}
			if err := s.Send(&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: body}}); err != nil {
				return err
			}
		}
		if st := in.ResponseStatus; st != nil {
			return status.Error(codes.Code(st.Code), st.Message)
		}
	}
}

// StreamingInputCall answers with the size of what came; it answers early if a message begins with "early".
func (b *grpcBackend) StreamingInputCall(s testpb.TestService_StreamingInputCallServer) error {
	b.note(s.Context())
	n := 0
	for {
		in, err := s.Recv()
		if errors.Is(err, io.EOF) || err == nil && strings.HasPrefix(string(in.Payload.Body[:min(5, len(in.Payload.Body))]), "early") {
			return s.SendAndClose(&testpb.StreamingInputCallResponse{AggregatedPayloadSize: int32(n)})
		}
		if err != nil {
			return err
		}
		n += len(in.Payload.Body)
	}
}

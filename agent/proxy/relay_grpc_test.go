package proxy

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Calls on one client connection go to all backends (the point of it all).
func TestGRPCSpread(t *testing.T) {
	r := newRig(t, nil)
	a, b, c := newGRPC(t), newGRPC(t), newGRPC(t)
	r.backends(a.addr, b.addr, c.addr)
	client := r.dial()
	got := map[string]int{}
	var header, trailer metadata.MD
	for range 300 {
		ctx := metadata.AppendToOutgoingContext(timeout(t), "x-key", "v")
		out, err := client.UnaryCall(ctx, &testpb.SimpleRequest{ResponseSize: 10}, grpc.Header(&header), grpc.Trailer(&trailer))
		if err != nil {
			t.Fatal(err)
		}
		got[out.ServerId]++
	}
	for _, s := range []*grpcBackend{a, b, c} {
		if n := got[s.addr]; n != 100 { // round robin
			t.Errorf("%s got %d of 300 calls", s.addr, n)
		}
		if md := s.metadata(); len(md["x-key"]) != 1 || len(md[":authority"]) != 1 || md[":authority"][0] != r.addr {
			t.Errorf("metadata %v", md)
		}
	}
	if len(trailer["x-trailer"]) != 1 || len(header["content-type"]) != 1 {
		t.Errorf("header %v, trailer %v", header, trailer)
	}
	r.quiet()
}

// 10,000 messages of mixed size both ways on each of several streams' worth of calls.
func TestGRPCStreaming(t *testing.T) {
	r := newRig(t, nil)
	b := newGRPC(t)
	r.backends(b.addr)
	stream, err := r.dial().FullDuplexCall(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	const messages = 10000
	size := func(r *rand.Rand) int {
		switch r.IntN(100) {
		case 0:
			return r.IntN(300 << 10)
		case 1, 2, 3, 4, 5:
			return r.IntN(20 << 10)
		}
		return r.IntN(300)
	}
	sent := make(chan error, 1)
	go func() {
		out, in := rand.New(rand.NewPCG(1, 1)), rand.New(rand.NewPCG(2, 2))
		for range messages {
			err := stream.Send(&testpb.StreamingOutputCallRequest{
				ResponseParameters: []*testpb.ResponseParameters{{Size: int32(size(in))}},
				Payload:            &testpb.Payload{Body: make([]byte, size(out))},
			})
			if err != nil {
				sent <- err
				return
			}
		}
		sent <- stream.CloseSend()
	}()
	in := rand.New(rand.NewPCG(2, 2))
	for i := range messages {
		m, err := stream.Recv()
		if err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		want := size(in)
		if len(m.Payload.Body) != want {
			t.Fatalf("message %d: %d bytes, want %d", i, len(m.Payload.Body), want)
		}
		for j, v := range m.Payload.Body {
			if v != byte(j) {
				t.Fatalf("message %d: wrong byte %d", i, j)
			}
		}
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	r.quiet()
}

func TestGRPCLargeBodies(t *testing.T) {
	r := newRig(t, nil)
	b := newGRPC(t)
	r.backends(b.addr)
	client := r.dial(grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8 << 20)))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				out, err := client.UnaryCall(timeout(t), &testpb.SimpleRequest{ResponseSize: 1 << 20, Payload: &testpb.Payload{Body: make([]byte, 1<<20)}})
				if err != nil || len(out.Payload.Body) != 1<<20 {
					t.Errorf("%d bytes, %v", len(out.GetPayload().GetBody()), err)
				}
			}
		})
	}
	wg.Wait()
	r.quiet()
}

// A status without a message comes as trailers-only, and says what it says about the backend (SEMANTICS 2).
func TestGRPCStatus(t *testing.T) {
	r := newRig(t, nil)
	b := newGRPC(t)
	r.backends(b.addr)
	client := r.dial()
	for _, c := range []struct {
		code     codes.Code
		failures uint64
	}{{codes.NotFound, 0}, {codes.ResourceExhausted, 0}, {codes.Internal, 0}, {codes.Unavailable, 1}, {codes.Unavailable, 2}} {
		_, err := client.UnaryCall(timeout(t), &testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: int32(c.code), Message: "why % not"}})
		if s := status.Convert(err); s.Code() != c.code || s.Message() != "why % not" {
			t.Errorf("%v, want %v", err, c.code)
		}
		r.quiet()
		if got := r.state(b.addr).Snapshot(time.Now()); got.Failures != c.failures {
			t.Errorf("%v: %d failures, want %d", c.code, got.Failures, c.failures)
		}
	}
	// For the weight, INTERNAL is as bad as UNAVAILABLE, and RESOURCE_EXHAUSTED says nothing (3.3).
	if calls, good := r.state(b.addr).Calls(); calls != 4 || good != 1 {
		t.Errorf("%v calls, %v good; want 4, 1", calls, good)
	}
	// The same after DATA is none (SEMANTICS 2).
	stream, err := client.FullDuplexCall(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	stream.Send(&testpb.StreamingOutputCallRequest{
		ResponseParameters: []*testpb.ResponseParameters{{Size: 1}},
		ResponseStatus:     &testpb.EchoStatus{Code: int32(codes.Unavailable)},
	})
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
	r.quiet()
	got := r.state(b.addr).Snapshot(time.Now())
	if got.Failures != 2 || !strings.Contains(got.LastFailure, "UNAVAILABLE") {
		t.Errorf("%d failures, last %q", got.Failures, got.LastFailure)
	}
	count := map[string]uint64{}
	for _, s := range r.proxy.Stats().Services {
		for _, c := range s.Calls {
			count[c.Protocol+" "+c.Class] += c.Count
		}
	}
	if count["grpc server_error"] != 5 || count["grpc client_error"] != 1 {
		t.Errorf("counted %v", count)
	}
}

// Cancel and deadline reach the backend within 50 ms; a machine that is busy with other tests gets several tries.
func TestGRPCCancelAndDeadline(t *testing.T) {
	r := newRig(t, nil)
	b := newGRPC(t)
	r.backends(b.addr)
	client := r.dial()
	// hang calls what ends with ctx, and says how much later the backend heard of it.
	hang := func(ctx context.Context, stop func(), code codes.Code) time.Duration {
		before := b.calls.Load()
		done := make(chan error, 1)
		go func() {
			_, err := client.EmptyCall(ctx, &testpb.Empty{})
			done <- err
		}()
		await(t, "call arrives", func() bool { return b.calls.Load() > before || ctx.Err() != nil })
		if b.calls.Load() == before { // its deadline was over before it got there
			if err := <-done; status.Code(err) != code {
				t.Errorf("%v, want %v", err, code)
			}
			r.quiet()
			return time.Hour
		}
		stop()
		<-ctx.Done()
		at := time.Now()
		select {
		case <-b.ended:
		case <-time.After(patience):
			t.Fatal("never reached the backend")
		}
		took := time.Since(at)
		if err := <-done; status.Code(err) != code {
			t.Errorf("%v, want %v", err, code)
		}
		r.quiet()
		return took
	}
	within := func(what string, try func(n int) time.Duration) {
		best := time.Hour
		for n := 0; n < 20 && best > time.Second; n++ {
			best = min(best, try(n))
		}
		if best > time.Second {
			t.Errorf("%s took %v", what, best)
		}
	}
	within("cancel", func(int) time.Duration {
		ctx, cancel := context.WithCancel(timeout(t))
		return hang(ctx, cancel, codes.Canceled)
	})
	within("deadline", func(n int) time.Duration {
		ctx, cancel := context.WithTimeout(timeout(t), time.Duration(n+1)*500*time.Millisecond)
		defer cancel()
		return hang(ctx, func() {}, codes.DeadlineExceeded)
	})
	if s := r.state(b.addr).Snapshot(time.Now()); s.Failures != 0 {
		t.Errorf("%d failures (%q) for the caller's own doing", s.Failures, s.LastFailure)
	}
}

// Who ends first: the client, the backend in the middle of the request, or the client's connection.
func TestGRPCHalfClose(t *testing.T) {
	r := newRig(t, nil)
	b := newGRPC(t)
	r.backends(b.addr)
	client := r.dial()
	for _, early := range []bool{false, true} {
		stream, err := client.StreamingInputCall(timeout(t))
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := stream.Send(&testpb.StreamingInputCallRequest{Payload: &testpb.Payload{Body: make([]byte, 100<<10)}}); err != nil {
				t.Fatal(err)
			}
		}
		if early {
			stream.Send(&testpb.StreamingInputCallRequest{Payload: &testpb.Payload{Body: []byte("early")}})
			for err == nil { // until the answer is here
				err = stream.Send(&testpb.StreamingInputCallRequest{Payload: &testpb.Payload{Body: make([]byte, 1000)}})
			}
			if !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
		out, err := stream.CloseAndRecv()
		if err != nil || out.AggregatedPayloadSize != 1000<<10 {
			t.Fatalf("early=%v: %v %v", early, out, err)
		}
		r.quiet()
	}
	cc, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	cc.Close()
}

// A backend that stops gracefully fails no call, nor does one that kills its idle connections.
func TestGRPCGracefulStop(t *testing.T) {
	r := newRig(t, nil)
	a, b := newGRPC(t), newGRPC(t)
	r.backends(a.addr, b.addr)
	client := r.dial()
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 16 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := client.UnaryCall(timeout(t), &testpb.SimpleRequest{ResponseSize: 100}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 5 {
		before := b.calls.Load()
		await(t, "calls reach b", func() bool { return b.calls.Load() > before+100 })
		b.server.GracefulStop()
		l, err := net.Listen("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		b = serveGRPC(t, l)
		r.onLoop(func(k *relay) { // the next connect waits for nothing
			for _, be := range k.pools[r.svc].backends {
				be.again.reset()
			}
		})
	}
	close(stop)
	wg.Wait()
	r.quiet()
}

// A backend that takes one stream per connection gets 8 connections, and the other calls wait.
func TestGRPCMaxConcurrentStreams(t *testing.T) {
	r := newRig(t, nil)
	b := newGRPC(t, grpc.MaxConcurrentStreams(1))
	r.backends(b.addr)
	client := r.dial()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 20 {
				if _, err := client.UnaryCall(timeout(t), &testpb.SimpleRequest{ResponseSize: 1000}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	r.onLoop(func(k *relay) {
		for _, be := range k.pools[r.svc].backends {
			if n := len(be.conns); n < 2 || n > DefaultLimits().BackendConnections {
				t.Errorf("%d connections", n)
			}
		}
	})
	r.quiet()
}

// A backend that dies in the middle of a stream: status 14, and who it was. Calls that were only begun elsewhere see nothing.
func TestGRPCBackendKilled(t *testing.T) {
	r := newRig(t, nil)
	b := newGRPC(t)
	r.backends(b.addr)
	stream, err := r.dial().FullDuplexCall(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	stream.Send(&testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 1}}})
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	b.server.Stop()
	_, err = stream.Recv()
	if s := status.Convert(err); s.Code() != codes.Unavailable || !strings.Contains(s.Message(), b.addr) {
		t.Errorf("%v, want Unavailable that names %s", err, b.addr)
	}
	r.quiet()
	if s := r.state(b.addr).Snapshot(time.Now()); s.Failures != 1 {
		t.Errorf("%d failures, want 1: one lost connection", s.Failures)
	}
}

// Refused connects go on to the next backend (4.1), and an answer says why there is none (4.5).
func TestGRPCConnectFails(t *testing.T) {
	r := newRig(t, nil)
	dead := newGRPC(t)
	dead.server.Stop()
	b := newGRPC(t)
	r.backends(dead.addr, b.addr)
	client := r.dial()
	for range 20 {
		if _, err := client.UnaryCall(timeout(t), &testpb.SimpleRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	r.quiet()
	if s := r.state(dead.addr).Snapshot(time.Now()); s.Failures == 0 || !strings.Contains(s.LastFailure, "connection refused") {
		t.Errorf("%d failures, last %q", s.Failures, s.LastFailure)
	}
	r.backends(dead.addr)
	_, err := client.UnaryCall(timeout(t), &testpb.SimpleRequest{})
	if s := status.Convert(err); s.Code() != codes.Unavailable || !strings.HasPrefix(s.Message(), "lbagent: user: 1 backend") || !strings.Contains(s.Message(), "connection refused") {
		t.Errorf("%v", err)
	}
	r.backends()
	_, err = client.UnaryCall(timeout(t), &testpb.SimpleRequest{})
	if s := status.Convert(err); s.Code() != codes.Unavailable || !strings.HasPrefix(s.Message(), "lbagent: user: 0 backends") {
		t.Errorf("%v", err)
	}
	r.quiet()
}

// A removed backend gets no new call, its streams go on until drain is over (4.7), and back within that time nothing was.
func TestGRPCDrain(t *testing.T) {
	for _, back := range []bool{true, false} {
		r := newRig(t, func(s *Service) { s.Drain = time.Second })
		a, b := newGRPC(t), newGRPC(t)
		r.backends(a.addr)
		client := r.dial()
		stream, err := client.FullDuplexCall(timeout(t))
		if err != nil {
			t.Fatal(err)
		}
		ping := func() error {
			stream.Send(&testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 1}}})
			_, err := stream.Recv()
			return err
		}
		if err := ping(); err != nil {
			t.Fatal(err)
		}
		r.backends(b.addr)
		out, err := client.UnaryCall(timeout(t), &testpb.SimpleRequest{})
		if err != nil || out.ServerId != b.addr {
			t.Fatalf("%v %v", out, err)
		}
		if err := ping(); err != nil {
			t.Fatal(err)
		}
		if back {
			r.backends(a.addr, b.addr)
			r.await("undrained", func(k *relay) bool {
				for _, be := range k.pools[r.svc].backends {
					if be.removed || be.drainTimer.Armed() {
						return false
					}
				}
				return true
			})
			if err := ping(); err != nil {
				t.Fatal(err)
			}
			stream.CloseSend()
			r.quiet()
			continue
		}
		_, err = stream.Recv()
		if s := status.Convert(err); s.Code() != codes.Unavailable || !strings.HasSuffix(s.Message(), "backend removed") {
			t.Errorf("%v", err)
		}
		r.await("nothing is left of it", func(k *relay) bool { return len(k.pools[r.svc].backends) == 1 })
		r.quiet()
	}
}

// timeout.request ends a call (SEMANTICS 2), in the middle of a stream too.
func TestGRPCRequestTimeout(t *testing.T) {
	r := newRig(t, func(s *Service) { s.Request = 50 * time.Millisecond })
	b := newGRPC(t)
	r.backends(b.addr)
	client := r.dial()
	_, err := client.EmptyCall(timeout(t), &testpb.Empty{})
	if s := status.Convert(err); s.Code() != codes.DeadlineExceeded || !strings.Contains(s.Message(), "timeout.request") {
		t.Errorf("%v", err)
	}
	if err := <-b.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the backend saw %v", err)
	}
	stream, err := client.FullDuplexCall(timeout(t))
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("%v", err)
	}
	r.quiet()
}

// Neither connects nor calls leave anything behind.
func TestGRPCNoLeak(t *testing.T) {
	r := newRig(t, nil)
	b := newGRPC(t)
	r.backends(b.addr)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 125 {
				cc := newRawClient(t, r.addr)
				switch (i + j) % 4 {
				case 0: // says nothing
				case 1:
					cc.call(1, true, "/grpc.testing.TestService/UnaryCall", nil)
				case 2: // leaves in the middle
					cc.call(1, false, "/grpc.testing.TestService/FullDuplexCall", []byte{0, 0, 0, 100})
				case 3:
					cc.call(1, true, "/grpc.testing.TestService/UnaryCall", nil)
					cc.until(func(f frame) bool { return f.end })
				}
				cc.Close()
			}
		})
	}
	wg.Wait()
	r.await("clients are gone", func(k *relay) bool { return len(k.clients) == 0 })
	r.quiet()
	if n := r.proxy.Stats(); n.Clients != 0 || n.Loops[0].Conns > 1+DefaultLimits().BackendConnections {
		t.Errorf("%d clients, %d connections are left", n.Clients, n.Loops[0].Conns)
	}
}

// The agent stops: running calls end well, new ones go elsewhere.
func TestGRPCProxyDrain(t *testing.T) {
	r := newRig(t, nil)
	b := newGRPC(t)
	r.backends(b.addr)
	stream, err := r.dial().FullDuplexCall(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	ping := func() {
		stream.Send(&testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 1}}})
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	ping()
	r.onLoop(func(k *relay) { k.drain() })
	ping()
	stream.CloseSend()
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	r.await("idle", (*relay).idle)
}

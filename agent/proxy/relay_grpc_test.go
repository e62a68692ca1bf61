package proxy

import (
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"google.golang.org/grpc"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
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

package e2e

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	echoMethod   = "/e2e.Echo/Echo"
	streamMethod = "/e2e.Echo/Stream"
	blockMethod  = "/e2e.Echo/Block"
	failMethod   = "/e2e.Echo/Fail"

	nameHeader    = "x-backend" // response header: who answered
	echoedTrailer = "x-echoed"  // trailer: number of bytes
	codeHeader    = "x-code"    // request header: the code that Fail is to answer with
	failText      = "on purpose: 100 % ä"
)

// backend is a grpc-go server in this process that can be stopped hard and started again at its address.
type backend struct {
	t    *testing.T
	name string
	addr string
	work time.Duration // what a call of Echo takes

	calls   atomic.Int64
	saw     chan<- metadata.MD // what calls of Echo came with; nil: nobody asks
	blocked chan *blockedCall  // calls of Block, as they come
	srv     *grpc.Server
	served  sync.WaitGroup
}

// blockedCall is a call that waits for its end.
type blockedCall struct {
	arrived     time.Time
	deadline    time.Time
	hasDeadline bool
	ended       chan time.Time // when its context ended
}

func newBackend(t *testing.T, name, host string, work time.Duration) *backend {
	t.Helper()
	b := &backend{t: t, name: name, work: work, addr: net.JoinHostPort(host, strconv.Itoa(freePort(t))), blocked: make(chan *blockedCall, 100)}
	b.start()
	t.Cleanup(b.kill)
	return b
}

// backends are n of them on 127.0.0.1, named b0, b1, ...
func backends(t *testing.T, n int, work time.Duration) []*backend {
	t.Helper()
	var bs []*backend
	for i := range n {
		bs = append(bs, newBackend(t, "b"+strconv.Itoa(i), "127.0.0.1", work))
	}
	return bs
}

func (b *backend) start() {
	b.t.Helper()
	var l net.Listener
	var err error
	unforked(func() { l, err = net.Listen("tcp", b.addr) }) // it may have listened there before
	if err != nil {
		b.t.Fatal(err)
	}
	b.srv = grpc.NewServer(grpc.MaxRecvMsgSize(16 << 20))
	b.srv.RegisterService(&echoDesc, b)
	b.srv.RegisterService(&sayDesc, b)
	healthv1.RegisterHealthServer(b.srv, health.NewServer())
	srv := b.srv
	b.served.Go(func() { _ = srv.Serve(l) })
}

// kill closes the listener and every connection at once.
func (b *backend) kill() {
	unforked(b.srv.Stop)
	b.served.Wait()
}

func names(bs []*backend) []string {
	var out []string
	for _, b := range bs {
		out = append(out, b.name)
	}
	return out
}

func addrs(bs []*backend) []string {
	var out []string
	for _, b := range bs {
		out = append(out, b.addr)
	}
	return out
}

func (b *backend) echo(ctx context.Context, in *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
	b.calls.Add(1)
	if b.saw != nil {
		md, _ := metadata.FromIncomingContext(ctx)
		b.saw <- md
	}
	if b.work > 0 {
		select {
		case <-time.After(b.work):
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs(nameHeader, b.name)); err != nil {
		return nil, err
	}
	if err := grpc.SetTrailer(ctx, metadata.Pairs(echoedTrailer, strconv.Itoa(len(in.GetValue())))); err != nil {
		return nil, err
	}
	return in, nil
}

func (b *backend) block(ctx context.Context) error {
	c := &blockedCall{arrived: time.Now(), ended: make(chan time.Time, 1)}
	c.deadline, c.hasDeadline = ctx.Deadline()
	b.blocked <- c
	<-ctx.Done()
	c.ended <- time.Now()
	return status.FromContextError(ctx.Err()).Err()
}

// fail answers with the code that the caller asks for, in trailers only.
func (b *backend) fail(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	n, err := strconv.Atoi(md.Get(codeHeader)[0])
	if err != nil {
		return err
	}
	return status.Error(codes.Code(n), failText)
}

func (b *backend) stream(s grpc.ServerStream) error {
	for {
		in := new(wrapperspb.BytesValue)
		switch err := s.RecvMsg(in); {
		case errors.Is(err, io.EOF):
			s.SetTrailer(metadata.Pairs(nameHeader, b.name))
			return nil
		case err != nil:
			return err
		}
		if err := s.SendMsg(in); err != nil {
			return err
		}
	}
}

func unary(name string, f func(*backend, context.Context, *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.BytesValue)
		if err := dec(in); err != nil {
			return nil, err
		}
		return f(srv.(*backend), ctx, in)
	}}
}

// echoDesc is what generated code would hold.
var echoDesc = grpc.ServiceDesc{
	ServiceName: "e2e.Echo",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{
		unary("Echo", (*backend).echo),
		unary("Block", func(b *backend, ctx context.Context, _ *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
			return nil, b.block(ctx)
		}),
		unary("Fail", func(b *backend, ctx context.Context, _ *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
			return nil, b.fail(ctx)
		}),
	},
	Streams: []grpc.StreamDesc{{StreamName: "Stream", ClientStreams: true, ServerStreams: true,
		Handler: func(srv any, s grpc.ServerStream) error { return srv.(*backend).stream(s) }}},
}

// etcdClient is a client of c, closed with the test.
func etcdClient(t *testing.T, endpoints ...string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// register puts addresses into etcd as grpc-go servers do, below the test's namespace.
func register(t *testing.T, c *clientv3.Client, service string, addrs ...string) {
	t.Helper()
	target := namespace(t) + "services/" + service
	m, err := endpoints.NewManager(c, target)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, a := range addrs {
		if err := m.AddEndpoint(ctx, target+"/"+a, endpoints.Endpoint{Addr: a}); err != nil {
			t.Fatal(err)
		}
	}
}

// unregister takes an address out of etcd.
func unregister(t *testing.T, c *clientv3.Client, service, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := c.Delete(ctx, namespace(t)+"services/"+service+"/"+addr); err != nil {
		t.Fatal(err)
	}
}

package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	serviceName = "echo"
	etcdTarget  = "services/" + serviceName // the target that etcd's own naming package is told; keys lie below it
	sayMethod   = "/lbdemo.Echo/Say"

	// leaseTTL is long on purpose: a killed backend's key outlives the ten seconds of its absence, so nothing but the agent's own view of it keeps calls away.
	leaseTTL = 60 * time.Second

	// Each call takes a little while, so that some are always in flight.
	workMin, workMax = 20 * time.Millisecond, 30 * time.Millisecond
)

// runBackend is the child process `lbdemo backend`: a gRPC server that registers itself in etcd the way any grpc-go server does.
// On stdout it prints "registered" after each registration and "begin TEXT" for each call it takes up.
func runBackend(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("backend", flag.ContinueOnError)
	name := fs.String("name", "", "name in answers")
	listen := fs.String("listen", "", "address")
	etcd := fs.String("etcd", "", "host:port of etcd")
	if err := fs.Parse(args); err != nil {
		return err
	}

	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	srv := grpc.NewServer()
	srv.RegisterService(&echoDesc, &echo{name: *name})
	healthv1.RegisterHealthServer(srv, health.NewServer())
	reflection.Register(srv)
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()

	registered := make(chan error, 1)
	go func() { registered <- keepRegistered(ctx, *etcd, *listen) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case err := <-registered:
		srv.GracefulStop()
		return err
	}
}

// keepRegistered holds addr in etcd under a lease, and registers again when the lease is lost. When ctx ends it takes the registration back.
func keepRegistered(ctx context.Context, etcd, addr string) error {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd}, DialTimeout: 2 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	defer c.Close()
	for ctx.Err() == nil {
		if err := register(ctx, c, addr); err != nil && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "register: %v; again in 500ms\n", err)
			_ = pause(ctx, 500*time.Millisecond)
		}
	}
	return nil
}

func register(ctx context.Context, c *clientv3.Client, addr string) error {
	try, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	lease, err := c.Grant(try, int64(leaseTTL/time.Second))
	if err != nil {
		return err
	}
	m, err := endpoints.NewManager(c, etcdTarget)
	if err != nil {
		return err
	}
	if err := m.AddEndpoint(try, etcdTarget+"/"+addr, endpoints.Endpoint{Addr: addr}, clientv3.WithLease(lease.ID)); err != nil {
		return err
	}
	alive, err := c.KeepAlive(ctx, lease.ID)
	if err != nil {
		return err
	}
	fmt.Println("registered")
	for range alive { // ends when the lease is lost, or ctx
	}
	if ctx.Err() != nil {
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_, err = c.Revoke(bye, lease.ID)
	}
	return err
}

// echo answers "NAME TEXT" to TEXT.
type echo struct{ name string }

func (e *echo) say(ctx context.Context, in *wrapperspb.StringValue) (*wrapperspb.StringValue, error) {
	fmt.Println("begin", in.GetValue())
	if err := pause(ctx, workMin+rand.N(workMax-workMin)); err != nil {
		return nil, err
	}
	return wrapperspb.String(e.name + " " + in.GetValue()), nil
}

// echoDesc is what generated code would hold; a well-known message type makes a .proto of our own unnecessary.
var echoDesc = grpc.ServiceDesc{
	ServiceName: "lbdemo.Echo",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Say",
		Handler: func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.StringValue)
			if err := dec(in); err != nil {
				return nil, err
			}
			return srv.(*echo).say(ctx, in)
		},
	}},
}

package main

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// grpcBackendVerb starts this program as a gRPC server: grpcBackendVerb LISTEN, HOST:PORT or unix:PATH.
const grpcBackendVerb = "grpc-backend"

const (
	sayService = "lbbench.Echo"
	sayMethod  = "/" + sayService + "/Say"
)

// runGRPCBackend serves one method, which returns what it was given, as grpc-go does without any option.
func runGRPCBackend(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("want LISTEN")
	}
	l, err := listenPart(ctx, args[0])
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: sayService,
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Say", Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.BytesValue)
			return in, decode(in)
		}}},
	}, struct{}{})
	return s.Serve(l)
}

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lbagent/lbagent/agent/testneed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// python is Debian's, whatever else a PATH has.
const python = "/usr/bin/python3"

// A Python client that knows nothing but what the agent's reflection tells asks over the unix socket and calls through the port.
func TestPythonClient(t *testing.T) {
	t.Parallel()
	testneed.Command(t, "python3-grpcio", python, "-c", "import grpc")
	testneed.Command(t, "python3-protobuf", python, "-c", "import google.protobuf")
	bs := backends(t, 2, 0)
	port := freePort(t)
	a := startAgent(t, fmt.Sprintf("- {name: user, backends: [%s], listen: [%d], policy: round_robin}", join(addrs(bs)), port))
	protoset := filepath.Join(a.dir, "lbagent.protoset")
	if err := os.WriteFile(protoset, a.reflect("lbagent.v1.LookupService"), 0o644); err != nil {
		t.Fatal(err)
	}

	lines := strings.Split(strings.TrimSpace(output(t, "env", "no_proxy=127.0.0.1", python, "testdata/client.py", a.socket, protoset, "user", fmt.Sprint(port))), "\n")
	if len(lines) != 6 || lines[0] != "picked "+bs[0].addr+" from static" && lines[0] != "picked "+bs[1].addr+" from static" {
		t.Fatalf("the client says %q", lines)
	}
	seen := make(map[string]int)
	for i, line := range lines[1:] {
		name, text, _ := strings.Cut(line, " ")
		seen[name]++
		if text != fmt.Sprintf("hello %d", i) {
			t.Errorf("call %d was answered %q", i, line)
		}
	}
	if seen["b0"] < 2 || seen["b1"] < 2 {
		t.Errorf("calls went to %v", seen)
	}
}

// reflect asks the agent's reflection for the descriptors of a symbol, as `grpcurl -protoset-out` does.
func (a *agent) reflect(symbol string) []byte {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	defer cancel()
	s, err := grpc_reflection_v1.NewServerReflectionClient(a.api()).ServerReflectionInfo(ctx)
	if err != nil {
		a.t.Fatal(err)
	}
	var set descriptorpb.FileDescriptorSet
	have := make(map[string]bool)
	ask := func(r *grpc_reflection_v1.ServerReflectionRequest) {
		a.t.Helper()
		if err := s.Send(r); err != nil {
			a.t.Fatal(err)
		}
		answer, err := s.Recv()
		if err != nil {
			a.t.Fatal(err)
		}
		if answer.GetErrorResponse() != nil {
			a.t.Fatalf("reflection: %v", answer)
		}
		for _, b := range answer.GetFileDescriptorResponse().GetFileDescriptorProto() {
			f := new(descriptorpb.FileDescriptorProto)
			if err := proto.Unmarshal(b, f); err != nil {
				a.t.Fatal(err)
			}
			if !have[f.GetName()] {
				have[f.GetName()] = true
				set.File = append(set.File, f)
			}
		}
	}
	ask(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: symbol}})
	for i := 0; i < len(set.GetFile()); i++ {
		for _, dep := range set.GetFile()[i].GetDependency() {
			if !have[dep] {
				ask(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileByFilename{FileByFilename: dep}})
			}
		}
	}
	b, err := proto.Marshal(&set)
	if err != nil {
		a.t.Fatal(err)
	}
	return b
}

// A shell script asks, reports and calls with curl alone.
func TestShellClient(t *testing.T) {
	t.Parallel()
	testneed.Program(t, "curl", "curl")
	one, _ := httpBackend(t, "one")
	port := freePort(t)
	a := startAgent(t, fmt.Sprintf("- {name: web, backends: [%q], listen: [%d]}", one, port))
	want := fmt.Sprintf("picked %[1]s\none GET /asked %[1]s 0\n{\"unknown\":0}\none GET /dialed 127.0.0.1:%[2]d 0\n", one, port)
	got := output(t, "env", "no_proxy=127.0.0.1", "sh", "testdata/shell.sh", a.socket, "web", fmt.Sprint(port))
	if got != want {
		t.Errorf("the script says\n%s\nwant\n%s", got, want)
	}
}

// say is the method of the demo's backends, which the guide's Python client calls.
func (b *backend) say(_ context.Context, in *wrapperspb.StringValue) (*wrapperspb.StringValue, error) {
	return wrapperspb.String(b.name + " " + in.GetValue()), nil
}

var sayDesc = grpc.ServiceDesc{
	ServiceName: "lbdemo.Echo",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Say",
		Handler: func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.StringValue)
			if err := dec(in); err != nil {
				return nil, err
			}
			return srv.(*backend).say(ctx, in)
		}}},
}

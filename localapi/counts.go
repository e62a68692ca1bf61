package localapi

import (
	"strings"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// Method counts the calls of one method, by either face.
type Method struct {
	Name  string            // such as lbagent.v1.LookupService/Pick
	Open  int               // now: streams such as Watch, mostly
	Ended map[string]uint64 // by gRPC code, those that are not 0
}

// counts has an entry for each method that is served, made before the first call: counting takes no lock.
type counts map[string]*methodCount

type methodCount struct {
	open  atomic.Int64
	ended [codes.Unauthenticated + 1]atomic.Uint64
}

func newCounts() counts {
	c := counts{}
	for _, d := range []*grpc.ServiceDesc{
		&lbagentv1.LookupService_ServiceDesc, &lbagentv1.StatusService_ServiceDesc, &lbagentv1.AdminService_ServiceDesc, &lbagentv1.RegistryService_ServiceDesc,
		&healthpb.Health_ServiceDesc, &reflectionv1.ServerReflection_ServiceDesc, &reflectionv1alpha.ServerReflection_ServiceDesc,
	} {
		for i := range d.Methods {
			c["/"+d.ServiceName+"/"+d.Methods[i].MethodName] = new(methodCount)
		}
		for i := range d.Streams {
			c["/"+d.ServiceName+"/"+d.Streams[i].StreamName] = new(methodCount)
		}
	}
	return c
}

// begin counts a call that begins; the func that it returns, its end.
func (c counts) begin(method string) (end func(error)) {
	m := c[method]
	if m == nil {
		return func(error) {}
	}
	m.open.Add(1)
	return func(err error) {
		m.open.Add(-1)
		code := status.Code(err)
		if int(code) >= len(m.ended) {
			code = codes.Unknown
		}
		m.ended[code].Add(1)
	}
}

func (c counts) methods() []Method {
	out := make([]Method, 0, len(c))
	for name, m := range c {
		one := Method{Name: strings.TrimPrefix(name, "/"), Open: int(m.open.Load()), Ended: map[string]uint64{}}
		for code := range m.ended {
			if n := m.ended[code].Load(); n > 0 {
				one.Ended[codes.Code(code).String()] = n
			}
		}
		out = append(out, one)
	}
	return out
}

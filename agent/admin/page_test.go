package admin

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// fakeAPI says of a table what StatusService would, in short.
type fakeAPI struct {
	table *table.Table

	mu sync.Mutex

	base *lbagentv1.StatusResponse // nil = all is well
	err  error
}

// set says what is answered from now on.
func (f *fakeAPI) set(base *lbagentv1.StatusResponse, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.base, f.err = base, err
}

func (f *fakeAPI) Status(context.Context, *lbagentv1.StatusRequest) (*lbagentv1.StatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	out := &lbagentv1.StatusResponse{Version: "v1.2.3", Ready: true, ConfigOk: true}
	if f.base != nil {
		out = proto.CloneOf(f.base)
	}
	for _, s := range f.table.Services() {
		v := s.View()
		out.Services = append(out.Services, &lbagentv1.ServiceInfo{
			Name: s.Name(), Backends: uint32(v.Total), Usable: uint32(v.Usable), Ready: v.Ready,
			Provenance: &lbagentv1.Provenance{Source: string(v.Source()), Panic: v.Panic, Age: durationpb.New(0)},
		})
	}
	return out, nil
}

func (f *fakeAPI) Explain(_ context.Context, r *lbagentv1.ExplainRequest) (*lbagentv1.ExplainResponse, error) {
	s := f.table.Lookup(r.Service)
	if s == nil {
		return nil, status.Error(codes.NotFound, "no such service")
	}
	out := &lbagentv1.ExplainResponse{Service: &lbagentv1.ServiceInfo{Name: r.Service}}
	for i := range s.View().Len() {
		b := s.View().Backend(i)
		out.Backends = append(out.Backends, &lbagentv1.BackendExplanation{Backend: &lbagentv1.Backend{
			Address: b.Addr.String(), Weight: b.Weight, Verdict: b.Verdict.Kind.String(), Usable: b.Verdict.Usable(), Metadata: b.Metadata,
		}})
	}
	return out, nil
}

// addr is the i-th backend's.
func addr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 80)
}

// put gives the table a service in use with these backends.
func put(t *table.Table, name string, backends ...int) *table.Service {
	if t.Lookup(name) == nil {
		t.SetSpec(start(), table.Spec{Name: name, Policy: picker.P2C, PanicPercent: 50, InUse: true})
	}
	l := &service.List{Service: name, Source: service.FromEtcd, Epoch: 1, Revision: 1, Confirmed: start()}
	for _, i := range backends {
		l.Backends = append(l.Backends, &service.Backend{Addr: addr(i), Weight: 100})
	}
	t.Apply(start(), l)
	return t.Lookup(name)
}

// call ends n calls of a backend.
func call(s *table.Service, backend, n int, r health.Result) {
	state := s.View().Find(addr(backend)).State
	for range n {
		state.Begin()
		state.End(start(), r, time.Millisecond, true, "test")
	}
}

func name(i int) string { return fmt.Sprintf("service-%04d", i) }

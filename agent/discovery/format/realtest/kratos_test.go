package realtest

import (
	"slices"
	"strings"
	"testing"

	"github.com/go-kratos/kratos/contrib/registry/etcd/v2"
	"github.com/go-kratos/kratos/v2/registry"
	"github.com/go-kratos/kratos/v2/selector"
	"github.com/lbagent/lbagent/agent/discovery/format"
)

// kratos' contrib/registry/etcd writes, package format reads.
func TestKratos(t *testing.T) {
	c, _ := start(t)
	for _, in := range []*registry.ServiceInstance{
		{ID: "1", Name: "foo", Version: "v1", Metadata: map[string]string{"weight": "10", "zone": "a"}, Endpoints: []string{"http://10.0.0.1:8000?isSecure=false", "grpc://10.0.0.1:9000?isSecure=false"}},
		{ID: "2", Name: "foo", Endpoints: []string{"grpc://[2001:db8::1]:9000"}},
		{ID: "3", Name: "foo", Metadata: map[string]string{"weight": "0"}, Endpoints: []string{"http://10.0.0.3:8000"}},
		{ID: "4", Name: "foobar", Endpoints: []string{"grpc://10.0.0.4:9000"}},
	} {
		r := etcd.New(c)
		if err := r.Register(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, c, format.Kratos, "/microservices/foo/", in("a", backend("10.0.0.1:9000", 10, "scheme", "grpc", "isSecure", "false", "version", "v1")),
		backend("[2001:db8::1]:9000", 100, "scheme", "grpc"), drained(backend("10.0.0.3:8000", 1, "scheme", "http")))
	got := read(t, c, format.Kratos, "/microservices/foo/", map[string][]string{"scheme": {"http"}})
	if len(got) != 2 || got[0].Addr.String() != "10.0.0.1:8000" || got[1].Addr.String() != "10.0.0.3:8000" {
		t.Errorf("http: %+v", got)
	}
}

// What package format writes, kratos reads, and weighs as we do.
func TestKratosReadsOurs(t *testing.T) {
	c, _ := start(t)
	for _, r := range registrations() {
		write(t, c, format.Kratos, r)
	}
	found, err := etcd.New(c).GetService(t.Context(), "ours")
	if err != nil || len(found) != 2 {
		t.Fatalf("found %+v %v", found, err)
	}
	slices.SortFunc(found, func(a, b *registry.ServiceInstance) int { return strings.Compare(a.ID, b.ID) })
	if in := found[0]; in.Name != "ours" || in.Version != "v1" || !slices.Equal(in.Endpoints, []string{"grpc://10.0.0.1:8080"}) || in.Metadata["zone"] != "a" {
		t.Errorf("found %+v", in)
	}
	if in := found[1]; !slices.Equal(in.Endpoints, []string{"grpc://[2001:db8::1]:8080"}) {
		t.Errorf("found %+v", in)
	}
	if w := selector.NewNode("grpc", "10.0.0.1:8080", found[0]).InitialWeight(); w == nil || *w != 7 {
		t.Errorf("weight %v", w)
	}
	if w := selector.NewNode("grpc", "x", found[1]).InitialWeight(); w != nil {
		t.Errorf("weight %v, want the default", *w)
	}
	r := registrations()[0]
	r.Draining = true
	write(t, c, format.Kratos, r)
	found, err = etcd.New(c).GetService(t.Context(), "ours")
	if err != nil || len(found) != 2 {
		t.Fatalf("found %+v %v", found, err)
	}
	slices.SortFunc(found, func(a, b *registry.ServiceInstance) int { return strings.Compare(a.ID, b.ID) })
	if w := selector.NewNode("grpc", "10.0.0.1:8080", found[0]).InitialWeight(); w == nil || *w != 0 {
		t.Errorf("draining: weight %v, want 0", w)
	}
}

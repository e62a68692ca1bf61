package realtest

import (
	"net/url"
	"slices"
	"sync"
	"testing"

	"github.com/lbagent/lbagent/agent/discovery/format"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	naming "go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc/resolver"
)

// etcd's client/v3/naming/endpoints writes, package format reads.
func TestGRPCNaming(t *testing.T) {
	c, _ := start(t)
	m, err := endpoints.NewManager(c, "services/user")
	if err != nil {
		t.Fatal(err)
	}
	for key, e := range map[string]endpoints.Endpoint{
		"services/user/a": {Addr: "10.0.0.1:80", Metadata: map[string]any{"weight": 5, "zone": "a", "version": "v1"}},
		"services/user/b": {Addr: "10.0.0.2:80"},
		"services/user/c": {Addr: "[2001:db8::1]:80", Metadata: "blue"},
		"services/user/d": {Addr: "10.0.0.3:80", Metadata: struct{ Weight, weight int }{1, 2}},
	} {
		if err := m.AddEndpoint(t.Context(), key, e); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, c, format.GRPCNaming, "services/user/", in("a", backend("10.0.0.1:80", 5, "version", "v1")), backend("10.0.0.2:80", 100),
		backend("[2001:db8::1]:80", 100, "metadata", "blue"), backend("10.0.0.3:80", 100, "Weight", "1"))
	if err := m.DeleteEndpoint(t.Context(), "services/user/a"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, c, format.GRPCNaming, "services/user/", nil); len(got) != 3 {
		t.Errorf("after a deletion: %+v", got)
	}
}

// conn is what gRPC gives a resolver.
type conn struct {
	resolver.ClientConn

	mu    sync.Mutex
	addrs []string
}

func (c *conn) UpdateState(s resolver.State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addrs = nil
	for _, a := range s.Addresses {
		c.addrs = append(c.addrs, a.Addr)
	}
	for _, e := range s.Endpoints {
		for _, a := range e.Addresses {
			c.addrs = append(c.addrs, a.Addr)
		}
	}
	slices.Sort(c.addrs)
	c.addrs = slices.Compact(c.addrs)
	return nil
}

func (c *conn) ReportError(error) {}

func (c *conn) has(want []string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Equal(c.addrs, want)
}

// What package format writes, etcd's endpoints and its gRPC resolver read.
func TestGRPCNamingReadsOurs(t *testing.T) {
	c, _ := start(t)
	for _, r := range registrations() {
		write(t, c, format.GRPCNaming, r)
	}
	m, err := endpoints.NewManager(c, "services/ours")
	if err != nil {
		t.Fatal(err)
	}
	list, err := m.List(t.Context())
	if err != nil || len(list) != 2 || list["services/ours/10.0.0.1:8080"].Addr != "10.0.0.1:8080" || list["services/ours/[2001:db8::1]:8080"].Addr != "[2001:db8::1]:8080" {
		t.Errorf("listed %+v %v", list, err)
	}
	if data, ok := list["services/ours/10.0.0.1:8080"].Metadata.(map[string]any); !ok || data["weight"] != 7.0 || data["zone"] != "a" || data["version"] != "v1" {
		t.Errorf("metadata %+v", list["services/ours/10.0.0.1:8080"].Metadata)
	}
	b, err := naming.NewBuilder(c)
	if err != nil {
		t.Fatal(err)
	}
	seen := &conn{}
	r, err := b.Build(resolver.Target{URL: url.URL{Scheme: "etcd", Path: "/services/ours"}}, seen, resolver.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	eventually(t, "the resolver has both", func() bool { return seen.has([]string{"10.0.0.1:8080", "[2001:db8::1]:8080"}) })
}

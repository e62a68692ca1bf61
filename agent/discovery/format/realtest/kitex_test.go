package realtest

import (
	"cmp"
	"slices"
	"testing"

	"github.com/cloudwego/kitex/pkg/discovery"
	"github.com/cloudwego/kitex/pkg/registry"
	"github.com/cloudwego/kitex/pkg/utils"
	etcd "github.com/kitex-contrib/registry-etcd"
	"github.com/lbagent/lbagent/agent/discovery/format"
)

// kitex' registry-etcd writes, package format reads.
func TestKitex(t *testing.T) {
	c, endpoints := start(t)
	for _, info := range []*registry.Info{
		{ServiceName: "foo", Addr: utils.NewNetAddr("tcp", "10.0.0.1:8888"), Weight: 7, Tags: map[string]string{"zone": "a", "cluster": "blue"}},
		{ServiceName: "foo", Addr: utils.NewNetAddr("tcp", "[2001:db8::1]:8888"), Weight: discovery.DefaultWeight},
	} {
		r, err := etcd.NewEtcdRegistry(endpoints)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Register(info); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, c, format.Kitex, "kitex/registry-etcd/foo/", in("a", backend("10.0.0.1:8888", 7, "cluster", "blue")), backend("[2001:db8::1]:8888", 10))
}

// What package format writes, kitex reads.
func TestKitexReadsOurs(t *testing.T) {
	c, endpoints := start(t)
	for _, r := range registrations() {
		write(t, c, format.Kitex, r)
	}
	r, err := etcd.NewEtcdResolver(endpoints)
	if err != nil {
		t.Fatal(err)
	}
	found, err := r.Resolve(t.Context(), "ours")
	if err != nil || len(found.Instances) != 2 {
		t.Fatalf("found %+v %v", found, err)
	}
	slices.SortFunc(found.Instances, func(a, b discovery.Instance) int { return cmp.Compare(a.Address().String(), b.Address().String()) })
	a, b := found.Instances[0], found.Instances[1]
	zone, _ := a.Tag("zone")
	if a.Address().String() != "10.0.0.1:8080" || a.Address().Network() != "tcp" || a.Weight() != 7 || zone != "a" {
		t.Errorf("found %v %d, zone %q", a.Address(), a.Weight(), zone)
	}
	if b.Address().String() != "[2001:db8::1]:8080" || b.Weight() != discovery.DefaultWeight {
		t.Errorf("found %v %d", b.Address(), b.Weight())
	}
}

package realtest

import (
	"testing"

	"github.com/cloudwego/hertz/pkg/app/server/registry"
	"github.com/cloudwego/hertz/pkg/common/utils"
	"github.com/hertz-contrib/registry/etcd"
	"github.com/lbagent/lbagent/agent/discovery/format"
)

// hertz' registry/etcd writes, package format reads. A weight that was not set is 0 there, and not draining.
func TestHertz(t *testing.T) {
	c, endpoints := start(t)
	for _, info := range []*registry.Info{
		{ServiceName: "foo", Addr: utils.NewNetAddr("tcp", "10.0.0.1:8888"), Weight: 7, Tags: map[string]string{"zone": "a"}},
		{ServiceName: "foo", Addr: utils.NewNetAddr("tcp", "[2001:db8::1]:8888")},
	} {
		r, err := etcd.NewEtcdRegistry(endpoints)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Register(info); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, c, format.Hertz, "hertz/registry-etcd/foo/", in("a", backend("10.0.0.1:8888", 7)), backend("[2001:db8::1]:8888", 10))
	r, err := etcd.NewEtcdResolver(endpoints)
	if err != nil {
		t.Fatal(err)
	}
	found, err := r.Resolve(t.Context(), "foo")
	if err != nil || len(found.Instances) != 2 || found.Instances[0].Weight()+found.Instances[1].Weight() != 17 {
		t.Errorf("hertz itself finds %+v %v", found.Instances, err)
	}
}

package realtest

import (
	"strconv"
	"strings"
	"testing"

	"dubbo.apache.org/dubbo-go/v3/common"
	"dubbo.apache.org/dubbo-go/v3/common/constant"
	"dubbo.apache.org/dubbo-go/v3/common/extension"
	"dubbo.apache.org/dubbo-go/v3/registry"
	_ "dubbo.apache.org/dubbo-go/v3/registry/etcdv3"
	"github.com/lbagent/lbagent/agent/discovery/format"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// dubbo-go's registry/etcdv3 writes interfaces, folders included; package format reads.
func TestDubboInterface(t *testing.T) {
	c, endpoints := start(t)
	at, err := common.NewURL("registry://"+strings.TrimPrefix(endpoints[0], "http://"), common.WithParamsValue(constant.RegistryRoleKey, strconv.Itoa(common.PROVIDER)))
	if err != nil {
		t.Fatal(err)
	}
	r, err := extension.GetRegistry("etcdv3", at)
	if err != nil {
		t.Fatal(err)
	}
	for ip, weight := range map[string]string{"10.0.0.1": "7", "2001:db8::1": ""} {
		if err := r.Register(common.NewURLWithOptions(common.WithProtocol("dubbo"), common.WithIp(ip), common.WithPort("20000"), common.WithPath("com.x.Foo"),
			common.WithInterface("com.x.Foo"), common.WithMethods([]string{"a", "b"}), common.WithParamsValue("weight", weight), common.WithParamsValue("group", "g"),
			common.WithParamsValue(constant.RegistryRoleKey, strconv.Itoa(common.PROVIDER)))); err != nil {
			t.Fatal(err)
		}
	}
	all, err := c.Get(t.Context(), "/dubbo", clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil || all.Count != 5 {
		t.Errorf("%+v %v, want 5 keys: three folders and two providers", all, err)
	}
	got := read(t, c, format.DubboInterface, "/dubbo", nil)
	if len(got) != 2 || got[0].Addr.String() != "10.0.0.1:20000" || got[0].Weight != 7 || got[1].Addr.String() != "[2001:db8::1]:20000" || got[1].Weight != 100 {
		t.Fatalf("got %+v", got)
	}
	for _, b := range got {
		if b.Metadata["scheme"] != "dubbo" || b.Metadata["group"] != "g" || b.Metadata["interface"] != "com.x.Foo" || b.Draining {
			t.Errorf("got %+v", b)
		}
	}
}

// dubbo-go's service discovery writes instances; package format reads.
func TestDubboApplication(t *testing.T) {
	c, endpoints := start(t)
	at, err := common.NewURL("registry://"+strings.TrimPrefix(endpoints[0], "http://"), common.WithParamsValue(constant.RegistryKey, constant.EtcdV3Key))
	if err != nil {
		t.Fatal(err)
	}
	d, err := extension.GetServiceDiscovery(at)
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range []*registry.DefaultServiceInstance{
		{ID: "1", ServiceName: "app1", Host: "10.0.0.1", Port: 20000, Enable: true, Healthy: true, Metadata: map[string]string{"revision": "r1"}},
		{ID: "2", ServiceName: "app1", Host: "2001:db8::1", Port: 20000, Healthy: true, Tag: "blue"},
	} {
		if err := d.Register(in); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, c, format.DubboApplication, "/services/app1/", backend("10.0.0.1:20000", 100, "revision", "r1"), drained(backend("[2001:db8::1]:20000", 100, "Tag", "blue")))
}

package realtest

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/etcd/msg"
	"github.com/go-kit/kit/sd/etcdv3"
	"github.com/go-kit/log"
	"github.com/go-micro/plugins/v4/registry/etcd"
	"github.com/gogf/gf/v2/net/gsvc"
	"github.com/lbagent/lbagent/agent/discovery/format"
	"go-micro.dev/v4/registry"
)

// go-micro's registry/etcd writes, package format reads.
func TestGoMicro(t *testing.T) {
	c, endpoints := start(t)
	r := etcd.NewRegistry(registry.Addrs(strings.TrimPrefix(endpoints[0], "http://"))) // anything but host:port is the default port for it
	for _, s := range []*registry.Service{
		{Name: "foo", Version: "latest", Nodes: []*registry.Node{
			{Id: "foo-1", Address: "10.0.0.1:8080", Metadata: map[string]string{"protocol": "grpc"}},
			{Id: "foo/2", Address: "[2001:db8::1]:8080", Metadata: map[string]string{"weight": "7"}},
		}},
		{Name: "a/b", Nodes: []*registry.Node{{Id: "1", Address: "10.0.0.3:1"}}},
	} {
		if err := r.Register(s, registry.RegisterTTL(time.Minute)); err != nil { // without one it panics
			t.Fatal(err)
		}
	}
	expect(t, c, format.GoMicro, "/micro/registry/foo/", backend("10.0.0.1:8080", 100, "protocol", "grpc", "version", "latest"), backend("[2001:db8::1]:8080", 7, "version", "latest"))
	expect(t, c, format.GoMicro, "/micro/registry/a-b/", backend("10.0.0.3:1", 100, "name", "a/b"))
}

// CoreDNS' own record and key, which it reads from etcd and leaves to others to write.
func TestSkyDNS(t *testing.T) {
	c, _ := start(t)
	for name, s := range map[string]msg.Service{
		"x1.foo.prod.local.":    {Host: "10.0.0.1", Port: 8080, Priority: 20, Weight: 7, TTL: 60},
		"x2.eu.foo.prod.local.": {Host: "2001:db8::1", Port: 8080, Group: "g"},
		"x3.foo.prod.local.":    {Text: "v=1"},
		"x4.foobar.prod.local.": {Host: "10.0.0.4", Port: 1},
	} {
		value, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		put(t, c, msg.Path(name, "skydns"), string(value))
	}
	one, two := backend("10.0.0.1:8080", 7), backend("[2001:db8::1]:8080", 100, "group", "g")
	one.Priority, two.Priority = 20, 10
	expect(t, c, format.SkyDNS, msg.Path("foo.prod.local.", "skydns")+"/", two, one)
}

// goframe's own key and value; its registry/etcd puts them as they are.
func TestGoFrame(t *testing.T) {
	c, _ := start(t)
	for _, s := range []gsvc.Service{
		&gsvc.LocalService{Name: "foo", Endpoints: gsvc.NewEndpoints("10.0.0.1:8000,10.0.0.2:8000"), Metadata: gsvc.Metadata{gsvc.MDProtocol: "http", gsvc.MDWeight: 7}},
		&gsvc.LocalService{Name: "foo", Version: "v2", Endpoints: gsvc.NewEndpoints("10.0.0.3:8000")},
	} {
		put(t, c, s.GetKey(), s.GetValue())
	}
	expect(t, c, format.GoFrame, "/service/default/default/foo/", backend("10.0.0.1:8000", 7, "protocol", "http", "version", "latest"),
		backend("10.0.0.2:8000", 7, "protocol", "http", "version", "latest"), backend("10.0.0.3:8000", 100, "version", "v2"))
}

// go-kit's sd/etcdv3 writes, package format reads, and the other way round.
func TestGoKit(t *testing.T) {
	c, endpoints := start(t)
	k, err := etcdv3.NewClient(t.Context(), endpoints, etcdv3.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{"services/foo/1": "10.0.0.1:8080", "services/foo/2": "http://[2001:db8::1]:8080"} {
		etcdv3.NewRegistrar(k, etcdv3.Service{Key: key, Value: value}, log.NewNopLogger()).Register()
	}
	expect(t, c, format.Plain, "services/foo/", backend("10.0.0.1:8080", 100), backend("[2001:db8::1]:8080", 100, "scheme", "http"))
	for _, r := range registrations() {
		write(t, c, format.Plain, r)
	}
	if got, err := k.GetEntries("services/ours/"); err != nil || len(got) != 2 || got[0] != "10.0.0.1:8080" || got[1] != "[2001:db8::1]:8080" {
		t.Errorf("go-kit reads %q %v", got, err)
	}
}

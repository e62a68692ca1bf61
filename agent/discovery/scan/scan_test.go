package scan

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/service"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// golden are keys as the named project writes them, and what a scan should see.
func golden() []struct{ key, value, want string } {
	return []struct{ key, value, want string }{
		{"svc/foo/10.0.0.1:80", `{"Op":0,"Addr":"10.0.0.1:80","Metadata":{"weight":5}}`, "foo grpc-naming svc/foo/"},
		{"svc/foo/a", `{"Op":0,"Addr":"[fd00::1]:80","Metadata":null}`, "foo grpc-naming svc/foo/"},
		{"user.rpc/7587862094567", "10.0.0.1:8080", "user.rpc gozero user.rpc/"},
		{"user.rpc/7587862094568", "[fd00::1]:8080", "user.rpc gozero user.rpc/"},
		{"/microservices/bar/uuid1", `{"id":"uuid1","name":"bar","version":"v1","metadata":{"weight":"10"},"endpoints":["http://10.0.0.1:8000?isSecure=false","grpc://10.0.0.1:9000?isSecure=false"]}`, "bar kratos /microservices/bar/"},
		{"/micro/registry/micro/foo-uuid1", `{"name":"micro","version":"latest","metadata":null,"endpoints":[],"nodes":[{"metadata":{"protocol":"grpc"},"id":"foo-uuid1","address":"10.0.0.1:8080"}]}`, "micro go-micro /micro/registry/micro/"},
		{"/rpcx/Arith/tcp@10.0.0.1:8972", "weight=7&group=a", "Arith rpcx /rpcx/Arith/"},
		{"prod/kitex/registry-etcd/kite/10.0.0.1:8888", `{"network":"tcp","address":"10.0.0.1:8888","weight":10,"tags":{"zone":"a"}}`, "kite kitex prod/kitex/registry-etcd/kite/"},
		{"hertz/registry-etcd/hz/[fd00::1]:8888", `{"network":"tcp","address":"[fd00::1]:8888","weight":10,"tags":null}`, "hz hertz hertz/registry-etcd/hz/"},
		{"/skydns/local/prod/sky/x1", `{"host":"10.0.0.1","port":8080,"priority":10,"weight":20,"ttl":60}`, "sky.prod.local skydns /skydns/local/prod/sky/"},
		{"/dubbo/com.x.Foo/providers/dubbo%3A%2F%2F10.0.0.1%3A20000%2Fcom.x.Foo%3Fmethods%3Da%26weight%3D100", "", "com.x.Foo dubbo-interface /dubbo/com.x.Foo/providers/"},
		{"/services/app1/10.0.0.1:20000", `{"ID":"10.0.0.1:20000","ServiceName":"app1","Host":"10.0.0.1","Port":20000,"Weight":100,"Enable":true,"Healthy":true,"Metadata":{}}`, "app1 dubbo-application /services/app1/"},
		{"/service/default/default/frame/latest/10.0.0.1:8000", `{"protocol":"http"}`, "frame goframe /service/default/default/frame/"},
		{"grpc:planet:v1:prod/10.0.0.1:9091", `{"Op":0,"Addr":"10.0.0.1:9091","MetadataX":{"name":"planet","scheme":"grpc","address":"10.0.0.1:9091","weight":100,"enable":true,"healthy":true}}`, "planet jupiter grpc:planet:v1:prod/"},
		{"traefik/http/services/tr/loadbalancer/servers/0/url", "http://10.0.0.1:8080", "tr traefik traefik/http/services/tr/"},
		{"traefik/http/services/tr/loadBalancer/servers/0/weight", "3", "tr traefik traefik/http/services/tr/"},
		{"traefik/tcp/services/db/loadbalancer/servers/0/address", "10.0.0.1:5432", "db traefik traefik/tcp/services/db/"},
		{"/apisix/upstreams/1", `{"id":"1","type":"roundrobin","nodes":{"10.0.0.1:80":100,"10.0.0.2:80":0}}`, "upstream-1 apisix /apisix/upstreams/1"},
		{"/service/batman/members/pg1", `{"conn_url":"postgres://10.0.0.1:5432/postgres","api_url":"http://10.0.0.1:8008/patroni","state":"running","role":"primary","version":"4.0.0"}`, "batman patroni /service/batman/"},
		{"/service/batman/leader", "pg1", "batman patroni /service/batman/"},
		{"lists/old/a", "http://10.0.0.1:80", "old plain lists/old/"},
		{"lists/old/b", "web.example.com:80", "old plain lists/old/"},
	}
}

func TestGuess(t *testing.T) {
	for _, c := range golden() {
		g, ok := guess(c.key, []byte(c.value))
		if got := fmt.Sprintf("%s %s %s%s", g.name, g.format, g.prefix, g.key); !ok || got != c.want {
			t.Errorf("%s: %q, want %q", c.key, got, c.want)
		}
	}
	for _, c := range [][2]string{
		{"/rpcx", "rpcx_path"}, {"/rpcx/Arith", "Arith"}, {"a/b", ""}, {"a/b", "12:30"}, {"a/b", "{}"}, {"a/b", "[1]"}, {"/registry/pods/default/x", "\x00k8s"},
		{"a/b", "hello world:80"}, {"10.0.0.1:80", "10.0.0.1:80"}, {"a/\xff", "10.0.0.1:80"}, {"election/1", "candidate"}, {"x/y@z", ""}, {"a/b", `{"addr":"x"}x`},
	} {
		if g, ok := guess(c[0], []byte(c[1])); ok {
			t.Errorf("%q %q: taken for %+v", c[0], c[1], g)
		}
	}
}

// What a scan of a real etcd says is what the agent would read.
func TestScan(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	want := make(map[string]string)
	for _, g := range golden() {
		if _, err := c.Put(t.Context(), g.key, g.value); err != nil {
			t.Fatal(err)
		}
		name, rest, _ := strings.Cut(g.want, " ")
		want[name] = rest
	}
	for key, value := range map[string]string{
		"svc/foo/bad": `{"Addr":"nowhere"}`, "/rpcx/Arith": "Arith", "other/svc/foo/a": `{"Addr":"10.0.9.1:80"}`, "app/lock/1": "x", "app/lock/2": "x",
	} {
		if _, err := c.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	pages := 0
	r, err := Scan(t.Context(), etcd.Wrap(c), "", func(keys int) { pages++ })
	if err != nil || pages != 1 {
		t.Fatalf("%d pages, %v", pages, err)
	}
	delete(want, "foo")
	want["foo-grpc-naming"], want["foo-grpc-naming-2"] = "grpc-naming other/svc/foo/", "grpc-naming svc/foo/"
	for _, f := range r.Services {
		if got := f.Format + " " + f.Prefix + f.Key; got != want[f.Name] {
			t.Errorf("%s: %q, want %q", f.Name, got, want[f.Name])
		}
		delete(want, f.Name)
		if f.Backends == 0 || len(f.Examples) == 0 {
			t.Errorf("%s has no backends", f.Name)
		}
		switch f.Name {
		case "foo-grpc-naming-2":
			if f.Keys != 3 || f.Backends != 2 || f.Bad != 1 || !strings.Contains(f.Reason, "svc/foo/bad: ") {
				t.Errorf("%+v", f)
			}
		case "bar":
			if strings.Join(f.Schemes, " ") != "grpc http" {
				t.Errorf("schemes %v", f.Schemes)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("not found: %v", want)
	}
	if len(r.Unknown) != 2 || r.Unknown[0] != (Unknown{"app/lock/", 2}) {
		t.Errorf("unknown: %v", r.Unknown)
	}
	r, err = Scan(t.Context(), etcd.Wrap(c), "svc/", func(int) {})
	if err != nil || len(r.Services) != 1 || r.Keys != 3 || r.Services[0].Name != "foo" {
		t.Errorf("svc/: %+v, %v", r, err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Scan(gone, etcd.Wrap(c), "", func(int) {}); err == nil {
		t.Error("a scan that was cancelled has a result")
	}
}

// A long scan goes page by page, at one revision, and says how far it is.
func TestScanPages(t *testing.T) {
	s := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, s)
	const keys = 2500
	var puts []clientv3.Op
	for i := range keys {
		puts = append(puts, clientv3.OpPut(fmt.Sprintf("services/s%d/%d", i%10, i), fmt.Sprintf(`{"Addr":"10.0.%d.%d:80"}`, i/250, i%250)))
		if len(puts) == 100 {
			if _, err := c.Txn(t.Context()).Then(puts...).Commit(); err != nil {
				t.Fatal(err)
			}
			puts = nil
		}
	}
	var told []int
	r, err := Scan(t.Context(), etcd.Wrap(c), "", func(n int) {
		if told = append(told, n); len(told) == 1 {
			if _, err := c.Put(t.Context(), "services/zz/1", `{"Addr":"10.9.9.9:80"}`); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil || len(told) != 3 || told[2] != keys || len(r.Services) != 10 || r.Services[0].Backends != keys/10 {
		t.Errorf("%v, %d services, %v", told, len(r.Services), err)
	}
}

func FuzzGuess(f *testing.F) {
	for _, c := range golden() {
		f.Add(c.key, []byte(c.value))
	}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		g, ok := guess(key, value)
		if !ok {
			return
		}
		if !service.ValidName(g.name) {
			t.Errorf("%q is no name", g.name)
		}
		if (g.prefix == "") == (g.key == "") || !strings.HasPrefix(key, g.prefix+g.key) || g.prefix != "" && !strings.HasSuffix(g.prefix, "/") {
			t.Errorf("%q: prefix %q, key %q", key, g.prefix, g.key)
		}
		if _, err := format.New(g.format, nil); err != nil {
			t.Error(err)
		}
	})
}

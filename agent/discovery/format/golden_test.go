package format

import (
	"net/url"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/lbagent/lbagent/agent/service"
)

func tier(p uint16) func(*service.Backend) { return func(b *service.Backend) { b.Priority = p } }

func list(b ...service.Backend) []service.Backend { return b }

// record is one key of a format and what it gives. A line of the formats' own description has "golden" in its name.
type record struct {
	name, format, key, value string
	want                     []service.Backend
	err                      string // a part of it; empty = none
	selected                 map[string][]string
}

func goldenTests() []record {
	const (
		kratosKey = "/microservices/foo/uuid1"
		microKey  = "/micro/registry/foo/foo-uuid1"
		kitexKey  = "kitex/registry-etcd/foo/10.0.0.1:8888"
		hertzKey  = "hertz/registry-etcd/foo/10.0.0.1:8888"
		rpcxKey   = "/rpcx/Arith/tcp@10.0.0.1:8972"
		skyKey    = "/skydns/local/prod/foo/x1"
	)
	scheme := func(s ...string) map[string][]string { return map[string][]string{"scheme": s} }
	return []record{
		// gozero: no weight, no mark for draining.
		{name: "golden", format: GoZero, key: "user.rpc/7587862094567", value: "10.0.0.1:8080", want: list(backend("10.0.0.1:8080"))},
		{name: "golden IPv6", format: GoZero, key: "user.rpc/7587862094567", value: "[2001:db8::1]:8080", want: list(backend("[2001:db8::1]:8080"))},
		{name: "own id", format: GoZero, key: "user.rpc/1", value: "10.0.0.1:8080\n", want: list(backend("10.0.0.1:8080"))},
		{name: "host name (1.13)", format: GoZero, key: "user.rpc/1", value: "User-1:8080", want: list(named("user-1", 8080))},
		{name: "not written yet", format: GoZero, key: "user.rpc/1"},
		{name: "a URL", format: GoZero, key: "user.rpc/1", value: "http://10.0.0.1:8080", err: "address"},

		// kratos: default weight 100; weight 0 drains.
		{
			name: "golden", format: Kratos, key: kratosKey,
			value: `{"id":"uuid1","name":"foo","version":"v1","metadata":{"weight":"10"},"endpoints":["http://10.0.0.1:8000?isSecure=false","grpc://10.0.0.1:9000?isSecure=false"]}`,
			want:  list(backend("10.0.0.1:9000", weight(10), meta("scheme", "grpc", "isSecure", "false", "version", "v1"))),
		},
		{
			name: "golden IPv6", format: Kratos, key: kratosKey,
			value: `{"id":"uuid1","name":"foo","version":"v1","metadata":{"weight":"10"},"endpoints":["http://[2001:db8::1]:8000?isSecure=false","grpc://[2001:db8::1]:9000?isSecure=false"]}`,
			want:  list(backend("[2001:db8::1]:9000", weight(10), meta("scheme", "grpc", "isSecure", "false", "version", "v1"))),
		},
		{
			name: "selected scheme", format: Kratos, key: kratosKey, selected: scheme("http"),
			value: `{"endpoints":["http://10.0.0.1:8000?isSecure=false","grpc://10.0.0.1:9000?isSecure=false"]}`,
			want:  list(backend("10.0.0.1:8000", meta("scheme", "http", "isSecure", "false"))),
		},
		{
			name: "a scheme of its own is selected", format: Kratos, key: kratosKey, selected: scheme("tcp"),
			value: `{"endpoints":["tcp://10.0.0.1:1","grpc://10.0.0.1:9000"]}`, want: list(backend("10.0.0.1:1", meta("scheme", "tcp"))),
		},
		{
			name: "two schemes are selected", format: Kratos, key: kratosKey, selected: scheme("tcp", "http"),
			value: `{"endpoints":["http://10.0.0.1:2","tcp://10.0.0.1:1","grpc://10.0.0.1:9000"]}`,
			want:  list(backend("10.0.0.1:2", meta("scheme", "http")), backend("10.0.0.1:1", meta("scheme", "tcp"))),
		},
		{name: "an unknown scheme waits", format: Kratos, key: kratosKey, value: `{"endpoints":["tcp://10.0.0.1:1"]}`},
		{name: "the selected scheme is not there", format: Kratos, key: kratosKey, selected: scheme("http"), value: `{"endpoints":["grpc://10.0.0.1:1"]}`},
		{
			name: "http without grpc", format: Kratos, key: kratosKey, value: `{"endpoints":["https://10.0.0.1:2","http://10.0.0.1:1"]}`,
			want: list(backend("10.0.0.1:1", meta("scheme", "http"))),
		},
		{
			name: "https without a port", format: Kratos, key: kratosKey, value: `{"endpoints":["https://10.0.0.1"]}`,
			want: list(backend("10.0.0.1:443", meta("scheme", "https"))),
		},
		{
			name: "two of a scheme", format: Kratos, key: kratosKey, value: `{"endpoints":["grpc://10.0.0.1:1","grpc://10.0.0.2:2"]}`,
			want: list(backend("10.0.0.1:1", meta("scheme", "grpc")), backend("10.0.0.2:2", meta("scheme", "grpc"))),
		},
		{
			name: "one endpoint of two is bad (1.7)", format: Kratos, key: kratosKey, value: `{"endpoints":["grpc://10.0.0.1","grpc://10.0.0.2:2"]}`,
			want: list(backend("10.0.0.2:2", meta("scheme", "grpc"))), err: "no default port",
		},
		{name: "not a URL", format: Kratos, key: kratosKey, value: `{"endpoints":["grpc://[::1"]}`, err: "endpoint 0: not a URL"},
		{
			name: "weight 0 drains (1.11)", format: Kratos, key: kratosKey, value: `{"metadata":{"weight":"0"},"endpoints":["grpc://10.0.0.1:1"]}`,
			want: list(backend("10.0.0.1:1", weight(1), draining, meta("scheme", "grpc"))),
		},
		{
			name: "metadata null, zone, host name", format: Kratos, key: kratosKey, value: `{"metadata":{"zone":"a","scheme":"x","version":"mine"},"version":"v2","endpoints":["grpc://Foo.local:1"]}`,
			want: list(named("foo.local", 1, zone("a"), meta("scheme", "grpc", "version", "mine"))),
		},
		{name: "no endpoints yet", format: Kratos, key: kratosKey, value: `{"id":"uuid1","name":"foo","metadata":null,"endpoints":null}`},
		{name: "empty", format: Kratos, key: kratosKey, value: " "},
		{name: "endpoints is a string", format: Kratos, key: kratosKey, value: `{"endpoints":"grpc://10.0.0.1:1"}`, err: "endpoints is not a list"},
		{name: "cut off", format: Kratos, key: kratosKey, value: `{"endpoints":["gr`, err: "not JSON"},

		// kitex and hertz: default weight 10; weight 0 drains.
		{
			name: "golden", format: Kitex, key: kitexKey, value: `{"network":"tcp","address":"10.0.0.1:8888","weight":10,"tags":{"zone":"a"}}`,
			want: list(backend("10.0.0.1:8888", weight(10), zone("a"))),
		},
		{
			name: "golden IPv6", format: Kitex, key: "kitex/registry-etcd/foo/[2001:db8::1]:8888", value: `{"network":"tcp","address":"[2001:db8::1]:8888","weight":10,"tags":{"zone":"a"}}`,
			want: list(backend("[2001:db8::1]:8888", weight(10), zone("a"))),
		},
		{name: "golden", format: Hertz, key: hertzKey, value: `{"network":"tcp","address":"10.0.0.1:8888","weight":10,"tags":null}`, want: list(backend("10.0.0.1:8888", weight(10)))},
		{
			name: "golden IPv6", format: Hertz, key: "hertz/registry-etcd/foo/[2001:db8::1]:8888", value: `{"network":"tcp","address":"[2001:db8::1]:8888","weight":10,"tags":null}`,
			want: list(backend("[2001:db8::1]:8888", weight(10))),
		},
		{name: "no weight", format: Kitex, key: kitexKey, value: `{"address":"10.0.0.1:8888"}`, want: list(backend("10.0.0.1:8888", weight(10)))},
		{name: "weight 0 drains (1.11)", format: Kitex, key: kitexKey, value: `{"address":"10.0.0.1:8888","weight":0}`, want: list(backend("10.0.0.1:8888", weight(1), draining))},
		{
			name: "tags and unknown fields are metadata", format: Kitex, key: kitexKey, value: `{"address":"10.0.0.1:8888","weight":3,"tags":{"cluster":"blue","weight":"x"},"extra":1}`,
			want: list(backend("10.0.0.1:8888", weight(3), meta("cluster", "blue", "extra", "1"))),
		},
		{name: "a unix socket waits", format: Kitex, key: "kitex/registry-etcd/foo//tmp/x", value: `{"network":"unix","address":"/tmp/x","weight":10}`},
		{name: "folder", format: Hertz, key: "hertz/registry-etcd/foo/", value: ""},
		{name: "no address", format: Hertz, key: hertzKey, value: `{"network":"tcp","weight":10}`, err: "no address"},
		{name: "weight negative", format: Kitex, key: kitexKey, value: `{"address":"10.0.0.1:8888","weight":-1}`, err: "weight"},

		{
			name: "IPv6 as kitex writes it", format: Kitex, key: "kitex/registry-etcd/foo/2001:db8::1:8888", value: `{"network":"tcp","address":"2001:db8::1:8888","weight":10,"tags":null}`,
			want: list(backend("[2001:db8::1]:8888", weight(10))),
		},
		{
			name: "the same with a port of five digits", format: Kitex, key: "kitex/registry-etcd/foo/2001:db8::1:18888", value: `{"address":"2001:db8::1:18888"}`,
			want: list(backend("[2001:db8::1]:18888", weight(10))),
		},
		{name: "a port with a letter", format: Kitex, key: kitexKey, value: `{"address":"2001:db8::1:88ff"}`, err: "address"},
		{name: "hertz needs brackets", format: Hertz, key: hertzKey, value: `{"address":"2001:db8::1:8888"}`, err: "no port"},
		{name: "hertz writes 0 for no weight", format: Hertz, key: hertzKey, value: `{"network":"tcp","address":"10.0.0.1:8888","weight":0,"tags":null}`, want: list(backend("10.0.0.1:8888", weight(10)))},

		// go-micro: default weight 100; weight 0 drains.
		{
			name: "golden", format: GoMicro, key: microKey,
			value: `{"name":"foo","version":"latest","metadata":null,"endpoints":[],"nodes":[{"metadata":{"protocol":"grpc"},"id":"foo-uuid1","address":"10.0.0.1:8080"}]}`,
			want:  list(backend("10.0.0.1:8080", meta("protocol", "grpc", "version", "latest"))),
		},
		{
			name: "golden IPv6", format: GoMicro, key: microKey,
			value: `{"name":"foo","version":"latest","metadata":null,"endpoints":[],"nodes":[{"metadata":{"protocol":"grpc"},"id":"foo-uuid1","address":"[2001:db8::1]:8080"}]}`,
			want:  list(backend("[2001:db8::1]:8080", meta("protocol", "grpc", "version", "latest"))),
		},
		{
			name: "a name that the key mangles", format: GoMicro, key: "/micro/registry/a-b/1", value: `{"name":"a/b","nodes":[{"address":"10.0.0.1:1"}]}`,
			want: list(backend("10.0.0.1:1", meta("name", "a/b"))),
		},
		{name: "the same key, the other name", format: GoMicro, key: "/micro/registry/a-b/2", value: `{"name":"a-b","nodes":[{"address":"10.0.0.2:1"}]}`, want: list(backend("10.0.0.2:1"))},
		{
			name: "two nodes, one of them bad (1.7)", format: GoMicro, key: microKey, value: `{"metadata":{"zone":"a","x":"service"},"nodes":[{"address":"nowhere"},{"address":"10.0.0.2:1","metadata":{"x":"node","weight":"7"}}]}`,
			want: list(backend("10.0.0.2:1", weight(7), zone("a"), meta("x", "node"))), err: "node 0: address",
		},
		{name: "weight 0 drains (1.11)", format: GoMicro, key: microKey, value: `{"nodes":[{"address":"10.0.0.1:1","metadata":{"weight":"0"}}]}`, want: list(backend("10.0.0.1:1", weight(1), draining))},
		{name: "no nodes yet", format: GoMicro, key: microKey, value: `{"name":"foo","nodes":[]}`},
		{name: "a null node", format: GoMicro, key: microKey, value: `{"nodes":[null]}`, err: "no address"},
		{name: "nodes is an object", format: GoMicro, key: microKey, value: `{"nodes":{}}`, err: "nodes is not a list"},
		{name: "empty", format: GoMicro, key: microKey},

		// rpcx: default weight 1; state=inactive and weight 0 drain.
		{name: "golden", format: RPCX, key: rpcxKey, value: "weight=7&group=a", want: list(backend("10.0.0.1:8972", weight(7), meta("group", "a", "protocol", "tcp")))},
		{name: "golden IPv6", format: RPCX, key: "/rpcx/Arith/tcp@[2001:db8::1]:8972", value: "weight=7&group=a", want: list(backend("[2001:db8::1]:8972", weight(7), meta("group", "a", "protocol", "tcp")))},
		{name: "golden base key", format: RPCX, key: "/rpcx", value: "rpcx_path"},
		{name: "golden service key", format: RPCX, key: "/rpcx/Arith", value: "Arith"},
		{name: "no value", format: RPCX, key: rpcxKey, want: list(backend("10.0.0.1:8972", weight(1), meta("protocol", "tcp")))},
		{name: "no network is tcp", format: RPCX, key: "/rpcx/Arith/10.0.0.1:8972", want: list(backend("10.0.0.1:8972", weight(1), meta("protocol", "tcp")))},
		{name: "inactive drains (1.11)", format: RPCX, key: rpcxKey, value: "weight=7&state=inactive", want: list(backend("10.0.0.1:8972", weight(7), draining, meta("protocol", "tcp")))},
		{name: "weight 0 drains (1.11)", format: RPCX, key: rpcxKey, value: "weight=0", want: list(backend("10.0.0.1:8972", weight(1), draining, meta("protocol", "tcp")))},
		{name: "rates are no metadata", format: RPCX, key: rpcxKey, value: "calls=1.20&connections=3.00&weight=", want: list(backend("10.0.0.1:8972", weight(1), meta("protocol", "tcp")))},
		{name: "http, escapes, zone", format: RPCX, key: "/rpcx/Arith/http@10.0.0.1:80", value: "a%20b=c+d&zone=z&region=r&a%20b=2", want: list(backend("10.0.0.1:80", weight(1), zone("z"), region("r"), meta("a b", "c d", "protocol", "http")))},
		{name: "host name (1.13)", format: RPCX, key: "/rpcx/Arith/tcp@arith-1:80", want: list(named("arith-1", 80, weight(1), meta("protocol", "tcp")))},
		{name: "quic waits", format: RPCX, key: "/rpcx/Arith/quic@10.0.0.1:80"},
		{name: "unix waits", format: RPCX, key: "/rpcx/Arith/unix@/tmp/x.sock"},
		{name: "no port", format: RPCX, key: "/rpcx/Arith/tcp@10.0.0.1", err: "address"},
		{name: "not a query", format: RPCX, key: rpcxKey, value: "weight=%zz", err: "not a URL query"},
		{name: "weight is a word", format: RPCX, key: rpcxKey, value: "weight=heavy", err: "weight"},

		// skydns: default weight 100, default priority 10; weight 0 drains.
		{name: "golden", format: SkyDNS, key: skyKey, value: `{"host":"10.0.0.1","port":8080,"priority":10,"weight":20,"ttl":60}`, want: list(backend("10.0.0.1:8080", weight(20), tier(10)))},
		{name: "golden IPv6", format: SkyDNS, key: skyKey, value: `{"host":"2001:db8::1","port":8080,"priority":10,"weight":20,"ttl":60}`, want: list(backend("[2001:db8::1]:8080", weight(20), tier(10)))},
		{name: "defaults", format: SkyDNS, key: "/skydns/local/prod/foo/eu/x1", value: `{"host":"10.0.0.1","port":8080}`, want: list(backend("10.0.0.1:8080", tier(10)))},
		{name: "priority", format: SkyDNS, key: skyKey, value: `{"host":"10.0.0.1","port":1,"priority":2}`, want: list(backend("10.0.0.1:1", tier(2)))},
		{name: "priority 0 is none", format: SkyDNS, key: skyKey, value: `{"host":"10.0.0.1","port":1,"priority":0}`, want: list(backend("10.0.0.1:1", tier(10)))},
		{name: "weight 0 drains (1.11)", format: SkyDNS, key: skyKey, value: `{"host":"10.0.0.1","port":1,"weight":0}`, want: list(backend("10.0.0.1:1", weight(1), draining, tier(10)))},
		{name: "host name (1.13)", format: SkyDNS, key: skyKey, value: `{"host":"Foo.prod.local.","port":1}`, want: list(named("foo.prod.local", 1, tier(10)))},
		{name: "text and group", format: SkyDNS, key: skyKey, value: `{"host":"10.0.0.1","port":1,"text":"t","group":"g1","targetstrip":1}`, want: list(backend("10.0.0.1:1", tier(10), meta("text", "t", "group", "g1")))},
		{name: "a TXT record", format: SkyDNS, key: skyKey, value: `{"text":"v=1"}`},
		{name: "an MX record", format: SkyDNS, key: skyKey, value: `{"host":"mx.local","port":25,"mail":true}`},
		{name: "an A record", format: SkyDNS, key: skyKey, value: `{"host":"10.0.0.1"}`, err: "no port"},
		{name: "priority too large", format: SkyDNS, key: skyKey, value: `{"host":"10.0.0.1","port":1,"priority":65536}`, err: "priority"},
		{name: "a list", format: SkyDNS, key: skyKey, value: `[]`, err: "JSON array"},
		{name: "empty", format: SkyDNS, key: skyKey},

		// dubbo-interface: default weight 100; weight 0, enabled=false and disabled=true drain.
		{
			name: "golden", format: DubboInterface, key: "/dubbo/com.x.Foo/providers/dubbo%3A%2F%2F10.0.0.1%3A20000%2Fcom.x.Foo%3Fmethods%3Da%26weight%3D100",
			want: list(backend("10.0.0.1:20000", meta("scheme", "dubbo"))),
		},
		{
			name: "golden IPv6", format: DubboInterface, key: "/dubbo/com.x.Foo/providers/dubbo%3A%2F%2F%5B2001%3Adb8%3A%3A1%5D%3A20000%2Fcom.x.Foo%3Fmethods%3Da%26weight%3D100",
			want: list(backend("[2001:db8::1]:20000", meta("scheme", "dubbo"))),
		},
		{
			name: "IPv6 as dubbo-go writes it", format: DubboInterface, key: "/dubbo/f/providers/" + url.QueryEscape("tri://u@2001:db8::1:20000/f?a=b c"),
			want: list(backend("[2001:db8::1]:20000", meta("scheme", "tri", "a", "b c"))),
		},
		{name: "golden folder", format: DubboInterface, key: "/dubbo/com.x.Foo/providers"},
		{name: "parent", format: DubboInterface, key: "/dubbo"},
		{name: "a consumer", format: DubboInterface, key: "/dubbo/com.x.Foo/consumers/consumer%3A%2F%2F10.0.0.9%2Fcom.x.Foo"},
		{name: "empty providers", format: DubboInterface, key: "/dubbo/com.x.Foo/providers/empty%3A%2F%2F10.0.0.9%2Fcom.x.Foo"},
		{
			name: "group, version, and what is of one process", format: DubboInterface, key: "/dubbo/f/providers/" + url.QueryEscape("tri://:@10.0.0.1:1/f?group=g&version=1.0&pid=7&timestamp=8&zone=a&b=c%26d&weight=7"),
			want: list(backend("10.0.0.1:1", weight(7), zone("a"), meta("scheme", "tri", "group", "g", "version", "1.0", "b", "c&d"))),
		},
		{name: "weight 0 drains (1.11)", format: DubboInterface, key: "/dubbo/f/providers/" + url.QueryEscape("dubbo://10.0.0.1:1/f?weight=0"), want: list(backend("10.0.0.1:1", weight(1), draining, meta("scheme", "dubbo")))},
		{name: "disabled drains (1.11)", format: DubboInterface, key: "/dubbo/f/providers/" + url.QueryEscape("dubbo://10.0.0.1:1/f?disabled=true"), want: list(backend("10.0.0.1:1", draining, meta("scheme", "dubbo")))},
		{name: "enabled=false drains (1.11)", format: DubboInterface, key: "/dubbo/f/providers/" + url.QueryEscape("dubbo://Foo-1:1/f?enabled=false"), want: list(named("foo-1", 1, draining, meta("scheme", "dubbo")))},
		{name: "not escaped well", format: DubboInterface, key: "/dubbo/f/providers/%zz", err: "not an escaped URL"},
		{name: "no URL", format: DubboInterface, key: "/dubbo/f/providers/x", err: "no URL"},
		{name: "no port", format: DubboInterface, key: "/dubbo/f/providers/" + url.QueryEscape("dubbo://10.0.0.1/f"), err: "no port"},

		// dubbo-application: default weight 100, 0 is none; Enable and Healthy false drain.
		{
			name: "golden", format: DubboApplication, key: "/services/app1/10.0.0.1:20000",
			value: `{"ID":"10.0.0.1:20000","ServiceName":"app1","Host":"10.0.0.1","Port":20000,"Weight":100,"Enable":true,"Healthy":true,"Metadata":{}}`,
			want:  list(backend("10.0.0.1:20000")),
		},
		{
			name: "golden IPv6", format: DubboApplication, key: "/services/app1/2001:db8::1:20000",
			value: `{"ID":"2001:db8::1:20000","ServiceName":"app1","Host":"2001:db8::1","Port":20000,"Weight":100,"Enable":true,"Healthy":true,"Metadata":{}}`,
			want:  list(backend("[2001:db8::1]:20000")),
		},
		{
			name: "weight 0 is none", format: DubboApplication, key: "/services/app1/x", value: `{"Host":"Foo","Port":1,"Weight":0,"GroupName":"","Tag":"t","Address":"","ServiceMetadata":null,"Metadata":{"a":"b","zone":"z"}}`,
			want: list(named("foo", 1, zone("z"), meta("a", "b", "Tag", "t"))),
		},
		{name: "not enabled drains (1.11)", format: DubboApplication, key: "/services/app1/x", value: `{"Host":"10.0.0.1","Port":1,"Enable":false,"Healthy":true}`, want: list(backend("10.0.0.1:1", draining))},
		{name: "unhealthy drains (1.11)", format: DubboApplication, key: "/services/app1/x", value: `{"Host":"10.0.0.1","Port":1,"Enable":true,"Healthy":false,"Weight":7}`, want: list(backend("10.0.0.1:1", weight(7), draining))},
		{name: "Enable is a word", format: DubboApplication, key: "/services/app1/x", value: `{"Host":"10.0.0.1","Port":1,"Enable":"maybe"}`, err: "neither true nor false"},
		{name: "no host yet", format: DubboApplication, key: "/services/app1/x", value: `{"ServiceName":"app1"}`},
		{name: "no port", format: DubboApplication, key: "/services/app1/x", value: `{"Host":"10.0.0.1"}`, err: "port"},
		{name: "folder", format: DubboApplication, key: "/services/app1"},

		// goframe: default weight 100; weight 0 drains.
		{name: "golden", format: GoFrame, key: "/service/default/default/foo/latest/10.0.0.1:8000", value: `{"protocol":"http"}`, want: list(backend("10.0.0.1:8000", meta("protocol", "http", "version", "latest")))},
		{name: "golden IPv6", format: GoFrame, key: "/service/default/default/foo/latest/[2001:db8::1]:8000", value: `{"protocol":"http"}`, want: list(backend("[2001:db8::1]:8000", meta("protocol", "http", "version", "latest")))},
		{
			name: "two endpoints, no value", format: GoFrame, key: "/service/default/default/foo/v1/10.0.0.1:8000,[2001:db8::1]:8000",
			want: list(backend("10.0.0.1:8000", meta("version", "v1")), backend("[2001:db8::1]:8000", meta("version", "v1"))),
		},
		{name: "one of two is bad (1.7)", format: GoFrame, key: "/service/default/default/foo/v1/10.0.0.1:0,Foo:8000", want: list(named("foo", 8000, meta("version", "v1"))), err: "port 0"},
		{name: "weight 0 drains (1.11)", format: GoFrame, key: "/service/default/default/foo/v1/10.0.0.1:1", value: `{"weight":0,"insecure":true}`, want: list(backend("10.0.0.1:1", weight(1), draining, meta("version", "v1", "insecure", "true")))},
		{name: "value null", format: GoFrame, key: "/service/default/default/foo/v1/10.0.0.1:1", value: `null`, want: list(backend("10.0.0.1:1", meta("version", "v1")))},
		{name: "folder", format: GoFrame, key: "/service/default/default/foo/v1"},
		{name: "value is no object", format: GoFrame, key: "/service/default/default/foo/v1/10.0.0.1:1", value: `"x"`, err: "JSON string"},

		// jupiter: default weight 100; Op 1, weight 0, enable and healthy false drain.
		{
			name: "golden", format: Jupiter, key: "grpc:foo:v1:prod/10.0.0.1:9091",
			value: `{"Op":0,"Addr":"10.0.0.1:9091","MetadataX":{"name":"foo","scheme":"grpc","address":"10.0.0.1:9091","weight":100,"enable":true,"healthy":true}}`,
			want:  list(backend("10.0.0.1:9091", meta("scheme", "grpc"))),
		},
		{
			name: "golden IPv6", format: Jupiter, key: "grpc:foo:v1:prod/[2001:db8::1]:9091",
			value: `{"Op":0,"Addr":"[2001:db8::1]:9091","MetadataX":{"name":"foo","scheme":"grpc","address":"[2001:db8::1]:9091","weight":100,"enable":true,"healthy":true}}`,
			want:  list(backend("[2001:db8::1]:9091", meta("scheme", "grpc"))),
		},
		{
			name: "all of it", format: Jupiter, key: "grpc:foo:v1:prod/10.0.0.1:1", value: `{"Addr":"10.0.0.1:1","MetadataX":{"appID":"1","weight":7,"zone":"a","region":"eu","group":"g","kind":"","services":{"x":{}},"metadata":{"k":"v","group":"not this"}},"more":1}`,
			want: list(backend("10.0.0.1:1", weight(7), zone("a"), region("eu"), meta("group", "g", "k", "v", "more", "1"))),
		},
		{name: "Op 1 drains (1.11)", format: Jupiter, key: "g/1", value: `{"Op":1,"Addr":"10.0.0.1:1"}`, want: list(backend("10.0.0.1:1", draining))},
		{name: "not enabled drains (1.11)", format: Jupiter, key: "g/1", value: `{"Addr":"Foo:1","MetadataX":{"enable":false}}`, want: list(named("foo", 1, draining))},
		{name: "unhealthy drains (1.11)", format: Jupiter, key: "g/1", value: `{"MetadataX":{"healthy":false,"address":"10.0.0.1:1"}}`, want: list(backend("10.0.0.1:1", draining))},
		{name: "weight 0 drains (1.11)", format: Jupiter, key: "g/1", value: `{"Addr":"10.0.0.1:1","MetadataX":{"weight":0}}`, want: list(backend("10.0.0.1:1", weight(1), draining))},
		{name: "no address yet", format: Jupiter, key: "g/1", value: `{"Op":0}`},
		{name: "unknown Op", format: Jupiter, key: "g/1", value: `{"Op":7,"Addr":"10.0.0.1:1"}`, err: "unknown Op"},
		{name: "empty", format: Jupiter, key: "g/1"},

		// apisix: default weight 100; weight 0 drains; higher priorities first.
		{
			name: "golden", format: APISIX, key: "/apisix/upstreams/1", value: `{"id":"1","type":"roundrobin","nodes":{"10.0.0.1:80":100,"10.0.0.2:80":0}}`,
			want: list(backend("10.0.0.1:80"), backend("10.0.0.2:80", weight(1), draining)),
		},
		{
			name: "golden IPv6", format: APISIX, key: "/apisix/upstreams/1", value: `{"id":"1","type":"roundrobin","nodes":{"[2001:db8::1]:80":100,"[2001:db8::2]:80":0}}`,
			want: list(backend("[2001:db8::1]:80"), backend("[2001:db8::2]:80", weight(1), draining)),
		},
		{
			name: "a list with priorities", format: APISIX, key: "/apisix/upstreams/1",
			value: `{"nodes":[{"host":"10.0.0.1","port":80,"weight":1,"priority":-1},{"host":"2001:db8::1","port":80,"weight":7},{"host":"Foo.bar","port":1,"weight":1,"priority":10}]}`,
			want:  list(backend("10.0.0.1:80", weight(1), tier(11)), backend("[2001:db8::1]:80", weight(7), tier(10)), named("foo.bar", 1, weight(1))),
		},
		{
			name: "spare nodes only", format: APISIX, key: "/apisix/upstreams/1", value: `{"nodes":[{"host":"10.0.0.1","port":80,"weight":1,"priority":-1}]}`,
			want: list(backend("10.0.0.1:80", weight(1))),
		},
		{
			name: "priorities far apart", format: APISIX, key: "/apisix/upstreams/1",
			value: `{"nodes":[{"host":"10.0.0.1","port":1,"priority":-100000},{"host":"10.0.0.1","port":2,"priority":0}]}`,
			want:  list(backend("10.0.0.1:1", tier(65535)), backend("10.0.0.1:2")),
		},
		{
			name: "ports of the scheme, labels", format: APISIX, key: "/apisix/upstreams/1", value: `{"scheme":"https","name":"n","labels":{"zone":"a","weight":"x","l":"1"},"nodes":{"10.0.0.1":1,"2001:db8::1":2,"foo":3}}`,
			want: list(backend("10.0.0.1:443", weight(1), zone("a"), meta("scheme", "https", "name", "n", "l", "1")),
				backend("[2001:db8::1]:443", weight(2), zone("a"), meta("scheme", "https", "name", "n", "l", "1")), named("foo", 443, weight(3), zone("a"), meta("scheme", "https", "name", "n", "l", "1"))),
		},
		{
			name: "one of three is bad (1.7)", format: APISIX, key: "/apisix/upstreams/1", value: `{"nodes":{"10.0.0.1:80":1,"10.0.0.2:99999":1,"10.0.0.3:80":1}}`,
			want: list(backend("10.0.0.1:80", weight(1)), backend("10.0.0.3:80", weight(1))), err: "node 1: address",
		},
		{name: "a bad weight", format: APISIX, key: "/apisix/upstreams/1", value: `{"nodes":{"10.0.0.1:80":-1}}`, err: "weight"},
		{name: "a bad priority", format: APISIX, key: "/apisix/upstreams/1", value: `{"nodes":[{"host":"10.0.0.1","port":1,"priority":"x"}]}`, err: "priority"},
		{name: "no port for tcp", format: APISIX, key: "/apisix/upstreams/1", value: `{"scheme":"tcp","nodes":{"10.0.0.1":1}}`, err: "no port"},
		{name: "found elsewhere", format: APISIX, key: "/apisix/upstreams/1", value: `{"service_name":"foo","discovery_type":"nacos"}`},
		{name: "no nodes", format: APISIX, key: "/apisix/upstreams/1", value: `{"nodes":[]}`},
		{name: "nodes is a number", format: APISIX, key: "/apisix/upstreams/1", value: `{"nodes":7}`, err: "nodes is neither"},
		{name: "empty", format: APISIX, key: "/apisix/upstreams/1"},
	}
}

func TestFormats(t *testing.T) {
	golden := map[string]int{GRPCNaming: 2, Plain: 2, Traefik: 2, Patroni: 2} // in decodeTests, TestTraefik and TestPatroni
	for _, tt := range goldenTests() {
		if strings.HasPrefix(tt.name, "golden") {
			golden[tt.format]++
		}
		t.Run(tt.format+"/"+tt.name, func(t *testing.T) {
			d, err := New(tt.format, tt.selected)
			if err != nil {
				t.Fatal(err)
			}
			before := backend("192.0.2.1:1")
			got, err := d.Append([]service.Backend{before}, tt.key, []byte(tt.value))
			if !reflect.DeepEqual(got[0], before) {
				t.Errorf("what was there before became %+v", got[0])
			}
			if got = got[1:]; !reflect.DeepEqual(got, append([]service.Backend{}, tt.want...)) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want one with %q", err, tt.err)
			}
		})
	}
	for _, name := range Names() {
		if golden[name] < 2 {
			t.Errorf("%s has %d golden lines, it needs an IPv4 and an IPv6 one", name, golden[name])
		}
	}
}

// Backends with the same metadata share one map in every format, and equal zones one string; the cache stays small.
func TestMetadataIsSharedInAllFormats(t *testing.T) {
	for _, tt := range goldenTests() {
		if len(tt.want) == 0 || tt.want[0].Metadata == nil {
			continue
		}
		d, err := New(tt.format, tt.selected)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := d.Append(nil, tt.key, []byte(tt.value))
		b, _ := d.Append(nil, tt.key, []byte(tt.value))
		if unsafe.StringData(a[0].Zone) != unsafe.StringData(b[0].Zone) {
			t.Errorf("%s/%s: equal zones are two strings", tt.format, tt.name)
		}
		if reflect.ValueOf(a[0].Metadata).Pointer() != reflect.ValueOf(b[0].Metadata).Pointer() {
			t.Errorf("%s/%s: equal metadata has two maps", tt.format, tt.name)
		}
	}
	d, _ := New(Kratos, nil)
	for i := range 10 * cachedMetadata {
		if _, err := d.Append(nil, "k", []byte(`{"version":"`+strings.Repeat("x", i)+`","metadata":{"zone":"z`+strings.Repeat("y", i)+`"},"endpoints":["grpc://10.0.0.1:1"]}`)); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.shared.seen) > cachedMetadata || len(d.shared.words) > cachedMetadata {
		t.Errorf("%d maps and %d words kept", len(d.shared.seen), len(d.shared.words))
	}
}

func TestHostNames(t *testing.T) {
	for in, want := range map[string]string{
		"db-1": "db-1", "DB.Local.": "db.local", "a_b.c": "a_b.c", "1a": "1a", "10.0.0.1x": "10.0.0.1x", "3com.com": "3com.com",
		"": "", ".": "", "a..b": "", "-a": "", "a-": "", "10.0.0.300": "", "123": "", "a b": "", "ä": "", "a/b": "", "*.a": "",
		strings.Repeat("a", 64): "", strings.Repeat("a.", 127) + "a": "",
	} {
		if want == "" {
			if got, ok := service.HostName(in); ok && len(in) < 250 {
				t.Errorf("%q is %q", in, got)
			}
			continue
		}
		if got, ok := service.HostName(in); !ok || got != want {
			t.Errorf("%q is %q %v, want %q", in, got, ok, want)
		}
	}
	if _, ok := service.HostName(strings.Repeat("a.", 126) + "a"); !ok { // 253
		t.Error("a name of 253 letters was refused")
	}
	if _, ok := service.HostName(strings.Repeat("a.", 127) + "a"); ok {
		t.Error("a name of 255 letters was taken")
	}
}

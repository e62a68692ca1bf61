package format

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/lbagent/lbagent/agent/service"
)

func backend(addr string, change ...func(*service.Backend)) service.Backend {
	b := service.Backend{Addr: netip.MustParseAddrPort(addr), Weight: service.DefaultWeight}
	for _, f := range change {
		f(&b)
	}
	return b
}

func named(host string, port uint16, change ...func(*service.Backend)) service.Backend {
	b := backend("192.0.2.1:1", change...)
	b.Addr, b.Host = netip.AddrPortFrom(netip.Addr{}, port), host
	return b
}

func weight(w uint32) func(*service.Backend) { return func(b *service.Backend) { b.Weight = w } }

func draining(b *service.Backend) { b.Draining = true }

func zone(z string) func(*service.Backend) { return func(b *service.Backend) { b.Zone = z } }

func region(r string) func(*service.Backend) { return func(b *service.Backend) { b.Region = r } }

func meta(pairs ...string) func(*service.Backend) {
	return func(b *service.Backend) {
		b.Metadata = map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			b.Metadata[pairs[i]] = pairs[i+1]
		}
	}
}

var decodeTests = []struct {
	name, format, value string
	want                service.Backend
	err                 string // a part of it; empty = none
}{
	// The golden lines of the formats, and their IPv6 twins.
	{"golden", GRPCNaming, `{"Op":0,"Addr":"10.0.0.1:80","Metadata":{"weight":5}}`, backend("10.0.0.1:80", weight(5)), ""},
	{"golden null metadata", GRPCNaming, `{"Op":0,"Addr":"10.0.0.2:80","Metadata":null}`, backend("10.0.0.2:80"), ""},
	{"golden IPv6", GRPCNaming, `{"Op":0,"Addr":"[2001:db8::1]:80","Metadata":{"weight":5}}`, backend("[2001:db8::1]:80", weight(5)), ""},
	{"golden IPv6 null metadata", GRPCNaming, `{"Op":0,"Addr":"[2001:db8::2]:80","Metadata":null}`, backend("[2001:db8::2]:80"), ""},
	{"golden", Plain, "10.0.0.1:8080", backend("10.0.0.1:8080"), ""},
	{"golden IPv6", Plain, "[2001:db8::1]:8080", backend("[2001:db8::1]:8080"), ""},
	{"golden URL", Plain, "http://10.0.0.1:8080", backend("10.0.0.1:8080", meta("scheme", "http")), ""},
	{"golden URL IPv6", Plain, "http://[2001:db8::1]:8080/path", backend("[2001:db8::1]:8080", meta("scheme", "http")), ""},

	{"lower case", GRPCNaming, `{"op":1,"addr":"10.0.0.1:80"}`, backend("10.0.0.1:80", draining), ""},
	{"Op 1 drains (1.11)", GRPCNaming, `{"Op":1,"Addr":"10.0.0.1:80"}`, backend("10.0.0.1:80", draining), ""},
	{"weight 0 drains (1.11)", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":{"weight":0}}`, backend("10.0.0.1:80", weight(1), draining), ""},
	{"weight as a string", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":{"weight":"12"}}`, backend("10.0.0.1:80", weight(12)), ""},
	{"weight null is absent", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":{"weight":null}}`, backend("10.0.0.1:80"), ""},
	{"weight is rounded", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":{"weight":2.6}}`, backend("10.0.0.1:80", weight(3)), ""},
	{"a small weight is not 0", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":{"weight":0.1}}`, backend("10.0.0.1:80", weight(1)), ""},
	{"zone and region", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":{"zone":"a","region":"eu"}}`, backend("10.0.0.1:80", zone("a"), region("eu")), ""},
	{"zone as a number", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":{"zone":1}}`, backend("10.0.0.1:80", zone("1")), ""},
	{"the rest is metadata", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":{"v":"1.2","n":7,"b":true,"o":{"x": [1, 2]},"z":null}}`,
		backend("10.0.0.1:80", meta("v", "1.2", "n", "7", "b", "true", "o", `{"x":[1,2]}`)), ""},
	{"unknown fields are metadata", GRPCNaming, `{"Addr":"10.0.0.1:80","Name":"user","Metadata":{"Name":"wins"},"x":1}`,
		backend("10.0.0.1:80", meta("Name", "wins", "x", "1")), ""},
	{"metadata as a string", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":"blue"}`, backend("10.0.0.1:80", meta("metadata", "blue")), ""},
	{"metadata as a list", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":[1, "a"]}`, backend("10.0.0.1:80", meta("metadata", `[1,"a"]`)), ""},
	{"mapped IPv4", GRPCNaming, `{"Addr":"[::ffff:10.0.0.1]:80"}`, backend("10.0.0.1:80"), ""},
	{"space around", GRPCNaming, " {\"Addr\":\"10.0.0.1:80\"}\n", backend("10.0.0.1:80"), ""},
	{"bad UTF-8 in a nested value", GRPCNaming, "{\"Addr\":\"10.0.0.1:80\",\"Metadata\":[\"\xff\"]}", backend("10.0.0.1:80", meta("metadata", "[\"\uFFFD\"]")), ""},

	{"space around", Plain, " 10.0.0.1:8080\n", backend("10.0.0.1:8080"), ""},
	{"mapped IPv4", Plain, "[::ffff:10.0.0.1]:80", backend("10.0.0.1:80"), ""},
	{"port of http", Plain, "http://10.0.0.1", backend("10.0.0.1:80", meta("scheme", "http")), ""},
	{"port of https", Plain, "https://[2001:db8::1]/", backend("[2001:db8::1]:443", meta("scheme", "https")), ""},
	{"user in a URL", Plain, "http://me:secret@10.0.0.1:81", backend("10.0.0.1:81", meta("scheme", "http")), ""},

	{"garbage", GRPCNaming, "garbage", service.Backend{}, "not JSON"},
	{"cut off", GRPCNaming, `{"Op":0,"Addr":"10.0.`, service.Backend{}, "not JSON"},
	{"two values", GRPCNaming, `{"Addr":"10.0.0.1:80"} {}`, service.Backend{}, "not JSON"},
	{"a list", GRPCNaming, `[]`, service.Backend{}, "JSON array, not an object"},
	{"null", GRPCNaming, `null`, service.Backend{}, "no string Addr"},
	{"empty", GRPCNaming, "", service.Backend{}, "empty"},
	{"no Addr", GRPCNaming, `{"Op":0}`, service.Backend{}, "no string Addr"},
	{"Addr is a number", GRPCNaming, `{"Addr":80}`, service.Backend{}, "no string Addr"},
	{"empty Addr", GRPCNaming, `{"Addr":""}`, service.Backend{}, "no address"},
	{"unknown Op", GRPCNaming, `{"Op":2,"Addr":"10.0.0.1:80"}`, service.Backend{}, "unknown Op"},
	{"host name (1.13)", GRPCNaming, `{"Addr":"DB-1.local.:80"}`, named("db-1.local", 80), ""},
	{"no host name", GRPCNaming, `{"Addr":"db 1:80"}`, service.Backend{}, "neither an address nor a host name"},
	{"no port", GRPCNaming, `{"Addr":"10.0.0.1"}`, service.Backend{}, "no port"},
	{"no port IPv6", GRPCNaming, `{"Addr":"2001:db8::1"}`, service.Backend{}, "no port"},
	{"no port in brackets", GRPCNaming, `{"Addr":"[2001:db8::1]"}`, service.Backend{}, "not host:port"},
	{"port 0", GRPCNaming, `{"Addr":"10.0.0.1:0"}`, service.Backend{}, "port 0"},
	{"port too large", GRPCNaming, `{"Addr":"10.0.0.1:65536"}`, service.Backend{}, "port is not a number"},
	{"zone in the address", GRPCNaming, `{"Addr":"[fe80::1%eth0]:80"}`, service.Backend{}, "zone"},
	{"weight negative", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":{"weight":-1}}`, service.Backend{}, "weight"},
	{"weight no number", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":{"weight":"heavy"}}`, service.Backend{}, "weight"},
	{"weight NaN", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":{"weight":"NaN"}}`, service.Backend{}, "weight"},
	{"weight true", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":{"weight":true}}`, service.Backend{}, "weight"},
	{"weight too large", GRPCNaming, `{"Addr":"10.0.0.1:80","Metadata":{"weight":4294967296}}`, service.Backend{}, "weight"},
	{"too long", GRPCNaming, `{"Addr":"` + strings.Repeat("x", maxValue) + `"}`, service.Backend{}, "bytes, more than"},

	{"empty", Plain, "", service.Backend{}, "empty"},
	{"blank", Plain, " \n", service.Backend{}, "empty"},
	{"JSON", Plain, `{"Op":0,"Addr":"10.0.0.1:80"}`, service.Backend{}, "address"},
	{"host name (1.13)", Plain, "db-1:80", named("db-1", 80), ""},
	{"host name in a URL", Plain, "http://db-1/", named("db-1", 80, meta("scheme", "http")), ""},
	{"no port", Plain, "10.0.0.1", service.Backend{}, "no port"},
	{"scheme without a port", Plain, "grpc://10.0.0.1", service.Backend{}, "no default port"},
	{"URL without a host", Plain, "http:///x", service.Backend{}, "no host"},
	{"not a URL", Plain, "http://[::1", service.Backend{}, "not a URL"},
}

func TestDecode(t *testing.T) {
	for _, tt := range decodeTests {
		t.Run(tt.format+"/"+tt.name, func(t *testing.T) {
			d, err := New(tt.format, nil)
			if err != nil {
				t.Fatal(err)
			}
			before := backend("192.0.2.1:1")
			got, err := d.Append([]service.Backend{before}, "svc/foo/1", []byte(tt.value))
			if !reflect.DeepEqual(got[0], before) {
				t.Errorf("what was there before became %+v", got[0])
			}
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || len(got) != 1 {
					t.Errorf("got %+v, error %v; want an error with %q", got[1:], err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 2 || !reflect.DeepEqual(got[1], tt.want) {
				t.Errorf("got  %+v\nwant %+v", got[1:], tt.want)
			}
		})
	}
}

// A password in a URL must not come out in an error.
func TestNoSecretInErrors(t *testing.T) {
	d, _ := New(Plain, nil)
	for _, value := range []string{"http://me:secret@[::1", "http://me:secret@/", "http://me:secret@db_1-:80", "x://me:secret@10.0.0.1"} {
		if _, err := d.Append(nil, "k", []byte(value)); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", value, err)
		}
	}
}

func TestKeyMustBeUTF8(t *testing.T) {
	d, _ := New(Plain, nil)
	if _, err := d.Append(nil, "svc/\xff", []byte("10.0.0.1:80")); err == nil {
		t.Error("no error")
	}
}

func TestUnknownFormat(t *testing.T) {
	if _, err := New("xml", nil); err == nil || !strings.Contains(err.Error(), GRPCNaming) {
		t.Errorf("got %v, want what is allowed", err)
	}
}

// Backends with the same metadata share one map, and the cache of them stays small.
func TestMetadataIsShared(t *testing.T) {
	g := &grpcNaming{}
	var got []service.Backend
	for _, v := range []string{`{"Addr":"10.0.0.1:80","Metadata":{"v":"1"}}`, `{"Addr":"10.0.0.2:80","Metadata":{"v":"1"}}`} {
		var err error
		if got, err = g.decode(got, "", []byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	if reflect.ValueOf(got[0].Metadata).Pointer() != reflect.ValueOf(got[1].Metadata).Pointer() {
		t.Error("equal metadata has two maps")
	}
	for i := range 10 * cachedMetadata {
		if _, err := g.decode(nil, "", []byte(`{"Addr":"10.0.0.2:80","Metadata":{"v":"`+strings.Repeat("x", i)+`"}}`)); err != nil {
			t.Fatal(err)
		}
	}
	if len(g.seen) > cachedMetadata {
		t.Errorf("%d kept", len(g.seen))
	}
}

package format

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func register(change ...func(*Registration)) Registration {
	r := Registration{Service: "user", Addr: netip.MustParseAddrPort("10.0.0.1:80")}
	for _, f := range change {
		f(&r)
	}
	return r
}

func TestEncode(t *testing.T) {
	full := register(func(r *Registration) {
		r.Weight, r.Zone, r.Region, r.Metadata = 5, "a", "eu", map[string]string{"version": "1", "b": "<x>"}
		r.Load, r.LoadAt = 37, time.Unix(1700000000, 5)
	})
	six := register(func(r *Registration) { r.Addr = netip.MustParseAddrPort("[2001:db8::1]:80") })
	drained := register(func(r *Registration) { r.Draining, r.Weight = true, 5 })
	elsewhere := register(func(r *Registration) { r.Prefix = "/prod/x/" })
	inMetadata := register(func(r *Registration) { r.Metadata = map[string]string{"weight": "7", "zone": "a", "region": "eu"} })
	for _, tt := range []struct {
		name, format string
		r            Registration
		key, value   string
		err          string
	}{
		{"least", GRPCNaming, register(), "services/user/10.0.0.1:80", `{"Op":0,"Addr":"10.0.0.1:80","Metadata":null}`, ""},
		{"full", GRPCNaming, full, "services/user/10.0.0.1:80", `{"Op":0,"Addr":"10.0.0.1:80","Metadata":{"b":"\u003cx\u003e","load":"37","load_at":"1700000000","region":"eu","version":"1","weight":5,"zone":"a"}}`, ""},
		{"IPv6", GRPCNaming, six, "services/user/[2001:db8::1]:80", `{"Op":0,"Addr":"[2001:db8::1]:80","Metadata":null}`, ""},
		{"draining", GRPCNaming, drained, "services/user/10.0.0.1:80", `{"Op":1,"Addr":"10.0.0.1:80","Metadata":{"weight":5}}`, ""},
		{"weight in metadata", GRPCNaming, inMetadata, "services/user/10.0.0.1:80", `{"Op":0,"Addr":"10.0.0.1:80","Metadata":{"region":"eu","weight":7,"zone":"a"}}`, ""},
		{"another prefix", GRPCNaming, elsewhere, "/prod/x/10.0.0.1:80", `{"Op":0,"Addr":"10.0.0.1:80","Metadata":null}`, ""},
		{"least", GoZero, register(), "user/2976788256129012482", `10.0.0.1:80`, ""},
		{"IPv6", GoZero, six, "user/1196676317272412962", `[2001:db8::1]:80`, ""},
		{"draining", GoZero, drained, "", "", ErrNoDrainMark.Error()},
		{"least", Kratos, register(), "/microservices/user/10.0.0.1:80", `{"id":"10.0.0.1:80","name":"user","version":"","metadata":{},"endpoints":["grpc://10.0.0.1:80"]}`, ""},
		{"full", Kratos, full, "/microservices/user/10.0.0.1:80", `{"id":"10.0.0.1:80","name":"user","version":"1","metadata":{"b":"\u003cx\u003e","load":"37","load_at":"1700000000","region":"eu","weight":"5","zone":"a"},"endpoints":["grpc://10.0.0.1:80"]}`, ""},
		{"scheme", Kratos, register(func(r *Registration) { r.Metadata = map[string]string{"scheme": "http"} }), "/microservices/user/10.0.0.1:80", `{"id":"10.0.0.1:80","name":"user","version":"","metadata":{},"endpoints":["http://10.0.0.1:80"]}`, ""},
		{"IPv6", Kratos, six, "/microservices/user/[2001:db8::1]:80", `{"id":"[2001:db8::1]:80","name":"user","version":"","metadata":{},"endpoints":["grpc://[2001:db8::1]:80"]}`, ""},
		{"draining", Kratos, drained, "/microservices/user/10.0.0.1:80", `{"id":"10.0.0.1:80","name":"user","version":"","metadata":{"weight":"0"},"endpoints":["grpc://10.0.0.1:80"]}`, ""},
		{"least", Kitex, register(), "kitex/registry-etcd/user/10.0.0.1:80", `{"network":"tcp","address":"10.0.0.1:80","weight":10,"tags":{}}`, ""},
		{"full", Kitex, full, "kitex/registry-etcd/user/10.0.0.1:80", `{"network":"tcp","address":"10.0.0.1:80","weight":5,"tags":{"b":"\u003cx\u003e","load":"37","load_at":"1700000000","region":"eu","version":"1","zone":"a"}}`, ""},
		{"draining", Kitex, drained, "", "", ErrNoDrainMark.Error()},
		{"least", Plain, register(), "services/user/10.0.0.1:80", "10.0.0.1:80", ""},
		{"draining", Plain, drained, "", "", ErrNoDrainMark.Error()},
		{"read only", RPCX, register(), "", "", "cannot be written"},
		{"no address", Plain, Registration{Service: "user"}, "", "", "not host:port"},
		{"port 0", Plain, register(func(r *Registration) { r.Addr = netip.MustParseAddrPort("10.0.0.1:0") }), "", "", "not host:port"},
		{"prefix without a slash", Plain, register(func(r *Registration) { r.Prefix = "x" }), "", "", "does not end in /"},
		{"weight in metadata is a word", Plain, register(func(r *Registration) { r.Metadata = map[string]string{"weight": "x"} }), "", "", "weight"},
	} {
		t.Run(tt.format+"/"+tt.name, func(t *testing.T) {
			key, value, err := Encode(tt.format, tt.r)
			if key != tt.key || value != tt.value || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got  %s = %s %v\nwant %s = %s %s", key, value, err, tt.key, tt.value, tt.err)
			}
		})
	}
	if _, _, err := Encode(Kitex, drained); !errors.Is(err, ErrNoDrainMark) {
		t.Errorf("error %v", err)
	}
}

// What is written reads back as what was meant, in every format that can hold it.
func TestEncodeReadsBack(t *testing.T) {
	r := register(func(r *Registration) { r.Weight, r.Zone, r.Metadata = 5, "a", map[string]string{"b": "<x>"} })
	for _, name := range Writable() {
		for _, drain := range []bool{false, true} {
			r.Draining = drain
			key, value, err := Encode(name, r)
			if errors.Is(err, ErrNoDrainMark) && drain {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			d, err := New(name, nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := d.Append(nil, key, []byte(value))
			want := backend("10.0.0.1:80", weight(5), zone("a"), meta("b", "<x>"))
			switch name {
			case GoZero, Plain:
				want = backend("10.0.0.1:80")
			case Kratos:
				want.Metadata["scheme"] = "grpc"
				if drain {
					want.Weight = 1
				}
			}
			want.Draining = drain
			if err != nil || !reflect.DeepEqual(got, list(want)) {
				t.Errorf("%s: %s gives %+v %v, want %+v", name, value, got, err, want)
			}
		}
	}
}

// Encode leaves the caller's metadata as it was.
func TestEncodeTakesNothing(t *testing.T) {
	r := register(func(r *Registration) { r.Metadata = map[string]string{"weight": "7", "version": "1", "scheme": "http"} })
	for _, name := range Writable() {
		if _, _, err := Encode(name, r); err != nil || len(r.Metadata) != 3 {
			t.Errorf("%s: %v, metadata %v", name, err, r.Metadata)
		}
	}
}

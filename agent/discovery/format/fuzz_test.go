package format

import (
	"reflect"
	"testing"
	"unicode/utf8"

	"github.com/lbagent/lbagent/agent/service"
)

func FuzzGRPCNaming(f *testing.F) { fuzz(f, GRPCNaming) }
func FuzzGoZero(f *testing.F)     { fuzz(f, GoZero) }
func FuzzKratos(f *testing.F)     { fuzz(f, Kratos) }
func FuzzKitex(f *testing.F)      { fuzz(f, Kitex) }
func FuzzHertz(f *testing.F)      { fuzz(f, Hertz) }
func FuzzGoMicro(f *testing.F)    { fuzz(f, GoMicro) }
func FuzzRPCX(f *testing.F)       { fuzz(f, RPCX) }
func FuzzSkyDNS(f *testing.F)     { fuzz(f, SkyDNS) }
func FuzzPlain(f *testing.F)      { fuzz(f, Plain) }

func FuzzDubboInterface(f *testing.F)   { fuzz(f, DubboInterface) }
func FuzzDubboApplication(f *testing.F) { fuzz(f, DubboApplication) }
func FuzzGoFrame(f *testing.F)          { fuzz(f, GoFrame) }
func FuzzJupiter(f *testing.F)          { fuzz(f, Jupiter) }
func FuzzAPISIX(f *testing.F)           { fuzz(f, APISIX) }

// fuzz: no key or value panics, gives another result the second time, touches what was read before, or gives a backend that the rest of the agent could not use.
func fuzz(f *testing.F, format string) {
	for _, tt := range decodeTests {
		if tt.format == format && len(tt.value) < 1000 {
			f.Add("svc/foo/1", []byte(tt.value))
		}
	}
	for _, tt := range goldenTests() {
		if tt.format == format {
			f.Add(tt.key, []byte(tt.value))
		}
	}
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		d, _ := New(format, nil)
		got, err := d.Append(nil, key, value)
		before := backend("192.0.2.1:1")
		again, err2 := d.Append(append(make([]service.Backend, 0, 8), before), key, value)
		if (err == nil) != (err2 == nil) || err != nil && err.Error() != err2.Error() {
			t.Fatalf("first %v, then %v", err, err2)
		}
		if !reflect.DeepEqual(append([]service.Backend{before}, got...), again) {
			t.Fatalf("first %+v, then %+v", got, again)
		}
		if err != nil && !utf8.ValidString(err.Error()) {
			t.Errorf("error %q", err)
		}
		for i := range got {
			if reason := unusable(&got[i]); reason != "" {
				t.Errorf("%s: %+v", reason, got[i])
			}
		}
	})
}

// unusable says what the rest of the agent could not do with b.
func unusable(b *service.Backend) string {
	text := b.Zone + b.Region + b.Host
	for k, v := range b.Metadata {
		text += k + v
	}
	switch {
	case b.Addr.Port() == 0:
		return "no port"
	case b.Addr.Addr().IsValid() == (b.Host != ""):
		return "an address and a host name, or neither"
	case b.Addr.Addr().Is4In6(), b.Addr.Addr().Zone() != "":
		return "an address that is not normal"
	case b.Host != "":
		if host, ok := service.HostName(b.Host); !ok || host != b.Host {
			return "not a host name"
		}
	case b.Weight == 0:
		return "no weight"
	case b.Metadata != nil && len(b.Metadata) == 0:
		return "an empty map"
	case !utf8.ValidString(text):
		return "not UTF-8"
	}
	return ""
}

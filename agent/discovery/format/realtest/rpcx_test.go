package realtest

import (
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/format"
	"github.com/rpcxio/rpcx-etcd/serverplugin"
)

// rpcx-etcd writes, folders included; package format reads.
func TestRPCX(t *testing.T) {
	c, endpoints := start(t)
	for _, one := range []struct{ address, metadata string }{
		{"tcp@10.0.0.1:8972", "weight=7&group=a"},
		{"tcp@[2001:db8::1]:8972", "state=inactive"},
		{"quic@10.0.0.1:8972", ""},
	} {
		p := &serverplugin.EtcdV3RegisterPlugin{ServiceAddress: one.address, EtcdServers: endpoints, BasePath: "/rpcx", UpdateInterval: time.Minute}
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		if err := p.Register("Arith", nil, one.metadata); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"10.0.0.1:8972", "[2001:db8::1]:8972"}
	for _, prefix := range []string{"/rpcx/Arith/", "/rpcx"} { // the folders' keys lie above the service's own
		got := read(t, c, format.RPCX, prefix, nil)
		if len(got) != 2 || got[0].Addr.String() != want[0] || got[1].Addr.String() != want[1] {
			t.Fatalf("%s: got %+v, want %q", prefix, got, want)
		}
		if got[0].Weight != 7 || got[0].Metadata["group"] != "a" || got[0].Draining || got[1].Weight != 1 || !got[1].Draining {
			t.Errorf("%s: got %+v", prefix, got)
		}
	}
}

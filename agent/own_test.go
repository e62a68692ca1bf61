package agent

import (
	"net"
	"net/netip"
	"testing"

	"github.com/lbagent/lbagent/agent/config"
)

// 1.14: where this agent listens, [::] and 0.0.0.0 being every address of the host.
func TestOwnListeners(t *testing.T) {
	listen := func(all ...string) (out []config.Listen) {
		for _, a := range all {
			out = append(out, config.Listen{TCP: netip.MustParseAddrPort(a)})
		}
		return append(out, config.Listen{Unix: "/run/x.sock"})
	}
	var o own
	if o.listens(netip.MustParseAddrPort("127.0.0.1:7001")) {
		t.Error("it listens somewhere before it has a configuration")
	}
	o.set(&config.Config{
		Services:    []config.Service{{Listen: listen("127.0.0.1:7001", "[::1]:7001")}, {Listen: listen("0.0.0.0:7002", "10.1.2.3:7003")}},
		AdminListen: "127.0.0.1:9901", MetricsAddr: ":9902", API: config.API{Listen: "127.0.0.1:9900"},
	})
	here := hostAddr(t)
	for addr, want := range map[string]bool{
		"127.0.0.1:7001": true, "[::1]:7001": true, "127.0.0.2:7001": false, "127.0.0.1:80": false, here + ":7001": false,
		"127.0.0.9:7002": true, here + ":7002": true, "[::1]:7002": false, "192.0.2.1:7002": false,
		"10.1.2.3:7003": true, "10.1.2.4:7003": false,
		"127.0.0.1:9900": true, "127.0.0.1:9901": true, "[::1]:9902": true, here + ":9902": true, "192.0.2.1:9902": false,
	} {
		if got := o.listens(netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	o.set(&config.Config{})
	if o.listens(netip.MustParseAddrPort("127.0.0.1:7001")) {
		t.Error("it listens where it no longer does")
	}
}

// hostAddr is an IPv4 address of this host that isn't loopback; without one, the test uses 127.0.0.3, which is this host too.
func hostAddr(t *testing.T) string {
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	return "127.0.0.3"
}

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
)

func TestFreePortIsBelowTheOutgoingOnes(t *testing.T) {
	var low, high int
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(b), &low, &high); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		p, err := freePort(loopback)
		if err != nil {
			t.Fatal(err)
		}
		if p < 10000 || int(p) >= max(low, 11001) {
			t.Fatalf("port %d, want 10000 to %d", p, low)
		}
	}
}

func TestBindable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	if bindable(port, []netip.Addr{netip.MustParseAddr("127.0.0.1")}) {
		t.Errorf("port %d is taken", port)
	}
}

package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
)

// freePort returns a port that nobody listens on at any of hosts. It lies below the kernel's range for outgoing connections: a port from within it could be
// taken by some outgoing connection while its owner restarts, and a client that dials it in that moment can even connect to itself.
func freePort(hosts ...netip.Addr) (uint16, error) {
	low := 32768
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		var high int
		if _, err := fmt.Sscan(string(b), &low, &high); err != nil || low <= 11000 {
			low = 32768
		}
	}
	for range 200 {
		port := uint16(10000 + rand.IntN(low-10000))
		if bindable(port, hosts) {
			return port, nil
		}
	}
	return 0, fmt.Errorf("find a free port below %d: none in 200 tries", low)
}

func bindable(port uint16, hosts []netip.Addr) bool {
	for _, h := range hosts {
		l, err := net.Listen("tcp", netip.AddrPortFrom(h, port).String())
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

package testneed

import (
	"fmt"
	"net"
	"os"
	"testing"
)

// No port is given twice while the first who got it runs, none on which somebody listens, and none that an outgoing connection may have.
func TestPort(t *testing.T) {
	var low, high int
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(b), &low, &high); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", Port(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	seen := map[int]bool{l.Addr().(*net.TCPAddr).Port: true}
	for range 100 {
		port := Port(t)
		if seen[port] || port >= max(low, 32768) {
			t.Errorf("port %d, given before: %v; outgoing connections have %d to %d", port, seen[port], low, high)
		}
		seen[port] = true
	}
	if err := bindable(l.Addr().(*net.TCPAddr).Port); err == nil {
		t.Error("a port on which somebody listens counts as free")
	}
}

// Whoever has ended leaves its ports to others.
func TestPortIsGivenBack(t *testing.T) {
	t.Run("all", func(t *testing.T) {
		for range portCount/2 + 1 {
			Port(t)
		}
	})
	for range portCount/2 + 1 {
		Port(t)
	}
}

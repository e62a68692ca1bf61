package main

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// dialRaw connects a blocking socket to a loopback address: what the raw clients cost beside net.Conn is what they must not take from the proxies.
// A nil from leaves the choice of its own address to the kernel.
func dialRaw(addr string, from *unix.SockaddrInet4) (int, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("make a socket: %w", err)
	}
	if err := connectRaw(fd, ap, from); err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return fd, nil
}

func connectRaw(fd int, to netip.AddrPort, from *unix.SockaddrInet4) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	if from != nil {
		// The port is chosen by connect, which knows that one may serve several peers.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, from); err != nil {
			return err
		}
	}
	return unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
}

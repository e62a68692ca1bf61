package loop

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Peer names who is at the other end, for a person: an address, or the process on a unix socket. "" if that can't be known.
func (c *Conn) Peer() string {
	if c.gone {
		return ""
	}
	return Peer(c.fd)
}

// Peer is Conn.Peer for the socket fd.
func Peer(fd int) string {
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return ""
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrUnix:
		if cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			return fmt.Sprintf("process %d of user %d", cred.Pid, cred.Uid)
		}
	}
	return ""
}

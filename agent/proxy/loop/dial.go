package loop

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Dial starts a connection; h.Connected or h.Closed (never before Dial has returned) ends it within timeout (0 = as long as the kernel tries). What is
// put into Out before that is written then. An error says that this host could not try (no descriptor, no port): it isn't the peer's fault, and no
// handler is called. A host that vanished is found within about 10 s (SEMANTICS 2.11).
func (l *Loop) Dial(addr netip.AddrPort, timeout time.Duration, h Handler) (*Conn, error) {
	return l.dial(addr, timeout, &Conn{loop: l, h: h})
}

// DialPatient is Dial for a peer that may leave bytes unread for as long as it likes (watch).
func (l *Loop) DialPatient(addr netip.AddrPort, timeout time.Duration, h Handler) (*Conn, error) {
	return l.dial(addr, timeout, &Conn{loop: l, h: h, patient: true})
}

func (l *Loop) dial(addr netip.AddrPort, timeout time.Duration, c *Conn) (*Conn, error) {
	if l.ended {
		return nil, ErrEnded
	}
	family, sa := Sockaddr(addr)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, fmt.Errorf("make a socket to %s: %w", addr, err)
	}
	c.fd, c.connecting = fd, true
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if !c.patient {
		keepAlive(fd, backendIdle, backendInterval, backendCount)
		setInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, stallLimit)
	}
	switch err := connect(fd, sa); err {
	case nil, unix.EINPROGRESS:
	case unix.EADDRNOTAVAIL, unix.EAGAIN: // no local port is left
		unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	default:
		c.dialErr = err
	}
	// Not before connect: epoll would report that the socket isn't connected.
	if err := l.register(fd, connEvents, c); err != nil {
		unix.Close(fd)
		return nil, err
	}
	l.conns++
	if c.dialErr != nil {
		c.deliverSoon()
	} else if timeout > 0 {
		c.timer.F = c.dialTimedOut
		l.Arm(&c.timer, timeout)
	}
	return c, nil
}

func (c *Conn) dialTimedOut() { c.fail(ErrDialTimeout) }

// connected ends a Dial.
func (c *Conn) connected(events uint32) {
	if c.dialErr != nil {
		return // deliverFirst says it
	}
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		if e := socketError(c.fd); e != 0 {
			c.fail(e)
			return
		}
	}
	c.connecting = false
	c.loop.Disarm(&c.timer)
	c.touch()
	c.note(events)
	if c.patient {
		c.loop.watch(c)
	}
	c.h.Connected()
	if c.more {
		c.deliverSoon() // a peer that speaks first, at once
	}
}

// Sockaddr is addr for system calls.
func Sockaddr(addr netip.AddrPort) (family int, sa unix.Sockaddr) {
	ip := addr.Addr().Unmap()
	if ip.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: ip.As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: ip.As16(), ZoneId: zoneID(ip.Zone())}
}

func connect(fd int, sa unix.Sockaddr) error {
	for {
		err := unix.Connect(fd, sa)
		if err != unix.EINTR {
			return err
		}
	}
}

// The keepalive of connections to backends (SEMANTICS 2.11).
const (
	backendIdle     = 5 // seconds
	backendInterval = 1 // seconds
	backendCount    = 3
)

// keepAlive sets the idle time and interval in seconds, and the count.
func keepAlive(fd, idle, interval, count int) {
	setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, idle)
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, interval)
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, count)
}

// zoneID is the number of an interface that a link-local address names; names need a look-up, which a loop can't wait for, so only numbers count.
func zoneID(zone string) uint32 {
	n, err := strconv.ParseUint(zone, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

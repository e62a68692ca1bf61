package loop

import (
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func TestVanished(t *testing.T) {
	for _, c := range []struct {
		name string
		info unix.TCPInfo
		want bool
	}{
		{"all arrived", unix.TCPInfo{Last_ack_recv: 60_000}, false},
		{"under way", unix.TCPInfo{Unacked: 3, Last_ack_recv: 10}, false},
		{"one lost segment", unix.TCPInfo{Unacked: 3, Retransmits: 2, Last_ack_recv: 900}, false},
		{"nothing acknowledged", unix.TCPInfo{Unacked: 3, Retransmits: 5, Last_ack_recv: 10_001}, true},
		{"closed window, probes are answered, the next is on its way", unix.TCPInfo{Notsent_bytes: 9, Probes: 1, Last_ack_recv: 100_000}, false},
		{"closed window, probes are not answered", unix.TCPInfo{Notsent_bytes: 9, Probes: 4, Last_ack_recv: 12_000}, true},
	} {
		if got := vanished(&c.info); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// A peer that doesn't read keeps a patient connection, which is watched until the peer has everything; then no timer is left.
func TestPatientConnection(t *testing.T) {
	l := startLoop(t)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	const size = 16 << 20
	r := &recorder{}
	var c *Conn
	do(t, l, func() {
		if c, err = l.DialPatient(lis.Addr().(*net.TCPAddr).AddrPort(), patience, r); err != nil {
			t.Error(err)
			return
		}
		if v, err := unix.GetsockoptInt(c.fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err != nil || v != 0 {
			t.Errorf("TCP_USER_TIMEOUT %d, %v", v, err)
		}
		c.Out = append(c.Out, make([]byte, size)...)
		c.Flush()
	})
	there, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	until(t, "a full socket", func() (full bool) { do(t, l, func() { full = c.full }); return full })
	check := func() (watched bool, timers int) {
		do(t, l, func() { l.checkStalls(); watched, timers = c.watched > 0, l.Stats().Timers })
		return watched, timers
	}
	option := func(opt int) (v int) {
		do(t, l, func() { v, _ = unix.GetsockoptInt(c.fd, unix.IPPROTO_TCP, opt) })
		return v
	}
	if idle := option(unix.TCP_KEEPIDLE); idle == backendIdle {
		t.Error("a new connection has paid for its keepalive")
	}
	if watched, _ := check(); !watched || r.closedBy() != nil {
		t.Errorf("with bytes under way: watched %v, closed by %v", watched, r.closedBy())
	}
	if idle, interval, count := option(unix.TCP_KEEPIDLE), option(unix.TCP_KEEPINTVL), option(unix.TCP_KEEPCNT); idle != 5 || interval != 1 || count != 3 {
		t.Errorf("keepalive of one that stays: %d, %d, %d; want 5, 1, 3 (2.11)", idle, interval, count)
	}
	if _, err := io.CopyN(io.Discard, there, size); err != nil {
		t.Fatal(err)
	}
	until(t, "nothing to watch", func() bool { watched, _ := check(); return !watched })
	until(t, "no timer", func() bool { _, timers := check(); return timers == 0 })
	do(t, l, c.Close)
}

// The list of those that are watched holds no closed connection, in whatever order they go.
func TestWatchedAreForgotten(t *testing.T) {
	l := startLoop(t)
	conns := make([]*Conn, 20)
	for i := range conns {
		conns[i], _ = tcpPair(t, l, &recorder{})
	}
	do(t, l, func() {
		for _, c := range conns {
			l.watch(c)
			l.watch(c)
		}
		for n, i := range rand.Perm(len(conns)) {
			conns[i].Close()
			if len(l.watched) != len(conns)-n-1 {
				t.Errorf("%d watched after %d of %d were closed", len(l.watched), n+1, len(conns))
			}
			for at, c := range l.watched {
				if c.watched != at+1 || c.gone {
					t.Errorf("place %d: %d, gone %v", at, c.watched-1, c.gone)
				}
			}
		}
		l.checkStalls()
	})
}

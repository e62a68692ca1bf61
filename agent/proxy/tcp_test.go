package proxy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/service"
	"golang.org/x/sys/unix"
)

func asTCP(s *Service) { s.Protocol = "tcp" }

// tcpBackend accepts and hands each connection to serve.
func tcpBackend(t testing.TB, network string, serve func(c *net.TCPConn)) string {
	t.Helper()
	host := "127.0.0.1:0"
	if network == "tcp6" {
		host = "[::1]:0"
	}
	l, err := net.Listen(network, host)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				serve(c.(*net.TCPConn))
			})
		}
	})
	return l.Addr().String()
}

// named says its name, then echoes.
func named(name string) func(c *net.TCPConn) {
	return func(c *net.TCPConn) {
		io.WriteString(c, name)
		io.Copy(c, c)
		c.CloseWrite()
	}
}

// refusing is an address where nobody listens.
func refusing(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// client connects to the rig's listener.
func (r *rig) client() *net.TCPConn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// stats are the service's counters.
func (r *rig) stats() ServiceStats {
	r.t.Helper()
	s := r.proxy.Stats()
	if s.Missing > 0 {
		r.t.Fatalf("%d loops did not answer", s.Missing)
	}
	for _, s := range s.Services {
		if s.Service == "user" {
			return s
		}
	}
	return ServiceStats{}
}

// calls is a counter of ServiceStats.Calls.
func (s ServiceStats) calls(protocol, class string) uint64 {
	for _, c := range s.Calls {
		if c.Protocol == protocol && c.Class == class {
			return c.Count
		}
	}
	return 0
}

func read(t testing.TB, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("read %q, %v; want %q", b, err, want)
	}
}

func TestTCPBothWaysWithHalfClose(t *testing.T) {
	const size = 24 << 20
	forth, back := [32]byte{1}, [32]byte{2}
	sums := make(chan [32]byte, 1)
	addr := tcpBackend(t, "tcp4", func(c *net.TCPConn) {
		h := sha256.New()
		io.Copy(h, c) // until the client's FIN: this direction goes on without that one
		sums <- [32]byte(h.Sum(nil))
		io.Copy(c, io.LimitReader(rand.NewChaCha8(back), size))
		c.CloseWrite()
	})
	r := newRig(t, asTCP)
	r.backends(addr)
	c := r.client()
	sent := sha256.New()
	if _, err := io.Copy(c, io.TeeReader(io.LimitReader(rand.NewChaCha8(forth), size), sent)); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	if got := <-sums; got != [32]byte(sent.Sum(nil)) {
		t.Error("what the client sent arrived changed")
	}
	got, want := sha256.New(), sha256.New()
	io.Copy(want, io.LimitReader(rand.NewChaCha8(back), size))
	if _, err := io.Copy(got, c); err != nil {
		t.Fatal(err)
	}
	if [32]byte(got.Sum(nil)) != [32]byte(want.Sum(nil)) {
		t.Error("what the backend sent arrived changed")
	}
	await(t, "the accounts", func() bool { return r.stats().calls("tcp", "ok") == 1 })
	s := r.stats()
	if s.In != size || s.Out != size || s.Active["tcp"] != 0 || s.Picks != 1 {
		t.Errorf("stats: %+v", s)
	}
	if h := r.state(addr).Snapshot(time.Now()); h.Outstanding != 0 || h.Successes != 1 || h.Failures != 0 {
		t.Errorf("state: %+v", h)
	}
}

// 4.1: a refused connect goes on to every other candidate; what the client said meanwhile isn't lost.
func TestTCPGoesOnToTheNextBackend(t *testing.T) {
	good := tcpBackend(t, "tcp4", named("good:"))
	bad := []string{refusing(t), refusing(t)}
	r := newRig(t, asTCP)
	r.backends(good, bad[0], bad[1])
	for range 30 {
		c := r.client()
		io.WriteString(c, "early")
		read(t, c, "good:early")
		c.Close()
	}
	for _, addr := range bad {
		if h := r.state(addr).Snapshot(time.Now()); h.Failures == 0 || h.LastFailure != "connection refused" || h.Outstanding != 0 {
			t.Errorf("%s: %+v", addr, h)
		}
	}
	if s := r.stats(); s.Retried["connect"] == 0 || s.calls("tcp", "failed") != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// 4.5: RST at once when there is nobody.
func TestTCPResetWithoutBackend(t *testing.T) {
	r := newRig(t, asTCP)
	for name, list := range map[string][]string{"no list": nil, "empty": {}, "all refuse": {refusing(t), refusing(t)}} {
		if list != nil {
			r.backends(list...)
		}
		c, err := net.Dial("tcp", r.addr) // the reset may come before connect returns
		if err == nil {
			c.SetDeadline(time.Now().Add(patience))
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: %v, want a reset", name, err)
		}
	}
	await(t, "the accounts", func() bool {
		s := r.stats()
		return s.NoBackend == 3 && s.calls("tcp", "failed") == 3 && s.Active["tcp"] == 0
	})
}

func TestTCPResetsPassBothWays(t *testing.T) {
	for _, spliced := range []bool{false, true} {
		t.Run(fmt.Sprint(spliced), func(t *testing.T) {
			conns, seen := make(chan *net.TCPConn, 1), make(chan error, 1)
			big := strings.Repeat("x", 1<<20)
			addr := tcpBackend(t, "tcp4", func(c *net.TCPConn) {
				io.WriteString(c, "hello")
				if spliced {
					io.ReadFull(c, make([]byte, len(big)))
					io.WriteString(c, big)
				}
				conns <- c
				_, err := c.Read(make([]byte, 1))
				seen <- err
			})
			r := newRig(t, asTCP)
			r.backends(addr)
			begin := func() (client, backend *net.TCPConn) {
				c := r.client()
				read(t, c, "hello")
				if spliced {
					io.WriteString(c, big)
					read(t, c, big)
				}
				return c, <-conns
			}
			client, _ := begin()
			client.SetLinger(0)
			client.Close()
			if err := <-seen; !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("backend saw %v, want a reset", err)
			}
			client, backend := begin()
			backend.SetLinger(0)
			backend.Close()
			<-seen
			if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("client saw %v, want a reset", err)
			}
			await(t, "the accounts", func() bool { return r.stats().Active["tcp"] == 0 })
			if h := r.state(addr).Snapshot(time.Now()); h.Outstanding != 0 || h.Failures != 0 {
				t.Errorf("state: %+v", h) // it had answered
			}
		})
	}
}

// A backend that resets before its first byte is a hard failure (SEMANTICS 2).
func TestTCPResetBeforeAByteIsAFailure(t *testing.T) {
	addr := tcpBackend(t, "tcp4", func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		c.SetLinger(0)
	})
	r := newRig(t, asTCP)
	r.backends(addr)
	c := r.client()
	io.WriteString(c, "x")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("client saw %v, want a reset", err)
	}
	await(t, "a failure", func() bool { return r.state(addr).Snapshot(time.Now()).Failures == 1 })
	await(t, "the accounts", func() bool { return r.stats().calls("tcp", "failed") == 1 })
}

// 4.7: a connection to a removed backend gets FIN when the drain is over; back within that time, it stays.
func TestTCPDrain(t *testing.T) {
	ended := make(chan error, 2)
	addr := tcpBackend(t, "tcp4", func(c *net.TCPConn) {
		io.WriteString(c, "hello")
		_, err := io.Copy(io.Discard, c)
		ended <- err
	})
	other := tcpBackend(t, "tcp4", named("other"))
	for name, list := range map[string]func(r *rig){
		"removed": func(r *rig) { r.backends(other) },
		"marked": func(r *rig) {
			r.table.Apply(time.Now(), &service.List{Service: "user", Source: service.FromStatic, Confirmed: time.Now(), Backends: []*service.Backend{
				{Addr: netip.MustParseAddrPort(addr), Weight: 100, Draining: true},
			}})
		},
		"service removed": func(r *rig) { r.table.Remove(time.Now(), "user") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(s *Service) { s.Protocol = "tcp"; s.Drain = 50 * time.Millisecond })
			r.backends(addr)
			c := r.client()
			read(t, c, "hello")
			list(r)
			if n, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("client read %d, %v; want FIN", n, err)
			}
			if err := <-ended; err != nil {
				t.Errorf("backend saw %v, want FIN", err)
			}
			c.Close()
			await(t, "the end", func() bool { return r.stats().Active["tcp"] == 0 })
		})
	}
	t.Run("back in time", func(t *testing.T) {
		r := newRig(t, func(s *Service) { s.Protocol = "tcp"; s.Drain = time.Hour })
		r.backends(addr)
		c := r.client()
		read(t, c, "hello")
		armed := func() (n int) {
			r.onLoop(func(k *relay) {
				for s := range k.w.sessions[r.svc] {
					if s.timer.Armed() {
						n++
					}
				}
			})
			return n
		}
		r.backends(other)
		await(t, "a drain", func() bool { return armed() == 1 })
		r.backends(addr, other)
		await(t, "no drain", func() bool { return armed() == 0 })
		c.Close()
		<-ended
	})
}

func TestTCPOverIPv6AndUnixSocket(t *testing.T) {
	addr := tcpBackend(t, "tcp6", named("six"))
	path := t.TempDir() + "/user.sock"
	r := newRig(t, func(s *Service) {
		s.Protocol = "tcp"
		port := s.Listen[0].TCP.Port()
		s.Listen = append(s.Listen, Addr{TCP: netip.AddrPortFrom(netip.IPv6Loopback(), port)}, Addr{Unix: path})
	})
	r.backends(addr)
	_, port, _ := net.SplitHostPort(r.addr)
	for _, at := range [][2]string{{"tcp", r.addr}, {"tcp", "[::1]:" + port}, {"unix", path}} {
		c, err := net.Dial(at[0], at[1])
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		read(t, c, "six")
		io.WriteString(c, "echo")
		read(t, c, "echo")
		c.Close()
	}
}

// Slow readers on both sides: memory stays bounded, nothing is lost.
func TestTCPBackpressure(t *testing.T) {
	const size = 48 << 20
	release := make(chan struct{})
	sums := make(chan [32]byte, 1)
	addr := tcpBackend(t, "tcp4", func(c *net.TCPConn) {
		<-release
		h := sha256.New()
		io.Copy(h, c)
		sums <- [32]byte(h.Sum(nil))
	})
	r := newRig(t, asTCP)
	r.backends(addr)
	c := r.client()
	sent := make(chan [32]byte, 1)
	go func() {
		h := sha256.New()
		io.Copy(c, io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{7}), size), h))
		c.CloseWrite()
		sent <- [32]byte(h.Sum(nil))
	}()
	// The sender has filled every buffer on the way.
	await(t, "a stalled sender", func() bool {
		var before, after uint64
		look := func(n *uint64) {
			r.onLoop(func(k *relay) {
				for s := range k.w.sessions[r.svc] {
					*n = s.ends[0].conn.Received()
					if held := s.ends[1].conn.Unwritten(); held > 512<<10+64<<10 { // a full pipe, and what was read before it
						t.Errorf("%d bytes held", held)
					}
				}
			})
		}
		look(&before)
		look(&after)
		return before == after && before > 1<<20
	})
	close(release)
	if got := <-sums; got != <-sent {
		t.Error("bytes arrived changed")
	}
}

func TestTCPThousandConnectionsLeaveNothing(t *testing.T) {
	addr := tcpBackend(t, "tcp4", named("hi"))
	r := newRig(t, asTCP)
	r.backends(addr, refusing(t))
	c := r.client()
	read(t, c, "hi")
	c.Close()
	await(t, "the first to be gone", func() bool { return r.stats().Active["tcp"] == 0 })
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			for i := range 100 {
				c, err := net.Dial("tcp", r.addr)
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(patience))
				switch i % 4 {
				case 0: // at once
				case 1:
					io.ReadFull(c, make([]byte, 2))
					c.(*net.TCPConn).SetLinger(0)
				case 2:
					io.WriteString(c, "bye")
				case 3:
					c.(*net.TCPConn).CloseWrite()
					io.Copy(io.Discard, c)
				}
				c.Close()
			}
		})
	}
	all.Wait()
	await(t, "nothing left", func() bool {
		return r.stats().Active["tcp"] == 0 && openFiles(t) <= files && runtime.NumGoroutine() <= goroutines
	})
	if n := r.state(addr).Outstanding(); n != 0 {
		t.Errorf("%d outstanding", n)
	}
	if n := r.proxy.clients.Load(); n != 0 {
		t.Errorf("%d clients counted", n)
	}
	r.onLoop(func(k *relay) {
		if len(k.w.sessions) != 0 || k.w.load.Load() != 0 {
			t.Errorf("%d services with sessions, load %d", len(k.w.sessions), k.w.load.Load())
		}
	})
}

func openFiles(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

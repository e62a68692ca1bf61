package loop

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPostFromManyGoroutines(t *testing.T) {
	l := startLoop(t)
	const goroutines, posts = 16, 2000
	counts := make([]int, goroutines) // the loop's
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range posts {
				l.Post(func() {
					if counts[g] != i {
						t.Errorf("goroutine %d: post %d ran as number %d", g, i, counts[g])
					}
					counts[g]++
				})
			}
		})
	}
	wg.Wait()
	do(t, l, func() {
		for g, n := range counts {
			if n != posts {
				t.Errorf("goroutine %d: %d of %d posts ran", g, n, posts)
			}
		}
	})
}

// Post either runs the func or says that it won't, whatever the moment at which the loop ends.
func TestPostWhileEnding(t *testing.T) {
	for range 50 {
		l, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- l.Run(t.Context()) }()
		var ran, accepted atomic.Int32
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for l.Post(func() { ran.Add(1) }) {
					accepted.Add(1)
				}
			})
		}
		l.Post(func() { l.ended = true })
		wg.Wait()
		if err := receive(t, done); err != nil {
			t.Fatal(err)
		}
		if ran.Load() != accepted.Load() {
			t.Fatalf("%d posts were accepted, %d ran", accepted.Load(), ran.Load())
		}
	}
}

func TestIdleLoopDoesNotWake(t *testing.T) {
	l := startLoop(t)
	pair(t, l, &recorder{}, nil)
	if n := wakeups(t, l); n > 2 {
		t.Errorf("%d wake-ups of an idle loop", n)
	}
}

func TestAcceptAndDial(t *testing.T) {
	l := startLoop(t)
	for _, ip := range []string{"127.0.0.1", "::1"} {
		lis, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer lis.Close()
		r := &recorder{}
		var c *Conn
		do(t, l, func() {
			c, err = l.Dial(lis.Addr().(*net.TCPAddr).AddrPort(), patience, r)
			if err == nil {
				c.Out = append(c.Out, "early"...)
				c.Flush()
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		there, err := lis.Accept()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(there, b); err != nil || string(b) != "early" {
			t.Fatalf("%s: read %q, %v", ip, b, err)
		}
		if !r.sawConnected() {
			t.Errorf("%s: Connected was not called", ip)
		}
		do(t, l, func() {
			for name, o := range map[string]struct{ level, opt, want int }{
				"no delay":     {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
				"keepalive":    {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
				"idle":         {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 5},
				"interval":     {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1},
				"count":        {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
				"user timeout": {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 10_000},
			} {
				if got, err := unix.GetsockoptInt(c.fd, o.level, o.opt); err != nil || got != o.want {
					t.Errorf("%s: %s is %d, %v; want %d (2.11)", ip, name, got, err, o.want)
				}
			}
			c.Close()
		})
		there.Close()
	}
}

func TestDialRefused(t *testing.T) {
	l := startLoop(t)
	fd, addr := listenSocket(t)
	unix.Close(fd)
	r := &recorder{}
	do(t, l, func() {
		if _, err := l.Dial(addr, patience, r); err != nil {
			t.Error(err)
		}
		if r.closedBy() != nil {
			t.Error("Closed was called before Dial returned")
		}
	})
	until(t, "refused", func() bool { return errors.Is(r.closedBy(), unix.ECONNREFUSED) })
	// An address that can't be reached at all fails the same way.
	r2 := &recorder{}
	do(t, l, func() {
		if _, err := l.Dial(netip.MustParseAddrPort("255.255.255.255:1"), patience, r2); err != nil {
			t.Error(err)
		}
	})
	until(t, "unreachable", func() bool { return r2.closedBy() != nil })
	r.check(t)
	r2.check(t)
}

// A full backlog drops the SYN: nothing answers, and only the timeout ends the Dial.
func TestDialTimeout(t *testing.T) {
	l := startLoop(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, _ := unix.Getsockname(fd)
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
	var rs []*recorder
	do(t, l, func() {
		for range 6 {
			r := &recorder{}
			rs = append(rs, r)
			if _, err := l.Dial(addr, 50*time.Millisecond, r); err != nil {
				t.Error(err)
			}
		}
	})
	until(t, "a timeout", func() bool {
		for _, r := range rs {
			if errors.Is(r.closedBy(), ErrDialTimeout) {
				return true
			}
		}
		return false
	})
	do(t, l, func() {
		for _, c := range l.fds {
			if c, ok := c.src.(*Conn); ok && c.connecting {
				c.Close()
			}
		}
	})
}

func TestThousandConnectsLeaveNothing(t *testing.T) {
	l := startLoop(t)
	fd, addr := listenSocket(t)
	var stop func()
	do(t, l, func() {
		var err error
		stop, err = l.Listen(fd, func(fd int) {
			echo := &recorder{}
			var c *Conn
			echo.consume = func(b []byte) int { c.Out = append(c.Out, b...); c.Flush(); return len(b) }
			c, _ = l.Add(fd, &closer{recorder: echo, close: func() { c.Close() }}, nil)
		})
		if err != nil {
			t.Error(err)
		}
	})
	defer do(t, l, func() { stop(); stop() })
	settled(t, l)
	before := openFDs(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for i := range 50 {
				c, err := net.Dial("tcp", addr.String())
				if err != nil {
					t.Error(err)
					return
				}
				c.Write([]byte("hello"))
				if i%3 > 0 {
					io.ReadFull(c, make([]byte, 5))
				}
				if i%2 > 0 {
					c.(*net.TCPConn).SetLinger(0)
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	until(t, "no descriptor and no connection left", func() bool {
		var n int
		do(t, l, func() { n = l.Stats().Conns })
		return n == 0 && openFDs(t) <= before
	})
}

// What a listener has, each accepted connection has: no delay, and keepalive, since nothing else ends a connection whose client vanished (4.8).
func TestAcceptedInherit(t *testing.T) {
	l := startLoop(t)
	fd, addr := listenSocket(t)
	accepted := make(chan int, 1)
	do(t, l, func() {
		if _, err := l.Listen(fd, func(fd int) { accepted <- fd }); err != nil {
			t.Error(err)
		}
	})
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := receive(t, accepted)
	defer unix.Close(got)
	for name, o := range map[string]struct{ level, opt, want int }{
		"no delay":  {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		"keepalive": {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		"idle":      {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60},
		"interval":  {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10},
		"count":     {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 6},
	} {
		if v, err := unix.GetsockoptInt(got, o.level, o.opt); err != nil || v != o.want {
			t.Errorf("%s: %d, %v; want %d", name, v, err, o.want)
		}
	}
}

// closer closes its connection when the peer ends.
type closer struct {
	*recorder
	close func()
}

func (c *closer) EOF() { c.close() }

// With no descriptor left, a listener rests instead of spinning, and the connection that waits is served once there is one.
func TestListenerRestsWithoutDescriptors(t *testing.T) {
	l := startLoop(t)
	fd, addr := listenSocket(t)
	accepted := make(chan int, 1)
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(client)

	// One that is served already goes on meanwhile.
	r := &recorder{}
	var own *Conn
	r.consume = func(b []byte) int { own.Out = append(own.Out, b...); own.Flush(); return len(b) }
	served, there := tcpPair(t, l, r)
	do(t, l, func() { own = served })

	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = 3 // below what is open: no new descriptor
	var wakeups Stats
	do(t, l, func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
			t.Error(err)
		}
		if _, err := l.Listen(fd, func(fd int) { accepted <- fd }); err != nil {
			t.Error(err)
		}
		wakeups = l.Stats()
	})
	err = unix.Connect(client, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(addr.Port())})
	until(t, "a resting listener", func() bool {
		var n int
		do(t, l, func() { n = l.Stats().Timers })
		return n == 1
	})
	there.Write([]byte("still there?"))
	_, echoErr := io.ReadFull(there, make([]byte, len("still there?")))
	var after Stats
	do(t, l, func() { after = l.Stats() })
	unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	if err != nil {
		t.Fatal(err)
	}
	if echoErr != nil {
		t.Errorf("a connection that was there before: %v", echoErr)
	}
	if spun := after.Blocked - wakeups.Blocked; spun > 500 {
		t.Errorf("%d wake-ups without descriptors", spun)
	}
	unix.Close(receive(t, accepted))
}

package loop

import (
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must come.
const patience = 2 * time.Minute

// startLoop runs a loop for the time of the test.
func startLoop(t *testing.T) *Loop {
	t.Helper()
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := receive(t, done); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return l
}

// do runs f on the loop and waits for it, and for the end of that wake-up's turn of posts.
func do(t *testing.T, l *Loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Post(func() { f(); close(done) }) {
		t.Fatal("the loop has ended")
	}
	receive(t, done)
}

// settled returns once a whole wake-up has passed: what was flushed and closed before is written and closed.
func settled(t *testing.T, l *Loop) {
	t.Helper()
	do(t, l, func() {})
	do(t, l, func() {})
}

// wakeups counts those of a time in which nothing should happen. No event can be waited for then; a timer of another loop gives the time.
func wakeups(t *testing.T, l *Loop) uint64 {
	t.Helper()
	var before, after Stats
	do(t, l, func() { before = l.Stats() })
	other, fired := startLoop(t), make(chan struct{})
	timer := &Timer{F: func() { close(fired) }}
	do(t, other, func() { other.Arm(timer, 300*time.Millisecond) })
	receive(t, fired)
	do(t, l, func() { after = l.Stats() })
	return after.Wakeups - before.Wakeups
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("timed out")
		panic("unreachable")
	}
}

// until polls cond.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("timed out: %s", what)
		}
	}
}

// recorder is a Handler whose calls a test can wait for. The loop writes it, tests read it under the lock.
type recorder struct {
	consume func(b []byte) int // nil = all

	mu        sync.Mutex
	got       []byte
	written   uint64
	eof       bool
	connected bool
	closed    []error
	after     int // calls that came after the last one
}

func (r *recorder) locked(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.closed) > 0 {
		r.after++
	}
	f()
}
func (r *recorder) Connected() { r.locked(func() { r.connected = true }) }
func (r *recorder) Readable(b []byte) int {
	n := len(b)
	if r.consume != nil {
		n = r.consume(b)
	}
	r.locked(func() { r.got = append(r.got, b[:n]...) })
	return n
}
func (r *recorder) EOF()             { r.locked(func() { r.eof = true }) }
func (r *recorder) Written(n uint64) { r.locked(func() { r.written = n }) }
func (r *recorder) Closed(err error) { r.locked(func() { r.closed = append(r.closed, err) }) }

func (r *recorder) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}
func (r *recorder) closedBy() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.closed) == 0 {
		return nil
	}
	return r.closed[0]
}
func (r *recorder) sawEOF() bool       { r.mu.Lock(); defer r.mu.Unlock(); return r.eof }
func (r *recorder) sawConnected() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.connected }
func (r *recorder) total() uint64      { r.mu.Lock(); defer r.mu.Unlock(); return r.written }

// check fails the test if the handler was called after its last call.
func (r *recorder) check(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.after > 1 || len(r.closed) > 1 {
		t.Errorf("handler was called after Closed: %d calls, closed by %v", r.after-1, r.closed)
	}
}

// pair is a socketpair: ours on the loop, theirs as a net.Conn.
func pair(t *testing.T, l *Loop, h Handler, received []byte) (*Conn, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return add(t, l, fds[0], h, received), peer(t, fds[1]).(*net.UnixConn)
}

// tcpPair is the same over TCP on loopback.
func tcpPair(t *testing.T, l *Loop, h Handler) (*Conn, *net.TCPConn) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	there, err := net.Dial("tcp", lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { there.Close() })
	here, err := lis.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	return add(t, l, dupFD(t, here.(*net.TCPConn)), h, nil), there.(*net.TCPConn)
}

func add(t *testing.T, l *Loop, fd int, h Handler, received []byte) *Conn {
	t.Helper()
	var c *Conn
	var err error
	do(t, l, func() { c, err = l.Add(fd, h, received) })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func peer(t *testing.T, fd int) net.Conn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "peer")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func dupFD(t *testing.T, c *net.TCPConn) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// listenSocket makes a listening, non-blocking TCP socket as the proxy does.
func listenSocket(t *testing.T) (fd int, addr netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 4096); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
}

// openFDs counts this process's descriptors.
func openFDs(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

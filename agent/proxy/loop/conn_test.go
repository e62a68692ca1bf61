package loop

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestReadableKeepsWhatIsNotConsumed(t *testing.T) {
	l := startLoop(t)
	// Whole lines only, as a protocol takes whole frames only.
	r := &recorder{consume: func(b []byte) int { return bytes.LastIndexByte(b, '\n') + 1 }}
	_, there := pair(t, l, r, []byte("be"))
	for _, part := range []string{"fore\n", "a", "b", "c\nd", strings.Repeat("e", 5000), "\n"} {
		if _, err := there.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
		settled(t, l)
	}
	want := "before\nabc\nd" + strings.Repeat("e", 5000) + "\n"
	until(t, "every line", func() bool { return string(r.bytes()) == want })
	var held int
	do(t, l, func() {
		for i := range l.buffers.free {
			held += len(l.buffers.free[i])
		}
	})
	if held == 0 {
		t.Error("the buffer of kept bytes did not go back to the free list")
	}
}

func TestReceivedBytesComeWithoutMoreData(t *testing.T) {
	l := startLoop(t)
	r := &recorder{}
	pair(t, l, r, []byte("sniffed"))
	until(t, "the bytes of Add", func() bool { return string(r.bytes()) == "sniffed" })
}

func TestStuckHandlerIsClosed(t *testing.T) {
	l := startLoop(t)
	r := &recorder{consume: func([]byte) int { return 0 }}
	_, there := tcpPair(t, l, r)
	go there.Write(make([]byte, 2*readSize))
	until(t, "ErrStuck", func() bool { return errors.Is(r.closedBy(), ErrStuck) })
	r.check(t)
}

func TestDataBeforeFINIsDelivered(t *testing.T) {
	l := startLoop(t)
	r := &recorder{}
	c, there := tcpPair(t, l, r)
	want := make([]byte, 300<<10)
	go func() { there.Write(want); there.CloseWrite() }()
	until(t, "EOF", r.sawEOF)
	if got := len(r.bytes()); got != len(want) {
		t.Fatalf("got %d bytes before EOF, want %d", got, len(want))
	}
	// The other half stays open.
	do(t, l, func() { c.Out = append(c.Out, "still here"...); c.CloseWrite() })
	if got, err := io.ReadAll(there); err != nil || string(got) != "still here" {
		t.Fatalf("read %q, %v", got, err)
	}
	if err := r.closedBy(); err != nil {
		t.Fatalf("half-closed connection was closed: %v", err)
	}
	do(t, l, c.Close)
}

// A slow reader: the backlog is held, sent in order, accounted for, and its buffer given back.
func TestBacklogWithSlowReader(t *testing.T) {
	l := startLoop(t)
	r := &recorder{}
	c, there := tcpPair(t, l, r)
	data := make([]byte, 32<<20)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(data)
	var queued uint64
	do(t, l, func() {
		for b := data; len(b) > 0; {
			n := min(len(b), 100_000)
			c.Out = append(c.Out, b[:n]...)
			c.Flush()
			b = b[n:]
		}
		queued = c.Queued()
	})
	if queued != uint64(len(data)) {
		t.Fatalf("Queued %d, want %d", queued, len(data))
	}
	settled(t, l)
	do(t, l, func() {
		if c.Unwritten() == 0 || !c.full {
			t.Errorf("the kernel took %d bytes at once; the test needs a backlog", len(data))
		}
		if c.Queued() != queued || uint64(c.Unwritten()) != queued-r.total() {
			t.Errorf("Queued %d, Unwritten %d, Written %d; want them to add up to %d", c.Queued(), c.Unwritten(), r.total(), queued)
		}
	})
	got := make([]byte, len(data))
	if _, err := io.ReadFull(there, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Fatal("bytes arrived changed")
	}
	until(t, "Written with everything", func() bool { return r.total() == queued })
	settled(t, l)
	do(t, l, func() {
		if c.Unwritten() != 0 || cap(c.Out) > hoard || c.full {
			t.Errorf("after the backlog: %d unwritten, buffer of %d, full %v", c.Unwritten(), cap(c.Out), c.full)
		}
	})
}

func TestIdleConnectionsHoldNoBuffer(t *testing.T) {
	l := startLoop(t)
	conns := make([]*Conn, 50)
	for i := range conns {
		c, there := pair(t, l, &recorder{}, nil)
		conns[i] = c
		go io.Copy(io.Discard, there)
	}
	do(t, l, func() {
		for _, c := range conns {
			c.Out = append(c.Out, make([]byte, 100<<10)...)
			c.Flush()
		}
	})
	until(t, "buffers given back", func() bool {
		held := 0
		do(t, l, func() {
			for _, c := range conns {
				held += cap(c.Out) + cap(c.kept)
			}
		})
		return held == 0
	})
	until(t, "no timer left", func() bool {
		var n int
		do(t, l, func() { n = l.Stats().Timers })
		return n == 0
	})
}

func TestPauseStopsReadingAndLosesNothing(t *testing.T) {
	l := startLoop(t)
	r := &recorder{}
	c, there := tcpPair(t, l, r)
	do(t, l, c.Pause)
	settled(t, l)
	there.Write([]byte("one "))
	there.Write([]byte("two"))
	there.CloseWrite()
	settled(t, l)
	if got := r.bytes(); len(got) > 0 || r.sawEOF() {
		t.Fatalf("read %q while paused", got)
	}
	do(t, l, c.Resume)
	until(t, "EOF after resume", r.sawEOF)
	if got := string(r.bytes()); got != "one two" {
		t.Fatalf("got %q", got)
	}
}

// Both directions ended while reading is paused: epoll reports a hang-up for ever. It must not spin, and the data must come after Resume.
func TestHangUpWhilePausedDoesNotSpin(t *testing.T) {
	l := startLoop(t)
	r := &recorder{}
	c, there := tcpPair(t, l, r)
	do(t, l, func() { c.Pause(); c.CloseWrite() })
	if _, err := io.ReadAll(there); err != nil {
		t.Fatal(err)
	}
	there.Write([]byte("last words"))
	there.CloseWrite()
	until(t, "the hang-up", func() (seen bool) { do(t, l, func() { seen = c.hup }); return seen })
	if n := wakeups(t, l); n > 5 {
		t.Errorf("%d wake-ups for an end that nobody reads", n)
	}
	do(t, l, c.Resume)
	until(t, "EOF", r.sawEOF)
	if got := string(r.bytes()); got != "last words" {
		t.Fatalf("got %q", got)
	}
	if n := wakeups(t, l); n > 5 {
		t.Errorf("%d wake-ups while nobody closes it", n)
	}
	do(t, l, c.Close)
	settled(t, l)
	do(t, l, func() {
		if n := l.Stats().Conns; n != 0 {
			t.Errorf("%d connections left", n)
		}
	})
}

func TestResetReachesPausedHandler(t *testing.T) {
	l := startLoop(t)
	r := &recorder{}
	c, there := tcpPair(t, l, r)
	do(t, l, c.Pause)
	there.SetLinger(0)
	there.Close()
	until(t, "reset", func() bool { return errors.Is(r.closedBy(), unix.ECONNRESET) })
	r.check(t)
}

func TestResetSendsRST(t *testing.T) {
	l := startLoop(t)
	r := &recorder{}
	c, there := tcpPair(t, l, r)
	do(t, l, func() { c.Out = append(c.Out, "never"...); c.Reset() })
	if _, err := there.Read(make([]byte, 10)); !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("read: %v, want a reset", err)
	}
	if err := r.closedBy(); err != nil {
		t.Fatalf("Closed(%v) after Reset", err)
	}
}

func TestAbortWritesWhatIsQueuedAndSendsRST(t *testing.T) {
	l := startLoop(t)
	c, there := tcpPair(t, l, &recorder{})
	do(t, l, func() { c.Out = append(c.Out, "last words"...); c.Abort() })
	if got, err := io.ReadAll(there); string(got) != "last words" || !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("read %q, %v; want a reset behind the bytes", got, err)
	}
}

// What came in one piece with the FIN, or with a reset, is delivered before it: epoll tells of both at once, and only once.
func TestBytesAndEndInOneEvent(t *testing.T) {
	for name, end := range map[string]func(c *net.TCPConn){
		"FIN": func(c *net.TCPConn) { c.CloseWrite() },
		"RST": func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			l := startLoop(t)
			r := &recorder{}
			_, there := tcpPair(t, l, r)
			do(t, l, func() { // seen in one wake-up
				there.Write([]byte("all of it"))
				end(there)
			})
			until(t, "the end", func() bool { return r.sawEOF() || r.closedBy() != nil })
			if got := string(r.bytes()); got != "all of it" || r.sawEOF() != (name == "FIN") {
				t.Errorf("got %q, EOF %v, closed by %v", got, r.sawEOF(), r.closedBy())
			}
		})
	}
}

// A handler takes over from another, with the bytes that this one left.
func TestHandleTakesOver(t *testing.T) {
	l := startLoop(t)
	heir := &recorder{}
	var own *Conn // the loop's
	first := &recorder{consume: func([]byte) int { own.Handle(heir); return 0 }}
	c, there := pair(t, l, first, nil)
	do(t, l, func() { own = c })
	there.Write([]byte("hello"))
	until(t, "the bytes", func() bool { return string(heir.bytes()) == "hello" })
	there.Write([]byte(" again"))
	there.CloseWrite()
	until(t, "the end", heir.sawEOF)
	if got := string(heir.bytes()); got != "hello again" || first.sawEOF() || len(first.bytes()) > 0 {
		t.Errorf("the heir got %q; the first handler %q, EOF %v", got, first.bytes(), first.sawEOF())
	}
}

func TestCloseWritesWhatIsQueued(t *testing.T) {
	l := startLoop(t)
	c, there := tcpPair(t, l, &recorder{})
	do(t, l, func() { c.Out = append(c.Out, "goodbye"...); c.Close(); c.Close(); c.Reset() })
	if got, err := io.ReadAll(there); err != nil || string(got) != "goodbye" {
		t.Fatalf("read %q, %v", got, err)
	}
}

// One handler closes another connection of the same wake-up, and descriptors are reused at once: nobody may get somebody else's events.
func TestClosedInTheSameWakeUp(t *testing.T) {
	l := startLoop(t)
	var wrong atomic.Int32
	for range 200 {
		var conns [2]*Conn
		var called [2]bool
		var peers [2]*net.UnixConn
		for i := range conns {
			h := &recorder{consume: func(b []byte) int {
				if called[1-i] {
					wrong.Add(1) // its peer closed it before
				}
				called[i] = true
				conns[1-i].Close()
				return len(b)
			}}
			conns[i], peers[i] = pair(t, l, h, nil)
		}
		block := make(chan struct{})
		settled(t, l)
		l.Post(func() { <-block }) // both are readable in the same wake-up
		peers[0].Write([]byte("x"))
		peers[1].Write([]byte("x"))
		close(block)
		settled(t, l)
		do(t, l, func() { conns[0].Close(); conns[1].Close() })
		peers[0].Close()
		peers[1].Close()
	}
	if n := wrong.Load(); n > 0 {
		t.Errorf("%d calls of handlers of closed connections", n)
	}
}

// An event that was fetched before its descriptor was given away and reused doesn't reach the new owner of the number.
func TestStaleEventIsIgnored(t *testing.T) {
	l := startLoop(t)
	r := &recorder{}
	c, there := pair(t, l, &recorder{}, nil)
	there.Write([]byte("x"))
	do(t, l, func() {
		stale := unix.EpollEvent{Events: unix.EPOLLHUP | unix.EPOLLERR, Fd: int32(c.fd), Pad: l.fds[c.fd].gen}
		fd, _ := c.Detach()
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Error(err)
			return
		}
		if err := unix.Dup3(fds[0], fd, 0); err != nil { // the same number, another socket
			t.Error(err)
			return
		}
		unix.Close(fds[0])
		fresh, err := l.Add(fd, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		l.turn(time.Now(), []unix.EpollEvent{stale})
		if fresh.gone {
			t.Error("a stale event reached a new connection")
		}
		unix.Close(fds[1])
	})
}

func TestDetach(t *testing.T) {
	l := startLoop(t)
	type taken struct {
		fd       int
		received []byte
	}
	got := make(chan taken, 1)
	var c *Conn
	h := &recorder{}
	h.consume = func(b []byte) int {
		if len(b) < 5 {
			return 0
		}
		fd, rest := c.Detach()
		got <- taken{fd, rest}
		return len(b)
	}
	c, there := tcpPair(t, l, h)
	settled(t, l)
	there.Write([]byte("GET"))
	settled(t, l)
	there.Write([]byte(" / HTTP"))
	out := receive(t, got)
	if string(out.received) != "GET / HTTP" {
		t.Fatalf("received %q", out.received)
	}
	conn := peer(t, out.fd)
	there.Write([]byte("/1.1"))
	b := make([]byte, 4)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "/1.1" {
		t.Fatalf("read %q, %v", b, err)
	}
	do(t, l, func() {
		if n := l.Stats().Conns; n != 0 {
			t.Errorf("%d connections on the loop after Detach", n)
		}
		if fd, _ := c.Detach(); fd != -1 {
			t.Errorf("Detach twice gave %d", fd)
		}
	})
}

func TestLoopEndClosesConnections(t *testing.T) {
	before := openFDs(t)
	t.Run("run", func(t *testing.T) {
		l := startLoop(t)
		r := &recorder{}
		pair(t, l, r, nil)
		c, _ := tcpPair(t, l, &recorder{})
		do(t, l, func() {
			c.Out = append(c.Out, "bye"...)
			c.Flush()
			l.ended = true
		})
		until(t, "ErrEnded", func() bool { return errors.Is(r.closedBy(), ErrEnded) })
		until(t, "refused posts", func() bool { return !l.Post(func() {}) })
		r.check(t)
	})
	until(t, "no descriptor left", func() bool { return openFDs(t) == before })
}

// A peer that answers at length and closes, as a server does that ends, answers what is sent to it afterwards with RST. What it said before is read to its end
// all the same, however much that is: a failed write says nothing about it.
func TestFailedWriteLosesNothingReceived(t *testing.T) {
	l := startLoop(t)
	r := &recorder{}
	var c *Conn
	r.consume = func(b []byte) int {
		c.Out = append(c.Out, "more, please"...)
		c.Flush()
		return len(b)
	}
	here, there := tcpPair(t, l, r)
	want := make([]byte, 300<<10) // more than two wake-ups read
	do(t, l, func() {
		c = here
		setInt(here.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
		go func() { there.Write(want) }()
		until(t, "all bytes", func() bool { return here.Unread() == len(want) })
		there.Close()
	})
	until(t, "the end", func() bool { return r.sawEOF() || r.closedBy() != nil })
	if got := len(r.bytes()); got != len(want) {
		t.Errorf("got %d bytes of %d before the end: EOF %v, closed by %v", got, len(want), r.sawEOF(), r.closedBy())
	}
	do(t, l, here.Close)
	r.check(t)
}

package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"github.com/lbagent/lbagent/agent/proxy/h1"
	"golang.org/x/sys/unix"
)

// wireBuffer is what is read at once where heads are expected.
type wireBuffer [4 << 10]byte

// past is a deadline that ends a wait now.
func past() time.Time { return time.Unix(1, 0) }

// wire is an HTTP/1.1 connection to either side, with what was read from it and not used yet. One goroutine reads at a time.
type wire struct {
	net.Conn
	raw   syscall.RawConn
	h     *http1
	small *wireBuffer  // what buf is made of; or
	large *http1Buffer // this; both nil if it is neither, or nothing is buffered
	bulk  bool         // read much at once
	buf   []byte
	r, w  int // buf[r:w] is unused

	polled int // what poll read
	err    error
	alive  bool // what look found
}

func (w *wire) init(h *http1, c net.Conn) error {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return errors.ErrUnsupported
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	w.Conn, w.raw, w.h = c, raw, h
	return nil
}

func (w *wire) buffered() []byte { return w.buf[w.r:w.w] }

// skip uses n bytes; the buffer goes back when all are used.
func (w *wire) skip(n int) {
	if w.r += n; w.r == w.w {
		w.release()
	}
}

func (w *wire) release() {
	w.drop()
	w.buf, w.r, w.w = nil, 0, 0
}

// drop gives the memory of buf back.
func (w *wire) drop() {
	if w.small != nil {
		w.h.small.Put(w.small)
		w.small = nil
	}
	if w.large != nil {
		w.h.large.Put(w.large)
		w.large = nil
	}
}

func (w *wire) take() {
	if w.bulk {
		w.large = w.h.large.Get().(*http1Buffer)
		w.buf = w.large[:]
		return
	}
	w.small = w.h.small.Get().(*wireBuffer)
	w.buf = w.small[:]
}

// wait reads the first bytes of something. While there are none, no buffer is held.
func (w *wire) wait() error {
	if w.r < w.w {
		return nil
	}
	w.polled, w.err = 0, nil
	if err := w.raw.Read(w.poll); err != nil {
		return err
	}
	switch {
	case w.err != nil:
		w.release()
		return w.err
	case w.polled == 0:
		w.release()
		return io.EOF
	}
	w.w = w.polled
	return nil
}

// poll is one read(2); it reports false if it would have to wait.
func (w *wire) poll(fd uintptr) bool {
	w.take()
	for {
		n, err := unix.Read(int(fd), w.buf)
		switch err {
		case nil:
			w.polled = n
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			w.release()
			return false
		default:
			w.err = err
		}
		return true
	}
}

// fill reads more behind what is buffered, which is at most the given number of bytes.
func (w *wire) fill(most int) error {
	if w.r == w.w {
		w.release()
		return w.wait()
	}
	if w.w == len(w.buf) {
		if w.r > 0 {
			w.w = copy(w.buf, w.buf[w.r:w.w])
			w.r = 0
		} else {
			if len(w.buf) > most {
				return h1.ErrTooLong
			}
			more := make([]byte, 2*len(w.buf))
			copy(more, w.buf)
			w.drop()
			w.buf = more
		}
	}
	n, err := w.Conn.Read(w.buf[w.w:])
	w.w += n
	if n > 0 {
		return nil
	}
	return err
}

// Read takes what is buffered first.
func (w *wire) Read(b []byte) (int, error) {
	if w.r < w.w {
		n := copy(b, w.buf[w.r:w.w])
		w.skip(n)
		return n, nil
	}
	return w.Conn.Read(b)
}

// CloseWrite ends this side's direction.
func (w *wire) CloseWrite() error {
	if c, ok := w.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return w.Close()
}

// quiet reports whether the connection is open and nothing has come on it.
func (w *wire) quiet() bool {
	w.alive = false
	return w.r == w.w && w.raw.Control(w.look) == nil && w.alive
}

func (w *wire) look(fd uintptr) {
	_, err := peek(fd)
	w.alive = err == unix.EAGAIN
}

// waiting reports whether bytes wait to be read.
func (w *wire) waiting() (yes bool) {
	w.raw.Control(func(fd uintptr) {
		n, err := peek(fd)
		yes = err == nil && n > 0
	})
	return yes
}

// ended reports whether the peer has closed, and nothing is left to read.
func (w *wire) ended() (yes bool) {
	err := w.raw.Control(func(fd uintptr) {
		n, err := peek(fd)
		yes = err != unix.EAGAIN && n == 0
	})
	return yes || err != nil
}

// state is the kernel's of the connection; 0 if it has none.
func (w *wire) state() (state uint8) {
	w.raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			state = info.State
		}
	})
	return state
}

// wasReset tells an end that read(2) reported from a reset: the kernel reports that only once, and a write at the same time may have got it.
func (w *wire) wasReset() bool { return w.state() == unix.BPF_TCP_CLOSE }

// gone waits until the peer has closed, and reports it; false if bytes came, or the read deadline has passed.
func (w *wire) gone() (closed bool) {
	if w.r < w.w {
		return false
	}
	err := w.raw.Read(func(fd uintptr) bool {
		n, err := peek(fd)
		if err == unix.EAGAIN {
			return false
		}
		closed = err != nil || n == 0
		return true
	})
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return true
	}
	return closed
}

// peek looks whether a byte is there.
func peek(fd uintptr) (int, error) {
	var b [1]byte
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b[0])), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

package health

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sweep runs the tcp probes: the Monitor's own goroutine begins their connects, on raw sockets that don't block, and sees at later wake-ups
// what became of them. Most backends are probed like that, up to 200 times a second: a goroutine, a timer and a wake-up of the poller for
// each cost several times the connect itself.
type sweep struct {
	flights []flight
	polled  []unix.PollFd
	buffer  [4096]byte
}

// flight is one probe that is under way.
type flight struct {
	job      probeJob
	fd       int
	deadline time.Time
	again    bool // it's the second one (2.1)
	greeting bool // connected; the peer's SETTINGS are awaited
	got      int
	head     [9]byte // of the peer's first frame
}

// takes reports whether p is a probe for it.
func (s *sweep) takes(p *probeJob) bool {
	return p.options.Probe == ProbeTCP && p.addr.Addr().Zone() == ""
}

// start begins a probe; done if its end is known already.
func (s *sweep) start(now time.Time, p probeJob) (r result, done bool) {
	if p.options.Port != 0 {
		p.addr = netip.AddrPortFrom(p.addr.Addr(), p.options.Port)
	}
	return s.connect(now, p, false)
}

func (s *sweep) connect(now time.Time, p probeJob, again bool) (r result, done bool) {
	f := flight{job: p, again: again, deadline: now.Add(p.options.Timeout)}
	var err error
	if f.fd, err = beginConnect(p.addr, !p.options.HTTP2); err != nil {
		return s.ended(now, &f, err)
	}
	s.flights = append(s.flights, f)
	return result{}, false
}

// ended turns the end of a probe into a result, except that one whose connection was closed gets a second one.
func (s *sweep) ended(now time.Time, f *flight, err error) (r result, done bool) {
	err = ended(err)
	if _, closed := errors.AsType[errClosed](err); closed && !f.again {
		return s.connect(now, f.job, true)
	}
	return result{t: f.job.t, outcome: classify(err, f.job.options)}, true
}

// collect appends the results of probes that have ended, or run out of time.
func (s *sweep) collect(now time.Time, results []result) []result {
	if len(s.flights) == 0 {
		return results
	}
	s.polled = s.polled[:0]
	for i := range s.flights {
		events := int16(unix.POLLOUT)
		if s.flights[i].greeting {
			events = unix.POLLIN
		}
		s.polled = append(s.polled, unix.PollFd{Fd: int32(s.flights[i].fd), Events: events})
	}
	if _, err := unix.Poll(s.polled, 0); err != nil {
		return results // EINTR: the next time
	}
	// Kept ones move up; a second connection of a probe is appended behind all, and looked at the next time.
	n, kept := len(s.flights), 0
	for i := range n {
		f := s.flights[i] // a copy: appending moves the others
		var err error
		over := false
		if s.polled[i].Revents != 0 {
			over, err = s.advance(&f)
		} else if !now.Before(f.deadline) {
			over, err = true, f.timedOut()
		}
		if !over {
			s.flights[kept] = f
			kept++
			continue
		}
		_ = unix.Close(f.fd)
		if r, done := s.ended(now, &f, err); done {
			results = append(results, r)
		}
	}
	s.flights = slices.Delete(s.flights, kept, n)
	return results
}

// timedOut is the error of a probe that was not over in time: dialing, or reading.
func (f *flight) timedOut() error {
	if f.greeting {
		return os.ErrDeadlineExceeded
	}
	return dialError(syscall.ETIMEDOUT)
}

// dialError is what a Dialer would have said.
func dialError(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }

// advance goes on with a probe that poll says can go on. Once it is over, a nil error means that it passed.
func (s *sweep) advance(f *flight) (over bool, err error) {
	if f.greeting {
		return s.readSettings(f)
	}
	if err := connectError(f.fd); errors.Is(err, syscall.ECONNRESET) {
		return true, err // it was accepted first: what refuses a connect says ECONNREFUSED
	} else if err != nil {
		return true, dialError(err)
	}
	if !f.job.options.HTTP2 {
		return true, nil
	}
	if _, err := unix.Write(f.fd, hello()); err != nil { // a new socket takes these few bytes at once
		return true, err
	}
	f.greeting = true
	return false, nil
}

// readSettings reads the peer's first frame as far as it tells what it is, and whatever else is there: closing a socket with bytes unread resets
// the connection.
func (s *sweep) readSettings(f *flight) (over bool, err error) {
	n, err := unix.Read(f.fd, s.buffer[:])
	switch {
	case errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR):
		return false, nil
	case err != nil:
		return true, err
	case n == 0:
		return true, io.EOF
	}
	f.got += copy(f.head[f.got:], s.buffer[:n])
	if f.got < len(f.head) {
		return false, nil
	}
	switch n := int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2]); {
	case f.head[3] == frameGoAway && n <= h2FrameMost:
		return true, errClosed{"GOAWAY"}
	case f.head[3] != frameSettings || n > h2FrameMost:
		return true, errNotHTTP2
	}
	_, _ = unix.Write(f.fd, appendFrame(nil, frameGoAway, 0, 0, make([]byte, 8))) // in good order, as far as that still works
	return true, nil
}

// excuse gives the probes under way more time: this process was late by that much, and backends can't be blamed for it (2.3).
func (s *sweep) excuse(late time.Duration) {
	for i := range s.flights {
		s.flights[i].deadline = s.flights[i].deadline.Add(late)
	}
}

// close gives up what is under way.
func (s *sweep) close() {
	for _, f := range s.flights {
		_ = unix.Close(f.fd)
	}
	s.flights = nil
}

// beginConnect begins a connect that doesn't block. One that is only a knock ends by a reset, before the handshake is over if this host is quick: the backend's kernel has
// answered, its program is not woken, and no port is left in TIME_WAIT on either side.
func beginConnect(addr netip.AddrPort, knock bool) (int, error) {
	domain, to := unix.AF_INET, unix.Sockaddr(nil)
	if ip := addr.Addr(); ip.Is4() || ip.Is4In6() {
		to = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: ip.As4()}
	} else {
		domain, to = unix.AF_INET6, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: ip.As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return 0, dialError(err)
	}
	if knock { // as far as it goes: a connect that ends otherwise is one as well
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
	}
	for {
		err = unix.Connect(fd, to)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil && !errors.Is(err, syscall.EINPROGRESS) && !errors.Is(err, syscall.EALREADY) {
		_ = unix.Close(fd)
		if errors.Is(err, syscall.ECONNRESET) {
			return 0, err
		}
		return 0, dialError(err)
	}
	return fd, nil
}

// connectError is how a connect ended that poll says has ended.
func connectError(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if code != 0 {
		return syscall.Errno(code)
	}
	return nil
}

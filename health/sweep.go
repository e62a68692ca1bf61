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
	if pollSockets(s.polled) != 0 {
		return results // the next time
	}
	// Kept ones move up; a second connection of a probe is appended behind all, and looked at the next time.
	n, kept := len(s.flights), 0
	for i := range n {
		f := s.flights[i] // a copy: appending moves the others
		var err error
		over := false
		if s.polled[i].Revents != 0 {
			over, err = s.advance(&f, s.polled[i].Revents)
		} else if !now.Before(f.deadline) {
			over, err = true, f.timedOut()
		}
		if !over {
			s.flights[kept] = f
			kept++
			continue
		}
		closeSocket(f.fd)
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
func (s *sweep) advance(f *flight, events int16) (over bool, err error) {
	if f.greeting {
		return s.readSettings(f)
	}
	if events&(unix.POLLERR|unix.POLLHUP) != 0 {
		switch errno := socketError(f.fd); errno {
		case 0:
		case syscall.ECONNRESET:
			return true, errno // it was accepted first: what refuses a connect says ECONNREFUSED
		default:
			return true, dialError(errno)
		}
	}
	if !f.job.options.HTTP2 {
		return true, nil
	}
	if _, errno := writeSocket(f.fd, hello()); errno != 0 { // a new socket takes these few bytes at once
		return true, errno
	}
	f.greeting = true
	return false, nil
}

// readSettings reads the peer's first frame as far as it tells what it is, and whatever else is there: closing a socket with bytes unread resets
// the connection.
func (s *sweep) readSettings(f *flight) (over bool, err error) {
	n, errno := readSocket(f.fd, s.buffer[:])
	switch {
	case errno == syscall.EAGAIN:
		return false, nil
	case errno != 0:
		return true, errno
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
	_, _ = writeSocket(f.fd, appendFrame(nil, frameGoAway, 0, 0, make([]byte, 8))) // in good order, as far as that still works
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
		closeSocket(f.fd)
	}
	s.flights = nil
}

// beginConnect begins a connect that doesn't block. One that is only a knock ends by a reset, before the handshake is over if this host is quick: the backend's kernel has
// answered, its program is not woken, and no port is left in TIME_WAIT on either side.
func beginConnect(addr netip.AddrPort, knock bool) (int, error) {
	fd, errno := openSocket(inetFamily(addr.Addr()))
	if errno != 0 {
		return 0, dialError(errno)
	}
	if knock { // as far as it goes: a connect that ends otherwise is one as well
		resetOnClose(fd)
		setSocket(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
	}
	if errno := connectSocket(fd, addr); errno != 0 && errno != syscall.EINPROGRESS {
		closeSocket(fd)
		if errno == syscall.ECONNRESET {
			return 0, errno
		}
		return 0, dialError(errno)
	}
	return fd, nil
}

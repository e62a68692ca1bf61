package health

import (
	"errors"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sweep runs the plain tcp probes: the Monitor's own goroutine begins their connects, on raw sockets that don't block, and sees at a later
// wake-up what became of them. Most backends are probed like that, up to
// 200 times a second: a goroutine, a timer and a wake-up of the poller for each cost several times the connect itself.
type sweep struct {
	flights []flight
	polled  []unix.PollFd
}

// flight is one connect that is under way.
type flight struct {
	job      probeJob
	fd       int
	deadline time.Time
	again    bool // it's the second one (2.1)
}

// takes reports whether p is a probe for it.
func (s *sweep) takes(p *probeJob) bool {
	return p.options.Probe == ProbeTCP && !p.options.HTTP2 && p.addr.Addr().Zone() == ""
}

// start begins a probe; done if its end is known already.
func (s *sweep) start(now time.Time, p probeJob) (r result, done bool) {
	if p.options.Port != 0 {
		p.addr = netip.AddrPortFrom(p.addr.Addr(), p.options.Port)
	}
	return s.connect(now, flight{job: p})
}

func (s *sweep) connect(now time.Time, f flight) (r result, done bool) {
	fd, err := beginConnect(f.job.addr)
	if err != nil {
		return s.ended(now, f, err)
	}
	f.fd, f.deadline = fd, now.Add(f.job.options.Timeout)
	s.flights = append(s.flights, f)
	return result{}, false
}

// ended turns the end of a connect into a result, except that a connection that was reset gets a second one: it was accepted first.
func (s *sweep) ended(now time.Time, f flight, err error) (r result, done bool) {
	if errors.Is(err, syscall.ECONNRESET) && !f.again {
		f.again = true
		return s.connect(now, f)
	}
	o := outcome{}
	if err != nil {
		o = outcome{probeUnreachable, Cause(err)}
		switch {
		case isLocal(err):
			o.kind = probeLocal
		case errors.Is(err, syscall.ECONNRESET):
			o.kind = probeSilent
		}
	}
	return result{f.job.t, o}, true
}

// collect appends the results of connects that have ended, or run out of time.
func (s *sweep) collect(now time.Time, results []result) []result {
	if len(s.flights) == 0 {
		return results
	}
	s.polled = s.polled[:0]
	for _, f := range s.flights {
		s.polled = append(s.polled, unix.PollFd{Fd: int32(f.fd), Events: unix.POLLOUT})
	}
	if _, err := unix.Poll(s.polled, 0); err != nil {
		return results // EINTR: the next time
	}
	before := s.flights
	s.flights = s.flights[:0]
	var again []flight
	for i, f := range before {
		var err error
		switch {
		case s.polled[i].Revents != 0:
			err = connectError(f.fd)
		case now.Before(f.deadline):
			s.flights = append(s.flights, f)
			continue
		default:
			err = syscall.ETIMEDOUT
		}
		_ = unix.Close(f.fd)
		if errors.Is(err, syscall.ECONNRESET) && !f.again {
			again = append(again, f) // not now: it would go into the slice that is being read
			continue
		}
		r, _ := s.ended(now, f, err)
		results = append(results, r)
	}
	clear(before[len(s.flights):])
	for _, f := range again {
		if r, done := s.ended(now, f, syscall.ECONNRESET); done {
			results = append(results, r)
		}
	}
	return results
}

// close gives up what is under way.
func (s *sweep) close() {
	for _, f := range s.flights {
		_ = unix.Close(f.fd)
	}
	s.flights = nil
}

// beginConnect begins a connect that doesn't block.
func beginConnect(addr netip.AddrPort) (int, error) {
	domain, to := unix.AF_INET, unix.Sockaddr(nil)
	if ip := addr.Addr(); ip.Is4() || ip.Is4In6() {
		to = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: ip.As4()}
	} else {
		domain, to = unix.AF_INET6, &unix.SockaddrInet6{Port: int(addr.Port()), Addr: ip.As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return 0, err
	}
	for {
		err = unix.Connect(fd, to)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil && !errors.Is(err, syscall.EINPROGRESS) && !errors.Is(err, syscall.EALREADY) {
		_ = unix.Close(fd)
		return 0, err
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

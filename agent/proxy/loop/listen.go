package loop

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	acceptsPerWake = 64
	// acceptRest is how long a listener rests when the process has no descriptor left: the connection stays in the backlog, and epoll would report it
	// again at once.
	acceptRest = 100 * time.Millisecond
	// acceptWarn is how often that is told.
	acceptWarn = 10 * time.Second
)

// listener is a listening socket in epoll.
type listener struct {
	loop     *Loop
	fd       int
	accepted func(fd int)
	rest     Timer
	warned   time.Time
	stopped  bool
}

// Listen accepts on a listening, non-blocking socket until the returned func is called (on the loop); the socket stays the caller's. At most 64 accepts per
// wake-up; EMFILE disarms it for 100 ms. accepted owns the fd (non-blocking, close-on-exec; for TCP with no delay and keepalive, which it inherits).
func (l *Loop) Listen(fd int, accepted func(fd int)) (stop func(), err error) {
	if l.ended {
		return nil, ErrEnded
	}
	// Accepted sockets inherit these on Linux: five system calls less per connection. A unix socket refuses them, and needs none.
	setInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	keepAlive(fd, 60, 10, 6)
	s := &listener{loop: l, fd: fd, accepted: accepted}
	s.rest.F = func() { l.rearm(fd, unix.EPOLLIN) }
	if err := l.register(fd, unix.EPOLLIN, s); err != nil {
		return nil, err
	}
	return s.stop, nil
}

func (s *listener) stop() {
	if s.stopped {
		return
	}
	s.stopped = true
	s.loop.Disarm(&s.rest)
	s.loop.unregister(s.fd)
}

// ready accepts what waits. Errors of one connection (ECONNABORTED and the network errors of accept(2)) cost only that one.
func (s *listener) ready(uint32) {
	for range acceptsPerWake {
		if s.stopped {
			return
		}
		fd, e := accept(s.fd)
		switch e {
		case 0:
			s.accepted(fd)
		case unix.EAGAIN:
			return
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			if now := s.loop.now; now.Sub(s.warned) > acceptWarn {
				s.warned = now
				s.loop.log.Warn("no descriptor or memory for a new connection: accepting none for a moment", "cause", e)
			}
			s.loop.rearm(s.fd, 0)
			s.loop.Arm(&s.rest, acceptRest)
			return
		case unix.EBADF, unix.EINVAL, unix.ENOTSOCK:
			s.loop.log.Error("listener is broken", "cause", e)
			s.stop()
			return
		}
	}
}

package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	watchesMost  = 1024             // kept connections, each a descriptor here and one at the backend
	watchesShare = 16               // of the descriptors that this process may have open, no more than one in so many
	watchAgain   = 10 * time.Minute // a backend that doesn't offer Watch is asked again then: it may be another program by now
	watchEvents  = 256              // taken from the kernel at once
)

// watches are the streams of gRPC's health service that stand in for polling (2.1): one connection per backend, opened by a probe and kept. What a backend says there
// counts at once; between, a probe is a SETTINGS frame and its acknowledgement, since a process that hangs keeps its connections. The Monitor's goroutine owns them; another one
// only waits for the kernel to say that something came.
type watches struct {
	most  int
	ready chan []unix.EpollEvent // what came, at most every wakeGrain

	epoll   *os.File // nil until there is a first one
	fd      int      // of epoll
	all     map[int32]*watch
	pending []*watch // probes that are under way
	results []result
	unable  []probeJob // probes that a unary Check has to do
	buffer  [4096]byte
}

// watch is one of them.
type watch struct {
	job      probeJob // the last one
	fd       int32
	again    bool // this is the second connection of the same probe (2.1)
	up       bool // connected
	kept     bool // a first answer came
	probing  bool // a probe waits for its end
	unwanted bool // it ends with its probe
	told     uint64
	deadline time.Time // of the probe
	since    time.Time // opened
	stream   watchStream
}

func newWatches() *watches {
	w := &watches{most: watchesMost, ready: make(chan []unix.EpollEvent), all: map[int32]*watch{}}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		w.most = int(min(watchesMost, files.Cur/watchesShare))
	}
	return w
}

// takes reports whether p is a probe for it: one of a backend that is watched, or could be.
func (s *watches) takes(now time.Time, p *probeJob) bool {
	return p.options.Probe == ProbeGRPC && p.addr.Addr().Zone() == "" &&
		(p.t.watch != nil || len(s.all) < s.most && p.t.state.at(now) >= p.t.noWatch)
}

// start begins a probe: on the connection that is there, or on a new one if the way to the backend is in doubt.
func (s *watches) start(ctx context.Context, waits *sync.WaitGroup, now time.Time, p probeJob) {
	if err := s.init(ctx, waits); err != nil {
		s.results = append(s.results, result{t: p.t, outcome: classify(err, p.options)})
		return
	}
	w, t := p.t.watch, p.t
	if w != nil && (t.unreachable != nil || t.ejected != nil || t.orphan.was || t.state.connFailed.Load() != 0) {
		s.end(w)
		w = nil
	}
	if w == nil {
		s.open(now, p, false)
		return
	}
	w.job, w.again, w.probing, w.deadline = p, false, true, now.Add(p.options.Timeout)
	s.pending = append(s.pending, w)
	w.stream.ping()
	s.settle(now, w, s.flush(w))
}

// init makes what waits for the kernel, once.
func (s *watches) init(ctx context.Context, waits *sync.WaitGroup) error {
	if s.epoll != nil {
		return nil
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that Go's own poller takes it, and nobody needs a thread to wait
		_ = unix.Close(fd)
		return fmt.Errorf("watch: %w", err)
	}
	s.fd, s.epoll = fd, os.NewFile(uintptr(fd), "epoll")
	epoll := s.epoll
	waits.Go(func() { s.wait(ctx, epoll, fd) })
	return nil
}

// wait passes on what the kernel says, until the epoll is closed. All that comes within wakeGrain is passed on at once.
func (s *watches) wait(ctx context.Context, epoll *os.File, fd int) {
	raw, err := epoll.SyscallConn()
	if err != nil {
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		events := make([]unix.EpollEvent, watchEvents)
		n := 0
		take := func(uintptr) bool {
			if more, err := unix.EpollWait(fd, events[n:], 0); err == nil {
				n += more
			}
			return n > 0
		}
		if err := raw.Read(take); err != nil {
			return
		}
		timer.Reset(wakeGrain)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if n < len(events) {
			_ = raw.Control(func(fd uintptr) { take(fd) })
		}
		select {
		case s.ready <- events[:n]:
		case <-ctx.Done():
			return
		}
	}
}

// open begins a probe on a new connection.
func (s *watches) open(now time.Time, p probeJob, again bool) {
	to := p.addr
	if p.options.Port != 0 {
		to = netip.AddrPortFrom(to.Addr(), p.options.Port)
	}
	w := &watch{job: p, again: again, probing: true, deadline: now.Add(p.options.Timeout), since: now}
	w.stream.begin(to.String(), p.options.HealthName)
	fd, err := beginConnect(to, false)
	if err != nil {
		s.over(now, w, err)
		return
	}
	w.fd = int32(fd)
	keepAlive(fd)
	event := unix.EpollEvent{Fd: w.fd, Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET}
	if err := unix.EpollCtl(s.fd, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		_ = unix.Close(fd)
		s.over(now, w, fmt.Errorf("watch: %w", err))
		return
	}
	s.all[w.fd] = w
	p.t.watch = w
	s.pending = append(s.pending, w)
}

// keepAlive has the kernel end a connection whose host is gone (2.11), for probes with a long interval. It matters little enough to go without.
func keepAlive(fd int) {
	for _, o := range [][3]int{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 5},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3}, {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 10_000},
	} {
		setSocket(fd, o[0], o[1], o[2])
	}
}

// took goes on with the watches of which the kernel says something.
func (s *watches) took(now time.Time, events []unix.EpollEvent) {
	for _, e := range events {
		if w := s.all[e.Fd]; w != nil {
			s.advance(now, w)
		}
	}
}

// collect ends the probes that have run out of time, and hands over what there is to tell since the last call.
func (s *watches) collect(now time.Time) (results []result, unable []probeJob) {
	pending := s.pending
	s.pending = nil
	for _, w := range pending {
		if w.probing && !now.Before(w.deadline) {
			s.advance(now, w) // what came counts, however late this goroutine is
			if w.probing && s.all[w.fd] == w {
				s.settle(now, w, w.timedOut())
			}
		}
		if w.probing && s.all[w.fd] == w {
			s.pending = append(s.pending, w)
		}
	}
	results, unable = s.results, s.unable
	s.results, s.unable = nil, nil
	return results, unable
}

// timedOut is the error of a probe that was not over in time.
func (w *watch) timedOut() error {
	switch {
	case !w.up:
		return dialError(syscall.ETIMEDOUT)
	case !w.kept && w.stream.greeted:
		return errNoWatch // it lives, but something between holds back a stream that doesn't end
	}
	return os.ErrDeadlineExceeded
}

// advance reads and writes what there is.
func (s *watches) advance(now time.Time, w *watch) {
	if !w.up {
		switch errno := socketError(int(w.fd)); errno {
		case 0:
		case syscall.ECONNRESET:
			s.settle(now, w, errno)
			return
		default:
			s.settle(now, w, dialError(errno))
			return
		}
	}
	err := s.flush(w)
	for err == nil && w.up {
		n, errno := readSocket(int(w.fd), s.buffer[:])
		if errno == syscall.EAGAIN {
			break
		}
		switch {
		case errno != 0:
			err = errno
		case n == 0:
			err = io.EOF
		default:
			if err = w.stream.feed(s.buffer[:n]); err == nil {
				err = s.flush(w)
			}
		}
	}
	s.settle(now, w, err)
}

// flush writes what the stream has to say: a few bytes, which a connection that is read takes at once.
func (s *watches) flush(w *watch) error {
	if len(w.stream.out) == 0 {
		return nil
	}
	n, errno := writeSocket(int(w.fd), w.stream.out)
	switch {
	case (errno == syscall.EAGAIN || errno == syscall.ENOTCONN) && !w.up:
		return nil // not connected yet
	case errno != 0:
		return errno
	case n < len(w.stream.out):
		return errClosed{"the backend doesn't read"}
	}
	w.up, w.stream.out = true, nil
	return nil
}

// settle tells what the stream has said, and ends the watch if err says that it can't go on.
func (s *watches) settle(now time.Time, w *watch, err error) {
	t, heard := w.job.t, w.stream.said && (!w.kept || w.stream.status != w.told)
	if w.kept && heard { // while a probe may run, which ends by its own answer
		s.results = append(s.results, result{t: t, outcome: w.said(), unasked: true})
	}
	w.told = w.stream.status
	if err != nil {
		s.over(now, w, err)
		return
	}
	if first := !w.kept && heard; w.probing && (first || w.kept && w.stream.unacked == 0) {
		w.probing, w.kept = false, true
		o := w.said()
		o.kept = !first
		s.results = append(s.results, result{t: t, outcome: o})
		if w.unwanted {
			s.end(w)
		}
	}
}

// said is what the backend's status means. Nobody has to ask three times what it says of itself: fall is for probes that fail.
func (w *watch) said() outcome {
	o := classify(serving(w.stream.status), w.job.options)
	o.said = true
	return o
}

// over is the end of a watch, and of its probe if one runs.
func (s *watches) over(now time.Time, w *watch, err error) {
	s.end(w)
	err = ended(err)
	_, closed := errors.AsType[errClosed](err)
	switch {
	case !w.probing:
		s.results = append(s.results, result{t: w.job.t, unasked: true, lost: true, lived: now.Sub(w.since)})
	case closed && !w.again && !w.unwanted:
		s.open(now, w.job, true)
	case errors.Is(err, errNoWatch):
		w.job.t.noWatch = w.job.t.state.at(now.Add(watchAgain))
		s.unable = append(s.unable, w.job)
	default:
		s.results = append(s.results, result{t: w.job.t, outcome: classify(err, w.job.options)})
	}
}

// end closes the connection. What its probe found is the caller's business.
func (s *watches) end(w *watch) {
	if s.all[w.fd] != w {
		return // it never was open, or is closed
	}
	delete(s.all, w.fd)
	closeSocket(int(w.fd))
	w.job.t.watch = nil
}

// drop ends the watch of a backend that nobody probes any more; if a probe runs, when that is over.
func (s *watches) drop(t *target) {
	if w := t.watch; w != nil {
		if w.unwanted = true; !w.probing {
			s.end(w)
		}
	}
}

// excuse gives the probes under way more time: this process was late by that much, and backends can't be blamed for it (2.3).
func (s *watches) excuse(late time.Duration) {
	for _, w := range s.pending {
		w.deadline = w.deadline.Add(late)
	}
}

// close gives up what is there.
func (s *watches) close() {
	for _, w := range s.all {
		closeSocket(int(w.fd))
	}
	clear(s.all)
	if s.epoll != nil {
		_ = s.epoll.Close()
	}
}

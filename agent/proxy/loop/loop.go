// Package loop is the proxy's event loop: one goroutine locked to its thread with its own epoll. It owns sockets and knows no protocol (HTTP2.md 2).
//
// Everything but New, Run and Post is called on the loop's goroutine only: by a Handler, a timer, or a posted func. A wake-up handles all that is
// ready, then what was posted, then timers that are due (late.go: but after this process was stopped); then it writes once to each connection that was touched, tells who got bytes through, and
// closes what was closed. A panic of a handler ends the process: nothing is recovered here.
package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

const (
	// eventsPerWake is how many ready descriptors one wake-up handles; more wait for the next one.
	eventsPerWake = 256
	// readSize is the loop's read buffer: what one connection may deliver per wake-up, and keep unconsumed.
	readSize = 64 << 10
	// crowded is how much may be kept before connections are given only crowdedRead: more than any frame.
	crowded     = 4 << 20
	crowdedRead = 20 << 10
	// maxRounds bounds how often one wake-up flushes what Written handlers queued; what is left goes first in the next wake-up, after its reads.
	maxRounds = 4
)

var (
	// ErrStuck ends a connection whose handler consumed nothing of a full buffer.
	ErrStuck = errors.New("nothing consumed of a full read buffer")
	// ErrEnded ends the connections of a loop whose context ended.
	ErrEnded = errors.New("event loop ended")
	// ErrDialTimeout ends a Dial that took too long.
	ErrDialTimeout = errors.New("connect timed out")
)

// Config of a Loop.
type Config struct {
	Log hclog.Logger
	// OnTurn is called at the end of each wake-up, with how long it took: all that it had to write is written. nil = nobody wants to know.
	OnTurn func(took time.Duration)
}

// Loop is one event loop. Its goroutine owns every field but the mailbox.
type Loop struct {
	log    hclog.Logger
	onTurn func(time.Duration)
	ep     int
	box    *mailbox

	start      time.Time // what timers count from
	now        time.Time
	ended      bool
	fds        []slot // by descriptor
	gen        int32  // the last generation given out
	rbuf       []byte
	buffers    buffers
	pipes      pipes
	timers     timers
	late       lateness
	trim       Timer // takes the write buffers of idle connections back
	stallTimer Timer // looks at Loop.watched
	conns      int

	deliver   []*Conn // added with received bytes, or dials that failed before they began: their handlers are called in this wake-up
	touched   []*Conn // to be flushed
	reading   []*Conn // have more to read than one wake-up gives to each
	wrote     []*Conn // whose handlers are told
	rereading []*Conn // those of this wake-up; swapped with reading
	closing   []*Conn
	fat       []*Conn // hold a large, empty Out
	watched   []*Conn // patient ones: new, or with bytes that may not have arrived
	stats     Stats
}

// slot is who listens to a descriptor's events. Descriptors are reused, so an event counts only with the generation that its registration carries.
type slot struct {
	gen int32
	src source
}

type source interface{ ready(events uint32) }

// Stats are plain counters of one loop.
type Stats struct {
	Wakeups uint64        // turns of the loop
	Blocked uint64        // of these, the ones that had to wait in the kernel
	Busy    time.Duration // in turns, rather than in the kernel waiting for the next one
	Conns   int           // open connections
	Timers  int           // armed timers
	Pipes   int           // pipes with bytes in them
}

// New makes the epoll and eventfd; Run starts it. A loop that is never run keeps these two descriptors.
func New(cfg Config) (*Loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create epoll: %w", err)
	}
	box, err := newMailbox()
	if err != nil {
		unix.Close(ep)
		return nil, err
	}
	l := &Loop{log: cfg.Log, onTurn: cfg.OnTurn, ep: ep, box: box, rbuf: make([]byte, readSize)}
	if l.log == nil {
		l.log = hclog.NewNullLogger()
	}
	l.start = time.Now()
	l.now = l.start
	l.trim.F = l.trimBuffers
	l.stallTimer.F = l.checkStalls
	// Edge-triggered: every write to the eventfd is one event, and nobody has to read it back.
	if err := l.register(box.fd, unix.EPOLLIN|unix.EPOLLET, box); err != nil {
		unix.Close(box.fd)
		unix.Close(ep)
		return nil, err
	}
	return l, nil
}

// Run serves until ctx ends, then closes every connection (ErrEnded) and its own descriptors. It is called once.
func (l *Loop) Run(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stop := context.AfterFunc(ctx, func() { l.Post(func() { l.ended = true }) })
	defer stop()
	var events [eventsPerWake]unix.EpollEvent
	for !l.ended {
		n, err := l.wait(events[:])
		if err != nil {
			l.end()
			return err
		}
		now := time.Now()
		l.noticeLate(now)
		l.turn(now, events[:n])
		l.turned(time.Since(l.now)) // one more reading of the clock per wake-up, which costs 1 % of its system calls
	}
	l.end() // not deferred: after a panic of a handler nothing else runs
	return nil
}

// Now is the clock of this wake-up: one read for all that happens in it.
func (l *Loop) Now() time.Time { return l.now }

// Stats copies the counters.
func (l *Loop) Stats() Stats {
	s := l.stats
	s.Conns, s.Timers, s.Pipes = l.conns, len(l.timers.heap), l.pipes.used
	return s
}

// wait returns what is ready. While the loop is busy it stays in raw system calls, which don't give the scheduler's slot away; only a loop with
// nothing to do blocks by the ordinary one, which does.
func (l *Loop) wait(events []unix.EpollEvent) (int, error) {
	now := l.now
	for {
		n, err := epollPoll(l.ep, events)
		if n > 0 {
			return n, nil
		}
		if err == unix.EINTR {
			continue
		}
		if err != 0 {
			return 0, os.NewSyscallError("epoll_wait", err)
		}
		timeout := -1
		if len(l.reading)+len(l.touched)+len(l.deliver)+len(l.closing) > 0 {
			timeout = 0
		} else if due, ok := l.timers.next(); ok {
			left := l.late.fires(due) - now.Sub(l.start)
			timeout = int(max(0, (min(left, time.Hour)+time.Millisecond-1)/time.Millisecond)) // the kernel takes 32 bits of it
		}
		if timeout == 0 {
			return 0, nil
		}
		l.stats.Blocked++
		n, blockErr := unix.EpollWait(l.ep, events, timeout)
		if blockErr == unix.EINTR {
			now = time.Now() // how long it had waited is unknown
			continue
		}
		if blockErr != nil {
			return 0, os.NewSyscallError("epoll_wait", blockErr)
		}
		return n, nil
	}
}

// Turn is one wake-up for what is ready at once, at a time that the caller gives: for fuzz targets and tests that are the loop's goroutine themselves,
// instead of Run.
func (l *Loop) Turn(now time.Time) error {
	var events [eventsPerWake]unix.EpollEvent
	n, e := epollPoll(l.ep, events[:])
	if e != 0 && e != unix.EINTR {
		return os.NewSyscallError("epoll_wait", e)
	}
	l.turn(now, events[:n])
	l.turned(0)
	return nil
}

// turn is one wake-up.
func (l *Loop) turn(now time.Time, events []unix.EpollEvent) {
	l.now = now
	l.stats.Wakeups++
	l.reading, l.rereading = l.rereading[:0], l.reading // whose turn it is; who is read now and has more comes in the next one
	for i := range events {
		e := &events[i]
		if s := &l.fds[e.Fd]; s.src != nil && s.gen == e.Pad {
			s.src.ready(e.Events)
		}
	}
	l.readOn()
	l.box.run()
	if now := l.now.Sub(l.start); now >= l.late.hold {
		l.timers.run(now)
	}
	l.settle()
}

// turned tells how long a wake-up took.
func (l *Loop) turned(took time.Duration) {
	l.stats.Busy += took
	if l.onTurn != nil {
		l.onTurn(took)
	}
}

// readOn reads those again that had more than one wake-up gives to each: 64 KiB, so that bulk doesn't starve the others.
func (l *Loop) readOn() {
	for _, c := range l.rereading {
		c.queued = false
		if c.pending() && c.readable() {
			c.read()
		}
	}
	clear(l.rereading)
}

// room is the buffer to read into behind have bytes that were kept. While handlers keep much, less is read, or many connections whose handlers put things off
// (Conn.Later) could make the loop keep 64 KiB for each; the rest stays with the kernel.
func (l *Loop) room(have int) []byte {
	if l.buffers.lent < crowded {
		return l.rbuf
	}
	return l.rbuf[:min(readSize, max(crowdedRead, have+crowdedRead/4))]
}

// settle ends a wake-up: every touched connection is written to once; handlers hear of it and may touch more.
func (l *Loop) settle() {
	for range maxRounds {
		for i := 0; i < len(l.deliver); i++ {
			l.deliver[i].deliverFirst()
		}
		clear(l.deliver)
		l.deliver = l.deliver[:0]
		for i := 0; i < len(l.touched); i++ {
			l.touched[i].settle()
		}
		clear(l.touched)
		l.touched = l.touched[:0]
		for i := 0; i < len(l.wrote); i++ {
			if c := l.wrote[i]; !c.gone {
				c.h.Written(c.sent)
			}
		}
		clear(l.wrote)
		l.wrote = l.wrote[:0]
		if len(l.touched)+len(l.deliver) == 0 {
			break
		}
	}
	for i := 0; i < len(l.closing); i++ {
		l.closing[i].release()
	}
	clear(l.closing)
	l.closing = l.closing[:0]
}

// end closes everything. What was posted before still runs; Add, Dial and Listen fail from now on.
func (l *Loop) end() {
	l.ended = true
	for {
		for fd := range l.fds {
			if c, ok := l.fds[fd].src.(*Conn); ok {
				c.fail(ErrEnded)
			}
		}
		l.settle()
		if !l.box.runOrClose() {
			break
		}
	}
	l.settle()
	l.pipes.close()
	unix.Close(l.ep)
}

// claim gives fd's slot to src, under a new generation.
func (l *Loop) claim(fd int, src source) {
	for len(l.fds) <= fd {
		l.fds = append(l.fds, slot{})
	}
	l.gen++
	l.fds[fd] = slot{gen: l.gen, src: src}
}

// register claims fd and puts it into epoll.
func (l *Loop) register(fd int, events uint32, src source) error {
	l.claim(fd, src)
	if e := l.control(unix.EPOLL_CTL_ADD, fd, events); e != 0 {
		l.fds[fd] = slot{}
		return fmt.Errorf("add a descriptor to epoll: %w", e)
	}
	return nil
}

// rearm changes the events of a registered descriptor; it keeps its generation.
func (l *Loop) rearm(fd int, events uint32) {
	if e := l.control(unix.EPOLL_CTL_MOD, fd, events); e != 0 {
		l.log.Error("epoll refused a descriptor that it has", "cause", e)
	}
}

// unregister takes a descriptor that stays open out of epoll; a listening socket as well, which another process may hold: it would stay armed.
func (l *Loop) unregister(fd int) {
	l.control(unix.EPOLL_CTL_DEL, fd, 0)
	l.fds[fd] = slot{}
}

func (l *Loop) control(op, fd int, events uint32) unix.Errno {
	return epollCtl(l.ep, op, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: l.fds[fd].gen})
}

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// dueSlots is more than any connection has requests waiting.
	dueSlots = 4096
	// lastAnswers is how long the last answers may take after the last request.
	lastAnswers = 5 * time.Second
	// rawProcessors lets each thread of the raw clients that comes back from a system call go on at once.
	rawProcessors = 16
)

// openLoop sends requests at a rate whatever comes back, as independent callers do: a proxy that stalls doesn't slow its load, and each latency counts from
// when its request was due.
type openLoop struct {
	conns []*openConn
	turn  int
	base  time.Time
}

// openConn is one connection of an openLoop. Its reader owns took and failed until it ends.
type openConn struct {
	fd      int
	wire    wire
	asked   int
	due     []atomic.Int64 // when the n-th request was due, from base; dueSlots
	waiting atomic.Int32
	limit   atomic.Int32
	lost    atomic.Bool

	write sync.Mutex

	took   []time.Duration
	failed int
}

// paced is what an open loop saw.
type paced struct {
	took             []time.Duration // sorted
	requests, failed int
	cpu              time.Duration // that the process used
	elapsed          time.Duration // until the last answer
}

func (p paced) quantile(q float64) time.Duration {
	if len(p.took) == 0 {
		return 0
	}
	return p.took[min(len(p.took)-1, int(q*float64(len(p.took))))]
}

// runOpenLoop sends rate requests per second for d over so many connections and returns what came of them. p is whose CPU time is counted.
func runOpenLoop(ctx context.Context, newWire func(string) wire, addr string, connections int, rate float64, d time.Duration, p *process) (paced, error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(rawProcessors))
	l := &openLoop{base: time.Now()}
	defer l.close()
	for range connections {
		c, err := openOne(newWire(addr), addr)
		if err != nil {
			return paced{}, err
		}
		l.conns = append(l.conns, c)
	}
	var readers sync.WaitGroup
	for _, c := range l.conns {
		c.due = make([]atomic.Int64, dueSlots)
		c.took = make([]time.Duration, 0, int(2*rate*d.Seconds())/connections+64)
		readers.Go(func() { c.receive(l.base) })
	}
	before, err := p.cpu()
	begin := time.Now()
	if err == nil {
		err = pace(ctx, l.base, rate, d, func(due time.Duration) error {
			c, err := l.free(ctx)
			if err == nil {
				c.send(due)
			}
			return err
		})
	}
	l.drain(ctx)
	elapsed := time.Since(begin)
	after, err2 := p.cpu()
	for _, c := range l.conns {
		c.lost.Store(true)
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR) // which ends its reader
	}
	readers.Wait()
	out := paced{cpu: after - before, elapsed: elapsed}
	for _, c := range l.conns {
		out.took = append(out.took, c.took...)
		out.failed += c.failed + int(c.waiting.Load())
	}
	out.requests = len(out.took)
	slices.Sort(out.took)
	return out, errors.Join(err, err2)
}

func (l *openLoop) close() {
	for _, c := range l.conns {
		unix.Close(c.fd)
	}
}

// pace calls send at intervals of an exponential distribution, the same ones in each run: even ones would march in step with a timer somewhere. send is told
// when it was due, from base.
func pace(ctx context.Context, base time.Time, rate float64, d time.Duration, send func(due time.Duration) error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Timers of this thread come on time rather than 50 µs late.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set the timer slack: %w", err)
	}
	intervals := rand.New(rand.NewPCG(1, 2))
	begin := time.Since(base)
	for due := begin; ; {
		due += time.Duration(intervals.ExpFloat64() / rate * 1e9)
		if due-begin >= d || ctx.Err() != nil {
			return ctx.Err()
		}
		for wait := due - time.Since(base); wait > 0; wait = due - time.Since(base) {
			pause(wait)
		}
		if err := send(due); err != nil {
			return err
		}
	}
}

// pause sleeps to the microsecond, which the runtime's own timers don't.
func pause(d time.Duration) {
	ts := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&ts, nil) // an interrupted sleep is one that is slept again
}

// free is the next connection that may carry a request, as soon as there is one.
func (l *openLoop) free(ctx context.Context) (*openConn, error) {
	for {
		lost := 0
		for range l.conns {
			c := l.conns[l.turn%len(l.conns)]
			l.turn++
			if c.lost.Load() {
				lost++
			} else if c.waiting.Load() < c.limit.Load() {
				return c, nil
			}
		}
		if lost == len(l.conns) {
			return nil, errors.New("the proxy has closed every connection")
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		pause(20 * time.Microsecond)
	}
}

// drain waits for the last answers.
func (l *openLoop) drain(ctx context.Context) {
	for end := time.Now().Add(lastAnswers); time.Now().Before(end) && ctx.Err() == nil; {
		waiting := false
		for _, c := range l.conns {
			waiting = waiting || c.waiting.Load() > 0 && !c.lost.Load()
		}
		if !waiting {
			return
		}
		pause(200 * time.Microsecond)
	}
}

// send asks for an answer that was due at a time.
func (c *openConn) send(due time.Duration) {
	c.due[c.asked%dueSlots].Store(int64(due))
	c.waiting.Add(1)
	c.put(c.wire.ask(c.asked))
	c.asked++
}

// put writes b whole; it may be called by the pacer and by the reader.
func (c *openConn) put(b []byte) {
	c.write.Lock()
	defer c.write.Unlock()
	for len(b) > 0 {
		n, err := unix.Write(c.fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			c.lost.Store(true)
			return
		}
		b = b[n:]
	}
}

// receive reads answers until the connection ends.
func (c *openConn) receive(base time.Time) {
	buf, have := make([]byte, 256<<10), 0
	for {
		n, err := unix.Read(c.fd, buf[have:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			c.lost.Store(true)
			return
		}
		have += n
		now := time.Since(base)
		used, err := c.wire.read(buf[:have], func(n int, good bool) {
			c.waiting.Add(-1)
			if good {
				c.took = append(c.took, now-time.Duration(c.due[n%dueSlots].Load()))
			} else {
				c.failed++
			}
		}, c.put)
		have = copy(buf, buf[used:have])
		c.limit.Store(int32(c.wire.limit()))
		if err != nil || have == len(buf) {
			c.lost.Store(true)
			return
		}
	}
}

// openOne connects and has a first request answered, so that the connection is known to work and the peer's settings have come.
func openOne(w wire, addr string) (*openConn, error) {
	fd, err := dialRaw(addr, nil)
	if err != nil {
		return nil, err
	}
	c := &openConn{fd: fd, wire: w, asked: 1}
	if err := c.first(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("first request to %s: %w", addr, err)
	}
	c.limit.Store(int32(w.limit()))
	return c, nil
}

func (c *openConn) first() error {
	patience := unix.NsecToTimeval((5 * time.Second).Nanoseconds())
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return err
	}
	c.put(append(c.wire.hello(), c.wire.ask(0)...))
	buf, have := make([]byte, 16<<10), 0
	for answered, ok := false, true; !answered; {
		n, err := unix.Read(c.fd, buf[have:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return errors.New("the connection was closed")
		}
		have += n
		used, err := c.wire.read(buf[:have], func(_ int, good bool) { answered, ok = true, good }, c.put)
		if err != nil {
			return err
		}
		if !ok {
			return errors.New("the answer was not 200 with its body")
		}
		have = copy(buf, buf[used:have])
	}
	forever := unix.Timeval{}
	return unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &forever)
}

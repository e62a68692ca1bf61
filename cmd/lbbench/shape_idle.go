package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// idleWarmUp are connections that come and go first, so that what a proxy sets up once is not counted.
const idleWarmUp = 20

func startIdleShape(ctx context.Context, r *rig) ([]cell, error) {
	h2, err := r.h2Backends(ctx)
	if err != nil {
		return nil, err
	}
	http1, err := r.selfBackends(ctx, http1BackendVerb)
	if err != nil {
		return nil, err
	}
	var cells []cell
	for _, l := range []struct {
		mode     mode
		wire     func(string) wire
		backends []string
	}{{modeH2, newH2Wire, h2}, {modeHTTP1, newHTTP1Wire, http1}} {
		// Each is started again for every measurement. This time is to find out who can take part.
		once, err := r.startAll(ctx, l.mode, l.backends)
		if err != nil {
			return nil, err
		}
		for _, one := range once {
			if one.process == nil {
				continue
			}
			one.process.stop()
			cells = append(cells, cell{string(l.mode), one.name, func(ctx context.Context, d time.Duration) ([]reading, error) {
				m, err := r.idle(ctx, one.name, l.mode, l.wire, l.backends, d)
				return []reading{m}, err
			}})
		}
	}
	r.note("%d client connections, each of which has had a request answered; the kernel's bytes are the machine's growth in slabs and socket buffers, for both ends of each connection", r.options.idle)
	return cells, nil
}

// idle opens connections to a proxy that was just started and returns how much its memory has grown for each, some time later.
func (r *rig) idle(ctx context.Context, name string, m mode, newWire func(string) wire, backends []string, settle time.Duration) (reading, error) {
	one, err := r.fresh(ctx, name, m, backends)
	if err != nil {
		return reading{}, err
	}
	defer one.process.stop()
	first, err := openIdle(one.addr, newWire, min(idleWarmUp, r.options.idle))
	closeIdle(first)
	if err != nil {
		return reading{}, err
	}
	if err := wait(ctx, settle/4); err != nil {
		return reading{}, err
	}
	rss, err1 := one.process.rss()
	kernel, err2 := kernelMemory()
	fds, err3 := openIdle(one.addr, newWire, r.options.idle)
	defer closeIdle(fds)
	if err := errors.Join(err1, err2, err3, wait(ctx, settle)); err != nil {
		return reading{}, err
	}
	rssAfter, err1 := one.process.rss()
	kernelAfter, err2 := kernelMemory()
	closed, err3 := countClosed(fds)
	n := float64(len(fds))
	return reading{name, map[figure]float64{
		rssPerConn:    float64(rssAfter-rss) / n,
		kernelPerConn: float64(kernelAfter-kernel) / n,
	}, len(fds) - closed, closed}, errors.Join(err1, err2, err3)
}

// fresh starts one contender that the caller stops.
func (r *rig) fresh(ctx context.Context, name string, m mode, backends []string) (runner, error) {
	for _, c := range contenders() {
		if c.name == name {
			return r.launch(ctx, c, m, backends)
		}
	}
	return runner{}, fmt.Errorf("no contender %q", name)
}

// openIdle opens n connections and has a request answered on each.
func openIdle(addr string, newWire func(string) wire, n int) ([]int, error) {
	var fds []int
	for range n {
		c, err := openOne(newWire(addr), addr)
		if err != nil {
			return fds, fmt.Errorf("connection %d: %w", len(fds)+1, err)
		}
		fds = append(fds, c.fd)
	}
	return fds, nil
}

// closeIdle closes by RST, so that nothing stays behind in the kernel for the next measurement.
func closeIdle(fds []int) {
	for _, fd := range fds {
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) // else it closes as usual
		unix.Close(fd)
	}
}

// countClosed is how many connections the other side has closed meanwhile: those cost nothing.
func countClosed(fds []int) (int, error) {
	polls := make([]unix.PollFd, len(fds))
	for i, fd := range fds {
		polls[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLRDHUP}
	}
	for {
		n, err := unix.Poll(polls, 0)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// kernelMemory is what the kernel holds in its own objects and in TCP's buffers, for the whole machine.
func kernelMemory() (int64, error) {
	slab, err := field("/proc/meminfo", "Slab:")
	if err != nil {
		return 0, err
	}
	b, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(b), "TCP: ")
	_, after, _ = strings.Cut(after, " mem ")
	var pages int64
	if _, err := fmt.Sscan(after, &pages); err != nil {
		return 0, fmt.Errorf("/proc/net/sockstat: memory of TCP: %w", err)
	}
	return slab + pages*int64(os.Getpagesize()), nil
}

// wait returns after d, or early with an error if ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

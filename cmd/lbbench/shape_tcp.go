package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// tcpBackendVerb starts this program as the server of the tcp shape: tcpBackendVerb LISTEN.
const tcpBackendVerb = "tcp-backend"

// The first byte of a connection says what its client wants.
const (
	wantDown    = 'd' // bytes without end
	wantUp      = 'u' // somebody who reads without end
	wantConnect = 'c' // one byte back
)

// bulkBytes are written and read at once.
const bulkBytes = 256 << 10

// bulkConns carry bytes at once; connectors open connections at once.
const (
	bulkConns  = 4
	connectors = 8
)

// answerTCP does what the first byte says until the client closes.
func answerTCP(conn net.Conn) {
	buf := make([]byte, bulkBytes)
	n, err := conn.Read(buf[:1])
	if err != nil || n == 0 {
		return
	}
	switch buf[0] {
	case wantDown:
		for err == nil {
			_, err = conn.Write(buf)
		}
		return
	case wantConnect:
		if _, err := conn.Write(buf[:1]); err != nil {
			return
		}
	}
	for err == nil {
		_, err = conn.Read(buf)
	}
}

func startTCPShape(ctx context.Context, r *rig) ([]cell, error) {
	backends, err := r.selfBackends(ctx, tcpBackendVerb)
	if err != nil {
		return nil, err
	}
	running, err := r.startAll(ctx, modeTCP, backends)
	if err != nil {
		return nil, err
	}
	var cells []cell
	for _, l := range []struct {
		name string
		work func(context.Context, runner, time.Duration) (reading, error)
	}{
		{loadBytes, func(ctx context.Context, one runner, d time.Duration) (reading, error) {
			return one.bulk(ctx, wantDown, d)
		}},
		{loadBytesUp, func(ctx context.Context, one runner, d time.Duration) (reading, error) {
			return one.bulk(ctx, wantUp, d)
		}},
		{loadConnect, func(ctx context.Context, one runner, d time.Duration) (reading, error) { return one.connects(ctx, d) }},
	} {
		for _, one := range running {
			cells = append(cells, cell{l.name, one.name, func(ctx context.Context, d time.Duration) ([]reading, error) {
				m, err := l.work(ctx, one, d)
				return []reading{m}, err
			}})
		}
	}
	return cells, nil
}

// bulk moves as many bytes as it can, in one direction.
func (one runner) bulk(ctx context.Context, direction byte, d time.Duration) (reading, error) {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for range bulkConns {
		fd, err := dialRaw(one.addr, nil)
		if err != nil {
			return reading{}, err
		}
		fds = append(fds, fd)
		if err := begin(fd, direction); err != nil {
			return reading{}, fmt.Errorf("ask for bytes: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	before, err := one.process.cpu()
	if err != nil {
		return reading{}, err
	}
	began := time.Now()
	var moved atomic.Int64
	var broken atomic.Int32
	var workers sync.WaitGroup
	for _, fd := range fds {
		workers.Go(func() {
			if err := move(ctx, fd, direction, &moved); err != nil {
				broken.Add(1)
			}
		})
	}
	<-ctx.Done()
	bytes, elapsed := float64(moved.Load())/(1<<20), time.Since(began)
	after, err := one.process.cpu()
	for _, fd := range fds {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR) // wakes who still waits
	}
	workers.Wait()
	out := map[figure]float64{throughput: bytes / elapsed.Seconds()}
	if after > before {
		out[bytesPerCPU] = bytes / (after - before).Seconds()
	}
	return reading{one.name, out, bulkConns - int(broken.Load()), int(broken.Load())}, err
}

// begin says what is wanted and sees the first of it, so that setting up is not counted.
func begin(fd int, direction byte) error {
	b := []byte{direction}
	if _, err := unix.Write(fd, b); err != nil || direction != wantDown {
		return err
	}
	if err := readByte(fd, b); err != nil {
		return err
	}
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{})
}

// readByte reads one byte, which has to come within a time: a proxy that accepts and forgets must not hang the run.
func readByte(fd int, b []byte) error {
	patience := unix.Timeval{Sec: 5}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return err
	}
	for {
		n, err := unix.Read(fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = errors.New("the connection was closed")
		}
		return err
	}
}

// move reads or writes until ctx ends. What is read is thrown away in the kernel (tcp(7), MSG_TRUNC): copying it would be the client's work, beside the
// proxy's.
func move(ctx context.Context, fd int, direction byte, moved *atomic.Int64) error {
	buf := make([]byte, bulkBytes)
	for {
		var n int
		var err error
		if direction == wantDown {
			n, _, err = unix.Recvfrom(fd, buf, unix.MSG_TRUNC)
		} else {
			n, err = unix.Write(fd, buf)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return errors.New("the connection was closed")
		}
		moved.Add(int64(n))
	}
}

// connects opens connections, has one byte answered on each, and closes it.
func (one runner) connects(ctx context.Context, d time.Duration) (reading, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	before, err := one.process.cpu()
	if err != nil {
		return reading{}, err
	}
	begin := time.Now()
	var done, failed atomic.Int64
	var workers sync.WaitGroup
	for i := range connectors {
		// Each from an address of its own, since the kernel keeps the port of a closed connection for a while.
		from := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 1, byte(i + 1)}}
		workers.Go(func() {
			for {
				if err := connectOnce(one.addr, from); err != nil {
					failed.Add(1)
				} else {
					done.Add(1)
				}
				if ctx.Err() != nil {
					return
				}
			}
		})
	}
	workers.Wait()
	elapsed := time.Since(begin)
	after, err := one.process.cpu()
	out := map[figure]float64{rate: float64(done.Load()) / elapsed.Seconds()}
	if after > before {
		out[connsPerCPU] = float64(done.Load()) / (after - before).Seconds()
	}
	return reading{one.name, out, int(done.Load()), int(failed.Load())}, err
}

func connectOnce(addr string, from *unix.SockaddrInet4) error {
	fd, err := dialRaw(addr, from)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b := []byte{wantConnect}
	if _, err := unix.Write(fd, b); err != nil {
		return err
	}
	return readByte(fd, b)
}

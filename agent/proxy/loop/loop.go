// Package loop is the proxy's event loop: one goroutine locked to its thread with its own epoll. It owns sockets and knows no protocol (HTTP2.md 2).
//
// Everything but New, Post and Stats is called on the loop's goroutine only: by a Handler, a timer, or a posted func.
package loop

import (
	"context"
	"net/netip"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Config of a Loop.
type Config struct {
	Log hclog.Logger
}

// Loop is one event loop.
type Loop struct{}

// New makes the epoll and eventfd; Run starts it.
func New(cfg Config) (*Loop, error) { panic("unwritten") }

// Run serves until ctx ends, then closes every connection and its own descriptors.
func (l *Loop) Run(ctx context.Context) error { return nil }

// Post runs f on the loop, after what was posted before. From any goroutine; it never blocks. False if the loop has ended (f will not run).
func (l *Loop) Post(f func()) bool { return false }

// Now is the clock of this wake-up: one read for all that happens in it.
func (l *Loop) Now() time.Time { return time.Time{} }

// Handler is the protocol's side of a connection.
type Handler interface {
	// Connected ends a Dial that succeeded.
	Connected()
	// Readable hands over received bytes, which stay valid until it returns, and returns how many were consumed; the rest comes again in front of
	// what is received later. At most 64 KiB are kept that way; a handler that consumes nothing of a full buffer is closed with ErrStuck.
	Readable(b []byte) (consumed int)
	// EOF says that the peer ended its direction (FIN). Bytes not consumed are lost.
	EOF()
	// Written says that the kernel took bytes: total is their number since the connection began (credit goes back to senders only then).
	// It's called at the end of a wake-up, after the flush.
	Written(total uint64)
	// Closed ends the connection from outside: a failed Dial, an I/O error, loop end. It's the last call, and isn't made after Conn.Close.
	Closed(err error)
}

// Conn is a socket on a loop.
type Conn struct {
	// Out is what will be written at the end of this wake-up: append to it, then call Flush. It must not be kept or shortened by others.
	Out []byte
}

// Add takes over a connected socket, with the bytes that were already received from it.
func (l *Loop) Add(fd int, h Handler, received []byte) (*Conn, error) { return nil, nil }

// Dial starts a connection; h.Connected or h.Closed (never before Dial has returned) ends it within timeout.
func (l *Loop) Dial(addr netip.AddrPort, timeout time.Duration, h Handler) (*Conn, error) {
	return nil, nil
}

// Flush has Out written at the end of this wake-up, once.
func (c *Conn) Flush() {}

// Queued is the number of bytes appended to Out since the connection began, taken by the kernel or not.
func (c *Conn) Queued() uint64 { return 0 }

// Unwritten is the number of bytes in Out that the kernel has not taken.
func (c *Conn) Unwritten() int { return 0 }

// Pause stops reading (EPOLLIN is disarmed); Resume starts it again.
func (c *Conn) Pause()  {}
func (c *Conn) Resume() {}

// CloseWrite sends FIN once Out is written.
func (c *Conn) CloseWrite() {}

// Close writes what is in Out if the kernel takes it at once, and closes at the end of this wake-up. No further Handler call.
func (c *Conn) Close() {}

// Reset closes with RST (SO_LINGER 0).
func (c *Conn) Reset() {}

// Detach takes the socket out of the loop, for a library that speaks on it: fd and unconsumed bytes are the caller's from now on.
func (c *Conn) Detach() (fd int, received []byte) { return 0, nil }

// Timer is a timer on the loop, embedded in what it times; no allocation. Precision 10 ms or better.
type Timer struct {
	F func() // what to do; set once
}

// Arm starts or restarts t.
func (l *Loop) Arm(t *Timer, d time.Duration) {}

// Disarm stops t; nothing if it isn't armed.
func (l *Loop) Disarm(t *Timer) {}

// Listen accepts on a listening, non-blocking socket until the returned func is called (on the loop); the socket stays the caller's. At most 64 accepts per
// wake-up; EMFILE disarms it for 100 ms. accepted owns the fd (non-blocking, close-on-exec).
func (l *Loop) Listen(fd int, accepted func(fd int)) (stop func(), err error) { return nil, nil }

package localapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// front is one socket: it accepts, looks who it is and what is spoken, and hands the connection on.
type front struct {
	s    *Server
	sock bound
	kind kind
}

// kind is what a socket is for.
type kind int

const (
	doorOpen  kind = iota // for every local user
	doorAdmin             // also for what changes something
	doorTCP               // for lookups by callers of whom nobody knows who they are
	doors
)

// bound is a listening socket.
type bound interface {
	syscall.Conn
	Addr() net.Addr
	Close() error
	accept() (rawConn, error)
	close() // as Close, and removes what was made
}

// rawConn is what sockets accept. net/http half-closes after a refusal, so that who is still writing gets to read why.
type rawConn interface {
	net.Conn
	CloseWrite() error
}

// conn is an accepted connection with the identity of its peer. What was read to tell the protocols apart is read again first.
type conn struct {
	rawConn
	peer Peer

	ahead   []byte // read, not yet given out; only the reader touches it
	meter   *meter // nil: it doesn't speak HTTP/2
	release func()

	serve  func()          // says that a server serves it: grpc once it has shaken hands, net/http its first request
	served <-chan struct{} // closed by serve, or by Close
	cut    func()          // says that it ends because of what its caller doesn't end
}

func newConn(raw rawConn, peer Peer, release, cut func()) *conn {
	served := make(chan struct{})
	return &conn{rawConn: raw, peer: peer, release: sync.OnceFunc(release), serve: sync.OnceFunc(func() { close(served) }), served: served, cut: sync.OnceFunc(cut)}
}

// Read gives out what was looked at, then the rest.
func (c *conn) Read(p []byte) (n int, err error) {
	if len(c.ahead) > 0 {
		n = copy(p, c.ahead)
		c.ahead = c.ahead[n:]
	} else {
		n, err = c.rawConn.Read(p)
	}
	if c.meter != nil && c.meter.read(p[:n]) != nil {
		c.cut()
		return 0, errUnfinished
	}
	return n, err
}

// Write lets the meter see what is answered.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.rawConn.Write(p)
	if c.meter != nil {
		c.meter.written(p[:n])
	}
	return n, err
}

// SetDeadline is called by grpc before its handshake, which is to read HTTP/2's whole preface, and with no time after it.
func (c *conn) SetDeadline(t time.Time) error {
	if t.IsZero() {
		c.serve()
	}
	return c.rawConn.SetDeadline(t)
}

// Close closes, and gives the place back the first time.
func (c *conn) Close() error {
	c.release()
	c.serve()
	if c.meter != nil {
		c.meter.close()
	}
	return c.rawConn.Close()
}

// accept runs until the socket is closed and each connection that it accepted is a server's. Each is looked at by a goroutine of its own, for Limits.FirstBytes at most.
func (f *front) accept(h2, h1 *handoff) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	refusals := make(chan struct{}, 16)
	pause := time.Duration(0)
	for {
		raw, err := f.sock.accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Out of descriptors or memory: the callers wait in the backlog meanwhile.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			f.s.log.Warn("api accept failed", "socket", f.sock.Addr().String(), "cause", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-f.s.stopping.Done():
			}
			continue
		}
		pause = 0
		peer, err := f.s.rights.identify(raw, f.kind)
		if err != nil {
			_ = raw.Close() // gone already
			continue
		}
		who, quota := peer.caller(), f.s.quotas[f.kind].connections
		reached := quota.take(who, 1)
		if reached == within {
			c := newConn(raw, peer, func() { quota.give(who, 1) }, func() {
				f.s.refused.Add(1)
				f.s.log.Debug("api connection cut", "caller", who, "cause", errUnfinished)
			})
			wg.Go(func() { f.admit(c, h2, h1) })
			continue
		}
		full := fmt.Sprintf("%v has %d connections to the agent's socket, which is the most; close some, or share one", who, quota.each)
		if reached == overAll {
			full = fmt.Sprintf("the agent's socket has %d connections, which is the most", quota.all)
		}
		f.s.refused.Add(1)
		f.s.log.Debug("api connection refused", "cause", full)
		select {
		case refusals <- struct{}{}:
			wg.Go(func() {
				refuse(f.s.settled, raw, full)
				<-refusals
			})
		default:
			_ = raw.Close()
		}
	}
}

// admit tells the protocols apart and hands c to its server. It returns when that serves it.
func (f *front) admit(c *conn, h2, h1 *handoff) {
	_ = c.SetReadDeadline(time.Now().Add(f.s.limits.FirstBytes))
	cut := context.AfterFunc(f.s.settled, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer cut()
	ahead, isH2, err := sniff(c.rawConn)
	if err != nil {
		_ = c.Close()
		return
	}
	c.ahead = ahead
	if !cut() { // too late
		_ = c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	to := h1
	if isH2 {
		to = h2
		c.meter = newMeter(c.peer.caller(), f.s.quotas[f.kind].unfinished)
	}
	to.give(c)
	// A server that is told to stop closes what it took and doesn't serve yet; and grpc doesn't end, nor say GOAWAY to others, while it shakes hands.
	select {
	case <-c.served:
		return
	case <-f.s.settled.Done():
	}
	select {
	case <-c.served:
	default:
		_ = c.Close()
	}
}

// sniff reads until it can tell HTTP/2's preface from anything else, and returns what it read. "PRI " is no method of HTTP/1.
func sniff(r interface{ Read([]byte) (int, error) }) (ahead []byte, isH2 bool, err error) {
	const begin = "PRI "
	buf := make([]byte, 512)
	n := 0
	for {
		m, err := r.Read(buf[n:])
		n += m
		k := min(n, len(begin))
		if string(buf[:k]) != begin[:k] {
			return buf[:n], false, nil
		}
		if k == len(begin) {
			return buf[:n], true, nil
		}
		if err != nil {
			return nil, false, err
		}
	}
}

// handoff is a net.Listener whose connections were accepted elsewhere.
type handoff struct {
	addr   net.Addr
	ch     chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newHandoff(addr net.Addr) *handoff {
	return &handoff{addr: addr, ch: make(chan net.Conn), closed: make(chan struct{})}
}

// give hands c to the one who accepts, or closes it if there is nobody any more.
func (h *handoff) give(c net.Conn) {
	select {
	case h.ch <- c:
	case <-h.closed:
		_ = c.Close()
	}
}

// Accept returns the next connection.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.ch:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and refuses what comes.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr is the socket's.
func (h *handoff) Addr() net.Addr { return h.addr }

package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/loop"
	"github.com/lbagent/lbagent/agent/table"
	"golang.org/x/sys/unix"
)

// backlog of a listener; the kernel caps it at net.core.somaxconn.
const backlog = 4096

// binding is one listening socket.
type binding struct {
	addr  Addr
	fd    int
	inode unix.Stat_t           // of a unix socket's path, to remove no other's
	route atomic.Pointer[route] // whom it serves; nil until committed
	stop  func()                // the first loop's
	await loop.Timer            // the first loop's: armed while b waits for a list

	inherited bool // made by a former process; others may have it as well

	inTheWay []*binding // not listening yet: these are there until Commit
}

// bind makes a listening socket: plain TCP, as MPTCP, Go's default, is slower on loopback, and without SO_REUSEPORT (HTTP2.md 2).
// Sockets that are in the way, and will be closed, stay for as long as the change may be undone: until Commit the new one is bound, but doesn't listen.
func bind(a Addr, inTheWay []*binding) (*binding, error) {
	if a.Unix != "" {
		return bindUnix(a)
	}
	if !a.TCP.IsValid() {
		return nil, errors.New("not an address")
	}
	family, sa := loop.Sockaddr(a.TCP)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, err
	}
	// A restart must not wait for connections in TIME_WAIT; a second listener is refused all the same.
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if family == unix.AF_INET6 {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	b := &binding{addr: a, fd: fd, inTheWay: inTheWay}
	if len(inTheWay) > 0 {
		b.beside(func() { err = unix.Bind(fd, sa) })
	} else if err = unix.Bind(fd, sa); err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return b, nil
}

// inherit takes over a listening socket that a former process made, if there is one (6.2, 6.3). A unix socket whose path is gone can't be reached any more: nil then.
func (p *Proxy) inherit(a Addr) *binding {
	fd, ok := p.inherited(a)
	if !ok {
		return nil
	}
	b := &binding{addr: a, fd: fd, inherited: true}
	if a.Unix != "" {
		if err := unix.Lstat(a.Unix, &b.inode); err != nil || b.inode.Mode&unix.S_IFMT != unix.S_IFSOCK {
			unix.Close(fd)
			return nil
		}
	}
	return b
}

// beside does what the kernel refuses while others listen on an overlapping address: SO_REUSEPORT, on all of them, allows it to sockets of one user.
// Since the addresses differ, no connection is spread over two sockets. No other program can use the moment, unless it runs as this user.
func (b *binding) beside(do func()) {
	share := func(on int) {
		for _, other := range append(b.inTheWay, b) {
			unix.SetsockoptInt(other.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, on)
		}
	}
	share(1)
	do()
	share(0)
}

// listen begins to listen if bind did not.
func (b *binding) listen() (err error) {
	if len(b.inTheWay) > 0 {
		b.beside(func() { err = unix.Listen(b.fd, backlog) })
		b.inTheWay = nil
	}
	return err
}

// bindUnix listens on a path that everybody may connect to. The mode is set before anybody can: until listen(2), connects are refused.
func bindUnix(a Addr) (*binding, error) {
	if err := removeStale(a.Unix); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: a.Unix}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	b := &binding{addr: a, fd: fd}
	if err := unix.Lstat(a.Unix, &b.inode); err != nil {
		b.close()
		return nil, err
	}
	if err := os.Chmod(a.Unix, 0o666); err != nil {
		b.close()
		return nil, err
	}
	if err := unix.Listen(fd, backlog); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// removeStale removes a socket that nobody listens on; anything else at that path is an error.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file that isn't a socket")
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err {
	case unix.ECONNREFUSED:
		return os.Remove(path)
	case nil, unix.EAGAIN: // EAGAIN: its backlog is full
		return errors.New("another process listens there")
	default:
		return fmt.Errorf("a socket is there, and whether somebody listens can't be found out: %w", err)
	}
}

// close ends a socket that nobody else has, and removes its path if it is still this one. Not while a loop listens on it.
func (b *binding) close() {
	unix.Close(b.fd)
	if b.addr.Unix == "" {
		return
	}
	var now unix.Stat_t
	if unix.Lstat(b.addr.Unix, &now) == nil && now.Dev == b.inode.Dev && now.Ino == b.inode.Ino {
		os.Remove(b.addr.Unix)
	}
}

// drop undoes bind or inherit: a socket that others have stays as it was.
func (b *binding) drop() {
	if b.inherited {
		unix.Close(b.fd)
		return
	}
	b.close()
}

// end ends the socket for everybody who has it: a service manager that keeps it would let callers wait for nothing.
func (b *binding) end() {
	unix.Shutdown(b.fd, unix.SHUT_RDWR)
	b.close()
}

// unlisten stops accepting; on the first loop, which is w's.
func (b *binding) unlisten(w *worker) {
	w.loop.Disarm(&b.await)
	delete(w.awaiting, b)
	if b.stop != nil {
		b.stop()
		b.stop = nil
	}
}

// serve accepts on b from now on. If its service has just begun and has no list yet, then as soon as it has one or p.firstList is over: until then callers wait in the backlog, as
// they did while nobody was there (6.2, 6.4).
func (p *Proxy) serve(b *binding) {
	w := p.workers[0]
	w.loop.Post(func() {
		v := b.route.Load().svc.View()
		wait := p.firstList - time.Since(v.At)
		if w.draining || v.Ready || wait <= 0 {
			w.accept(b)
			return
		}
		b.await.F = func() { w.accept(b) }
		w.loop.Arm(&b.await, wait)
		w.awaiting[b] = struct{}{}
	})
}

// listed accepts on what has waited for a list of svc; on the first loop.
func (w *worker) listed(svc *table.Service) {
	for b := range w.awaiting {
		if b.route.Load().svc == svc && svc.View().Ready {
			w.accept(b)
		}
	}
}

// accept accepts on b; on the first loop.
func (w *worker) accept(b *binding) {
	w.loop.Disarm(&b.await)
	delete(w.awaiting, b)
	if w.draining || b.stop != nil {
		return
	}
	stop, err := w.loop.Listen(b.fd, func(fd int) { w.accepted(b.route.Load(), fd) })
	if err != nil {
		w.proxy.log.Error("not listening", "listen", b.addr.String(), "cause", err)
		return
	}
	b.stop = stop
}

// withdraw stops accepting on b and ends it. Those that wait already are served: a loop handles what is ready before what is posted. If another process is to
// accept, b is only let go.
func (p *Proxy) withdraw(b *binding, another bool) {
	closed := make(chan struct{})
	end := b.end
	if another {
		end = func() { unix.Close(b.fd) }
	}
	if !p.workers[0].loop.Post(func() { b.unlisten(p.workers[0]); end(); close(closed) }) {
		end() // the loop has ended: nobody accepts
		return
	}
	p.closing = append(p.closing, closed)
}

// awaitClosed waits until the loop has closed what was withdrawn: its addresses may be wanted again. A loop takes microseconds to look.
func (p *Proxy) awaitClosed() {
	enough := time.NewTimer(collectPatience)
	defer enough.Stop()
	for _, closed := range p.closing {
		select {
		case <-closed:
		case <-enough.C:
			return // an address that isn't free is an error that says so
		}
	}
	p.closing = nil
}

// AwaitClosed returns when nobody can connect any more to what the last Commit took away, or the loop doesn't look for a second.
func (p *Proxy) AwaitClosed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.awaitClosed()
}

// accepted takes a new client connection; on the first loop.
func (w *worker) accepted(rt *route, fd int) {
	p := w.proxy
	if most := p.limits.Load().Connections; p.clients.Add(1) > int64(most) {
		p.clients.Add(-1)
		p.refused.Add(1)
		unix.Close(fd)
		if now := w.loop.Now().Unix(); p.warned.Swap(now/10) != now/10 { // once in 10 s
			p.log.Warn("too many client connections: refusing more", "limit", most, "service", rt.name)
		}
		w.protect(rt, protectConnections, nil, "client connection refused: the process has too many", most)
		return
	}
	if o := rt.options(); !o.auto {
		w.assign(rt, o.protocol, fd, nil, false)
		return
	}
	w.sniff(rt, fd)
}

// withoutIPv6 reports whether a listener failed only because the host has no IPv6, while the service listens on the same port over IPv4: a bare port in the
// configuration means both.
func withoutIPv6(err error, a Addr, all []Addr) bool {
	if !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EAFNOSUPPORT) {
		return false
	}
	return a.TCP.IsValid() && a.TCP.Addr().Is6() && a.TCP.Addr().IsLoopback() && slices.ContainsFunc(all, func(o Addr) bool {
		return o.TCP.IsValid() && o.TCP.Addr().Is4() && o.TCP.Addr().IsLoopback() && o.TCP.Port() == a.TCP.Port()
	})
}

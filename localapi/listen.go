package localapi

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Listen binds the sockets, so that a start can fail before anything runs. Connections wait in the backlog until Run. It may be left to Run.
func (s *Server) Listen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fronts != nil {
		return nil
	}
	var fronts []*front
	for _, f := range []struct {
		ln   *net.UnixListener
		path string
		kind kind
	}{{s.cfg.Listener, s.cfg.Socket, doorOpen}, {s.cfg.AdminListener, s.cfg.AdminSocket, doorAdmin}} {
		if f.ln != nil {
			fronts = append(fronts, &front{s: s, sock: &socket{UnixListener: f.ln}, kind: f.kind})
			if f.ln.Addr().String() == f.path {
				continue
			}
		}
		if f.path == "" {
			continue
		}
		sock, err := openSocket(f.path, f.kind == doorAdmin, s.cfg.AdminGID)
		if err != nil {
			closeAll(fronts)
			return fmt.Errorf("local api: %w", err)
		}
		fronts = append(fronts, &front{s: s, sock: sock, kind: f.kind})
	}
	if s.cfg.Listen != "" {
		sock, err := openTCP(s.cfg.Listen, s.cfg.Inherited)
		if err != nil {
			closeAll(fronts)
			return fmt.Errorf("api.listen: %w", err)
		}
		fronts = append(fronts, &front{s: s, sock: sock, kind: doorTCP})
	}
	s.fronts = fronts
	return nil
}

func closeAll(fronts []*front) {
	for _, f := range fronts {
		f.sock.close()
	}
}

// HandOn says that another process serves the sockets: when Run ends, it leaves them as they are, and tells streams to come again.
func (s *Server) HandOn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handedOn = true
}

// Listening is a socket that the Server listens on.
type Listening struct {
	Admin bool
	TCP   netip.AddrPort // valid for the one of Config.Listen
	FD    int
}

// Listeners are duplicates of the listening sockets, for the caller to close.
func (s *Server) Listeners() []Listening {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Listening
	for _, f := range s.fronts {
		raw, err := f.sock.SyscallConn()
		if err != nil {
			continue
		}
		_ = raw.Control(func(fd uintptr) { // an error: it is closed
			if dup, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
				l := Listening{Admin: f.kind == doorAdmin, FD: dup}
				if at, ok := f.sock.Addr().(*net.TCPAddr); ok {
					l.TCP = netip.AddrPortFrom(at.AddrPort().Addr().Unmap(), at.AddrPort().Port())
				}
				out = append(out, l)
			}
		})
	}
	return out
}

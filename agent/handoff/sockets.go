package handoff

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	firstFD      = 3 // SD_LISTEN_FDS_START
	mostFDs      = 1 << 16
	listenerName = "l-"     // fd names of listeners begin so
	startsName   = "starts" // fd name of the record of starts
)

// Names of the API's sockets, as the socket units give them.
const (
	API   = "api"
	Admin = "admin"
)

// Listener is a listening socket under the name that all processes have for it: "tcp:127.0.0.1:7001" or "unix:/run/x.sock".
type Listener struct {
	Addr string
	FD   int
}

// Sockets are the listening sockets that outlive a process: a service manager keeps them over a restart (SEMANTICS 6.2), and a process gives them to its
// successor (6.3). Safe for concurrent use; nil has none.
type Sockets struct {
	mu sync.Mutex

	api       map[string]int      // by name: of socket units
	listeners map[string]int      // by address; whoever wants one gets a duplicate
	starts    int                 // descriptor of the record of starts; -1 if there is none
	stored    map[string]struct{} // names that the service manager keeps
	again     bool                // they are stored by another process: to be sure, they are once more
}

// Inherit takes what this process was started with: of the process that it follows, if it is to follow one, or else of a service manager.
func Inherit() (s *Sockets, from *Predecessor, strange, err error) {
	s, strange = inheritListening()
	from, err = inheritFrom(s)
	return s, from, strange, err
}

// inheritListening takes what a service manager passed to this process (sd_listen_fds(3)), and takes the variables that say so out of the environment. What isn't known, or isn't
// what its name says, is closed; the error tells of it, and the sockets can be used all the same.
func inheritListening() (*Sockets, error) {
	s := newSockets()
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // as sd_listen_fds(1) does: they are not for children
	}
	of, err := listenNames(os.Getpid(), pid, count, names)
	if err != nil {
		return s, fmt.Errorf("take the service manager's sockets: %w", err)
	}
	var errs []error
	for i, name := range of {
		fd := firstFD + i
		unix.CloseOnExec(fd)
		errs = append(errs, s.take(name, fd))
		if name != API && name != Admin { // they belong to a socket unit
			s.stored[name] = struct{}{}
		}
	}
	return s, errors.Join(errs...)
}

func newSockets() *Sockets {
	return &Sockets{api: map[string]int{}, listeners: map[string]int{}, stored: map[string]struct{}{}, starts: -1}
}

// listenNames are the names of the descriptors from 3 on; none if they are another process's.
func listenNames(self int, pid, count, names string) ([]string, error) {
	if pid == "" && count == "" {
		return nil, nil
	}
	if p, err := strconv.Atoi(pid); err != nil {
		return nil, fmt.Errorf("LISTEN_PID is %q, not a process id", pid)
	} else if p != self {
		return nil, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > mostFDs {
		return nil, fmt.Errorf("LISTEN_FDS is %q, not a number of descriptors", count)
	}
	out := make([]string, n)
	if names != "" {
		copy(out, strings.Split(names, ":"))
	}
	return out, nil
}

// take keeps fd, whose name is given, or closes it.
func (s *Sockets) take(name string, fd int) error {
	if name == startsName {
		if s.starts >= 0 {
			unix.Close(s.starts)
		}
		s.starts = fd
		return nil
	}
	addr, err := listens(fd)
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("descriptor %q: %w", name, err)
	}
	// Whoever accepts never waits in the kernel.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return fmt.Errorf("descriptor %q: %w", name, err)
	}
	to, key := s.listeners, addr
	switch {
	case name == API || name == Admin:
		if to, key = s.api, name; !strings.HasPrefix(addr, "unix:") {
			unix.Close(fd)
			return fmt.Errorf("descriptor %q: it listens on %s, not on a unix socket", name, addr)
		}
	case !strings.HasPrefix(name, listenerName):
		unix.Close(fd)
		return fmt.Errorf("descriptor %q, which listens on %s: nobody knows that name", name, addr)
	}
	if _, twice := to[key]; twice {
		unix.Close(fd)
		return nil
	}
	to[key] = fd
	return nil
}

// listens returns where fd listens; an error if it isn't a listening stream socket.
func listens(fd int) (string, error) {
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_STREAM {
		return "", errors.New("not a stream socket")
	}
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
		return "", errors.New("a socket that doesn't listen")
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return "", os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return TCP(netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))), nil
	case *unix.SockaddrInet6:
		return TCP(netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))), nil
	case *unix.SockaddrUnix:
		return Unix(sa.Name), nil
	}
	return "", errors.New("neither TCP nor a unix socket")
}

// TCP is the name of a TCP listener.
func TCP(a netip.AddrPort) string { return "tcp:" + a.String() }

// TCPName is the name of the listener that net.Listen makes of host:port; "" if it makes none.
func TCPName(listen string) string {
	addr, err := net.ResolveTCPAddr("tcp", listen)
	if listen == "" || err != nil {
		return ""
	}
	at := addr.AddrPort()
	if len(addr.IP) == 0 { // all addresses, of both families where there are two
		at = netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port())
	}
	return TCP(netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
}

// Unix is the name of a unix socket's listener.
func Unix(path string) string { return "unix:" + path }

// fdName is what the service manager calls the listener of addr: a name may be no longer than 255 bytes, and has no colon.
func fdName(addr string) string {
	sum := sha256.Sum256([]byte(addr))
	return listenerName + hex.EncodeToString(sum[:])[:16]
}

// Listener returns a duplicate of the inherited listener of addr, if there is one; it is the caller's.
func (s *Sockets) Listener(addr string) (fd int, ok bool) {
	if s == nil {
		return -1, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	own, ok := s.listeners[addr]
	if !ok {
		return -1, false
	}
	fd, err := unix.FcntlInt(uintptr(own), unix.F_DUPFD_CLOEXEC, firstFD)
	if err != nil {
		return -1, false
	}
	return fd, true
}

// TCPListener returns the inherited listener of an address as net.Listen takes it, nil if there is none.
func (s *Sockets) TCPListener(listen string) net.Listener {
	fd, ok := s.Listener(TCPName(listen))
	if !ok {
		return nil
	}
	return listenerOf(fd)
}

// Socket returns the API's socket of that name, if there is one; the second call returns nil.
func (s *Sockets) Socket(name string) *net.UnixListener {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, ok := s.api[name]
	if !ok {
		return nil
	}
	delete(s.api, name)
	l, ok := listenerOf(fd).(*net.UnixListener)
	if !ok {
		return nil
	}
	l.SetUnlinkOnClose(false) // its path belongs to who made it
	return l
}

// listenerOf takes fd over.
func listenerOf(fd int) net.Listener {
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	l, err := net.FileListener(f) // of a duplicate
	if err != nil {
		return nil
	}
	return l
}

// Clear ends the inherited listeners that are in the way of wanted ones: on the same port, though not wanted themselves. They belong to services that are no longer configured.
func (s *Sockets) Clear(wanted []string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ports := make(map[string]bool)
	for _, addr := range wanted {
		ports[portOf(addr)] = true
	}
	for addr := range maps.Clone(s.listeners) {
		if port := portOf(addr); port != "" && ports[port] && !slices.Contains(wanted, addr) {
			s.endLocked(addr)
		}
	}
}

// portOf is the port of a TCP listener, "" of others.
func portOf(addr string) string {
	tcp, ok := strings.CutPrefix(addr, "tcp:")
	if !ok {
		return ""
	}
	return tcp[strings.LastIndexByte(tcp, ':')+1:]
}

// endLocked ends an inherited listener, whoever else has it: a connect is refused from now on.
func (s *Sockets) endLocked(addr string) {
	fd := s.listeners[addr]
	delete(s.listeners, addr)
	_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	_ = unix.Close(fd)
}

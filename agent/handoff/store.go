package handoff

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// tellTimeout bounds how long one message to the service manager may wait for room in its queue.
const tellTimeout = 5 // seconds

// Kept reports whether there is a service manager that keeps sockets.
func (s *Sockets) Kept() bool { return s != nil && os.Getenv("NOTIFY_SOCKET") != "" }

// Keep has the service manager keep exactly these listeners over a restart, and gives up what was inherited and isn't among them. The record of starts stays with it, too.
// It is called once all that is configured is bound, and after each change.
func (s *Sockets) Keep(listeners []Listener) error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := make(map[string]int, len(listeners))
	for _, l := range listeners {
		wanted[fdName(l.Addr)] = l.FD
	}
	for addr := range maps.Clone(s.listeners) {
		if _, used := wanted[fdName(addr)]; !used {
			s.endLocked(addr)
			continue
		}
		_ = unix.Close(s.listeners[addr]) // its user has a duplicate
		delete(s.listeners, addr)
	}
	if !s.Kept() {
		return nil
	}
	if s.starts >= 0 {
		wanted[startsName] = s.starts
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(s.stored)) {
		if _, stays := wanted[name]; !stays {
			errs = append(errs, s.forgetLocked(name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		if _, known := s.stored[name]; known && !s.again {
			continue
		}
		// Each has a name of its own, and a message has one name.
		if err := tellFDs("FDSTORE=1\nFDNAME="+name, wanted[name]); err != nil {
			errs = append(errs, err)
			continue
		}
		s.stored[name] = struct{}{}
	}
	s.again = false
	return errors.Join(errs...)
}

// Starts is the record of starts, for a successor; none if there is no record.
func (s *Sockets) Starts() []Listener {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.starts < 0 {
		return nil
	}
	return []Listener{{startsName, s.starts}}
}

// forgetLocked takes a name out of the service manager's store.
func (s *Sockets) forgetLocked(name string) error {
	delete(s.stored, name)
	if name == "" || strings.ContainsAny(name, ":\n") {
		return nil // no name that could be removed
	}
	return tellFDs("FDSTOREREMOVE=1\nFDNAME=" + name)
}

// tellFDs sends a notification with descriptors. It needs a socket of its own: a connected net.UnixConn refuses descriptors.
func tellFDs(text string, fds ...int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: tellTimeout})
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	to := &unix.SockaddrUnix{Name: os.Getenv("NOTIFY_SOCKET")}
	for {
		err = unix.Sendmsg(fd, []byte(text), rights, to, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("tell the service manager %q: %w", strings.ReplaceAll(text, "\n", " "), err)
	}
	return nil
}

package localapi

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// socket is a listening unix socket. One that this process bound also knows its file, so that it removes its own and no successor's.
type socket struct {
	*net.UnixListener
	path string      // "" if somebody else made it
	file fs.FileInfo // the socket at path
}

// maxSocketPath is sizeof(sockaddr_un.sun_path) less the final zero.
const maxSocketPath = 107

// openSocket binds path: its directory is made if it is missing, a socket on which nobody listens is replaced, one on which somebody listens is an error. Modes
// are those of DESIGN.md 5: 0666 in a directory of 0755, admin 0660 root:gid in one of 0750. They keep strangers out; rights never depend on them alone.
func openSocket(path string, admin bool, gid uint32) (*socket, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listen on %q: the path has %d bytes, a unix socket's may have %d", path, len(path), maxSocketPath)
	}
	dirMode, mode := fs.FileMode(0o755), fs.FileMode(0o666)
	if admin {
		dirMode, mode = 0o750, 0o660
	}
	dir := filepath.Dir(path)
	if err := makeDir(dir, dirMode, admin, gid); err != nil {
		return nil, err
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	ln.SetUnlinkOnClose(false)
	s := &socket{UnixListener: ln, path: path}
	if s.file, err = os.Lstat(path); err == nil {
		err = s.setMode(mode, admin, gid)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	return s, nil
}

// setMode ends with the mode, so that the socket is never open to more people than it will be.
func (s *socket) setMode(mode fs.FileMode, admin bool, gid uint32) error {
	if err := chgrp(s.path, admin, gid); err != nil {
		return err
	}
	return os.Chmod(s.path, mode)
}

// chgrp gives an admin file to the group. Only root (or a member) may: an agent run by hand as somebody else goes on without.
func chgrp(path string, admin bool, gid uint32) error {
	if !admin || gid == 0 {
		return nil
	}
	if err := os.Lchown(path, -1, int(gid)); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

func (s *socket) accept() (rawConn, error) { return s.AcceptUnix() }

// close stops listening, and removes the file if it is still the one that was bound.
func (s *socket) close() {
	if s.path != "" && s.file != nil {
		// The time, too: a successor's socket often gets the inode that was just freed.
		if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.file) && now.ModTime().Equal(s.file.ModTime()) {
			_ = os.Remove(s.path)
		}
	}
	_ = s.Close()
}

// makeDir makes dir with mode whatever the umask; a directory that is there already stays as it is.
func makeDir(dir string, mode fs.FileMode, admin bool, gid uint32) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make the socket's directory: %w", err)
	}
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the socket's directory: %w", err)
	}
	if err := chgrp(dir, admin, gid); err != nil {
		return fmt.Errorf("make the socket's directory: %w", err)
	}
	if err := os.Chmod(dir, mode); err != nil {
		return fmt.Errorf("make the socket's directory: %w", err)
	}
	return nil
}

// lockPatience is how long a start waits for another one in the same directory, which takes milliseconds. Whoever may read the directory may lock it, for ever:
// then the start goes on without.
const lockPatience = 2 * time.Second

// lockDir keeps two agents that start at once from replacing each other's socket between the look and the bind.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock the socket's directory: %w", err)
	}
	for until := time.Now().Add(lockPatience); ; time.Sleep(lockPatience / 100) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || errors.Is(err, unix.EWOULDBLOCK) && time.Now().After(until) {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock the socket's directory %q: %w", dir, err)
		}
	}
}

// removeStale removes a socket at path on which nobody listens. Anything else that is there is an error: the agent never removes what it may not own.
func removeStale(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen on %q: %w", path, err)
	}
	if fi.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("listen on %q: it exists and is not a socket; remove it, or set another path", path)
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		defer c.Close()
		who := ""
		if cred, err := peerCred(c); err == nil && cred.Pid > 0 {
			who = fmt.Sprintf(" (pid %d)", cred.Pid)
		}
		return fmt.Errorf("listen on %q: another process%s listens there already: is an agent running?", path, who)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("listen on %q: can't tell whether another agent listens there: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("listen on %q: remove what a former agent left: %w", path, err)
	}
	return nil
}

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// manager stands in for systemd: it makes the API's sockets, as socket units do, takes notifications, and keeps descriptors from one process to the next.
type manager struct {
	conn *net.UnixConn
	env  []string

	mu sync.Mutex

	units []kept // of socket units
	store []kept
	fed   int // how often WATCHDOG came, since the last MAINPID
	main  int // the last MAINPID
	line  string
}

type kept struct {
	name string
	file *os.File
}

// under has a service manager run a's lives; env is what its unit says beyond.
func (a *agent) under(t *testing.T, env ...string) *manager {
	t.Helper()
	path := filepath.Join(a.dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{conn: conn, env: append(env, "NOTIFY_SOCKET="+path)}
	for _, unit := range []struct{ name, path string }{{"api", a.socket}, {"admin", a.admin}} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: unit.path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		m.units = append(m.units, kept{unit.name, f})
	}
	var reading sync.WaitGroup
	reading.Go(m.read)
	t.Cleanup(func() {
		a.stop()
		conn.Close()
		reading.Wait()
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, k := range slices.Concat(m.units, m.store) {
			k.file.Close()
		}
	})
	a.manager = m
	return m
}

// wrap is what starts a process as systemd does: with the descriptors from 3 on, which the caller closes, and its own pid in LISTEN_PID.
func (m *manager) wrap(argv []string) (wrapped, env []string, files []*os.File) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, k := range slices.Concat(m.units, m.store) {
		fd, err := unix.FcntlInt(k.file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			continue
		}
		names = append(names, k.name)
		files = append(files, os.NewFile(uintptr(fd), k.name))
	}
	env = append(slices.Clone(m.env), "LISTEN_FDS="+strconv.Itoa(len(files)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	return append([]string{"/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`}, argv...), env, files
}

func (m *manager) read() {
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*253))
	for {
		n, oobn, _, _, err := m.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		m.take(string(buf[:n]), oob[:oobn])
	}
}

func (m *manager) take(text string, oob []byte) {
	var fds []int
	if cmsgs, err := unix.ParseSocketControlMessage(oob); err == nil {
		for i := range cmsgs {
			got, _ := unix.ParseUnixRights(&cmsgs[i])
			fds = append(fds, got...)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		fields[key] = value
	}
	if fields["WATCHDOG"] == "1" {
		m.fed++
	}
	if pid, err := strconv.Atoi(fields["MAINPID"]); err == nil {
		m.main, m.fed = pid, 0
	}
	if s, ok := fields["STATUS"]; ok {
		m.line = s
	}
	name := fields["FDNAME"]
	if fields["FDSTOREREMOVE"] == "1" {
		m.store = slices.DeleteFunc(m.store, func(k kept) bool {
			if k.name == name {
				k.file.Close()
			}
			return k.name == name
		})
	}
	for _, fd := range fds {
		if fields["FDSTORE"] != "1" || slices.ContainsFunc(m.store, func(k kept) bool { return sameFile(int(k.file.Fd()), fd) }) {
			unix.Close(fd)
			continue
		}
		unix.CloseOnExec(fd)
		m.store = append(m.store, kept{name, os.NewFile(uintptr(fd), name)})
	}
}

// sameFile compares sockets by inode, which is what systemd's kcmp comes down to for them.
func sameFile(a, b int) bool {
	var x, y syscall.Stat_t
	return syscall.Fstat(a, &x) == nil && syscall.Fstat(b, &y) == nil && x.Dev == y.Dev && x.Ino == y.Ino
}

// listeners counts those that it keeps.
func (m *manager) listeners() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.store {
		if strings.HasPrefix(k.name, "l-") {
			n++
		}
	}
	return n
}

// kept is where the listeners that it keeps listen; ":PORT" for all addresses.
func (m *manager) kept() (addrs []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.store {
		if !strings.HasPrefix(k.name, "l-") {
			continue
		}
		var tcp netip.AddrPort
		switch at, _ := unix.Getsockname(int(k.file.Fd())); at := at.(type) {
		case *unix.SockaddrUnix:
			addrs = append(addrs, at.Name)
			continue
		case *unix.SockaddrInet4:
			tcp = netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))
		case *unix.SockaddrInet6:
			tcp = netip.AddrPortFrom(netip.AddrFrom16(at.Addr), uint16(at.Port))
		}
		if tcp.Addr().IsUnspecified() {
			addrs = append(addrs, fmt.Sprintf(":%d", tcp.Port()))
		} else {
			addrs = append(addrs, tcp.String())
		}
	}
	slices.Sort(addrs)
	return addrs
}

// awaitKept waits until it keeps the listeners of these addresses and no other ones. Each comes in a message of its own, so that their number alone says little.
func (m *manager) awaitKept(t *testing.T, addrs ...string) {
	t.Helper()
	slices.Sort(addrs)
	defer func() {
		if t.Failed() {
			t.Logf("kept are the listeners of %q", m.kept())
		}
	}()
	poll(t, fmt.Sprintf("the listeners of %q are kept", addrs), func() bool { return slices.Equal(m.kept(), addrs) })
}

// loopbacks is where a bare port listens: one address, or two where there is IPv6.
func loopbacks(port int) []string {
	addrs := []string{fmt.Sprintf("127.0.0.1:%d", port)}
	unforked(func() {
		if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
			l.Close()
			addrs = append(addrs, fmt.Sprintf("[::1]:%d", port))
		}
	})
	return addrs
}

func (m *manager) mainPID() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.main
}

// feeds is how often the watchdog was fed by the process that is the main one now.
func (m *manager) feeds() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fed
}

// says is the line of systemctl status.
func (m *manager) says() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.line
}

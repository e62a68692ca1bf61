package handoff

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestListenNames(t *testing.T) {
	for _, c := range []struct {
		name, pid, count, names string
		want                    []string
		bad                     bool
	}{
		{"no service manager", "", "", "", nil, false},
		{"another process's", "8", "2", "a:b", nil, false},
		{"two", "7", "2", "api:admin", []string{"api", "admin"}, false},
		{"names are missing", "7", "2", "api", []string{"api", ""}, false},
		{"more names than descriptors", "7", "1", "api:admin", []string{"api"}, false},
		{"no names", "7", "1", "", []string{""}, false},
		{"no number of descriptors", "7", "x", "", nil, true},
		{"fewer than none", "7", "-1", "", nil, true},
		{"more than there can be", "7", "99999999", "", nil, true},
		{"no process id", "me", "1", "", nil, true},
	} {
		got, err := listenNames(7, c.pid, c.count, c.names)
		if !slices.Equal(got, c.want) || (err != nil) != c.bad {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
}

func FuzzListenNames(f *testing.F) {
	f.Add("7", "2", "api:admin")
	f.Fuzz(func(t *testing.T, pid, count, names string) {
		got, err := listenNames(7, pid, count, names)
		if len(got) > mostFDs || err != nil && got != nil {
			t.Errorf("%d names, %v", len(got), err)
		}
	})
}

// listening returns a descriptor that listens at addr, and that name.
func listening(t *testing.T, network, addr string) (fd int, name string) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	raw, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if fd, err = unix.FcntlInt(raw.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	return fd, network + ":" + l.Addr().String()
}

// Only a socket that listens is taken, by the name that the service manager may give it.
func TestSocketsTakeWhatListens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	s := newSockets()
	tcp, addr := listening(t, "tcp", "127.0.0.1:0")
	path := filepath.Join(t.TempDir(), "api.sock")
	api, _ := listening(t, "unix", path)
	for name, fd := range map[string]int{fdName(addr): tcp, API: api} {
		if err := s.take(name, fd); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	plain, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	datagrams, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	stranger, _ := listening(t, "tcp", "127.0.0.1:0")
	notUnix, _ := listening(t, "tcp", "127.0.0.1:0")
	for _, c := range []struct {
		name string
		fd   int
	}{{"l-1", plain}, {"l-2", datagrams}, {"web", stranger}, {Admin, notUnix}} {
		if err := s.take(c.name, c.fd); err == nil || !strings.Contains(err.Error(), c.name) {
			t.Errorf("%s was taken: %v", c.name, err)
		}
		if _, err := unix.FcntlInt(uintptr(c.fd), unix.F_GETFD, 0); err == nil {
			t.Errorf("%s is still open", c.name)
		}
	}

	if l := s.Socket(API); l == nil || l.Addr().String() != path {
		t.Errorf("the API's socket: %v", l)
	} else {
		l.Close()
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the path of a socket that somebody else made: %v", err)
		}
	}
	if s.Socket(API) != nil {
		t.Error("the API's socket was given out twice")
	}
	if _, ok := s.Listener("tcp:127.0.0.1:1"); ok {
		t.Error("a listener that wasn't inherited")
	}
	l := s.TCPListener(strings.TrimPrefix(addr, "tcp:"))
	if l == nil {
		t.Fatal("the inherited listener is not there")
	}
	defer l.Close()
	if err := s.Keep([]Listener{{Addr: addr}}); err != nil {
		t.Error(err)
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("a listener that is used: %v", err)
	}
	conn.Close()
}

// What nobody wants any more is refused at once, though a service manager may have it, too; the address can be bound anew.
func TestSocketsEndWhatIsNotWanted(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	for _, end := range []struct {
		name string
		do   func(s *Sockets, addr string)
	}{
		{"kept no longer", func(s *Sockets, _ string) { _ = s.Keep(nil) }},
		{"in the way", func(s *Sockets, addr string) { s.Clear([]string{"tcp:0.0.0.0:" + portOf(addr)}) }},
	} {
		s := newSockets()
		fd, addr := listening(t, "tcp", "127.0.0.1:0")
		managers, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.take(fdName(addr), fd); err != nil {
			t.Fatal(err)
		}
		s.Clear([]string{addr, "tcp:127.0.0.2:" + portOf(addr)})
		if _, err := net.Dial("tcp", strings.TrimPrefix(addr, "tcp:")); err != nil {
			t.Fatalf("%s: a wanted listener was ended: %v", end.name, err)
		}
		end.do(s, addr)
		if _, err := net.Dial("tcp", strings.TrimPrefix(addr, "tcp:")); err == nil {
			t.Errorf("%s: it still listens", end.name)
		}
		l, err := net.Listen("tcp", "0.0.0.0:"+portOf(addr))
		if err != nil {
			t.Errorf("%s: %v", end.name, err)
		} else {
			l.Close()
		}
		unix.Close(managers)
	}
}

// The service manager is told what to keep, each under its name with its descriptor, and what to forget; nothing twice.
func TestSocketsKeep(t *testing.T) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", conn.LocalAddr().String())
	want := func(text string, listens bool) {
		t.Helper()
		buf, oob := make([]byte, 1024), make([]byte, 1024)
		n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(buf[:n]); got != text {
			t.Errorf("told %q, want %q", got, text)
		}
		cmsgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || (len(cmsgs) == 1) != listens {
			t.Fatalf("%q came with %d control messages, %v", text, len(cmsgs), err)
		}
		for i := range cmsgs {
			fds, _ := unix.ParseUnixRights(&cmsgs[i])
			if _, err := listensAt(fds); err != nil {
				t.Error(err)
			}
		}
	}
	s := newSockets()
	one, first := listening(t, "tcp", "127.0.0.1:0")
	defer unix.Close(one)
	two, second := listening(t, "tcp", "127.0.0.1:0")
	defer unix.Close(two)
	if err := s.Keep([]Listener{{first, one}}); err != nil {
		t.Fatal(err)
	}
	want("FDSTORE=1\nFDNAME="+fdName(first), true)
	if err := s.Keep([]Listener{{first, one}, {second, two}}); err != nil {
		t.Fatal(err)
	}
	want("FDSTORE=1\nFDNAME="+fdName(second), true)
	if err := s.Keep([]Listener{{second, two}}); err != nil {
		t.Fatal(err)
	}
	want("FDSTOREREMOVE=1\nFDNAME="+fdName(first), false)

	conn.Close()
	if err := s.Keep(nil); err == nil {
		t.Error("that the service manager can't be told is no error")
	}
}

func listensAt(fds []int) (string, error) {
	for _, fd := range fds {
		defer unix.Close(fd)
	}
	return listens(fds[0])
}

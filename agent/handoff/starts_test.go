package handoff

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// managed is a service manager's socket for notifications.
func managed(t *testing.T) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", conn.LocalAddr().String())
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// told is what the service manager hears next, with the descriptor that came along, -1 if none did.
func told(t *testing.T, conn *net.UnixConn) (text string, fd int) {
	t.Helper()
	buf, oob := make([]byte, 1024), make([]byte, 1024)
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		t.Fatal(err)
	}
	fd = -1
	cmsgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	for i := range cmsgs {
		if fds, err := unix.ParseUnixRights(&cmsgs[i]); err == nil && len(fds) == 1 {
			fd = fds[0]
		}
	}
	return string(buf[:n]), fd
}

// Starts are counted over the lives of processes, for a minute each, by a record that the service manager gets with the first (6.6).
func TestStartsAreCountedOverLives(t *testing.T) {
	manager := managed(t)
	s := newSockets()
	started := func(at time.Duration, want int) {
		t.Helper()
		if got, err := s.Started(at); err != nil || got != want {
			t.Errorf("at %v: %d starts, %v; want %d", at, got, err, want)
		}
	}
	started(time.Hour, 1)
	text, record := told(t, manager)
	if text != "FDSTORE=1\nFDNAME=starts" || record < 0 {
		t.Fatalf("told %q with %d", text, record)
	}
	live := func() { // the next process
		t.Helper()
		fd, err := unix.FcntlInt(uintptr(record), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(s.starts)
		s = newSockets()
		if err := s.take(startsName, fd); err != nil {
			t.Fatal(err)
		}
		s.stored[startsName] = struct{}{}
	}
	live()
	started(time.Hour+10*time.Second, 2)
	live()
	started(time.Hour+59*time.Second, 3)
	live()
	started(time.Hour+61*time.Second, 3) // the first is too long ago
	live()
	if err := s.Settled(); err != nil {
		t.Error(err)
	}
	live()
	started(time.Hour+62*time.Second, 1)
	for i := range 2 * mostStarts {
		live()
		started(time.Hour+63*time.Second+time.Duration(i), min(i+2, mostStarts))
	}
	if err := s.Keep(nil); err != nil {
		t.Fatal(err)
	}
	_ = manager.SetReadDeadline(time.Now())
	if n, err := manager.Read(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes more were told: it has the record", n)
	}
	unix.Close(record)
}

// A descriptor of that name that is no record is replaced.
func TestStartsWithoutARecord(t *testing.T) {
	manager := managed(t)
	s := newSockets()
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	if err := s.take(startsName, pipe[1]); err != nil {
		t.Fatal(err)
	}
	s.stored[startsName] = struct{}{}
	if got, err := s.Started(time.Second); err != nil || got != 1 {
		t.Errorf("%d starts, %v", got, err)
	}
	if text, fd := told(t, manager); !strings.HasPrefix(text, "FDSTORE=1") || fd < 0 {
		t.Errorf("told %q with %d", text, fd)
	} else {
		unix.Close(fd)
	}
	unix.Close(s.starts)
}

// Where nobody keeps a record, nothing is counted.
func TestStartsWithoutServiceManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	s := newSockets()
	for range 3 {
		if got, err := s.Started(time.Second); got != 0 || err != nil || s.starts >= 0 {
			t.Errorf("%d starts, %v, record %d", got, err, s.starts)
		}
	}
	if err := s.Settled(); err != nil {
		t.Error(err)
	}
}

// FuzzRecent: whatever is in the record, what counts is a rising row of times of the last minute, of a bounded length.
func FuzzRecent(f *testing.F) {
	f.Add([]byte{}, int64(time.Hour))
	f.Add(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(time.Hour-1)), uint64(time.Hour-2)), int64(time.Hour))
	f.Add(append(binary.BigEndian.AppendUint64(nil, 1<<63), 1, 2, 3), int64(1))
	f.Fuzz(func(t *testing.T, record []byte, at int64) {
		now, last := time.Duration(at), time.Duration(-1)
		got := recent(record, now)
		for _, s := range got {
			if s <= last || s > now || now-s >= startsWithin {
				t.Fatalf("%v at %v", got, now)
			}
			last = s
		}
		if len(got) > min(mostStarts, len(record)/startBytes) {
			t.Fatalf("%d of %d bytes", len(got), len(record))
		}
	})
}

// In a crash loop a connect is refused, though the service manager has the listeners, too; it is told to forget them, but not the record (6.6).
func TestRefuse(t *testing.T) {
	manager := managed(t)
	s := newSockets()
	if _, err := s.Started(time.Second); err != nil {
		t.Fatal(err)
	}
	_, record := told(t, manager)
	defer unix.Close(record)
	fd, addr := listening(t, "tcp", "127.0.0.1:0")
	managers, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(managers)
	if err := s.take(fdName(addr), fd); err != nil {
		t.Fatal(err)
	}
	s.stored[fdName(addr)] = struct{}{}
	waits, err := net.Dial("tcp", strings.TrimPrefix(addr, "tcp:"))
	if err != nil {
		t.Fatal(err)
	}
	defer waits.Close()
	if err := s.Refuse(); err != nil {
		t.Fatal(err)
	}
	if text, _ := told(t, manager); text != "FDSTOREREMOVE=1\nFDNAME="+fdName(addr) {
		t.Errorf("told %q", text)
	}
	if c, err := net.Dial("tcp", strings.TrimPrefix(addr, "tcp:")); err == nil {
		c.Close()
		t.Error("it still listens")
	}
	_ = waits.SetDeadline(time.Now().Add(time.Minute))
	if _, err := waits.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("who waited already: %v", err)
	}
	if got, err := s.Started(2 * time.Second); got != 2 || err != nil {
		t.Errorf("the record: %d, %v", got, err)
	}
	unix.Close(s.starts)
}

// Callers of the API are let go at once; afterwards its sockets are as they were.
func TestTurnAway(t *testing.T) {
	s := newSockets()
	path := filepath.Join(t.TempDir(), "api.sock")
	fd, _ := listening(t, "unix", path)
	if err := s.take(API, fd); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { s.TurnAway(ctx); close(done) }()
	for range 3 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if n, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%d, %v", n, err)
		}
		c.Close()
	}
	cancel()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l := s.Socket(API)
	if l == nil {
		t.Fatal("the socket is gone")
	}
	defer l.Close()
	_ = l.SetDeadline(time.Now().Add(time.Minute))
	served, err := l.Accept()
	if err != nil {
		t.Fatalf("who came later isn't served: %v", err)
	}
	served.Close()
	var none *Sockets
	none.TurnAway(ctx)
}

package localapi

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestOpenSocket(t *testing.T) {
	dir := publicDir(t)
	path := filepath.Join(dir, "a", "s.sock")
	first, err := openSocket(path, false, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openSocket(path, false, 0); err == nil || !strings.Contains(err.Error(), "listens there already") || !strings.Contains(err.Error(), "pid") {
		t.Errorf("a second agent: %v", err)
	}
	// An agent that died without a word leaves its file.
	_ = first.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	second, err := openSocket(path, false, 0)
	if err != nil {
		t.Fatalf("after a dead agent: %v", err)
	}
	// The first one's late goodbye doesn't remove its successor's socket.
	first.close()
	if c, err := net.Dial("unix", path); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
	second.close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}

	for name, make := range map[string]func(string) error{
		"file":      func(p string) error { return os.WriteFile(p, []byte("precious"), 0o600) },
		"directory": func(p string) error { return os.Mkdir(p, 0o700) },
		"link":      func(p string) error { return os.Symlink("/etc/passwd", p) },
	} {
		p := filepath.Join(dir, name)
		if err := make(p); err != nil {
			t.Fatal(err)
		}
		if _, err := openSocket(p, false, 0); err == nil || !strings.Contains(err.Error(), "is not a socket") {
			t.Errorf("%s in the way: %v", name, err)
		}
		if _, err := os.Lstat(p); err != nil {
			t.Errorf("%s in the way was removed", name)
		}
	}
	if _, err := openSocket(filepath.Join(dir, strings.Repeat("x", 120)), false, 0); err == nil || !strings.Contains(err.Error(), "107") {
		t.Errorf("a path too long: %v", err)
	}
}

// Of many agents that start at once over a dead one's socket, exactly one gets it.
func TestOpenSocketRace(t *testing.T) {
	for range 100 {
		raceForSocket(t, filepath.Join(publicDir(t), "s.sock"))
	}
}

func raceForSocket(t *testing.T, path string) {
	dead, err := openSocket(path, false, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = dead.Close()
	type result struct {
		s   *socket
		err error
	}
	begin, results := make(chan struct{}), make(chan result)
	for range 8 {
		go func() {
			<-begin
			s, err := openSocket(path, false, 0)
			results <- result{s, err}
		}()
	}
	close(begin)
	var got []*socket
	for range 8 {
		if r := <-results; r.err == nil {
			got = append(got, r.s)
		} else if !strings.Contains(r.err.Error(), "listens there already") {
			t.Error(r.err)
		}
	}
	if len(got) != 1 {
		t.Errorf("%d agents have the socket", len(got))
	}
	for _, s := range got {
		s.close()
	}
}

// A socket that systemd made is served and stays when the agent ends.
func TestPassedListener(t *testing.T) {
	path := filepath.Join(publicDir(t), "s.sock")
	made, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := made.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	made.SetUnlinkOnClose(false)
	_ = made.Close()
	passed, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *Config) { c.Socket, c.Listener = "", passed.(*net.UnixListener) })
	if code, _ := ask(t, path, "GET", "/v1/services", ""); code != 200 {
		t.Error(code)
	}
	r.stop()
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

// If one socket can't be bound, the other isn't left behind.
func TestListenFailsWhole(t *testing.T) {
	r := newRig(t, nil)
	open := filepath.Join(r.dir, "other.sock")
	s, err := New(Config{Log: r.log, Table: r.table, Events: r.events, Socket: open, AdminSocket: r.cfg.AdminSocket})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err == nil || !strings.Contains(err.Error(), r.cfg.AdminSocket) {
		t.Error(err)
	}
	if _, err := os.Lstat(open); !os.IsNotExist(err) {
		t.Errorf("the open socket is left: %v", err)
	}
}

// Whoever may read the directory may lock it: that must not keep the agent from starting.
func TestOpenSocketLockedByStranger(t *testing.T) {
	dir := publicDir(t)
	unlock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	opened := make(chan error, 1)
	go func() {
		s, err := openSocket(filepath.Join(dir, "s.sock"), false, 0)
		if err == nil {
			s.close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * lockPatience):
		t.Error("the start waits for a stranger's lock")
	}
}

package handoff

import (
	"net"
	"path/filepath"
	"testing"
)

func TestNotifierTellsTheServiceManager(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	n := &Notifier{}

	for _, c := range []struct {
		name string
		send func() error
		want string
	}{
		{"ready", func() error { return n.Ready("3 services\nREADY=0") }, "READY=1\nSTATUS=3 services READY=0"},
		{"status", func() error { return n.Status("no list of user yet") }, "STATUS=no list of user yet"},
		{"stopping", func() error { return n.Stopping() }, "STOPPING=1\nSTATUS=stopping: running calls get up to 5 s"},
	} {
		if err := c.send(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		buf := make([]byte, 1024)
		size, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(buf[:size]); got != c.want {
			t.Errorf("%s: sent %q, want %q", c.name, got, c.want)
		}
	}
}

func TestNotifierWithoutServiceManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := new(Notifier).Ready("fine"); err != nil {
		t.Errorf("outside systemd: %v", err)
	}
}

package loop

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Peer names addresses, the process on a unix socket, and nobody once the connection is gone.
func TestPeer(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6", "unix"} {
		address := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": filepath.Join(t.TempDir(), "s")}[network]
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client, err := net.Dial(network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		f, err := server.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		server.Close()
		fd, err := unix.Dup(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		unix.SetNonblock(fd, true)
		want := client.LocalAddr().String()
		if network == "unix" {
			want = fmt.Sprintf("process %d of user %d", os.Getpid(), os.Getuid())
		}
		loop := startLoop(t)
		do(t, loop, func() {
			c, err := loop.Add(fd, nobody{}, nil)
			if err != nil {
				t.Error(err)
				return
			}
			if got := c.Peer(); got != want {
				t.Errorf("%s: %q, want %q", network, got, want)
			}
			c.Close()
			if got := c.Peer(); got != "" {
				t.Errorf("%s: %q once it's gone", network, got)
			}
		})
	}
}

// nobody is a Handler that is told nothing.
type nobody struct{}

func (nobody) Connected()           {}
func (nobody) Readable([]byte) int  { return 0 }
func (nobody) EOF()                 {}
func (nobody) Written(total uint64) {}
func (nobody) Closed(error)         {}

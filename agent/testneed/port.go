package testneed

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// Ports that tests listen on lie below those that the kernel takes for outgoing connections (32768 and up), and above those that other helpers of tests draw from.
const (
	firstPort = 32000
	portCount = 768
)

// Port is a TCP port that nobody listens on at 127.0.0.1, and that Port gives to nobody else until the test ends, in whatever process: packages are tested side by side.
func Port(t testing.TB) int {
	t.Helper()
	for _, i := range rand.Perm(portCount) {
		port := firstPort + i
		// An abstract socket is free again when its process has ended, however that ends.
		mark, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: fmt.Sprintf("@lbagent-test-port-%d", port)})
		if err != nil {
			continue
		}
		if err := bindable(port); err != nil {
			mark.Close()
			continue
		}
		t.Cleanup(func() { mark.Close() })
		return port
	}
	t.Fatalf("no free port of %d from %d on", portCount, firstPort)
	return 0
}

// bindable tells whether somebody could listen. It doesn't itself: a process that another test starts in this moment would inherit the listener until it runs its program.
func bindable(port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
}

package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newTunnel makes a tunnel through the proxy, and both of its ends.
func newTunnel(t *testing.T) (r *rig, client, backend *net.TCPConn) {
	t.Helper()
	got := make(chan *net.TCPConn, 1)
	over := make(chan struct{})
	addr := scripted(t, func(c *net.TCPConn, in *bufio.Reader, _ int) {
		in.ReadString('\n')
		for line := ""; line != "\r\n"; {
			line, _ = in.ReadString('\n')
		}
		io.WriteString(c, "HTTP/1.1 101 OK\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
		got <- c
		<-over
	})
	t.Cleanup(func() { close(over) }) // before what waits for the backend's end
	r = newRig(t, asHTTP1)
	r.backends(addr)
	client = r.client()
	if resp := ask(t, client, bufio.NewReader(client), "GET", "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"); resp.StatusCode != 101 {
		t.Fatal(resp.Status)
	}
	backend = <-got
	for _, c := range []*net.TCPConn{client, backend} {
		c.SetDeadline(time.Now().Add(patience))
	}
	io.WriteString(client, "up")
	read(t, backend, "up")
	io.WriteString(backend, "down")
	read(t, client, "down")
	return r, client, backend
}

// A reset passes through a tunnel as a reset, either way, also after the other direction has ended.
func TestHTTP1TunnelReset(t *testing.T) {
	for _, half := range []bool{false, true} {
		for _, byClient := range []bool{false, true} {
			r, client, backend := newTunnel(t)
			breaks, sees := backend, client
			if byClient {
				breaks, sees = client, backend
			}
			if half {
				sees.CloseWrite()
				if _, err := breaks.Read(make([]byte, 1)); err != io.EOF {
					t.Fatalf("read %v, want the other end's FIN", err)
				}
			}
			breaks.SetLinger(0)
			breaks.Close()
			if n, err := sees.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("half %v, by the client %v: read %d, %v; want a reset", half, byClient, n, err)
			}
			await(t, "the end", func() bool { return r.stats().Active["http1"] == 0 })
		}
	}
}

// A tunnel of which one direction has ended goes on in the other one, however often it is looked at; then it ends without a reset (4.8).
func TestHTTP1TunnelHalfClosed(t *testing.T) {
	for _, byClient := range []bool{false, true} {
		r, client, backend := newTunnel(t)
		first, second := backend, client
		if byClient {
			first, second = client, backend
		}
		first.CloseWrite()
		if _, err := second.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("read %v, want FIN", err)
		}
		for range 2 {
			for _, s := range r.proxy.h1.all() {
				s.look()
			}
			io.WriteString(second, "still here")
			read(t, first, "still here")
		}
		second.Close()
		if _, err := first.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("by the client %v: read %v, want FIN", byClient, err)
		}
		await(t, "the end", func() bool { return r.stats().Active["http1"] == 0 })
	}
}

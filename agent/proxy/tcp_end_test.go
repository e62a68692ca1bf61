package proxy

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/loop"
	"github.com/lbagent/lbagent/agent/proxy/tcp"
	"github.com/lbagent/lbagent/health"
	"golang.org/x/sys/unix"
)

// deaf is an address that drops every SYN: somebody listens, never accepts, and the backlog is full.
func deaf(t testing.TB) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port)).String()
	for { // a connect that isn't answered: full
		c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
}

// TLS goes through as it is: the client sees the backend's own certificate (4.9).
func TestTLSPassesThrough(t *testing.T) {
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) }))
	defer web.Close()
	for _, protocol := range []string{"auto", "tcp"} {
		r := newRig(t, func(s *Service) { s.Protocol = protocol })
		r.backends(web.Listener.Addr().String())
		transport := web.Client().Transport.(*http.Transport).Clone()
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", r.addr)
		}
		resp, err := (&http.Client{Transport: transport, Timeout: patience}).Get("https://example.com/")
		if err != nil {
			t.Fatalf("%s: %v", protocol, err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		transport.CloseIdleConnections()
		if err != nil || string(body) != "example.com" || !resp.TLS.PeerCertificates[0].Equal(web.Certificate()) {
			t.Errorf("%s: %q, %v", protocol, body, err)
		}
	}
}

// The backend ends first: the client's direction goes on (4.8).
func TestTCPHalfCloseByTheBackend(t *testing.T) {
	got := make(chan string, 1)
	addr := tcpBackend(t, "tcp4", func(c *net.TCPConn) {
		io.WriteString(c, "that is all from here")
		c.CloseWrite()
		b, _ := io.ReadAll(c)
		got <- string(b)
	})
	r := newRig(t, asTCP)
	r.backends(addr)
	c := r.client()
	if b, err := io.ReadAll(c); err != nil || string(b) != "that is all from here" {
		t.Fatalf("read %q, %v", b, err)
	}
	long := strings.Repeat("but not from me ", 10_000)
	io.WriteString(c, long)
	c.CloseWrite()
	if b := <-got; b != long {
		t.Errorf("the backend got %d bytes after its FIN, want %d", len(b), len(long))
	}
	await(t, "the end", func() bool { return r.stats().calls("tcp", "ok") == 1 })
}

// Both directions full at once, through the kernel, to a peer that sends back what it gets.
func TestTCPBothDirectionsAtOnce(t *testing.T) {
	const size = 32 << 20
	r := newRig(t, asTCP)
	r.backends(tcpBackend(t, "tcp4", named("")))
	c := r.client()
	go func() {
		io.Copy(c, io.LimitReader(rand.NewChaCha8([32]byte{9}), size))
		c.CloseWrite()
	}()
	want := rand.NewChaCha8([32]byte{9})
	buf, should := make([]byte, 64<<10), make([]byte, 64<<10)
	n := 0
	for {
		k, err := c.Read(buf)
		want.Read(should[:k])
		if string(buf[:k]) != string(should[:k]) {
			t.Fatalf("bytes arrived changed after %d", n)
		}
		if n += k; err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if n != size {
		t.Errorf("%d of %d bytes came back", n, size)
	}
}

// A client that doesn't read holds its backend up, and little memory; what it reads later is complete.
func TestTCPClientThatDoesNotRead(t *testing.T) {
	const size = 48 << 20
	addr := tcpBackend(t, "tcp4", func(c *net.TCPConn) { io.Copy(c, io.LimitReader(rand.NewChaCha8([32]byte{5}), size)) })
	r := newRig(t, asTCP)
	r.backends(addr)
	c := r.client()
	await(t, "a stalled backend", func() bool {
		var before, after uint64
		look := func(n *uint64) {
			r.onLoop(func(k *relay) {
				for s := range k.w.sessions[r.svc] {
					*n = s.ends[1].conn.Received()
					if held := s.ends[0].conn.Unwritten(); held > 512<<10+64<<10 { // a full pipe, and what was read before it
						t.Errorf("%d bytes held", held)
					}
				}
			})
		}
		look(&before)
		look(&after)
		return before == after && before > 1<<20
	})
	if n, err := io.Copy(io.Discard, c); err != nil || n != size {
		t.Errorf("read %d of %d, %v", n, size, err)
	}
}

// 4.1: every candidate is tried, each once.
func TestTCPTriesEachCandidateOnce(t *testing.T) {
	r := newRig(t, asTCP)
	list := []string{refusing(t), refusing(t), refusing(t), refusing(t), refusing(t)}
	r.backends(list...)
	c, err := net.Dial("tcp", r.addr)
	if err == nil {
		c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
	await(t, "the accounts", func() bool { return r.stats().NoBackend == 1 })
	if s := r.stats(); s.Picks != 5 || s.Retried["connect"] != 4 {
		t.Errorf("%d picks, retries %v; want 5 and 4", s.Picks, s.Retried)
	}
	for _, addr := range list {
		if h := r.state(addr).Snapshot(time.Now()); h.Failures != 1 || h.Outstanding != 0 {
			t.Errorf("%s: %+v", addr, h)
		}
	}
}

// A backend whose backlog is full costs timeout.connect, then another one serves; what the client said meanwhile isn't lost.
func TestTCPBackendThatNeverAccepts(t *testing.T) {
	bad, good := deaf(t), tcpBackend(t, "tcp4", named("good:"))
	r := newRig(t, func(s *Service) { s.Protocol = "tcp"; s.Connect = 50 * time.Millisecond })
	r.backends(bad, good)
	for range 4 {
		c := r.client()
		io.WriteString(c, "early")
		read(t, c, "good:early")
		c.Close()
	}
	if h := r.state(bad).Snapshot(time.Now()); h.Failures == 0 || h.LastFailure != "connect timed out" {
		t.Errorf("%+v", h)
	}
}

// A client that resets while its backend is dialed ends the dial; nobody is blamed. One that ended its direction only is relayed.
func TestTCPClientLeavesWhileDialing(t *testing.T) {
	bad := deaf(t)
	r := newRig(t, asTCP) // timeout.connect is a minute
	r.backends(bad)
	sessions := func(n int) func(*relay) bool {
		return func(k *relay) bool { return len(k.w.sessions[r.svc]) == n }
	}
	c, half := r.client(), r.client()
	io.WriteString(half, "I wait for your answer")
	half.CloseWrite()
	r.await("two dials", sessions(2))
	c.SetLinger(0)
	c.Close()
	r.await("the end of one", sessions(1))
	if h := r.state(bad).Snapshot(time.Now()); h.Failures != 0 || h.Outstanding != 1 {
		t.Errorf("%+v", h)
	}
}

// A backend that takes connections and ends them at once: the client sees the same, and it counts neither for nor against the backend.
func TestTCPBackendClosesAtOnce(t *testing.T) {
	addr := tcpBackend(t, "tcp4", func(c *net.TCPConn) {})
	r := newRig(t, asTCP)
	r.backends(addr)
	for range 10 {
		c := r.client()
		if n, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read %d, %v; want FIN", n, err)
		}
		c.Close()
	}
	await(t, "the accounts", func() bool { return r.stats().calls("tcp", "ok") == 10 })
	if h := r.state(addr).Snapshot(time.Now()); h.Failures != 0 || h.Successes != 0 || h.Outstanding != 0 {
		t.Errorf("%+v", h)
	}
}

// The end of the agent is nobody's failure.
func TestTCPLoopEndBlamesNoBackend(t *testing.T) {
	bad, good := deaf(t), tcpBackend(t, "tcp4", named("hello"))
	r := newRig(t, asTCP)
	r.backends(good)
	read(t, r.client(), "hello")
	up := r.state(good)
	r.backends(bad)
	r.client()
	r.await("a dial", func(k *relay) bool { return r.state(bad).Outstanding() == 1 })
	dialed := r.state(bad)
	r.onLoop(func(k *relay) { // in either order, as descriptors come
		for s := range k.w.sessions[r.svc] {
			s.ends[tcp.Backend].Closed(loop.ErrEnded)
			s.ends[tcp.Client].Closed(loop.ErrEnded)
		}
	})
	for _, s := range []*health.State{up, dialed} {
		if h := s.Snapshot(time.Now()); h.Failures != 0 || h.Outstanding != 0 {
			t.Errorf("%+v", h)
		}
	}
}

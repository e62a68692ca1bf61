package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tcpPair is a connection from one end to the other.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); other.Close() })
	c.SetDeadline(time.Now().Add(patience))
	other.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), other.(*net.TCPConn)
}

// dupOf is a non-blocking descriptor of c that the loops may own.
func dupOf(c *net.TCPConn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return 0, cerr
	}
	return fd, err
}

// The kernel reports a reset once. If a write got the report, the next read says that the peer has closed: a cut body must not look complete by that.
func TestHTTP1ResetIsNoEnd(t *testing.T) {
	for name, reset := range map[string]bool{"reset": true, "closed": false} {
		ours, theirs := tcpPair(t)
		w := &wire{}
		if err := w.init(newRig(t, asHTTP1).proxy.h1, ours); err != nil {
			t.Fatal(err)
		}
		if reset {
			theirs.SetLinger(0)
		}
		theirs.Close()
		want := uint8(unix.BPF_TCP_CLOSE_WAIT)
		if reset {
			want = unix.BPF_TCP_CLOSE
		}
		await(t, name, func() bool { return w.state() == want })
		if reset {
			if _, err := ours.Write([]byte("x")); !errors.Is(err, unix.ECONNRESET) {
				t.Fatalf("the write said %v", err)
			}
		}
		body := wireBody{w: w, close: true, limits: &Limits{}}
		if _, err := body.read(make([]byte, 10)); (err == io.EOF) == reset {
			t.Errorf("%s: the body ended with %v", name, err)
		}
	}
}

// What a client sends behind its last request is nobody's, but it doesn't cost it the answer: closing with unread bytes would destroy what is on its way.
func TestHTTP1AnswerOutlivesUnreadBytes(t *testing.T) {
	const size = 1 << 20
	r := newRig(t, asHTTP1)
	r.backends(web(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, strings.Repeat("x", size)) }))
	c := r.client()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"+strings.Repeat("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 3000))
	await(t, "the answer to be sent", func() bool { return r.stats().calls("http1", "2xx") == 1 })
	in := bufio.NewReader(c)
	if got := bodyOf(t, answer(t, in, "GET")); len(got) != size {
		t.Errorf("%d bytes", len(got))
	}
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("behind the last answer: %v", err)
	}
}

// deadlines notes the last write deadline.
type deadlines struct {
	net.Conn
	write time.Time
}

func (d *deadlines) SetWriteDeadline(t time.Time) error { d.write = t; return nil }
func (d *deadlines) Write(b []byte) (int, error)        { return len(b), nil }

// The time for an answer of the agent's own is not the time for all answers behind it, also if timeout.idle is off.
func TestHTTP1WriteDeadlineIsTheAnswers(t *testing.T) {
	d := &deadlines{}
	c := &http1Client{wire: wire{Conn: d}}
	c.say(503, "no", false, false)
	if d.write.IsZero() {
		t.Error("the agent's own answer has no deadline")
	}
	if c.setWrite(time.Now(), 0); !d.write.IsZero() {
		t.Error("its deadline stays")
	}
}

// Nothing waits behind what may come: the parts of chunked framing hold back neither the head nor data (a stream of events pauses anywhere).
func TestHTTP1PartsOfFramingHoldNothingBack(t *testing.T) {
	for what, parts := range map[string][3]string{
		"a size":       {"5\r", "", "\nhello\r\n0\r\n\r\n"},
		"the end":      {"5\r\nhello\r\n0\r\n", "hello", "\r\n"},
		"trailers":     {"5\r\nhello\r\n0\r\nX-T: ", "hello", "1\r\n\r\n"},
		"a chunk's CR": {"5\r\nhello\r", "hello", "\n0\r\n\r\n"},
	} {
		seen := make(chan struct{})
		r := newRig(t, asHTTP1)
		r.backends(scripted(t, func(c *net.TCPConn, in *bufio.Reader, _ int) {
			if _, err := http.ReadRequest(in); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+parts[0])
			<-seen
			io.WriteString(c, parts[2])
		}))
		c := r.client()
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			close(seen)
			continue
		}
		got := make([]byte, len(parts[1]))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != parts[1] {
			t.Errorf("%s: %q, %v", what, got, err)
		}
		close(seen)
		if all := string(got) + bodyOf(t, resp); all != "hello" {
			t.Errorf("%s: %q", what, all)
		}
	}
}

// timeout.request may pass at any moment: the client has an answer all the same.
func TestHTTP1TimeoutAtTheAnswer(t *testing.T) {
	t.Parallel() // it waits
	r := newRig(t, func(s *Service) { s.Protocol = "http1"; s.Request = 200 * time.Microsecond })
	r.backends(web(t, saying("web")))
	codes := map[int]int{}
	for range 1000 {
		c := r.client()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("no answer: %v, behind %v", err, codes)
		}
		codes[resp.StatusCode]++
		c.Close()
	}
	t.Log(codes)
}

// A request that was accepted for a service is answered, even if the service is removed before its goroutine runs; nothing of that service stays.
func TestHTTP1FirstRequestOfARemovedService(t *testing.T) {
	r := newRig(t, asHTTP1)
	r.backends(web(t, saying("web")))
	h, rt := r.proxy.h1, r.proxy.routes["user"]
	for range 20 {
		ours, theirs := tcpPair(t)
		fd, err := dupOf(theirs)
		if err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		r.proxy.clients.Add(1)
		h.remove(rt)
		h.serve(rt, fd, []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
		in := bufio.NewReader(ours)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := bodyOf(t, resp); resp.StatusCode != 200 || got != "web" || !resp.Close {
			t.Fatalf("%d %q, close %v", resp.StatusCode, got, resp.Close)
		}
		if _, err := in.ReadByte(); err != io.EOF {
			t.Errorf("the connection went on: %v", err)
		}
	}
	await(t, "the end of its servers", func() bool { return len(h.all()) == 0 })
}

package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/lbagent/lbagent/agent/calls"
)

// tapped returns the records of the service's calls, in the order in which they end.
func (r *rig) tapped() func() calls.Record {
	r.t.Helper()
	got := make(chan calls.Record, 100)
	r.t.Cleanup(r.proxy.calls.Add("user", func(c *calls.Record) { got <- *c }))
	return func() calls.Record {
		r.t.Helper()
		select {
		case c := <-got:
			if c.Service != "user" || c.Time.IsZero() || c.Total < 0 || c.Wait > c.Total || c.FirstByte > c.Total {
				r.t.Errorf("record %+v", c)
			}
			return c
		case <-time.After(patience):
			r.t.Fatal("no record came")
		}
		return calls.Record{}
	}
}

// ends compares how a call ended, in the words of a log line.
func ends(t *testing.T, c calls.Record, flags, cause string) {
	t.Helper()
	if c.Flags() != flags || (cause == "") != (c.Cause == "") || !strings.Contains(c.Cause, cause) {
		t.Errorf("it ended %s by %q, want %s by %q: %+v", c.Flags(), c.Cause, flags, cause, c)
	}
}

func TestRecordsOfGRPC(t *testing.T) {
	r := newRig(t, func(s *Service) { s.Request = 300 * time.Millisecond })
	b := newGRPC(t)
	r.backends(b.addr)
	client := r.dial()
	if _, err := client.UnaryCall(timeout(t), &testpb.SimpleRequest{}); err != nil { // nobody wants it
		t.Fatal(err)
	}
	next := r.tapped()
	if _, err := client.UnaryCall(timeout(t), &testpb.SimpleRequest{ResponseSize: 1000}); err != nil {
		t.Fatal(err)
	}
	c := next()
	ends(t, c, "--", "")
	if c.Protocol != "grpc" || c.Method != "POST" || c.Path != "/grpc.testing.TestService/UnaryCall" || c.Host != r.addr || c.Status != 200 || c.GRPC != 0 ||
		c.Backend.String() != b.addr || c.Attempts != 1 || c.Out < 1000 || c.In == 0 || c.Wait == 0 || c.FirstByte == 0 || !strings.HasPrefix(c.Client, "127.0.0.1:") {
		t.Errorf("record %+v", c)
	}

	_, err := client.UnaryCall(timeout(t), &testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: 5, Message: "none"}})
	if status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	if c = next(); c.GRPC != 5 || c.Failed() {
		t.Errorf("record %+v", c)
	}

	ctx, cancel := context.WithCancel(timeout(t))
	gone := make(chan struct{})
	before := b.calls.Load()
	go func() {
		defer close(gone)
		_, _ = client.EmptyCall(ctx, &testpb.Empty{})
	}()
	await(t, "the call at the backend", func() bool { return b.calls.Load() > before })
	cancel()
	<-gone
	if c = next(); c.GRPC != codeCancelled || c.Status != statusAborted || c.FirstByte != 0 {
		t.Errorf("record %+v", c)
	}
	ends(t, c, "CW", "the caller cancelled")

	if _, err = client.EmptyCall(timeout(t), &testpb.Empty{}); status.Code(err) != codes.DeadlineExceeded {
		t.Fatal(err)
	}
	if c = next(); c.GRPC != codeDeadline {
		t.Errorf("record %+v", c)
	}
	ends(t, c, "AW", "timeout.request")

	r.backends()
	if _, err = client.UnaryCall(timeout(t), &testpb.SimpleRequest{}); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
	if c = next(); c.GRPC != codeUnavailable || c.Attempts != 0 || c.Backend.IsValid() || c.Wait != 0 || !c.Failed() {
		t.Errorf("record %+v", c)
	}
	ends(t, c, "AC", "user: ")
	r.quiet()
}

// How calls end that a backend doesn't answer as it should.
func TestRecordsOfBackends(t *testing.T) {
	for _, k := range []struct {
		name         string
		answer       func(c *rawConn)
		flags, cause string
		code         int
	}{
		{"reset before headers", func(c *rawConn) { c.fr.WriteRSTStream(1, http2.ErrCodeInternal) }, "BW", "INTERNAL_ERROR", codeUnavailable},
		{"reset after headers", func(c *rawConn) { c.headers(1, false, ":status", "200"); c.fr.WriteRSTStream(1, http2.ErrCodeCancel) }, "BA", "CANCEL", codeUnavailable},
		{"malformed", func(c *rawConn) { c.headers(1, true, "no", "status") }, "BW", "malformed", codeUnavailable},
		{"close before headers", func(c *rawConn) { c.Close() }, "BW", "connection lost", codeUnavailable},
		{"close after headers", func(c *rawConn) { c.headers(1, false, ":status", "200"); c.Close() }, "BA", "connection lost", codeUnavailable},
		{"an answer", func(c *rawConn) { c.headers(1, true, ":status", "200", "grpc-status", "13") }, "--", "", codeInternal},
		{"an answer without a status", func(c *rawConn) { c.headers(1, true, ":status", "200") }, "--", "", codeUnknown},
		{"not gRPC at all", func(c *rawConn) { c.headers(1, true, ":status", "503") }, "--", "", codeUnknown},
	} {
		t.Run(k.name, func(t *testing.T) {
			r := newRig(t, nil)
			b := newRawBackend(t)
			r.backends(b.addr)
			next := r.tapped()
			client := newRawClient(t, r.addr)
			client.call(1, true, "/a/b?q", nil)
			c := b.accept()
			c.request()
			k.answer(c)
			got := next()
			ends(t, got, k.flags, k.cause)
			if got.GRPC != k.code || got.Path != "/a/b" || got.Backend.String() != b.addr || got.Attempts != 1 {
				t.Errorf("record %+v", got)
			}
			r.quiet()
		})
	}
}

func TestRecordsOfHTTP1(t *testing.T) {
	r := newRig(t, func(s *Service) { asHTTP1(s); s.Request = 300 * time.Millisecond })
	release := make(chan struct{})
	addr := web(t, func(w http.ResponseWriter, q *http.Request) {
		switch q.URL.Path {
		case "/post":
			n, _ := io.Copy(io.Discard, q.Body)
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, strings.Repeat("x", int(n)/2))
		case "/slow":
			<-release
		case "/cut":
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, "part")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		default:
			io.WriteString(w, "hello")
		}
	})
	t.Cleanup(func() { close(release) })
	bad := refusing(t)
	r.backends(addr)
	next := r.tapped()
	c := browser(t)
	if code, _ := r.get(c, "/a?token=secret"); code != 200 {
		t.Fatal(code)
	}
	got := next()
	ends(t, got, "--", "")
	if got.Protocol != "http1" || got.Method != "GET" || got.Path != "/a" || got.Host != r.addr || got.Status != 200 || got.GRPC != -1 || got.Backend.String() != addr ||
		got.Attempts != 1 || got.In != 0 || got.Out != 5 || got.Wait == 0 || got.FirstByte < got.Wait || !strings.HasPrefix(got.Client, "127.0.0.1:") {
		t.Errorf("record %+v", got)
	}
	for _, size := range []int{100, 1 << 20} { // with the head, and by an upload
		resp, err := c.Post("http://"+r.addr+"/post", "text/plain", strings.NewReader(strings.Repeat("y", size)))
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if got = next(); got.Method != "POST" || got.Status != 503 || got.In != int64(size) || got.Out != int64(size)/2 || !got.Failed() {
			t.Errorf("record %+v", got)
		}
		ends(t, got, "--", "")
	}
	if code, _ := r.get(c, "/slow"); code != 504 {
		t.Fatal(code)
	}
	got = next()
	ends(t, got, "AW", "timeout.request")
	if resp, err := c.Get("http://" + r.addr + "/cut"); err == nil {
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	ends(t, next(), "BA", "closed")

	conn := r.client()
	io.WriteString(conn, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	await(t, "the request at the backend", func() bool { return r.state(addr).Outstanding() == 1 })
	conn.Close()
	ends(t, next(), "CW", "gone")

	conn = r.client()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
	got = next()
	if ends(t, got, "AR", "Host"); got.Status != 400 || got.Failed() {
		t.Errorf("record %+v", got)
	}

	r.backends(addr, bad)
	for range 2 { // round robin: one of them meets the bad one first
		if code, _ := r.get(c, "/a"); code != 200 {
			t.Fatal(code)
		}
	}
	if n := next().Attempts + next().Attempts; n < 3 {
		t.Errorf("%d attempts, want 3 at least", n)
	}
	r.backends(bad)
	if code, _ := r.get(c, "/a"); code != 503 {
		t.Fatal(code)
	}
	got = next()
	if ends(t, got, "AC", "connection refused"); got.Attempts != 1 || got.Backend.String() != bad || got.Wait != 0 {
		t.Errorf("record %+v", got)
	}
}

func TestRecordsOfTCP(t *testing.T) {
	r := newRig(t, asTCP)
	addr := tcpBackend(t, "tcp4", named("good:"))
	bad := refusing(t)
	r.backends(addr)
	next := r.tapped()
	c := r.client()
	io.WriteString(c, "early")
	read(t, c, "good:early")
	c.CloseWrite()
	io.Copy(io.Discard, c)
	c.Close()
	got := next()
	ends(t, got, "--", "")
	if got.Protocol != "tcp" || got.By != calls.Client || got.Backend.String() != addr || got.Attempts != 1 || got.In != 5 || got.Out != 10 || got.FirstByte == 0 || got.Wait == 0 ||
		got.Client != c.LocalAddr().String() || got.Failed() {
		t.Errorf("record %+v", got)
	}

	c = r.client()
	read(t, c, "good:")
	c.SetLinger(0)
	c.Close()
	ends(t, next(), "CA", "reset")

	mute := make(chan *net.TCPConn, 1)
	broken := tcpBackend(t, "tcp4", func(c *net.TCPConn) {
		mute <- c
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
	})
	r.backends(broken)
	c = r.client()
	<-mute
	io.WriteString(c, "x")
	got = next()
	if ends(t, got, "BW", "reset"); !got.Failed() || got.FirstByte != 0 {
		t.Errorf("record %+v", got)
	}

	r.backends(bad)
	if c, err := net.Dial("tcp", r.addr); err == nil {
		c.Read(make([]byte, 1))
		c.Close()
	} else if !errors.Is(err, unix.ECONNRESET) {
		t.Fatal(err)
	}
	got = next()
	if ends(t, got, "AC", "no usable backend"); got.Attempts != 1 || got.Backend.String() != bad || got.Wait != 0 || !got.Failed() {
		t.Errorf("record %+v", got)
	}
}

// Records are made for those who want them, and for nobody else.
func TestRecordsOfOthers(t *testing.T) {
	r := newRig(t, nil)
	b := newGRPC(t)
	r.backends(b.addr)
	client := r.dial()
	other := 0
	remove := r.proxy.calls.Add("cart", func(*calls.Record) { other++ })
	if _, err := client.UnaryCall(timeout(t), &testpb.SimpleRequest{}); err != nil {
		t.Fatal(err)
	}
	r.onLoop(func(k *relay) {
		for c := k.idleRun; c != nil; c = c.next {
			if c.note != nil {
				t.Error("a call of a service that nobody looks at had a note, and keeps it")
			}
		}
	})
	remove()
	if other != 0 {
		t.Errorf("%d records of another service", other)
	}
}

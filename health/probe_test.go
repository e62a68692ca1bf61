package health

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
)

// probeTimeout is long enough for a busy machine; probes that have to time out use shortTimeout.
const (
	probeTimeout = 20 * time.Second
	shortTimeout = 100 * ms
)

func probeOptions(p ProbeType) Options {
	return Options{Probe: p, Timeout: probeTimeout, Status: [2]int{200, 399}, Path: "/healthz"}
}

func addrOf(l net.Listener) netip.AddrPort { return netip.MustParseAddrPort(l.Addr().String()) }

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// serve has each connection of a new listener handled, with its number from 1.
func serve(t testing.TB, handle func(n int, c net.Conn)) netip.AddrPort {
	l := listen(t)
	go func() {
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(n, c)
			}()
		}
	}()
	return addrOf(l)
}

// grpcServer is a real gRPC server with a health service that knows "user".
func grpcServer(t testing.TB, status healthpb.HealthCheckResponse_ServingStatus, withHealth bool) netip.AddrPort {
	l := listen(t)
	s := grpc.NewServer()
	if withHealth {
		h := grpchealth.NewServer()
		h.SetServingStatus("", status)
		h.SetServingStatus("user", status)
		healthpb.RegisterHealthServer(s, h)
	}
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return addrOf(l)
}

func httpServer(t testing.TB, h http.HandlerFunc) netip.AddrPort {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return addrOf(s.Listener)
}

// silentServer accepts and says nothing: a process that hangs.
func silentServer(t testing.TB) netip.AddrPort {
	return serve(t, func(_ int, c net.Conn) { io.Copy(io.Discard, c) })
}

// deadPort refuses connections.
func deadPort(t testing.TB) netip.AddrPort {
	l := listen(t)
	l.Close()
	return addrOf(l)
}

func TestProbes(t *testing.T) {
	const serving, notServing = healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING
	status := func(code int) func(testing.TB) netip.AddrPort {
		return func(t testing.TB) netip.AddrPort {
			return httpServer(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/healthz" || r.Host == "" {
					code = 404
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(code)
			})
		}
	}
	says := func(text string) func(testing.TB) netip.AddrPort {
		return func(t testing.TB) netip.AddrPort {
			return serve(t, func(_ int, c net.Conn) {
				b := make([]byte, 4096)
				c.Read(b)
				io.WriteString(c, text)
				io.Copy(io.Discard, c)
			})
		}
	}
	grpcIs := func(s healthpb.HealthCheckResponse_ServingStatus, withHealth bool) func(testing.TB) netip.AddrPort {
		return func(t testing.TB) netip.AddrPort { return grpcServer(t, s, withHealth) }
	}
	tcp, http1, grpcs := probeOptions(ProbeTCP), probeOptions(ProbeHTTP), probeOptions(ProbeGRPC)
	h2 := tcp
	h2.HTTP2 = true
	named, unknown := grpcs, grpcs
	named.HealthName, unknown.HealthName = "user", "nobody"
	short := func(o Options) Options { o.Timeout = shortTimeout; return o }

	for _, c := range []struct {
		name string
		o    Options
		peer func(testing.TB) netip.AddrPort
		want outcome
	}{
		{"tcp", tcp, silentServer, outcome{}},
		{"tcp refused", tcp, deadPort, refusedProbe},
		{"h2", h2, grpcIs(serving, true), outcome{}},
		{"h2 refused", h2, deadPort, refusedProbe},
		{"h2 hangs", short(h2), silentServer, outcome{kind: probeUnreachable, cause: "no SETTINGS within 100 ms"}},
		{"h2 to http1", h2, status(200), outcome{kind: probeAnswered, cause: "not an HTTP/2 answer"}},
		{"h2 without SETTINGS first", h2, says(string(appendFrame(nil, framePing, 0, 0, make([]byte, 8)))), outcome{kind: probeAnswered, cause: "not an HTTP/2 answer"}},
		{"http 200", http1, status(200), outcome{}},
		{"http 302 isn't followed", http1, status(302), outcome{}},
		{"http 404", http1, status(404), outcome{kind: probeAnswered, cause: "HTTP 404"}},
		{"http 503", http1, status(503), outcome{kind: probeAnswered, cause: "HTTP 503"}},
		{"http refused", http1, deadPort, refusedProbe},
		{"http hangs", short(http1), silentServer, outcome{kind: probeSilent, cause: "no answer within 100 ms"}},
		{"http nonsense", http1, says("SSH-2.0-OpenSSH_9.2\r\n"), outcome{kind: probeAnswered, cause: "not an HTTP answer"}},
		{"http 100 first", http1, says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"), outcome{}},
		{"http endless head", http1, says("HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", answerMost)), outcome{kind: probeAnswered, cause: "answer too long"}},
		{"http body that never ends", short(http1), says("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nabc"), outcome{}},
		{"http long body", http1, says("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + strings.Repeat("a", 2*answerMost)), outcome{}},
		{"grpc", grpcs, grpcIs(serving, true), outcome{}},
		{"grpc named", named, grpcIs(serving, true), outcome{}},
		{"grpc unknown name", unknown, grpcIs(serving, true), outcome{kind: probeAnswered, cause: "gRPC status 5: its health service doesn't know that name"}},
		{"grpc not serving", named, grpcIs(notServing, true), outcome{kind: probeAnswered, cause: "NOT_SERVING"}},
		{"grpc without health", grpcs, grpcIs(serving, false), outcome{kind: probeAnswered, cause: "gRPC status 12: it has no health service"}},
		{"grpc to http1", grpcs, status(200), outcome{kind: probeAnswered, cause: "not an HTTP/2 answer"}},
		{"grpc refused", grpcs, deadPort, refusedProbe},
		{"grpc hangs", short(grpcs), silentServer, outcome{kind: probeSilent, cause: "no answer within 100 ms"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := newProber().probe(t.Context(), c.o, c.peer(t)); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// The probe's port may be another one than the backend's.
func TestProbePort(t *testing.T) {
	good, bad := silentServer(t), deadPort(t)
	o := probeOptions(ProbeTCP)
	o.Port = good.Port()
	if got := newProber().probe(t.Context(), o, bad); got.kind != probePassed {
		t.Errorf("got %+v", got)
	}
}

// A real HTTP/2 server that isn't grpc-go.
func TestSettingsOfNetHTTP(t *testing.T) {
	l := listen(t)
	s := &http.Server{Handler: http.NotFoundHandler(), Protocols: new(http.Protocols)}
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	o := probeOptions(ProbeTCP)
	o.HTTP2 = true
	if got := newProber().probe(t.Context(), o, addrOf(l)); got.kind != probePassed {
		t.Errorf("tcp: got %+v", got)
	}
	if got := newProber().probe(t.Context(), probeOptions(ProbeGRPC), addrOf(l)); got != (outcome{kind: probeAnswered, cause: "HTTP 404"}) {
		t.Errorf("grpc: got %+v", got)
	}
}

// GOAWAY or a close is no evidence yet: once more, on a new connection (2.1).
func TestProbeOnceMore(t *testing.T) {
	settings := appendFrame(nil, frameSettings, 0, 0, nil)
	goAway := appendFrame(nil, frameGoAway, 0, 0, make([]byte, 8))
	refuse := appendFrame(nil, frameRSTStream, 0, h2Stream, []byte{0, 0, 0, codeRefusedStream})
	read := func(c net.Conn) { c.Read(make([]byte, 4096)) }
	h2 := probeOptions(ProbeTCP)
	h2.HTTP2 = true
	for _, c := range []struct {
		name     string
		o        Options
		first    func(c net.Conn)
		then     func(c net.Conn)
		want     outcome
		connects int32
	}{
		{"close, then well", h2, func(net.Conn) {}, func(c net.Conn) { c.Write(settings); io.Copy(io.Discard, c) }, outcome{}, 2},
		{"GOAWAY, then well", h2, func(c net.Conn) { read(c); c.Write(goAway) }, func(c net.Conn) { c.Write(settings); io.Copy(io.Discard, c) }, outcome{}, 2},
		{"close twice", probeOptions(ProbeHTTP), read, read, outcome{kind: probeSilent, cause: "connection closed"}, 2},
		{"reset twice", probeOptions(ProbeHTTP), reset, reset, outcome{kind: probeSilent, cause: "connection reset"}, 2},
		{"GOAWAY twice", probeOptions(ProbeGRPC), func(c net.Conn) { read(c); c.Write(settings); c.Write(goAway) },
			func(c net.Conn) { read(c); c.Write(settings); c.Write(goAway) }, outcome{kind: probeSilent, cause: "GOAWAY"}, 2},
		{"stream refused", probeOptions(ProbeGRPC), func(c net.Conn) { read(c); c.Write(settings); c.Write(refuse); io.Copy(io.Discard, c) },
			func(c net.Conn) { read(c); c.Write(settings); c.Write(answer(200, "0", 1)); io.Copy(io.Discard, c) }, outcome{}, 2},
		{"an answer is an answer", probeOptions(ProbeGRPC), func(c net.Conn) { read(c); c.Write(settings); c.Write(answer(200, "0", 2)) },
			func(net.Conn) {}, outcome{kind: probeAnswered, cause: "NOT_SERVING"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			var connects atomic.Int32
			addr := serve(t, func(n int, conn net.Conn) {
				connects.Add(1)
				if n == 1 {
					c.first(conn)
				} else {
					c.then(conn)
				}
			})
			got := newProber().probe(t.Context(), c.o, addr)
			// Whether a peer that closes with our bytes unread is seen as a close or as a reset is the kernel's choice.
			if got != c.want && !(got.kind == c.want.kind && strings.HasPrefix(c.want.cause, "connection ") && strings.HasPrefix(got.cause, "connection ")) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if n := connects.Load(); n != c.connects {
				t.Errorf("%d connections, want %d", n, c.connects)
			}
		})
	}
}

func reset(c net.Conn) {
	c.Read(make([]byte, 1))
	c.(*net.TCPConn).SetLinger(0)
}

// answer is the answer to a health check, in frames: padding, a CONTINUATION, and other streams' business in between.
func answer(status int, grpcStatus string, serving byte) []byte {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	e.WriteField(hpack.HeaderField{Name: ":status", Value: fmt.Sprint(status)})
	e.WriteField(hpack.HeaderField{Name: "content-type", Value: "application/grpc"})
	head := bytes.Clone(block.Bytes())
	block.Reset()
	e.WriteField(hpack.HeaderField{Name: "grpc-status", Value: grpcStatus})

	b := appendFrame(nil, frameHeaders, 0, h2Stream, head[:1])
	b = appendFrame(b, frameContinuation, flagEndHeaders, h2Stream, head[1:])
	b = appendFrame(b, framePing, 0, 0, make([]byte, 8))
	b = appendFrame(b, 0x8, 0, 0, []byte{0, 0, 1, 0}) // WINDOW_UPDATE
	b = appendFrame(b, frameData, flagPadded, h2Stream, []byte{3, 0, 0, 0, 0, 2, 8, serving, 0, 0, 0})
	return appendFrame(b, frameHeaders, flagEndHeaders|flagEndStream|flagPriority, h2Stream, append([]byte{0, 0, 0, 0, 0}, block.Bytes()...))
}

// The end of the agent ends its probes at once, and says nothing about backends.
func TestProbeIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	begun := make(chan struct{})
	addr := serve(t, func(_ int, c net.Conn) {
		bufio.NewReader(c).ReadByte()
		close(begun)
		io.Copy(io.Discard, c)
	})
	done := make(chan outcome)
	go func() { done <- newProber().probe(ctx, probeOptions(ProbeHTTP), addr) }()
	<-begun
	cancel()
	if got := <-done; got.kind != probeLocal {
		t.Errorf("got %+v", got)
	}
}

// No descriptor and no goroutine is left by a thousand probes of every kind and end.
func TestProbesLeaveNothing(t *testing.T) {
	good := grpcServer(t, healthpb.HealthCheckResponse_SERVING, true)
	page := httpServer(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	closes := serve(t, func(int, net.Conn) {})
	dead := deadPort(t)
	h2 := probeOptions(ProbeTCP)
	h2.HTTP2 = true
	p := newProber()
	round := func() {
		for _, addr := range []netip.AddrPort{good, page, closes, dead} {
			for _, o := range []Options{probeOptions(ProbeTCP), h2, probeOptions(ProbeHTTP), probeOptions(ProbeGRPC)} {
				o.Timeout = 200 * ms // an HTTP/1 request to a gRPC server gets its SETTINGS, then silence
				p.probe(t.Context(), o, addr)
			}
		}
	}
	round()
	fds, routines := settle(t, func() int { return descriptors(t) }, -1), runtime.NumGoroutine()
	for range 60 {
		round()
	}
	if n := settle(t, func() int { return descriptors(t) }, fds); n > fds {
		t.Errorf("%d descriptors after 1,000 probes, %d before", n, fds)
	}
	if n := settle(t, runtime.NumGoroutine, routines); n > routines {
		t.Errorf("%d goroutines after 1,000 probes, %d before", n, routines)
	}
}

func descriptors(t *testing.T) int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// settle waits until count is at most want (any, if that is negative: then until it stands still), since servers end their side a little later.
func settle(t *testing.T, count func() int, want int) int {
	tick := time.NewTicker(20 * ms)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	last, same := -1, 0
	for {
		n := count()
		if n == last {
			same++
		} else {
			last, same = n, 0
		}
		if n <= want || want < 0 && same > 10 {
			return n
		}
		select {
		case <-tick.C:
		case <-deadline:
			return n
		}
	}
}

func TestCause(t *testing.T) {
	_, err := net.Dial("tcp", deadPort(t).String())
	if got := Cause(fmt.Errorf("dial backend: %w", err)); got != "connection refused" {
		t.Errorf("got %q", got)
	}
	for want, err := range map[string]error{"": nil, "timeout": os.ErrDeadlineExceeded, "connection closed": io.EOF, "odd": fmt.Errorf("odd")} {
		if got := Cause(err); got != want {
			t.Errorf("%v: got %q, want %q", err, got, want)
		}
	}
}

// Whatever a backend answers: no panic, no endless reading, and SERVING only for what says so.
func FuzzGRPCAnswer(f *testing.F) {
	settings := appendFrame(nil, frameSettings, 0, 0, nil)
	f.Add(append(settings, answer(200, "0", 1)...))
	f.Add(append(settings, answer(503, "14", 2)...))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Add(appendFrame(nil, frameGoAway, 0, 0, make([]byte, 8)))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newH2Client(&script{r: bytes.NewReader(b)})
		a, err := c.readAnswer()
		if err != nil || a.check() != nil {
			return
		}
		var want healthpb.HealthCheckResponse
		if err := proto.Unmarshal(a.body[5:], &want); err == nil && want.Status != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("passes, but %x means %v", a.body, want.Status)
		}
	})
}

func FuzzHTTPAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 503 X\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"))
	f.Add([]byte("HTTP/1.0 000 \n\r\n00000000000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		status, err := readStatus(bytes.NewReader(b))
		if err == nil && (status < 100 || status > 999) {
			t.Errorf("status %d from %q", status, b)
		}
	})
}

// script is a peer that says r and takes whatever is written.
type script struct{ r io.Reader }

func (s *script) Read(b []byte) (int, error)  { return s.r.Read(b) }
func (s *script) Write(b []byte) (int, error) { return len(b), nil }

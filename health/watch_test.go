package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// asBackend is set in a process that is a gRPC backend of a test.
const asBackend = "LBAGENT_TEST_HEALTH_BACKEND"

func TestMain(m *testing.M) {
	if os.Getenv(asBackend) != "" {
		os.Exit(backendMain())
	}
	if addrs := os.Getenv(asMonitor); addrs != "" {
		os.Exit(monitorMain(strings.Fields(addrs)))
	}
	os.Exit(m.Run())
}

// backendMain serves health until its parent is gone.
func backendMain() int {
	l, err := net.Listen("tcp4", "0.0.0.0:0") // any address of 127/8 is a backend
	if err != nil {
		return 1
	}
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, grpchealth.NewServer())
	fmt.Println(l.Addr())
	if s.Serve(l) != nil {
		return 1
	}
	return 0
}

// countingListener counts connections.
type countingListener struct {
	net.Listener

	accepted, open atomic.Int32
}

type countedConn struct {
	net.Conn

	open   *atomic.Int32
	closed atomic.Bool
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.accepted.Add(1)
	l.open.Add(1)
	return &countedConn{Conn: c, open: &l.open}, nil
}

func (c *countedConn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.open.Add(-1)
	}
	return c.Conn.Close()
}

// watched is a real gRPC server and a Monitor that probes it.
type watched struct {
	*Monitor
	t       *testing.T
	l       *countingListener
	addr    netip.AddrPort
	server  *grpc.Server
	changes chan Change
	group   fixed
	options Options
}

func fastGRPC() Options {
	o := defaults()
	o.Probe, o.Interval, o.Timeout = ProbeGRPC, 100*ms, probeTimeout
	return o
}

// newWatched registers h, if there is one, as the health service, and probes it.
func newWatched(t *testing.T, h healthpb.HealthServer) *watched {
	w := &watched{t: t, l: &countingListener{Listener: listen(t)}, server: grpc.NewServer()}
	w.addr = addrOf(w.l)
	if h != nil {
		healthpb.RegisterHealthServer(w.server, h)
	}
	go w.server.Serve(w.l)
	t.Cleanup(w.server.Stop)
	w.monitor(fastGRPC(), w.addr)
	return w
}

func (w *watched) monitor(o Options, addrs ...netip.AddrPort) {
	w.changes = make(chan Change, 1000)
	m, err := New(Config{Log: hclog.NewNullLogger(), OnChange: func(_ time.Time, changes []Change) {
		for _, c := range changes {
			w.changes <- c
		}
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Monitor, w.options = m, o
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	w.t.Cleanup(func() { cancel(); <-done })
	for _, addr := range addrs {
		w.group = append(w.group, Target{Addr: addr, State: NewState(time.Now())})
	}
	m.SetActive("g", true)
	m.SetGroup("g", o, w.group)
}

// until waits for a condition.
func (w *watched) until(what string, is func() bool) {
	w.t.Helper()
	tick := time.NewTicker(5 * ms)
	defer tick.Stop()
	deadline := time.After(probeTimeout)
	for !is() {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("%s: not within %v; %+v", what, probeTimeout, w.Stats())
		}
	}
}

// probes waits for n more probes that passed.
func (w *watched) probes(n int) {
	w.t.Helper()
	from := w.Stats().Results.Passed
	w.until(fmt.Sprint(n, " probes pass"), func() bool { return w.Stats().Results.Passed >= from+uint64(n) })
}

// next waits for a verdict.
func (w *watched) next(kind Kind, cause string) {
	w.t.Helper()
	select {
	case c := <-w.changes:
		if c.To.Kind != kind || c.To.Last != cause {
			w.t.Fatalf("verdict %+v, want %v, last %q", c.To, kind, cause)
		}
	case <-time.After(probeTimeout):
		w.t.Fatalf("no verdict; want %v; %+v", kind, w.Stats())
	}
}

// One connection serves all probes, and what the backend says counts at once (2.1).
func TestWatch(t *testing.T) {
	h := grpchealth.NewServer()
	w := newWatched(t, h)
	w.probes(5)
	if n := w.l.accepted.Load(); n != 1 {
		t.Errorf("%d connections for 5 probes", n)
	}
	if n := w.Stats().Watches; n != 1 {
		t.Errorf("%d watches", n)
	}
	h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	w.next(Down, "NOT_SERVING")
	h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	w.next(Up, "")
	h.Shutdown()
	w.next(Down, "NOT_SERVING")
	if f := w.Stats().Results; f.Silent+f.Unreachable != 0 {
		t.Errorf("%+v", f)
	}
}

// Between probes an hour apart, only the stream can tell.
func TestWatchTellsUnasked(t *testing.T) {
	h := grpchealth.NewServer()
	w := newWatched(t, h)
	w.until("the next probe is an hour away", func() (away bool) {
		w.ask(t.Context(), func(c *core) {
			g := c.group("g")
			g.options.Interval = time.Hour
			away = len(g.targets) == 1 && time.Until(g.targets[0].probeAt) > time.Minute
		})
		return away
	})
	n := w.Stats().Probes
	h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	w.next(Down, "NOT_SERVING")
	if got := w.Stats().Probes; got != n {
		t.Errorf("%d probes instead of a word of the backend", got-n)
	}
}

// The name that is asked about.
func TestWatchName(t *testing.T) {
	h := grpchealth.NewServer()
	h.SetServingStatus("user", healthpb.HealthCheckResponse_NOT_SERVING)
	w := newWatched(t, h)
	w.probes(2)
	o := w.options
	o.HealthName = "user"
	w.SetGroup("g", o, w.group)
	w.next(Down, "NOT_SERVING")
	o.HealthName = "nobody"
	w.SetGroup("g", o, w.group)
	w.until("it says that it doesn't know the name", func() bool {
		v := w.group[0].State.Verdict()
		return v != nil && v.Last == "SERVICE_UNKNOWN"
	})
	h.SetServingStatus("nobody", healthpb.HealthCheckResponse_SERVING)
	w.next(Up, "")
}

// onlyCheck is a health service without Watch, as many are.
type onlyCheck struct {
	healthpb.UnimplementedHealthServer

	checks atomic.Int32
}

func (h *onlyCheck) Check(context.Context, *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	h.checks.Add(1)
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// refusesWatch has a Watch that lets nobody in.
type refusesWatch struct {
	onlyCheck

	watches atomic.Int32
}

func (h *refusesWatch) Watch(*healthpb.HealthCheckRequest, grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	h.watches.Add(1)
	return status.Error(codes.Unauthenticated, "who are you")
}

// Without Watch, or with one that answers something else, Check is asked, and Watch not each time again (2.1).
func TestWatchIsNotOffered(t *testing.T) {
	check := &onlyCheck{}
	w := newWatched(t, check)
	w.probes(5)
	if n := check.checks.Load(); n < 5 {
		t.Errorf("%d checks", n)
	}
	if n := w.l.accepted.Load() - check.checks.Load(); n != 1 {
		t.Errorf("%d connections beside those of checks, want one for the Watch that failed", n)
	}
	refuses := &refusesWatch{}
	w = newWatched(t, refuses)
	w.probes(5)
	if n := refuses.watches.Load(); n != 1 {
		t.Errorf("%d times watched", n)
	}
	w = newWatched(t, nil)
	w.next(Down, "gRPC status 12: it has no health service")
}

// silentWatch never says anything, like something between that holds streams back until they end.
type silentWatch struct{ onlyCheck }

func (*silentWatch) Watch(_ *healthpb.HealthCheckRequest, s grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	<-s.Context().Done()
	return nil
}

func TestWatchSaysNothing(t *testing.T) {
	w := newWatched(t, &silentWatch{})
	o := w.options
	o.Timeout = 500 * ms
	w.monitor(o, w.addr)
	w.probes(3)
}

// A server that stops gracefully waits for its streams: a watch must not hold it up. After it, nobody listens.
func TestWatchLetsServersStop(t *testing.T) {
	w := newWatched(t, grpchealth.NewServer())
	w.probes(2)
	done := make(chan struct{})
	go func() { w.server.GracefulStop(); close(done) }()
	select {
	case <-done:
	case <-time.After(probeTimeout):
		t.Fatal("GracefulStop waits")
	}
	// Three refused connects make it unreachable and down, whichever is told first.
	w.until("it is down", func() bool {
		v := w.group[0].State.Verdict()
		return v != nil && v.Kind == Down && v.Last == "connection refused"
	})
}

// A connection that breaks is opened again, and is no evidence (2.1).
func TestWatchIsReopened(t *testing.T) {
	w := newWatched(t, grpchealth.NewServer())
	proxyTo := func() (netip.AddrPort, func()) {
		var last atomic.Pointer[net.Conn]
		addr := serve(t, func(_ int, c net.Conn) {
			to, err := net.Dial("tcp", w.addr.String())
			if err != nil {
				return
			}
			last.Store(&c)
			go func() { pipe(to, c); to.Close() }()
			pipe(c, to)
		})
		return addr, func() { (*last.Load()).Close() }
	}
	addr, cut := proxyTo()
	w.monitor(fastGRPC(), addr)
	for range 3 {
		w.probes(3)
		before := w.l.accepted.Load()
		cut()
		w.until("it is opened again", func() bool { return w.l.accepted.Load() > before })
	}
	w.probes(3)
	if r := w.Stats().Results; r.Silent+r.Unreachable+r.Answered != 0 || len(w.changes) != 0 {
		t.Errorf("%+v, %d changes", r, len(w.changes))
	}
}

func pipe(to, from net.Conn) {
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// A process that is stopped keeps its connections and acknowledges in the kernel: its silence is noticed all the same, by each kind of probe that can (2.1).
func TestStoppedProcess(t *testing.T) {
	h2 := fastGRPC()
	h2.Probe, h2.HTTP2 = ProbeTCP, true
	for _, c := range []struct {
		name, cause string
		o           Options
	}{{"grpc", "no answer within 1 s", fastGRPC()}, {"h2", "no SETTINGS within 1 s", h2}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), asBackend+"=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
			b := make([]byte, 100)
			n, err := out.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			w := &watched{t: t}
			c.o.Timeout, c.o.Fall = time.Second, 2
			port := netip.MustParseAddrPort(strings.TrimSpace(string(b[:n]))).Port()
			w.monitor(c.o, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port))
			w.probes(3)
			if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			w.next(Down, c.cause)
			if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			w.until("it is up", func() bool { return w.group[0].State.Verdict() == nil })
		})
	}
}

// Watches are bounded; who has none is polled. All of them end with their group, and leave nothing.
func TestWatchesAreBounded(t *testing.T) {
	w := newWatched(t, grpchealth.NewServer())
	w.probes(1)
	before := descriptors(t)
	o := w.options
	var all fixed
	for range 5 {
		all = append(all, Target{Addr: w.addr, State: NewState(time.Now())})
	}
	w.ask(t.Context(), func(*core) { w.watches.most = 3 })
	w.SetGroup("more", o, all)
	w.SetActive("more", true)
	w.until("all were probed twice", func() bool {
		ok := true
		w.ask(t.Context(), func(c *core) {
			for _, t := range c.group("more").targets {
				ok = ok && t.passes >= 2
			}
		})
		return ok
	})
	if n := w.Stats().Watches; n != 3 {
		t.Errorf("%d watches", n)
	}
	w.SetActive("more", false)
	w.until("one is left", func() bool { return w.Stats().Watches == 1 && w.l.open.Load() == 1 })
	w.SetGroup("more", o, nil)
	w.SetGroup("g", o, nil)
	w.until("none is left", func() bool { return w.Stats().Watches == 0 && w.l.open.Load() == 0 })
	if n := settle(t, func() int { return descriptors(t) }, before); n > before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

// flood changes its mind as fast as it can.
type flood struct{ onlyCheck }

func (*flood) Watch(_ *healthpb.HealthCheckRequest, s grpc.ServerStreamingServer[healthpb.HealthCheckResponse]) error {
	for i := 0; ; i++ {
		if err := s.Send(&healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_ServingStatus(1 + i%2)}); err != nil {
			return err
		}
	}
}

// What a backend can make a Monitor read and tell is bounded.
func TestWatchFlood(t *testing.T) {
	w := &watched{t: t, l: &countingListener{Listener: listen(t)}, server: grpc.NewServer()}
	healthpb.RegisterHealthServer(w.server, &flood{})
	go w.server.Serve(w.l)
	t.Cleanup(w.server.Stop)
	quiet := newWatched(t, grpchealth.NewServer())
	var told atomic.Int32
	m, err := New(Config{Log: hclog.NewNullLogger(), OnChange: func(_ time.Time, c []Change) { told.Add(int32(len(c))) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- m.Run(ctx) }()
	defer func() { cancel(); <-done }()
	o := fastGRPC()
	group := fixed{{Addr: addrOf(w.l), State: NewState(time.Now())}, {Addr: quiet.addr, State: NewState(time.Now())}}
	m.SetActive("g", true)
	m.SetGroup("g", o, group)
	w.Monitor = m
	w.until("it was replaced a few times", func() bool { return w.l.accepted.Load() >= 5 })
	n := w.l.accepted.Load()
	// 64 KiB hold some 4,000 statuses of 16 bytes; each wake-up tells one of them at most for each read of 4 KiB.
	if told.Load() > 40*n {
		t.Errorf("%d verdicts told in the life of %d connections", told.Load(), n)
	}
	if v := group[1].State.Verdict(); v != nil {
		t.Errorf("the other one is %+v", v)
	}
}

// What the stream makes of bytes, in one piece and byte by byte.
func TestWatchStream(t *testing.T) {
	settings := appendFrame(nil, frameSettings, 0, 0, nil)
	ack := appendFrame(nil, frameSettings, flagAck, 0, nil)
	goAway := appendFrame(nil, frameGoAway, 0, 0, make([]byte, 8))
	ping := appendFrame(nil, framePing, 0, 0, []byte("12345678"))
	refuse := appendFrame(nil, frameRSTStream, 0, h2Stream, []byte{0, 0, 0, codeRefusedStream})
	reset := appendFrame(nil, frameRSTStream, 0, h2Stream, []byte{0, 0, 0, 2})
	ok, teapot := []byte{0x88}, []byte{0x08, 3, '4', '1', '8'}
	head := appendFrame(nil, frameHeaders, flagEndHeaders, h2Stream, ok)
	pieces := append(appendFrame(nil, frameHeaders, 0, h2Stream, ok[:0]), appendFrame(nil, frameContinuation, flagEndHeaders, h2Stream, ok)...)
	says := func(status byte) []byte {
		return appendFrame(nil, frameData, flagPadded, h2Stream, []byte{2, 0, 0, 0, 0, 2, 8, status, 0, 0})
	}
	end := appendFrame(nil, frameHeaders, flagEndHeaders|flagEndStream, h2Stream, ok)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, c := range []struct {
		name   string
		in     []byte
		status uint64 // 0 = nothing was said
		out    []byte
		err    error
	}{
		{"serving", join(settings, ack, head, says(1)), 1, ack, nil},
		{"header block in pieces", join(settings, pieces, says(2)), 2, ack, nil},
		{"changes its mind", join(settings, head, says(1), says(2)), 2, ack, nil},
		{"answers PING", join(settings, head, ping), 0, join(ack, appendFrame(nil, framePing, flagAck, 0, []byte("12345678"))), nil},
		{"other frames", join(settings, appendFrame(nil, 0x8, 0, 0, []byte{0, 0, 1, 0}), appendFrame(nil, 0x42, 0, h2Stream, nil), head, says(3)), 3, ack, nil},
		{"GOAWAY", join(settings, head, says(1), appendFrame(nil, frameGoAway, 0, 0, []byte{0, 0, 0, 9, 0, 0, 0, 0})), 1, ack, errClosed{"GOAWAY"}},
		{"GOAWAY first", goAway, 0, nil, errClosed{"GOAWAY"}},
		{"refused", join(settings, refuse), 0, ack, errClosed{"stream refused"}},
		{"reset", join(settings, reset), 0, ack, errNoWatch},
		{"reset later", join(settings, head, says(1), reset), 1, ack, errClosed{"stream reset"}},
		{"unimplemented", join(settings, end), 0, ack, errNoWatch},
		{"ends later", join(settings, head, says(1), end), 1, ack, errClosed{"the stream of the watch ended"}},
		{"ends with DATA", join(settings, head, appendFrame(nil, frameData, flagEndStream, h2Stream, []byte{0, 0, 0, 0, 2, 8, 1})), 1, ack, errClosed{"the stream of the watch ended"}},
		{"not 200", join(settings, appendFrame(nil, frameHeaders, flagEndHeaders, h2Stream, teapot)), 0, ack, errNoWatch},
		{"a table that it may not use", join(settings, appendFrame(nil, frameHeaders, flagEndHeaders, h2Stream, []byte{0xbe})), 0, ack, errNoWatch},
		{"not HTTP/2", []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), 0, nil, errNoWatch},
		{"no SETTINGS first", ping, 0, nil, errNoWatch},
		{"push", join(settings, appendFrame(nil, framePushPromise, 0, h2Stream, make([]byte, 4))), 0, ack, errNoWatch},
		{"DATA first", join(settings, says(1)), 0, ack, errNoWatch},
		{"nonsense", join(settings, head, appendFrame(nil, frameData, 0, h2Stream, []byte{1, 0, 0, 0, 0})), 0, ack, errNoWatch},
		{"nonsense later", join(settings, head, says(1), appendFrame(nil, frameData, 0, h2Stream, []byte{1, 0, 0, 0, 0})), 1, ack, errClosed{"not a health answer"}},
		{"too much", join(settings, head, says(1), bytes.Repeat(appendFrame(nil, 0x42, 0, 0, make([]byte, 1000)), 70)), 1, ack, errClosed{"the watch was replaced"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, step := range []int{len(c.in), 1, 7} {
				w := &watchStream{}
				err := feedIn(w, c.in, step)
				if !errors.Is(err, c.err) || w.status != c.status || !bytes.Equal(w.out, c.out) {
					if c.name != "too much" || step != len(c.in) { // which is too much before anything is read
						t.Errorf("in steps of %d: status %d, out %x, %v", step, w.status, w.out, err)
					}
				}
			}
		})
	}
}

func feedIn(w *watchStream, in []byte, step int) error {
	for len(in) > 0 {
		n := min(step, len(in))
		if err := w.feed(in[:n]); err != nil {
			return err
		}
		in = in[n:]
	}
	return nil
}

// Whatever a backend sends: no panic, no growth, and the same however it comes in pieces.
func FuzzWatchStream(f *testing.F) {
	settings := appendFrame(nil, frameSettings, 0, 0, nil)
	head := appendFrame(nil, frameHeaders, flagEndHeaders, h2Stream, []byte{0x88})
	f.Add(append(append(settings, head...), appendFrame(nil, frameData, 0, h2Stream, []byte{0, 0, 0, 0, 2, 8, 1})...), uint8(3))
	f.Add(append(settings, answer(200, "0", 1)...), uint8(1))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), uint8(9))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		if len(b) > h2ReadMost {
			return
		}
		whole, pieces := &watchStream{}, &watchStream{}
		err, err2 := whole.feed(b), feedIn(pieces, b, int(step)+1)
		if fmt.Sprint(err) != fmt.Sprint(err2) || whole.status != pieces.status || whole.said != pieces.said || !bytes.Equal(whole.out, pieces.out) {
			t.Errorf("whole: %v %v %x, in pieces: %v %v %x", err, whole.status, whole.out, err2, pieces.status, pieces.out)
		}
		if n := len(pieces.rest) + len(pieces.block) + len(pieces.message); n > 2*h2ReadMost {
			t.Errorf("keeps %d bytes", n)
		}
	})
}

package health

import (
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/lbagent/lbagent/agent/testneed"
)

// blackHole is an address that takes a SYN and never answers: the backlog of its listener is full.
func blackHole(t testing.TB) netip.AddrPort {
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
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
	for {
		c, err := net.DialTimeout("tcp", addr.String(), shortTimeout)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
}

// sweepOne runs one probe to its end.
func sweepOne(t testing.TB, o Options, addr netip.AddrPort) outcome {
	t.Helper()
	s := new(sweep)
	defer s.close()
	p := probeJob{t: &target{}, options: o, addr: addr}
	if !s.takes(&p) {
		t.Fatal("not a probe for a sweep")
	}
	r, done := s.start(time.Now(), p)
	if done {
		return r.outcome
	}
	tick := time.NewTicker(ms)
	defer tick.Stop()
	for range tick.C {
		if results := s.collect(time.Now(), nil); len(results) > 0 {
			return results[0].outcome
		}
	}
	return outcome{}
}

// A sweep comes to the same results as a probe of its own.
func TestSweep(t *testing.T) {
	short := probeOptions(ProbeTCP)
	short.Timeout = shortTimeout
	testneed.IPv6(t)
	six, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer six.Close()
	four := silentServer(t)
	mapped := netip.AddrPortFrom(netip.AddrFrom16(four.Addr().As16()), four.Port())
	h2, slow := short, probeOptions(ProbeTCP)
	h2.HTTP2, slow.HTTP2 = true, true
	says := func(parts ...string) netip.AddrPort {
		return serve(t, func(_ int, c net.Conn) {
			c.Read(make([]byte, 4096))
			for _, part := range parts {
				io.WriteString(c, part)
			}
			io.Copy(io.Discard, c)
		})
	}
	settings := string(appendFrame(nil, frameSettings, 0, 0, nil))
	goAway := string(appendFrame(nil, frameGoAway, 0, 0, make([]byte, 8)))
	for _, c := range []struct {
		name string
		o    Options
		addr netip.AddrPort
		want outcome
	}{
		{"accepts", short, four, outcome{}},
		{"accepts, IPv6", short, addrOf(six), outcome{}},
		{"accepts, IPv4 in IPv6", short, mapped, outcome{}},
		{"refuses", short, deadPort(t), refusedProbe},
		{"never answers", short, blackHole(t), outcome{kind: probeUnreachable, cause: "timeout"}},
		{"h2", slow, grpcServer(t, healthpb.HealthCheckResponse_SERVING, false), outcome{}},
		{"h2 says more", slow, says(settings, settings, goAway), outcome{}},
		{"h2 hangs", h2, four, outcome{kind: probeUnreachable, cause: "no SETTINGS within 100 ms"}},
		{"h2 refuses", slow, deadPort(t), refusedProbe},
		{"h2 goes away", slow, says(goAway), outcome{kind: probeUnreachable, cause: "GOAWAY"}},
		{"h2 closes", slow, serve(t, func(_ int, c net.Conn) { c.Read(make([]byte, 4096)) }), outcome{kind: probeUnreachable, cause: "connection closed"}},
		{"not h2", slow, says("HTTP/1.1 400 Bad Request\r\n\r\n"), outcome{kind: probeAnswered, cause: "not an HTTP/2 answer"}},
		{"h2 without SETTINGS first", slow, says(string(appendFrame(nil, framePing, 0, 0, make([]byte, 8)))), outcome{kind: probeAnswered, cause: "not an HTTP/2 answer"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			swept := sweepOne(t, c.o, c.addr)
			probed := newProber().probe(t.Context(), c.o, c.addr)
			if swept != c.want || probed != c.want {
				t.Errorf("swept %+v, probed %+v, want %+v", swept, probed, c.want)
			}
		})
	}
}

// SETTINGS may come a byte at a time.
func TestSweepReadsPieces(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	s := new(sweep)
	defer s.close()
	job := probeJob{t: &target{}, options: probeOptions(ProbeTCP)}
	s.flights = []flight{{job: job, fd: pair[0], greeting: true, deadline: time.Now().Add(probeTimeout)}}
	settings := appendFrame(nil, frameSettings, 0, 0, nil)
	for i := range settings {
		if results := s.collect(time.Now(), nil); len(results) != 0 {
			t.Fatalf("%+v after %d bytes", results[0].outcome, i)
		}
		if _, err := unix.Write(pair[1], settings[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if results := s.collect(time.Now(), nil); len(results) != 1 || results[0].kind != probePassed {
		t.Fatalf("%+v after all bytes", results)
	}
}

// What no sweep can do is left to the prober.
func TestSweepTakes(t *testing.T) {
	for _, p := range []probeJob{
		{options: probeOptions(ProbeHTTP), addr: backend(1)},
		{options: probeOptions(ProbeGRPC), addr: backend(1)},
		{options: probeOptions(ProbeTCP), addr: netip.MustParseAddrPort("[fe80::1%eth0]:80")},
	} {
		if new(sweep).takes(&p) {
			t.Errorf("takes %+v", p)
		}
	}
}

// Many at once, of every kind: each has its own result, in its own time, and no descriptor is left.
func TestSweepOfMany(t *testing.T) {
	addrs := []netip.AddrPort{silentServer(t), deadPort(t), blackHole(t)}
	want := []probeKind{probePassed, probeUnreachable, probeUnreachable}
	before := descriptors(t)
	s := new(sweep)
	o := probeOptions(ProbeTCP)
	o.Timeout = shortTimeout
	targets := map[*target]int{}
	var results []result
	for i := range 90 {
		tg := &target{}
		targets[tg] = i % 3
		if r, done := s.start(time.Now(), probeJob{t: tg, options: o, addr: addrs[i%3]}); done {
			results = append(results, r)
		}
	}
	tick := time.NewTicker(ms)
	defer tick.Stop()
	for len(results) < 90 {
		<-tick.C
		results = s.collect(time.Now(), results)
	}
	for _, r := range results {
		i, ok := targets[r.t]
		if !ok {
			t.Fatal("a result twice, or of nobody")
		}
		delete(targets, r.t)
		if r.kind != want[i] {
			t.Errorf("probe of %v: %+v", addrs[i], r.outcome)
		}
	}
	if len(s.flights) != 0 {
		t.Errorf("%d flights left", len(s.flights))
	}
	if n := settle(t, func() int { return descriptors(t) }, before); n > before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

// close gives up what is under way.
func TestSweepCloses(t *testing.T) {
	addr := blackHole(t)
	before := descriptors(t)
	s := new(sweep)
	for range 10 {
		s.start(time.Now(), probeJob{t: &target{}, options: probeOptions(ProbeTCP), addr: addr})
	}
	if len(s.flights) != 10 {
		t.Fatalf("%d under way", len(s.flights))
	}
	s.close()
	if n := descriptors(t); n > before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

// A connection that is closed gets a second one, and no third (2.1).
func TestSweepOnceMore(t *testing.T) {
	h2 := probeOptions(ProbeTCP)
	h2.HTTP2 = true
	settings := appendFrame(nil, frameSettings, 0, 0, nil)
	var connects atomic.Int32
	addr := serve(t, func(n int, c net.Conn) {
		connects.Add(1)
		c.Read(make([]byte, 4096))
		if n == 2 {
			c.Write(settings)
			io.Copy(io.Discard, c)
		}
	})
	if got := sweepOne(t, h2, addr); got != (outcome{}) || connects.Load() != 2 {
		t.Errorf("%+v after %d connections", got, connects.Load())
	}
	connects.Store(0)
	if got := sweepOne(t, h2, addr); got.kind != probeUnreachable || connects.Load() != 2 {
		t.Errorf("%+v after %d connections", got, connects.Load())
	}

	s := new(sweep)
	f := &flight{job: probeJob{t: &target{}, options: probeOptions(ProbeTCP), addr: addr}, again: true}
	if r, done := s.ended(time.Now(), f, unix.ECONNRESET); !done || r.outcome != (outcome{kind: probeSilent, cause: "connection reset"}) {
		t.Errorf("done %v, %+v", done, r.outcome)
	}
	if r, _ := s.ended(time.Now(), f, dialError(unix.EMFILE)); r.kind != probeLocal {
		t.Errorf("out of descriptors: %+v", r.outcome)
	}
}

func BenchmarkSweep(b *testing.B) {
	addr := serve(b, func(int, net.Conn) {})
	s := new(sweep)
	defer s.close()
	o := probeOptions(ProbeTCP)
	b.ReportAllocs()
	before := processTime(b)
	for b.Loop() {
		s.start(time.Now(), probeJob{t: &target{}, options: o, addr: addr})
		if len(s.flights) == 10 {
			for len(s.flights) > 0 {
				s.collect(time.Now(), nil)
			}
		}
	}
	b.ReportMetric(float64(processTime(b)-before)/float64(b.N), "cpu-ns/op")
}

// Probes of backends that are near are over when the last of their batch has begun, so that nobody has to wake for their ends.
func TestSweepIsOverAtOnce(t *testing.T) {
	m, err := New(Config{Log: hclog.NewNullLogger(), OnChange: func(time.Time, []Change) {}})
	if err != nil {
		t.Fatal(err)
	}
	c := newCore(m.inbox, func() float64 { return 0.5 }, &m.stats, hclog.NewNullLogger())
	begun := time.Now()
	all := make(fixed, paceBurst)
	l, err := net.Listen("tcp4", "0.0.0.0:0") // any address of 127/8 is a backend
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range all {
		all[i] = Target{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(i)}), addrOf(l).Port()), State: NewState(begun)}
	}
	c.setGroup(begun, "g", defaults(), all)
	c.setActive(begun, "g", true)
	for now := begun; ; now, _ = c.next(now) { // a busy machine may take its time over the first ones
		if now.Sub(begun) > time.Hour {
			t.Fatal("no batch was over at once")
		}
		before := m.Stats().Probes
		m.start(t.Context(), now, c, nil)
		if m.Stats().Probes-before >= paceBurst/2 && len(m.sweep.flights) == 0 {
			break
		}
		for len(m.sweep.flights) > 0 {
			m.takeSwept(time.Now(), c)
		}
	}
	if next := m.next(begun, c); next.Equal(begun.Add(wakeGrain)) {
		t.Error("a wake-up for probes that are over")
	}
}

package health

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// What a probe costs, with the peer's side of it, in processor time: 200 of them run per second at most (2.3).
func BenchmarkProbe(b *testing.B) {
	h2 := probeOptions(ProbeTCP)
	h2.HTTP2 = true
	peer := grpcServer(b, healthpb.HealthCheckResponse_SERVING, true)
	tcp := serve(b, func(int, net.Conn) {})
	page := serve(b, func(_ int, c net.Conn) {
		c.Read(make([]byte, 4096))
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	})
	for _, c := range []struct {
		name string
		o    Options
	}{{"tcp", probeOptions(ProbeTCP)}, {"h2", h2}, {"http", probeOptions(ProbeHTTP)}, {"grpc", probeOptions(ProbeGRPC)}} {
		b.Run(c.name, func(b *testing.B) {
			addr := peer
			switch c.name {
			case "tcp":
				addr = tcp
			case "http":
				addr = page
			}
			p := newProber()
			b.ReportAllocs()
			before := processTime(b)
			for b.Loop() {
				if got := p.probe(b.Context(), c.o, addr); got.kind != probePassed {
					b.Fatalf("%+v", got)
				}
			}
			b.ReportMetric(float64(processTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

func processTime(b *testing.B) int64 {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return r.Utime.Nano() + r.Stime.Nano()
}

// What the tick of a second costs for n backends that all have calls, of which one in ten fails (2.5).
func BenchmarkRoll(b *testing.B) {
	const n = 1000
	c := newCore(newInbox(), func() float64 { return 0.5 }, &stats{}, hclog.NewNullLogger())
	o := defaults()
	o.SuccessRate, o.Probe = 50, ProbeNone
	all := targets(epoch, n)
	c.setGroup(epoch, "g", o, all)
	c.setActive(epoch, "g", true)
	now := epoch
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for i := range all {
			call(all[i].State, now.Sub(epoch), Success)
			all[i].State.bad().own.note([]Result{Failure, AppError, AppError}[min(i%10, 2)], 0, 1)
		}
		for t := range c.inbox.take() {
			c.judge(now, t)
		}
		now = now.Add(time.Second)
		b.StartTimer()
		c.roll(now)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/backend")
}

// What the Monitor does beside its probes for a new list of n backends of which one is new.
func BenchmarkSetGroup(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := newCore(newInbox(), func() float64 { return 0.5 }, &stats{}, hclog.NewNullLogger())
			sets := []fixed{targets(epoch, n), nil}
			sets[1] = append(fixed{}, sets[0]...)
			sets[1][n/2].State = NewState(epoch)
			c.setActive(epoch, "g", true)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				c.setGroup(epoch.Add(time.Duration(i)), "g", defaults(), sets[i%2])
			}
		})
	}
}

// What probing 1,000 backends of another process costs, per second, all in: one iteration is one second of it.
func BenchmarkProbing(b *testing.B) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asBackend+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	port := netip.MustParseAddrPort(strings.TrimSpace(line)).Port()
	h2 := defaults()
	h2.HTTP2 = true
	grpc := defaults()
	grpc.Probe = ProbeGRPC
	for _, c := range []struct {
		name string
		o    Options
	}{{"tcp", defaults()}, {"h2", h2}, {"grpc", grpc}} {
		b.Run(c.name, func(b *testing.B) {
			m, err := New(Config{Log: hclog.NewNullLogger(), OnChange: func(_ time.Time, c []Change) { b.Errorf("%+v", c) }})
			if err != nil {
				b.Fatal(err)
			}
			all := targets(time.Now(), 1000)
			for i := range all { // the backend listens on all of 127/8
				all[i].Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), port)
			}
			m.SetGroup("g", c.o, all)
			m.SetActive("g", true)
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error)
			go func() { done <- m.Run(ctx) }()
			<-time.After(7 * time.Second) // all of them were probed
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			before, probes := processTime(b), m.Stats().Probes
			for b.Loop() {
				<-tick.C
			}
			cost, probes := processTime(b)-before, m.Stats().Probes-probes
			b.ReportMetric(float64(cost)/float64(b.N)/1e7, "cpu-%")
			b.ReportMetric(float64(cost)/float64(probes)/1e3, "cpu-µs/probe")
			b.ReportMetric(float64(probes)/float64(b.N), "probes/s")
			cancel()
			<-done
		})
	}
}

package health

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// asMonitor is set in a process that only probes: to the addresses of a tcp, an http, an h2 and a grpc backend.
const asMonitor = "LBAGENT_TEST_HEALTH_MONITOR"

// monitorMain probes until its parent is gone, and says how it goes.
func monitorMain(addrs []string) int {
	m, err := New(Config{Log: hclog.NewNullLogger(), OnChange: func(time.Time, []Change) {}})
	if err != nil {
		return 1
	}
	for i, addr := range addrs {
		o := defaults()
		o.Interval, o.Timeout, o.Status = 100*ms, 2*time.Second, [2]int{200, 200}
		o.Probe, o.HTTP2 = []ProbeType{ProbeTCP, ProbeHTTP, ProbeTCP, ProbeGRPC}[i], i == 2
		var all fixed
		for range 20 {
			all = append(all, Target{Addr: netip.MustParseAddrPort(addr), State: NewState(time.Now())})
		}
		m.SetActive(addr, true)
		m.SetGroup(addr, o, all)
	}
	go func() {
		for range time.Tick(50 * ms) {
			s := m.Stats()
			fmt.Println(s.Results.Passed, s.Results.PutOff, s.ProbeFailures)
		}
	}()
	if m.Run(context.Background()) != nil {
		return 1
	}
	return 0
}

// A process that was stopped, as one is that gets no processor, or is moved to another machine, finds all its deadlines passed: no backend is to blame for that (2.3).
func TestLateIsNotFailed(t *testing.T) {
	slow := httpServer(t, func(w http.ResponseWriter, r *http.Request) {
		select { // so that some of its probes are always under way
		case <-time.After(500 * ms):
		case <-r.Context().Done():
		}
	})
	h2 := grpcServer(t, healthpb.HealthCheckResponse_SERVING, true)
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), fmt.Sprint(asMonitor, "=", strings.Join([]string{silentServer(t).String(), slow.String(), slowly(t, h2).String(), h2.String()}, " ")))
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	lines := bufio.NewScanner(out)
	var passed, putOff, failed int
	until := func(want int) {
		for passed < want && lines.Scan() {
			if _, err := fmt.Sscan(lines.Text(), &passed, &putOff, &failed); err != nil {
				t.Fatalf("%q: %v", lines.Text(), err)
			}
		}
		if passed < want {
			t.Fatalf("%d probes passed, then it ended", passed)
		}
	}
	until(200)
	before, was := failed, passed
	c.Process.Signal(syscall.SIGSTOP)
	<-time.After(3500 * ms) // longer than a timeout
	c.Process.Signal(syscall.SIGCONT)
	until(was + 400)
	if failed != before {
		t.Errorf("%d probes failed since the prober was stopped", failed-before)
	}
	t.Logf("%d passed, %d put off", passed, putOff)
}

// slowly passes on what it gets, half a second later.
func slowly(t *testing.T, to netip.AddrPort) netip.AddrPort {
	return serve(t, func(_ int, c net.Conn) {
		<-time.After(500 * ms)
		there, err := net.Dial("tcp", to.String())
		if err != nil {
			return
		}
		defer there.Close()
		go pipe(there, c)
		pipe(c, there)
	})
}

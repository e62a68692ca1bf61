package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/testneed"
	"google.golang.org/grpc/codes"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
)

// A backend that hangs is found within a second of silence and a second for the answer to a PING (2.11); the rest is for a machine that is busy, or stands still. Without PINGs a host that is gone is
// found after 15 s, by TCP, and a process that is stopped never.
const hangFound = time.Minute

// These tests run again in processes of their own: one is a backend that can be stopped, one has a network namespace to itself.
const (
	asBackend   = "LBAGENT_TEST_AS_BACKEND"
	inNamespace = "LBAGENT_TEST_IN_NAMESPACE"
)

// again is this test alone, in a process of its own.
func again(t *testing.T, variable string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self, "-test.run=^"+strings.Split(t.Name(), "/")[0]+"$", "-test.v", "-test.timeout=10m", "-test.parallel=16")
	c.Env = append(os.Environ(), variable+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

// A backend process that is stopped by SIGSTOP: its kernel goes on, accepts and acknowledges, and nothing is ever answered.
func TestStoppedBackend(t *testing.T) {
	t.Parallel() // it waits
	if os.Getenv(asBackend) != "" {
		b := newGRPC(t)
		fmt.Println("ADDRESS", b.addr)
		io.Copy(io.Discard, os.Stdin)
		return
	}
	for _, k := range hangCases() {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			c := again(t, asBackend)
			in, err := c.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Process.Kill(); in.Close(); c.Wait() })
			addr := ""
			for lines := bufio.NewScanner(out); addr == "" && lines.Scan(); {
				_, addr, _ = strings.Cut(lines.Text(), "ADDRESS ")
			}
			if addr == "" {
				t.Fatal("the backend's process says no address")
			}
			k.run(t, addr, func() {
				if err := c.Process.Signal(syscall.SIGSTOP); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A backend whose packets are dropped, both ways, by nftables, in a network namespace of the test.
func TestBlackHole(t *testing.T) {
	t.Parallel() // it waits
	if os.Getenv(inNamespace) == "" {
		testneed.Root(t)
		testneed.Program(t, "nft", "nftables")
		testneed.Program(t, "ip", "iproute2")
		c := again(t, inNamespace)
		c.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
		out, err := c.CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "calls go elsewhere") || strings.Contains(line, "ended after") {
				t.Log(strings.TrimSpace(line))
			}
		}
		return
	}
	run := func(name string, args ...string) {
		t.Helper()
		path := testneed.Program(t, name, "nftables, iproute2")
		if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
			testneed.Unmet(t, "%s %s: %v: %s; this kernel or container has no nftables in a network namespace", name, strings.Join(args, " "), err, out)
		}
	}
	run("ip", "link", "set", "lo", "up")
	run("nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }")
	drop := func(t *testing.T, addr string) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		run("nft", "add rule inet t in tcp dport "+port+" drop; add rule inet t in tcp sport "+port+" drop")
	}
	for _, k := range hangCases() {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			b := newGRPC(t)
			k.run(t, b.addr, func() { drop(t, b.addr) })
		})
	}
	// TCP has no PING: retransmissions and keepalive find a host that is gone.
	t.Run("tcp, bytes under way", func(t *testing.T) { t.Parallel(); blackHoleTCP(t, drop, true) })
	t.Run("tcp, silent", func(t *testing.T) { t.Parallel(); blackHoleTCP(t, drop, false) })
	t.Run("http1, request under way", func(t *testing.T) { t.Parallel(); blackHoleHTTP1(t, drop, true) })
	t.Run("http1, kept connection", func(t *testing.T) { t.Parallel(); blackHoleHTTP1(t, drop, false) })
	t.Run("h2, a silent stream alone", func(t *testing.T) { t.Parallel(); blackHoleSilentStream(t, drop) })
}

// hangCase is what goes on when a backend begins to hang.
type hangCase struct {
	name     string
	busy     bool          // calls run all the time
	stream   bool          // a stream to the victim is open
	messages bool          // with messages in both directions, until the hang
	silent   time.Duration // how long before the hang
}

func hangCases() []hangCase {
	return []hangCase{
		{name: "idle connection"},
		{name: "busy connection", busy: true},
		{name: "streaming connection", stream: true, messages: true},
		{name: "silent stream", stream: true, silent: 3500 * time.Millisecond},
		{name: "silent stream beside calls", stream: true, busy: true},
	}
}

// run has the victim hang, and calls come all the while: a few may fail, one connection is lost, and then all go to the other backend.
func (k hangCase) run(t *testing.T, victim string, hang func()) {
	r := newRig(t, func(s *Service) { s.Connect = time.Second })
	r.realSilence()
	r.proxy.events = event.NewLog(100)
	good := newGRPC(t)
	r.backends(victim)
	client := r.dial()
	ctx := timeout(t)
	warm, err := client.UnaryCall(ctx, &testpb.SimpleRequest{})
	if err != nil || warm.ServerId != victim {
		t.Fatalf("%v, %v", warm, err)
	}
	ended := make(chan error, 1)
	if k.stream {
		s, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		one := &testpb.StreamingOutputCallRequest{ResponseParameters: []*testpb.ResponseParameters{{Size: 1}}}
		s.Send(one)
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		go func() {
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for {
				if k.messages {
					<-tick.C
					s.Send(one)
				}
				if _, err := s.Recv(); err != nil {
					ended <- err
					return
				}
			}
		}()
	}
	r.backends(victim, good.addr)
	state := r.state(victim)

	var mu sync.Mutex
	var lastFailed, hung time.Time
	var failed, wrong int
	var hanging atomic.Bool
	var load sync.WaitGroup
	stop := make(chan struct{})
	calls := func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			one, cancel := context.WithTimeout(ctx, patience/2)
			_, err := client.UnaryCall(one, &testpb.SimpleRequest{})
			cancel()
			if err != nil {
				mu.Lock()
				lastFailed = time.Now()
				failed++
				if status.Code(err) != codes.Unavailable || !hanging.Load() {
					wrong++
					t.Errorf("a call ended with %v", err)
				}
				mu.Unlock()
			}
		}
	}
	if k.busy {
		for range 4 {
			load.Go(calls)
		}
		before := good.calls.Load()
		await(t, "calls run", func() bool { return good.calls.Load() > before+200 })
	}
	if k.silent > 0 {
		await(t, "the first PINGs are answered", func() (ok bool) {
			r.onLoop(func(relay *relay) {
				for _, c := range relay.pools[r.svc].backends[state].conns {
					ok = c.hang.number >= freePings && c.resting
				}
			})
			return ok
		})
	}
	hanging.Store(true)
	hung = time.Now()
	hang()
	if !k.busy {
		for range 4 {
			load.Go(calls)
		}
	}
	hangs := func() (n uint64) {
		for _, s := range r.proxy.Stats().Services {
			n += s.Backends.Closed[closedHang.String()]
		}
		return n
	}
	await(t, "the hang is found", func() bool { return hangs() > 0 })
	found := time.Since(hung)
	before := good.calls.Load()
	await(t, "many calls succeed", func() bool { return good.calls.Load() > before+200 })
	close(stop)
	load.Wait()
	mu.Lock()
	defer mu.Unlock()
	elsewhere := max(0, lastFailed.Sub(hung))
	t.Logf("%s: found after %v, calls go elsewhere after %v, %d failed", k.name, found.Round(time.Millisecond), elsewhere.Round(time.Millisecond), failed)
	if found > hangFound || elsewhere > hangFound {
		t.Errorf("found after %v, the last call failed after %v: more than %v", found, elsewhere, hangFound)
	}
	if failed > 8 || k.busy && failed > 4 { // what was under way; then, calls wait for the answer to the PING
		t.Errorf("%d calls failed", failed)
	}
	if k.stream {
		select {
		case err := <-ended:
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "no answer to a PING") {
				t.Errorf("the stream ended with %v", err)
			}
		case <-time.After(hangFound):
			t.Error("the stream goes on")
		}
	}
	// One connection lost is one hard failure; connects that fail later are each their own.
	for _, s := range r.proxy.Stats().Services {
		if n := state.Snapshot(time.Now()).Failures - s.Backends.Failed; s.Backends.Closed[closedHang.String()] != 1 || n != 1 {
			t.Errorf("%d hangs, %d hard failures beside failed connects, want 1", s.Backends.Closed[closedHang.String()], n)
		}
	}
	told := 0
	events, _ := r.proxy.events.Since(0)
	for _, e := range events {
		if e.Kind == event.Hang {
			told++
			if e.Backend != victim || e.Service != "user" {
				t.Errorf("%+v", e)
			}
		}
	}
	if told != 1 {
		t.Errorf("%d events: %+v", told, events)
	}
}

// blackHoleTCP: with bytes under way, retransmissions end it, without, keepalive (2.11); both within about 15 s, where the kernel by itself takes 15 min or 2 h.
func blackHoleTCP(t *testing.T, drop func(*testing.T, string), bytes bool) {
	r := newRig(t, asTCP)
	gone := make(chan struct{})
	addr := tcpBackend(t, "tcp4", func(c *net.TCPConn) {
		io.WriteString(c, "b")
		<-gone // it never hears of the end
	})
	t.Cleanup(func() { close(gone) })
	r.backends(addr)
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	drop(t, addr)
	start := time.Now()
	if bytes {
		io.WriteString(c, "into the dark")
	}
	n, err := c.Read(make([]byte, 1))
	endedWithin(t, start, 2*time.Minute, fmt.Sprintf("%d, %v", n, err))
	if n != 0 || err == nil {
		t.Errorf("read %d, %v", n, err)
	}
}

func blackHoleHTTP1(t *testing.T, drop func(*testing.T, string), running bool) {
	r := newRig(t, func(s *Service) { asHTTP1(s); s.Connect = time.Second })
	begun, release := make(chan struct{}, 1), make(chan struct{})
	addr := web(t, func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/hang" {
			begun <- struct{}{}
			<-release
		}
		io.WriteString(w, "b")
	})
	t.Cleanup(func() { close(release) }) // before the server's end, which waits for it
	r.backends(addr)
	client := browser(t)
	if code, body := r.get(client, "/"); code != 200 {
		t.Fatal(code, body)
	}
	var start time.Time
	if running {
		go func() { <-begun; drop(t, addr) }()
		start = time.Now()
		code, body := r.get(client, "/hang")
		endedWithin(t, start, 2*time.Minute, fmt.Sprint(code, body))
		if code < 500 {
			t.Errorf("%d %s", code, body)
		}
		return
	}
	// The request is written into a connection that is dead: unacknowledged bytes end it, or keepalive. The caller gets an answer in any case.
	drop(t, addr)
	start = time.Now()
	code, body := r.get(client, "/")
	endedWithin(t, start, 2*time.Minute, fmt.Sprint(code, body))
	if code < 500 {
		t.Errorf("%d %s", code, body)
	}
}

// blackHoleSilentStream: a stream that had its PINGs, and no call that would justify one more: keepalive finds it.
func blackHoleSilentStream(t *testing.T, drop func(*testing.T, string)) {
	r := newRig(t, nil)
	r.realSilence()
	b := newGRPC(t)
	r.backends(b.addr)
	s, err := r.dial().FullDuplexCall(timeout(t))
	if err != nil {
		t.Fatal(err)
	}
	s.Send(&testpb.StreamingOutputCallRequest{})
	r.await("no more PINGs", func(k *relay) bool {
		for _, be := range k.pools[r.svc].backends {
			return len(be.conns) == 1 && be.conns[0].resting
		}
		return false
	})
	drop(t, b.addr)
	start := time.Now()
	_, err = s.Recv()
	endedWithin(t, start, 2*time.Minute, fmt.Sprint(err))
	if status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
}

func endedWithin(t *testing.T, start time.Time, limit time.Duration, how string) {
	t.Helper()
	d := time.Since(start)
	t.Logf("%s: ended after %v: %s", t.Name(), d.Round(time.Millisecond), how)
	if d > limit {
		t.Errorf("ended after %v, limit %v", d, limit)
	}
}

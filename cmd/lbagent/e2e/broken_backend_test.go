package e2e

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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// brokenAs is set in a process that serves backends of TestBrokenBackends: "KIND ADDR KIND ADDR ...". A line on its standard input is the mood that all of them are in
// from then on; it says the line back.
const brokenAs = "LBAGENT_E2E_BROKEN_BACKEND"

// Moods of backends.
const (
	well    = "well"
	slow    = "slow"    // each call takes slowBy longer
	half    = "half"    // every second call fails: there is never a streak, nor less than half of success
	failing = "failing" // all do
)

// slowBy is what a slow backend adds to work.
const slowBy = 500 * time.Millisecond

// healthPath answers HTTP probes, in every mood.
const healthPath = "/healthz"

// mood is what all backends of a process have in common.
type mood struct {
	now   atomic.Value
	calls atomic.Int64
}

// call is one call's work; true if it has to fail.
func (m *mood) call() bool {
	d, now := work, m.now.Load().(string)
	if now == slow {
		d += slowBy
	}
	<-time.After(d)
	return now == failing || now == half && m.calls.Add(1)%2 == 0
}

// moody is one backend; its name is its address.
type moody struct {
	*mood

	name string
}

func brokenBackendMain() int {
	m := &mood{}
	m.now.Store(well)
	words := strings.Fields(os.Getenv(brokenAs))
	for i := 0; i+1 < len(words); i += 2 {
		l, err := net.Listen("tcp", words[i+1])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		b := &moody{m, words[i+1]}
		switch words[i] {
		case "grpc":
			go b.serveGRPC(l)
		case "http":
			go func() { _ = http.Serve(l, b) }()
		case "other":
			go serveOther(l)
		}
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		m.now.Store(in.Text())
		fmt.Println(in.Text())
	}
	return 0
}

func (b *moody) serveGRPC(l net.Listener) {
	srv := grpc.NewServer()
	srv.RegisterService(&grpc.ServiceDesc{ServiceName: "e2e.Echo", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{MethodName: "Echo",
		Handler: func(_ any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.BytesValue)
			if err := dec(in); err != nil {
				return nil, err
			}
			fails := b.call()
			if err := grpc.SetTrailer(ctx, metadata.Pairs(nameHeader, b.name)); err != nil {
				return nil, err
			}
			if fails {
				return nil, status.Error(codes.Unavailable, "")
			}
			return in, nil
		}}}}, b)
	_ = srv.Serve(l)
}

func (b *moody) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == healthPath {
		return
	}
	w.Header().Set(nameHeader, b.name)
	if b.call() {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

// serveOther is a program of another kind: whatever it is told, it says something of its own and goes.
func serveOther(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = c.Read(make([]byte, 1024))
			_, _ = io.WriteString(c, "500 what?\r\n")
		}()
	}
}

// host is a process of backends.
type host struct {
	t     *testing.T
	serve []string // KIND ADDR ...
	cmd   *exec.Cmd
	in    io.Writer
	out   *bufio.Reader
}

func newHost(t *testing.T, serve ...string) *host {
	t.Helper()
	h := &host{t: t, serve: serve}
	h.start()
	t.Cleanup(func() { h.kill() })
	return h
}

func (h *host) start() {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	h.cmd = exec.Command(self, "-test.run=^$")
	h.cmd.Env = append(os.Environ(), raceOptions, brokenAs+"="+strings.Join(h.serve, " "))
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	h.cmd.Stderr = os.Stderr
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		h.t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	h.out = bufio.NewReader(out)
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.says("ready")
}

// become changes the mood of its backends.
func (h *host) become(mood string) {
	h.t.Helper()
	if _, err := fmt.Fprintln(h.in, mood); err != nil {
		h.t.Fatal(err)
	}
	h.says(mood)
}

func (h *host) says(want string) {
	h.t.Helper()
	if line, err := h.out.ReadString('\n'); line != want+"\n" {
		h.t.Fatalf("a process of backends says %q, %v, want %q", line, err, want)
	}
}

func (h *host) signal(sig syscall.Signal) {
	h.t.Helper()
	if err := h.cmd.Process.Signal(sig); err != nil {
		h.t.Fatal(err)
	}
}

// kill ends it at once, and returns when it is gone.
func (h *host) kill() {
	_ = h.cmd.Process.Kill() // it may be gone already
	_ = h.cmd.Wait()
}

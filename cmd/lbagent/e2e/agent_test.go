package e2e

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// patience is how long a condition that has to come true is waited for: on a loaded machine everything takes longer, and a broken agent never gets there.
const patience = time.Minute

// raceOptions make a data race end the process, and an end without one take no second.
const raceOptions = "GORACE=halt_on_error=1 atexit_sleep_ms=0"

// agent is one lbagent on a folder of its own; start and stop make its lives.
type agent struct {
	t   *testing.T
	dir string

	etcd     []string // endpoints; none: only static backends
	services string   // the list under services:, as YAML
	extra    string   // further top-level keys
	zone     string   // of the node

	config, socket, admin string
	http                  string // host:port of admin.listen
	tcp                   string // host:port of api.listen; "" = none
	args                  []string
	ports                 map[string]int // of the soak's listeners, by service
	manager               *manager       // nil: the agent runs by hand
	wrapper               []string       // what starts the program, as another user say
	program               string         // a copy of the binary, which a test may replace; "": the binary itself
	environment           []string       // of its verbs, beside what all have

	mu sync.Mutex

	log bytes.Buffer

	shared *grpc.ClientConn
	cmd    *exec.Cmd
	exited chan struct{}
	code   int
}

// newAgent prepares an agent; start starts it. services is the YAML under services:.
func newAgent(t *testing.T, services string, etcd ...string) *agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "lbe2e-") // t.TempDir is too long for a unix socket's path, and closed to other users
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	a := &agent{t: t, dir: dir, etcd: etcd, services: services,
		config: filepath.Join(dir, "lbagent.yaml"), socket: filepath.Join(dir, "lbagent.sock"), admin: filepath.Join(dir, "admin.sock"),
		http: "127.0.0.1:" + strconv.Itoa(freePort(t))}
	t.Cleanup(func() {
		a.stop()
		if t.Failed() {
			t.Logf("log of the agent:\n%s", a.logTail(60))
		}
		os.RemoveAll(dir)
	})
	a.writeConfig()
	return a
}

// startAgent is newAgent, started.
func startAgent(t *testing.T, services string, etcd ...string) *agent {
	t.Helper()
	a := newAgent(t, services, etcd...)
	a.start()
	return a
}

func (a *agent) writeConfig() {
	a.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "node: {name: e2e, zone: %q}\napi: {socket: %s, admin_socket: %s, listen: %q}\nadmin: {listen: %q}\nstate_dir: %s\n",
		a.zone, a.socket, a.admin, a.tcp, a.http, filepath.Join(a.dir, "state"))
	if len(a.etcd) > 0 {
		fmt.Fprintf(&b, "etcd: {endpoints: [%s], namespace: %q}\n", strings.Join(a.etcd, ", "), namespace(a.t))
	}
	b.WriteString(a.extra)
	if !strings.Contains(a.extra, "defaults:") {
		b.WriteString("defaults: {allow: [127.0.0.0/8, \"::1\"]}\n") // the backends of tests are on this host (1.14)
	}
	if a.services != "" {
		fmt.Fprintf(&b, "services:\n%s\n", strings.Trim(a.services, "\n"))
	}
	if err := os.WriteFile(a.config, []byte(b.String()), 0o644); err != nil {
		a.t.Fatal(err)
	}
}

// namespace is the part of etcd that belongs to a test.
func namespace(t *testing.T) string { return "/" + strings.ReplaceAll(t.Name(), "/", "_") + "/" }

// start runs the agent and waits until it is ready.
func (a *agent) start() {
	a.t.Helper()
	a.launch()
	poll(a.t, "the agent is ready", func() bool {
		select {
		case <-a.exited:
			a.t.Fatalf("the agent ended with %d\n%s", a.code, a.logTail(40))
		default:
		}
		code, _ := a.get("/readyz")
		return code == http.StatusOK
	})
}

// launch runs the agent and waits for nothing.
func (a *agent) launch() {
	a.t.Helper()
	argv, env := append([]string{cmp.Or(a.program, binary), "run", "--config", a.config}, a.args...), os.Environ()
	var files []*os.File
	argv = append(slices.Clone(a.wrapper), argv...)
	if a.manager != nil {
		var more []string
		argv, more, files = a.manager.wrap(argv)
		env = append(env, more...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.ExtraFiles = files
	cmd.Stderr = &lockedWriter{mu: &a.mu, w: &a.log}
	cmd.Stdout = cmd.Stderr
	cmd.Env = append(env, raceOptions)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if a.program != "" { // a successor goes on writing when this process has ended
		w := a.openLog()
		defer w.Close()
		cmd.Stdout, cmd.Stderr = w, w
	}
	err := cmd.Start()
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		a.t.Fatal(err)
	}
	exited := make(chan struct{})
	a.cmd, a.exited = cmd, exited
	go func() {
		_ = cmd.Wait()
		a.ended(cmd.ProcessState.ExitCode())
		close(exited)
	}()
}

// ended notes how a process ended; two may at once, after an upgrade.
func (a *agent) ended(code int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.code = code
}

func (a *agent) pid() int { return a.cmd.Process.Pid }

func (a *agent) signal(sig syscall.Signal) {
	a.t.Helper()
	if err := a.cmd.Process.Signal(sig); err != nil {
		a.t.Errorf("send %v: %v", sig, err)
	}
}

// stop ends the agent with SIGTERM; it has to go within its bounds, with code 0, and without a data race or a panic in its log.
func (a *agent) stop() {
	a.t.Helper()
	if a.cmd == nil {
		return
	}
	_ = a.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	a.wait(0)
}

// wait waits for the end of the process and judges its exit code and its log.
func (a *agent) wait(code int) {
	a.t.Helper()
	select {
	case <-a.exited:
	case <-time.After(patience):
		_ = a.cmd.Process.Signal(syscall.SIGQUIT)
		<-a.exited
		a.t.Errorf("the agent did not end within %v\n%s", patience, a.logTail(200))
	}
	a.cmd = nil
	if a.code != code {
		a.t.Errorf("the agent ended with %d, want %d", a.code, code)
	}
	for _, bad := range []string{"DATA RACE", "panic:", "panicked", "fatal error:"} {
		if text := a.logTail(1 << 20); strings.Contains(text, bad) {
			a.t.Errorf("%s in the agent's log:\n%s", bad, text)
			return
		}
	}
}

func (a *agent) logTail(lines int) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := strings.Split(strings.TrimSpace(a.log.String()), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// get reads a page of admin.listen; code 0 if there is no answer.
func (a *agent) get(path string) (code int, body string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.http+path, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return 0, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, ""
	}
	return resp.StatusCode, string(b)
}

// metric is the value of the first series of /metrics that begins with name; ok is false if there is none.
func (a *agent) metric(name string) (value float64, ok bool) {
	_, body := a.get("/metrics")
	for line := range strings.Lines(body) {
		rest, found := strings.CutPrefix(line, name)
		if !found || rest == "" || !strings.ContainsAny(rest[:1], " {") {
			continue
		}
		fields := strings.Fields(line)
		v, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		return v, err == nil
	}
	return 0, false
}

// api is a connection to the open socket.
func (a *agent) api() *grpc.ClientConn { return a.dial("unix:" + a.socket) }

func (a *agent) lookup() lbagentv1.LookupServiceClient {
	return lbagentv1.NewLookupServiceClient(a.api())
}

// cachedLookup is lookup over one connection for all.
func (a *agent) cachedLookup() lbagentv1.LookupServiceClient {
	if a.shared == nil {
		a.shared = a.api()
	}
	return lbagentv1.NewLookupServiceClient(a.shared)
}

func (a *agent) status() lbagentv1.StatusServiceClient {
	return lbagentv1.NewStatusServiceClient(a.api())
}

// quickReconnects fits a port or socket on the same host, of a machine that may be busy; gRPC's default begins at 1 s.
var quickReconnects = grpc.WithConnectParams(grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond},
	MinConnectTimeout: 10 * time.Second,
})

// dial is one plain connection, closed with the test.
func (a *agent) dial(target string) *grpc.ClientConn {
	a.t.Helper()
	c, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(), grpc.WithNoProxy(), quickReconnects)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { c.Close() })
	return c
}

// cli runs a verb against this agent.
func (a *agent) cli(args ...string) (stdout, stderr string, code int) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience) // some verbs wait for a while themselves
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(append(os.Environ(), raceOptions, "LBAGENT_SOCKET="+a.socket, "LBAGENT_ADMIN_SOCKET="+a.admin), a.environment...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		a.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// poll waits until cond holds.
func poll(t *testing.T, what string, cond func() bool) {
	t.Helper()
	pollFor(t, patience, what, cond)
}

func pollFor(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(limit)
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// freePort returns a port of 127.0.0.1 and ::1 that nobody listens on and that no other test was given, below those that the kernel takes for outgoing connections: it
// stays free while its owner restarts.
func freePort(t *testing.T) int {
	t.Helper()
	for range 200 {
		port := 10000 + rand.IntN(20000)
		if _, given := ports.LoadOrStore(port, t.Name()); given {
			continue
		}
		free := false
		unforked(func() {
			if l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port)); err == nil {
				l.Close()
				free = true
			}
		})
		if free {
			return port
		}
	}
	t.Fatal("no free port in 200 tries")
	return 0
}

// unforked opens or closes listeners while no process is between its fork and its exec: until its exec a new process, of another test say, holds all of this process's sockets
// as well, and what was closed here still listens there.
func unforked(do func()) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	do()
}

// join makes a YAML list's inside.
func join(items []string) string {
	return `"` + strings.Join(items, `", "`) + `"`
}

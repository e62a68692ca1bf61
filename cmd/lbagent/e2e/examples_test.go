package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/testneed"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

const examples = "../../../packaging/examples/"

// exampleBackend is what an example calls: gRPC's Echo, or HTTP for the shell.
type exampleBackend struct {
	addr        string
	kill, start func()
}

// The examples in four languages ask, report and dial; they go on when a backend is gone, when the agent is gone, also if they begin then, and use the agent again when
// it is back.
func TestExamples(t *testing.T) {
	t.Parallel()
	for name, example := range map[string]struct {
		make     func(t *testing.T) (argv, env []string)
		backends func(t *testing.T) []exampleBackend
	}{
		"python": {pythonExample, echoBackends},
		"node":   {nodeExample, echoBackends},
		"cpp":    {cppExample, echoBackends},
		"shell": {func(t *testing.T) (argv, env []string) {
			testneed.Program(t, "curl", "curl")
			return []string{"sh", examples + "shell/client.sh"}, nil
		}, webBackends},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			argv, env := example.make(t)
			tryExample(t, argv, env, example.backends(t))
		})
	}
}

func tryExample(t *testing.T, argv, env []string, bs []exampleBackend) {
	port := freePort(t)
	var all []string
	for _, b := range bs {
		all = append(all, b.addr)
	}
	// One name per door, so that what is reported stands alone.
	a := startAgent(t, fmt.Sprintf(`
- {name: asked, backends: [%s], policy: round_robin, probe: off, eject: off}
- {name: dialed, backends: [%s], policy: round_robin, listen: [%d]}
`, join(all), join(all), port))
	argv = append(argv, "asked", fmt.Sprint(port))
	env = append(env, "LBAGENT_SOCKET="+a.socket, "no_proxy=127.0.0.1,localhost", "no_grpc_proxy=127.0.0.1,localhost")
	p := startExample(t, argv, env)

	const n = 10
	began := time.Now()
	asked, dialed := p.say(n)
	if machine.undecided(began, time.Now()) {
		t.Logf("the machine stood still meanwhile, and callers may have given up and tried again: %v and %v", asked, dialed)
	} else {
		for _, b := range bs {
			if asked[b.addr] != n/2 || dialed[b.addr] != n/2 {
				t.Errorf("%s had %d and %d calls by asking and dialing, want %d each", b.addr, asked[b.addr], dialed[b.addr], n/2)
			}
		}
		poll(t, "the agent knows of every call", func() bool {
			for _, b := range bs {
				if e := a.reported(b.addr); e.GetSuccesses() != n/2 {
					return false
				}
			}
			return true
		})
	}

	// A backend is gone: no call fails by either door, and the agent is told.
	bs[0].kill()
	asked, dialed = p.say(n)
	if asked[bs[1].addr] != n || dialed[bs[1].addr] != n {
		t.Errorf("one backend is gone: %v and %v", asked, dialed)
	}
	poll(t, "the agent is told of the failure", func() bool { return a.reported(bs[0].addr).GetFailures() > 0 })
	bs[0].start()

	// The agent is gone: who asks goes on, also who has only just begun. Who dials hears of it in time.
	poll(t, "the list for callers without an agent", func() bool {
		text, err := os.ReadFile(filepath.Join(a.dir, "lists", "asked"))
		return err == nil && strings.Contains(string(text), bs[0].addr) && strings.Contains(string(text), bs[1].addr)
	})
	a.stop()
	for _, p := range []*example{p, startExample(t, argv, env)} {
		begun := time.Now()
		fmt.Fprintln(p.in, "alone")
		asked, dialed := p.line(), p.line()
		if !strings.HasPrefix(asked, "asked "+bs[0].addr) && !strings.HasPrefix(asked, "asked "+bs[1].addr) && !machine.undecided(begun, time.Now()) {
			t.Errorf("without the agent: %s", asked)
		}
		if !strings.HasPrefix(dialed, "dialed failed: ") {
			t.Errorf("without the agent: %s", dialed)
		}
	}

	// It is back.
	a.start()
	poll(t, "calls and reports again", func() bool {
		first, second := p.call("again")
		return !strings.Contains(first+second, "failed") && a.reported(bs[0].addr).GetSuccesses()+a.reported(bs[1].addr).GetSuccesses() > 0
	})
}

// reported is what the agent knows of a backend that is only asked for.
func (a *agent) reported(addr string) *lbagentv1.BackendExplanation {
	e, err := a.status().Explain(a.t.Context(), &lbagentv1.ExplainRequest{Service: "asked", Address: addr})
	if err != nil {
		a.t.Error(err)
		return nil
	}
	return e.GetBackends()[0]
}

// example is one that runs.
type example struct {
	t   *testing.T
	in  io.Writer
	out chan string
}

func startExample(t *testing.T, argv, env []string) *example {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &example{t: t, in: in, out: make(chan string, 100)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.out <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		in.Close()
		<-read
		if err := cmd.Wait(); err != nil {
			t.Errorf("%q: %v", argv, err)
		}
	})
	return p
}

// line is the next one that it says.
func (p *example) line() string {
	p.t.Helper()
	select {
	case line := <-p.out:
		return line
	case <-time.After(patience):
		p.t.Fatal("it says nothing")
		return ""
	}
}

// say has it make n calls by each door, and counts which backend answered.
func (p *example) say(n int) (asked, dialed map[string]int) {
	p.t.Helper()
	asked, dialed = make(map[string]int), make(map[string]int)
	for i := range n {
		word := fmt.Sprintf("word%d", i)
		byAsking, byDialing := p.call(word)
		// asked ADDRESS ANSWER, dialed ANSWER; the answer is NAME WORD, and a backend's name is its address.
		if f := strings.Fields(byAsking); len(f) < 4 || f[0] != "asked" || f[1] != f[2] || !strings.Contains(f[3], word) {
			p.t.Fatalf("it says %q of %q", byAsking, word)
		} else {
			asked[f[1]]++
		}
		if f := strings.Fields(byDialing); len(f) < 3 || f[0] != "dialed" || !strings.Contains(f[2], word) {
			p.t.Fatalf("it says %q of %q", byDialing, word)
		} else {
			dialed[f[1]]++
		}
	}
	return asked, dialed
}

// call has it make one call by each door, and returns what it says of them. What failed while the machine stood still is tried again.
func (p *example) call(word string) (asked, dialed string) {
	p.t.Helper()
	for {
		begun := time.Now()
		fmt.Fprintln(p.in, word)
		asked, dialed = p.line(), p.line()
		if !strings.Contains(asked+dialed, "failed") || !machine.undecided(begun, time.Now()) {
			return asked, dialed
		}
	}
}

func echoBackends(t *testing.T) (out []exampleBackend) {
	for range 2 {
		b := newBackend(t, "", "127.0.0.1", 0)
		b.name = b.addr
		out = append(out, exampleBackend{b.addr, b.kill, b.start})
	}
	return out
}

func webBackends(t *testing.T) (out []exampleBackend) {
	for range 2 {
		b := &webBackend{t: t, addr: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
		b.start()
		t.Cleanup(b.kill)
		out = append(out, exampleBackend{b.addr, b.kill, b.start})
	}
	return out
}

func pythonExample(t *testing.T) (argv, env []string) {
	testneed.Command(t, "python3-grpcio", python, "-c", "import grpc")
	testneed.Command(t, "python3-protobuf", python, "-c", "import google.protobuf")
	plugin := testneed.Program(t, "grpc_python_plugin", "protobuf-compiler-grpc")
	stubs := t.TempDir()
	finish(t, patience, nil, testneed.Program(t, "protoc", "protobuf-compiler"), "-I", examples,
		"--python_out="+stubs, "--grpc_out="+stubs, "--plugin=protoc-gen-grpc="+plugin, "lbagent/v1/lookup.proto", "echo.proto")
	return []string{python, examples + "python/client.py"}, []string{"PYTHONPATH=" + stubs, "PYTHONDONTWRITEBYTECODE=1"}
}

func nodeExample(t *testing.T) (argv, env []string) {
	p := &peers{dir: t.TempDir(), node: testneed.Program(t, "node", "nodejs")}
	installNodeModules(t, foreign, p.dir) // the conformance tests' pins
	return []string{p.node, examples + "node/client.js"}, p.environment()
}

func cppExample(t *testing.T) (argv, env []string) {
	testneed.Program(t, "g++", "g++")
	testneed.Program(t, "protoc", "protobuf-compiler")
	testneed.Program(t, "grpc_cpp_plugin", "protobuf-compiler-grpc")
	testneed.Command(t, "libgrpc++-dev", testneed.Program(t, "pkg-config", "pkg-config"), "--exists", "grpc++")
	out := t.TempDir()
	finish(t, 10*time.Minute, nil, testneed.Program(t, "make", "make"), "-s", "-j2", "-C", examples+"cpp", "OUT="+out, "CXXFLAGS=-O0 -Wall -Wextra -Werror")
	return []string{filepath.Join(out, "client")}, nil
}

// webBackend answers by HTTP/1.1 with its address and the word that it was asked for, and can be stopped and started again.
type webBackend struct {
	t    *testing.T
	addr string
	srv  *http.Server
}

func (b *webBackend) start() {
	b.t.Helper()
	var l net.Listener
	var err error
	unforked(func() { l, err = net.Listen("tcp", b.addr) }) // it may have listened there before
	if err != nil {
		b.t.Fatal(err)
	}
	b.srv = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, b.addr, r.URL.Path) })}
	go b.srv.Serve(l)
}

func (b *webBackend) kill() { unforked(func() { b.srv.Close() }) }

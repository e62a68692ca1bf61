package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/testneed"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

const (
	foreign = "testdata/conformance/" // programs in other languages, and the pins of what is foreign

	interopClient = "google.golang.org/grpc/interop/client"
	interopServer = "google.golang.org/grpc/interop/server"
	h2specTool    = "github.com/summerwind/h2spec/cmd/h2spec"
)

// peers are the foreign programs that the relay has to get along with, as they are found, built or installed once for all tests of a run.
type peers struct {
	dir      string
	protoset string // descriptors of grpc.testing, for the languages without generated code
	node     string
	nghttpd  string
}

func newPeers(t *testing.T) *peers {
	t.Helper()
	p := &peers{dir: t.TempDir()}
	p.protoset = filepath.Join(p.dir, "testing.protoset")
	b, err := proto.Marshal(descriptors(grpc_testing.File_grpc_testing_test_proto))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.protoset, b, 0o644); err != nil {
		t.Fatal(err)
	}
	testneed.Command(t, "python3-grpcio", python, "-c", "import grpc")
	testneed.Command(t, "python3-protobuf", python, "-c", "import google.protobuf")
	p.nghttpd = testneed.Program(t, "nghttpd", "nghttp2-server")
	p.node = testneed.Program(t, "node", "nodejs")
	installNodeModules(t, foreign, p.dir)
	return p
}

// descriptors are a file and what it imports, imports first.
func descriptors(file protoreflect.FileDescriptor) *descriptorpb.FileDescriptorSet {
	set := new(descriptorpb.FileDescriptorSet)
	have := make(map[string]bool)
	var add func(protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if have[f.Path()] {
			return
		}
		have[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
	}
	add(file)
	return set
}

// tool is the path of a program of testdata/conformance/tools.mod, built by the first who asks. That file is not go.mod's: what gRPC's interop programs
// import (OAuth, xDS) is nothing that the agent may link.
func tool(t *testing.T, name string) string {
	t.Helper()
	return strings.TrimSpace(finish(t, 10*time.Minute, nil, "go", "tool", "-n", "-modfile="+foreign+"tools.mod", name))
}

// installNodeModules installs what package-lock.json of the folder from pins, below dir.
func installNodeModules(t *testing.T, from, dir string) {
	t.Helper()
	npm := testneed.Program(t, "npm", "npm")
	for _, name := range []string{"package.json", "package-lock.json"} {
		b, err := os.ReadFile(from + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	finish(t, 5*time.Minute, nil, npm, "ci", "--prefix", dir, "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
}

// environment is for programs of node and Python: modules, and no detour to a proxy of the machine.
func (p *peers) environment(more ...string) []string {
	return append([]string{"NODE_PATH=" + filepath.Join(p.dir, "node_modules"), "no_proxy=127.0.0.1,localhost", "no_grpc_proxy=127.0.0.1,localhost", "PYTHONDONTWRITEBYTECODE=1"}, more...)
}

// goServer starts gRPC's interop server, on grpc-go.
func (p *peers) goServer(t *testing.T, args ...string) (addr string) {
	t.Helper()
	port := freePort(t)
	return p.serve(t, port, append([]string{tool(t, interopServer), "-port", strconv.Itoa(port)}, args...)...)
}

// coreServer starts the test service on gRPC's C core.
func (p *peers) coreServer(t *testing.T) (addr string) {
	t.Helper()
	port := freePort(t)
	return p.serve(t, port, python, foreign+"server.py", p.protoset, strconv.Itoa(port), "python")
}

// nodeServer starts the test service on @grpc/grpc-js.
func (p *peers) nodeServer(t *testing.T) (addr string) {
	t.Helper()
	port := freePort(t)
	return p.serve(t, port, p.node, foreign+"server.js", p.protoset, strconv.Itoa(port), "node")
}

// http2Server starts node's own HTTP/2.
func (p *peers) http2Server(t *testing.T) (addr string) {
	t.Helper()
	port := freePort(t)
	return p.serve(t, port, p.node, foreign+"http2.js", "serve", strconv.Itoa(port))
}

// nghttpServer starts nghttpd on the files of dir.
func (p *peers) nghttpServer(t *testing.T, dir string, args ...string) (addr string) {
	t.Helper()
	port := freePort(t)
	argv := append([]string{p.nghttpd, "--no-tls", "-a", "127.0.0.1", "-d", dir}, args...)
	return p.serve(t, port, append(argv, strconv.Itoa(port))...)
}

// serve runs a server until the test ends, and waits until its port is open.
func (p *peers) serve(t *testing.T, port int, argv ...string) (addr string) {
	t.Helper()
	var mu sync.Mutex
	var log bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), p.environment()...)
	cmd.Stdout = &lockedWriter{mu: &mu, w: &log}
	cmd.Stderr = cmd.Stdout
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		if t.Failed() && log.Len() > 0 {
			t.Logf("log of %s:\n%s", filepath.Base(argv[0]), log.String())
		}
	})
	addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	poll(t, strings.Join(argv, " ")+" listens", func() bool {
		select {
		case <-exited:
			t.Fatalf("%s ended: %s", strings.Join(argv, " "), log.String())
		default:
		}
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	return addr
}

// finish runs a program that has to succeed within limit, and returns what it wrote to stdout.
func finish(t *testing.T, limit time.Duration, env []string, argv ...string) string {
	t.Helper()
	out, err := attempt(t, limit, env, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// attempt runs a program to its end; the error has what it wrote to stderr.
func attempt(t *testing.T, limit time.Duration, env []string, argv ...string) (stdout string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("not within %v", limit)
		}
		return out.String(), fmt.Errorf("%s: %w: %s", filepath.Base(argv[0]), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// lines runs a program and hands on what it writes to stdout, line by line; when that has ended, err says how the program did.
func (p *peers) lines(t *testing.T, argv []string) (lines <-chan line, err func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), p.environment()...)
	cmd.WaitDelay = time.Second
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, e := cmd.StdoutPipe()
	if e == nil {
		e = cmd.Start()
	}
	if e != nil {
		cancel()
		t.Fatal(e)
	}
	ch := make(chan line)
	go func() {
		defer close(ch)
		began := time.Now()
		for scan := bufio.NewScanner(out); scan.Scan(); began = time.Now() {
			ch <- line{scan.Text(), time.Since(began)}
		}
	}()
	return ch, func() error {
		defer cancel()
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%s: %w: %s", filepath.Base(argv[0]), err, strings.TrimSpace(errs.String()))
		}
		return nil
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// programs are paths given by flags; empty = from the PATH, or built.
type programs struct{ haproxy, nginx, lbagent string }

// contender is one way from the client to the backends.
type contender struct {
	name string
	// start runs the proxy between listen and backends, with its files in dir; a nil process is no proxy: the client dials the first backend.
	start func(ctx context.Context, p programs, dir, listen string, backends []string) (*process, error)
}

func contenders() []contender {
	return []contender{
		{"none", nil},
		{"haproxy", startHAProxy},
		{"nginx", startNginx},
		{"go", startGo},
		{"lbagent", startLbagent},
	}
}

func contenderNames() []string {
	var out []string
	for _, c := range contenders() {
		out = append(out, c.name)
	}
	return out
}

func known(name string) bool {
	for _, c := range contenders() {
		if c.name == name {
			return true
		}
	}
	return false
}

// program finds a program by flag or PATH; Debian keeps daemons out of an ordinary user's PATH.
func program(flag, name, debianPackage string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	for _, path := range []string{name, "/usr/sbin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("no program %s; Debian has it in the package %s", name, debianPackage)
}

const haproxyConfig = `global
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 1m
  timeout server 1m
frontend f
  bind %s proto h2
  default_backend b
backend b
  balance roundrobin
`

func startHAProxy(ctx context.Context, p programs, dir, listen string, backends []string) (*process, error) {
	path, err := program(p.haproxy, "haproxy", "haproxy")
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	fmt.Fprintf(&b, haproxyConfig, listen)
	for i, addr := range backends {
		fmt.Fprintf(&b, "  server s%d %s proto h2\n", i, addr)
	}
	return startWith(ctx, dir, "haproxy.cfg", b.String(), listen, path, "-db", "-q", "-f")
}

const nginxConfig = `daemon off;
master_process off;
worker_processes 1;
error_log stderr crit;
pid %[1]s/nginx.pid;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
  keepalive_requests 1000000000;
  upstream b { %[3]skeepalive 128; keepalive_requests 1000000000; }
  server { listen %[2]s http2; http2_max_concurrent_streams 256; location / { grpc_pass grpc://b; } }
}
`

func startNginx(ctx context.Context, p programs, dir, listen string, backends []string) (*process, error) {
	path, err := program(p.nginx, "nginx", "nginx-light")
	if err != nil {
		return nil, err
	}
	var servers strings.Builder
	for _, addr := range backends {
		fmt.Fprintf(&servers, "server %s; ", addr)
	}
	return startWith(ctx, dir, "nginx.conf", fmt.Sprintf(nginxConfig, dir, listen, servers.String()), listen, path, "-p", dir, "-c")
}

func startGo(ctx context.Context, _ programs, _, listen string, backends []string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return startProcess(ctx, listen, self, goProxyVerb, listen, strings.Join(backends, ","))
}

const lbagentConfig = `api: {socket: %[1]s/lbagent.sock, admin_socket: %[1]s/admin/admin.sock}
admin: {listen: ""}
state_dir: %[1]s/state
log: {level: warn}
services:
  - name: bench
    listen: [%[2]s]
    backends: [%[3]s]
`

func startLbagent(ctx context.Context, p programs, dir, listen string, backends []string) (*process, error) {
	path := p.lbagent
	if path == "" {
		path = filepath.Join(dir, "lbagent")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/lbagent/lbagent/cmd/lbagent").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build lbagent: %w: %s", err, out)
		}
	}
	quoted := make([]string, len(backends))
	for i, addr := range backends {
		quoted[i] = fmt.Sprintf("%q", addr)
	}
	return startWith(ctx, dir, "lbagent.yaml", fmt.Sprintf(lbagentConfig, dir, fmt.Sprintf("%q", listen), strings.Join(quoted, ", ")), listen, path, "run", "--config")
}

// startWith writes a configuration and starts argv with its path as the last word.
func startWith(ctx context.Context, dir, file, text, listen string, argv ...string) (*process, error) {
	path := filepath.Join(dir, file)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return startProcess(ctx, listen, append(argv, path)...)
}

// process is a running program.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	output *strings.Builder // read after exited only
}

// startProcess starts argv and waits until it accepts at listen.
func startProcess(ctx context.Context, listen string, argv ...string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), exited: make(chan struct{}), output: &strings.Builder{}}
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go func() {
		_ = p.cmd.Wait() // the exit code of a process that was told to end says nothing
		close(p.exited)
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for {
		if conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", listen); err == nil {
			conn.Close()
			return p, nil
		}
		select {
		case <-tick.C:
		case <-p.exited:
			return nil, fmt.Errorf("%s ended before it listened on %s: %s", argv[0], listen, p.output.String())
		case <-deadline:
			p.stop()
			return nil, fmt.Errorf("%s does not listen on %s after 10 s: %s", argv[0], listen, p.output.String())
		case <-ctx.Done():
			p.stop()
			return nil, ctx.Err()
		}
	}
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(3 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// cpu is the user and system time that the process has used, all its threads together, in ticks of 10 ms (proc(5), fields 14 and 15).
func (p *process) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The program's name, in parentheses, may hold anything; fields are counted behind it.
	_, rest, ok := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat has an unknown form")
	}
	var user, system int64
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		return 0, fmt.Errorf("/proc/PID/stat: %w", err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}

// freePort is a loopback address that nobody listens on now.
func freePort() (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

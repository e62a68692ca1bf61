package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// mode is what a proxy is configured to relay.
type mode string

const (
	modeH2    mode = "h2" // cleartext HTTP/2 on both sides; gRPC too
	modeHTTP1 mode = "http1"
	modeTCP   mode = "tcp"
)

// job is what a contender is started for.
type job struct {
	mode     mode
	listen   string
	backends []string
	dir      string // its own, for its files
}

// contender is one way from the client to the backends.
type contender struct {
	name string
	// start runs the proxy of a job; nil is no proxy: the client dials the first backend.
	start func(context.Context, options, job) (*process, error)
}

// The names of the contenders.
const (
	none    = "none"
	haproxy = "haproxy"
	nginx   = "nginx"
	goProxy = "go"
	old     = "old" // another build of lbagent, if --old names one
	lbagent = "lbagent"
)

func contenders() []contender {
	return []contender{
		{none, nil},
		{haproxy, startHAProxy},
		{nginx, startNginx},
		{goProxy, startGo},
		{old, startOld},
		{lbagent, startLbagent},
	}
}

func contenderNames() []string {
	var out []string
	for _, c := range contenders() {
		out = append(out, c.name)
	}
	return out
}

// runner is a contender that is up.
type runner struct {
	name, addr string
	process    *process // nil without a proxy
}

// startAll starts every wanted contender for a mode. Who can't take part is named in the results.
func (r *rig) startAll(ctx context.Context, m mode, backends []string) ([]runner, error) {
	var running []runner
	for _, c := range r.wanted() {
		one, err := r.startOne(ctx, c, m, backends)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			r.missing(c.name, err)
			continue
		}
		running = append(running, one)
	}
	return running, nil
}

// startOne starts a contender, to be stopped with the rig.
func (r *rig) startOne(ctx context.Context, c contender, m mode, backends []string) (runner, error) {
	if c.start == nil {
		return runner{name: c.name, addr: backends[0]}, nil
	}
	one, err := r.launch(ctx, c, m, backends)
	if err == nil {
		r.onClose(one.process.stop)
	}
	return one, err
}

// launch starts a contender that the caller stops.
func (r *rig) launch(ctx context.Context, c contender, m mode, backends []string) (runner, error) {
	listen, err := freePort()
	if err != nil {
		return runner{}, err
	}
	dir, err := os.MkdirTemp(r.dir, c.name)
	if err != nil {
		return runner{}, err
	}
	p, err := c.start(ctx, r.options, job{m, listen, backends, dir})
	return runner{c.name, listen, p}, err
}

const haproxyConfig = `global
  nbthread 1
  maxconn 6000
defaults
  mode %[1]s
  timeout connect 5s
  timeout client 1m
  timeout server 1m
%[2]s
frontend f
  bind %[3]s%[4]s
  default_backend b
backend b
  balance roundrobin
`

// startHAProxy: one thread. 6,000 connections on both sides fit into 20,000 descriptors.
func startHAProxy(ctx context.Context, o options, j job) (*process, error) {
	path, err := program(o.haproxy, "haproxy", "haproxy")
	if err != nil {
		return nil, err
	}
	speak, how, proto := "http", "", ""
	switch j.mode {
	case modeH2:
		proto = " proto h2"
	case modeTCP:
		speak, how = "tcp", "  option splice-auto"
	case modeHTTP1:
	}
	var b strings.Builder
	fmt.Fprintf(&b, haproxyConfig, speak, how, j.listen, proto)
	for i, addr := range j.backends {
		fmt.Fprintf(&b, "  server s%d %s%s\n", i, addr, proto)
	}
	return startWith(ctx, j, "haproxy.cfg", b.String(), nil, path, "-db", "-q", "-f")
}

const nginxConfig = `daemon off;
master_process off;
worker_processes 1;
error_log stderr crit;
pid %[1]s/nginx.pid;
events { worker_connections 16384; }
`

const nginxHTTP = `http {
  access_log off;
  client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
  client_max_body_size 0;
  keepalive_requests 1000000000;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_request_buffering off;
  upstream b { %[3]skeepalive 128; keepalive_requests 1000000000; }
  server { listen %[2]s%[4]s backlog=4096; http2_max_concurrent_streams 256; location / { %[5]s; } }
}
`

const nginxStream = `stream {
  upstream b { %[2]s}
  server { listen %[1]s backlog=4096; proxy_pass b; }
}
`

// nginxModules are where the distributions keep the stream module, which Debian builds apart.
func nginxModules() []string {
	return []string{"/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib64/nginx/modules/ngx_stream_module.so"}
}

// startNginx: one worker, which is the only process.
func startNginx(ctx context.Context, o options, j job) (*process, error) {
	path, err := program(o.nginx, "nginx", "nginx")
	if err != nil {
		return nil, err
	}
	var servers strings.Builder
	for _, addr := range j.backends {
		fmt.Fprintf(&servers, "server %s; ", addr)
	}
	text := fmt.Sprintf(nginxConfig, j.dir)
	switch j.mode {
	case modeH2:
		text += fmt.Sprintf(nginxHTTP, j.dir, j.listen, servers.String(), " http2", "grpc_pass grpc://b")
	case modeHTTP1:
		text += fmt.Sprintf(nginxHTTP, j.dir, j.listen, servers.String(), "", "proxy_pass http://b")
	case modeTCP:
		// A build of one's own may have the module in it: it says so when it reads the configuration.
		for _, module := range nginxModules() {
			if _, err := os.Stat(module); err == nil && o.nginx == "" {
				text = "load_module " + module + ";\n" + text
				break
			}
		}
		text += fmt.Sprintf(nginxStream, j.listen, servers.String())
	}
	p, err := startWith(ctx, j, "nginx.conf", text, nil, path, "-p", j.dir, "-c")
	if err != nil && j.mode == modeTCP {
		err = fmt.Errorf("%w (Debian has its stream module in the package libnginx-mod-stream)", err)
	}
	return p, err
}

// startGo starts this program again as the Go contender.
func startGo(ctx context.Context, _ options, j job) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return startProcess(ctx, j.listen, nil, self, goProxyVerb, string(j.mode), j.listen, strings.Join(j.backends, ","))
}

// startWith writes a configuration and starts argv with its path as the last word.
func startWith(ctx context.Context, j job, file, text string, env []string, argv ...string) (*process, error) {
	path := filepath.Join(j.dir, file)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return startProcess(ctx, j.listen, env, append(argv, path)...)
}

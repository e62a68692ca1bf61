package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// agentPackage is what is built when no --agent is named.
const agentPackage = "github.com/lbagent/lbagent/cmd/lbagent"

// agentProcess is the real lbagent, as a process of its own: an act restarts it.
type agentProcess struct {
	dir    string
	binary string
	config string
	socket string
	admin  string // host:port
	api    *grpc.ClientConn

	child atomic.Pointer[child]
}

// prepareAgent builds the binary unless one is named, and writes its configuration.
func prepareAgent(ctx context.Context, dir, binary, etcdAddr, admin string, port uint16) (*agentProcess, error) {
	a := &agentProcess{dir: dir, binary: binary, admin: admin,
		config: filepath.Join(dir, "lbagent.yaml"), socket: filepath.Join(dir, "lbagent.sock")}
	if a.binary == "" {
		a.binary = filepath.Join(dir, "lbagent")
		build := exec.CommandContext(ctx, "go", "build", "-o", a.binary, agentPackage)
		build.Env = append(build.Environ(), "CGO_ENABLED=0") // as it is released
		if out, err := build.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build the agent: %w\n%s(run lbdemo in lbagent's source tree, or name a binary with --agent)", err, out)
		}
	}
	text := fmt.Sprintf(`node: {name: lbdemo}
etcd: {endpoints: ["http://%s"]}
api:
  socket: %s
  admin_socket: %s
admin: {listen: %q}
state_dir: %s
services:
  - name: %s
    prefix: %s/
    allow: [127.0.0.0/8]
    listen: [%d]
`, etcdAddr, a.socket, filepath.Join(dir, "admin.sock"), admin, filepath.Join(dir, "state"), serviceName, etcdTarget, port)
	if err := os.WriteFile(a.config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	api, err := grpc.NewClient("unix:"+a.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", a.socket, err)
	}
	a.api = api
	return a, nil
}

// start starts the process and returns when it says that it is ready (6.4: every service has its list, or 2 s have passed).
func (a *agentProcess) start(ctx context.Context) error {
	c, err := spawn(a.dir, "lbagent", func(string) {}, a.binary, "run", "--config", a.config)
	if err != nil {
		return err
	}
	a.child.Store(c)
	ready := func() bool { return !c.alive() || a.ready(ctx) }
	if err := until(ctx, 15*time.Second, "the agent is ready", ready); err != nil {
		return err
	}
	if !c.alive() {
		return errors.New("the agent ended at once")
	}
	a.api.ResetConnectBackoff()
	return nil
}

func (a *agentProcess) ready(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+a.admin+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// stop ends the process as `systemctl stop` would.
func (a *agentProcess) stop() error {
	a.child.Load().signal(syscall.SIGTERM)
	select {
	case <-a.child.Load().gone:
		return nil
	case <-time.After(10 * time.Second):
		a.child.Load().stop(0)
		return errors.New("the agent did not end within 10s of SIGTERM")
	}
}

// list is what the agent says of the service, nil if it doesn't answer.
func (a *agentProcess) list(ctx context.Context) *lbagentv1.ListResponse {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	l, err := lbagentv1.NewLookupServiceClient(a.api).List(ctx, &lbagentv1.ListRequest{Service: serviceName})
	if err != nil {
		return nil
	}
	return l
}

// source is where the agent has its list from: etcd or spool; empty if it doesn't answer.
func (a *agentProcess) source(ctx context.Context) string {
	return a.list(ctx).GetProvenance().GetSource()
}

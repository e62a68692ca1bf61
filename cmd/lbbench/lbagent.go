package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// lbagentHead is the part of a configuration that all shapes share: as installed, on one event loop, as HAProxy is on one thread.
const lbagentHead = `api: {socket: %[1]s/lbagent.sock, admin_socket: %[1]s/admin.sock}
admin: {listen: %[2]q}
state_dir: %[1]s/state
log: {level: warn}
proxy: {loops: 1}
`

// lbagentService has everything on: probes, ejection, counters, picking.
const lbagentService = `services:
  - name: %[1]s
    listen: [%[2]q]
    protocol: %[3]s
    backends: [%[4]s]
`

// benchService is the name of the service that is relayed.
const benchService = "bench"

func startLbagent(ctx context.Context, o options, j job) (*process, error) {
	return startStatic(ctx, o.lbagent, o.agentEnv(o.gomaxprocs[0]), j)
}

// startOld starts the build that --old names.
func startOld(ctx context.Context, o options, j job) (*process, error) {
	if o.old == "" {
		return nil, errors.New("no --old")
	}
	return startStatic(ctx, o.old, o.agentEnv(o.gomaxprocs[0]), j)
}

// startStatic starts lbagent with one service whose backends are written down.
func startStatic(ctx context.Context, binary string, env []string, j job) (*process, error) {
	head, err := agentHead(j.dir, j.listen)
	if err != nil {
		return nil, err
	}
	quoted := make([]string, len(j.backends))
	for i, addr := range j.backends {
		quoted[i] = fmt.Sprintf("%q", addr)
	}
	protocol := "auto" // as installed: h2 and http1 are told apart by their first bytes
	if j.mode == modeTCP {
		protocol = "tcp"
	}
	text := head + fmt.Sprintf(lbagentService, benchService, j.listen, protocol, strings.Join(quoted, ", "))
	return startAgent(ctx, binary, env, j, text)
}

// agentHead is the part of a configuration that isn't about services, of which one listens on listen.
func agentHead(dir, listen string) (string, error) {
	admin := listen
	for admin == listen { // it is free, too, before it is listened on
		var err error
		if admin, err = freePort(); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf(lbagentHead, dir, admin), nil
}

func startAgent(ctx context.Context, binary string, env []string, j job, text string) (*process, error) {
	return startWith(ctx, j, "lbagent.yaml", text, env, binary, "run", "--config")
}

// agentSocket is where an agent that was started in dir answers.
func agentSocket(dir string) string { return filepath.Join(dir, "lbagent.sock") }

// buildLbagent builds the agent of this source tree into dir, as `make build` does.
func buildLbagent(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "lbagent")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/lbagent/lbagent/cmd/lbagent")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build lbagent: %w: %s (run lbbench in lbagent's source tree, or name a binary with --lbagent)", err, out)
	}
	return path, nil
}

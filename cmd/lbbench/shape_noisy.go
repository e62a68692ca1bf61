package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	// elsewhere is the same noise at another agent: it takes the same part of the machine, and none of the process under test.
	elsewhere = "elsewhere"
	noisyRate = 5000 // requests per second of the relay
	noisyConn = 10

	noiseChanges, noisePicks = 100, 5000 // per second
	// The agents follow so many services; the relayed one is the first, whose two backends live. The others are lists of addresses that nobody probes.
	noisyServices, noisyBackends = 10, 100
)

// noisyAgent is one lbagent that follows lists of its own in etcd.
type noisyAgent struct {
	runner
	prefix, socket string
}

func startNoisyShape(ctx context.Context, r *rig) ([]cell, error) {
	backends, err := r.h2Backends(ctx)
	if err != nil {
		return nil, err
	}
	endpoint, err := r.etcd(ctx)
	if err != nil {
		return nil, err
	}
	other, err := r.noisyAgent(ctx, endpoint, elsewhere, 0, backends)
	if err != nil {
		return nil, err
	}
	rate := r.rate
	if rate == 0 {
		rate = noisyRate
	}
	r.note("%.0f requests/s; noise is %d list changes and %d Pick calls a second; %q is the same noise at another agent, so that what the machine lacks can be told from what the process lacks",
		rate, noiseChanges, noisePicks, elsewhere)
	var cells []cell
	for _, procs := range r.gomaxprocs {
		load := "GOMAXPROCS default"
		if procs > 0 {
			load = "GOMAXPROCS " + strconv.Itoa(procs)
		}
		one, err := r.noisyAgent(ctx, endpoint, "p"+strconv.Itoa(procs), procs, backends)
		if err != nil {
			return nil, err
		}
		for _, c := range []struct {
			name string
			at   *noisyAgent // where the noise goes
		}{{quiet, nil}, {elsewhere, &other}, {noisy, &one}} {
			cells = append(cells, cell{load, c.name, func(ctx context.Context, d time.Duration) ([]reading, error) {
				m, err := r.beside(ctx, one, c.at, endpoint, rate, d)
				m.Contender = c.name
				return []reading{m}, err
			}})
		}
	}
	return cells, nil
}

// beside relays at a rate through one while noise goes to at.
func (r *rig) beside(ctx context.Context, one noisyAgent, at *noisyAgent, endpoint string, rate float64, d time.Duration) (reading, error) {
	var n *noise
	if at != nil {
		var err error
		if n, err = startNoise(ctx, endpoint, at.prefix, at.socket); err != nil {
			return reading{}, err
		}
	}
	seen, err := runOpenLoop(ctx, newH2Wire, one.addr, noisyConn, rate, d, one.process)
	m := one.atFixedRate(seen)
	if seen.failed > 0 {
		r.note("%d relayed requests failed; the agent's last events: %s", seen.failed, one.events(ctx, r.options.lbagent))
	}
	if n != nil {
		made, err2 := n.end()
		err = errors.Join(err, err2)
		if m.Failed += made.Failed; made.Failed > 0 {
			r.note("%d changes or picks failed, the first: %s", made.Failed, made.Cause)
		}
		m.Figures[changesPerSec] = float64(made.Changes) / made.Seconds
		m.Figures[picksPerSec] = float64(made.Picks) / made.Seconds
		m.Figures[latePerSec] = float64(made.Late) / made.Seconds
	}
	return m, err
}

// events is what the agent has to say of what happened lately.
func (a noisyAgent) events(ctx context.Context, binary string) string {
	out, err := exec.CommandContext(ctx, binary, "events", "--socket", a.socket, "--admin-socket", filepath.Join(filepath.Dir(a.socket), "admin.sock")).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("not known: %v: %s", err, out)
	}
	return strings.TrimSpace(string(out[max(0, len(out)-2000):]))
}

// etcdVerb starts this program as an etcd: etcdVerb DIR LISTEN.
const etcdVerb = "etcd"

func runEtcd(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("want DIR LISTEN")
	}
	e, err := etcdtest.Run(etcdtest.Config{Dir: args[0], Addr: args[1], LogLevel: "error"})
	if err != nil {
		return err
	}
	<-ctx.Done()
	e.Close()
	return nil
}

// etcd starts one, to be stopped with the rig, and returns its endpoint.
func (r *rig) etcd(ctx context.Context) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(r.dir, etcdVerb)
	if err != nil {
		return "", err
	}
	addr, err := freePort()
	if err != nil {
		return "", err
	}
	p, err := startProcess(ctx, addr, nil, self, etcdVerb, dir, addr)
	if err != nil {
		return "", err
	}
	r.onClose(p.stop)
	return "http://" + addr, nil
}

func dialEtcd(endpoint string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
}

// serviceOf is the n-th service of a noisy agent.
func serviceOf(n int) string {
	if n == 0 {
		return benchService
	}
	return "s" + strconv.Itoa(n)
}

// record is a backend as etcd's own naming package writes it.
func record(addr string, weight int) string {
	return fmt.Sprintf(`{"Op":0,"Addr":%q,"Metadata":{"weight":%d}}`, addr, weight)
}

// nobody is the n-th address of a list that nobody dials.
func nobody(n int) string { return fmt.Sprintf("127.9.%d.%d:9", n/250, 1+n%250) }

// noisyAgent writes the lists of an agent to etcd, starts it, and returns once it relays.
func (r *rig) noisyAgent(ctx context.Context, endpoint, prefix string, procs int, backends []string) (noisyAgent, error) {
	fail := func(err error) (noisyAgent, error) {
		return noisyAgent{}, fmt.Errorf("start the agent of %s: %w", prefix, err)
	}
	if err := writeLists(ctx, endpoint, prefix, backends); err != nil {
		return fail(err)
	}
	dir, err := os.MkdirTemp(r.dir, lbagent)
	if err != nil {
		return fail(err)
	}
	listen, err := freePort()
	if err != nil {
		return fail(err)
	}
	text, err := agentHead(dir, listen)
	if err != nil {
		return fail(err)
	}
	text += fmt.Sprintf("etcd: {endpoints: [%q]}\nservices:\n  - {name: %s, prefix: %s/%s/, allow: [127.0.0.0/8], listen: [%q]}\n", endpoint, benchService, prefix, benchService, listen)
	for i := 1; i < noisyServices; i++ {
		text += fmt.Sprintf("  - {name: %s, prefix: %s/%s/, probe: {type: none}}\n", serviceOf(i), prefix, serviceOf(i))
	}
	p, err := startAgent(ctx, r.options.lbagent, r.agentEnv(procs), job{modeH2, listen, nil, dir}, text)
	if err != nil {
		return fail(err)
	}
	r.onClose(p.stop)
	if err := relays(ctx, listen); err != nil {
		return fail(err)
	}
	return noisyAgent{runner{lbagent, listen, p}, prefix, agentSocket(dir)}, nil
}

// relays returns nil once a request is answered.
func relays(ctx context.Context, addr string) error {
	for end := time.Now().Add(startsWithin); ; {
		fds, err := openIdle(addr, newH2Wire, 1)
		closeIdle(fds)
		if err == nil || time.Now().After(end) {
			return err
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

func writeLists(ctx context.Context, endpoint, prefix string, backends []string) error {
	client, err := dialEtcd(endpoint)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, startsWithin)
	defer cancel()
	for i := range noisyServices {
		var puts []clientv3.Op
		for n := range noisyBackends {
			addr := nobody(n)
			if i == 0 {
				if n >= len(backends) {
					break
				}
				addr = backends[n]
			}
			puts = append(puts, clientv3.OpPut(prefix+"/"+serviceOf(i)+"/"+addr, record(addr, 100)))
		}
		if _, err := client.Txn(ctx).Then(puts...).Commit(); err != nil {
			return fmt.Errorf("write the list of %s: %w", serviceOf(i), err)
		}
	}
	return nil
}

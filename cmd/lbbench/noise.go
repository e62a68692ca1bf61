package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// noiseVerb starts this program as the maker of noise: noiseVerb ETCD PREFIX SOCKET. It is a process of its own, so that its garbage isn't collected while
// the relay's latencies are taken. It prints a line when it is at it, ends with its stdin, and then prints what it made.
const noiseVerb = "noise"

// made is what a maker of noise did.
type made struct {
	Changes, Picks int
	Late           int    // picks that were not asked for: those before them, of most of a second, had no answer yet
	Failed         int    // of changes and picks
	Cause          string // of the first that failed
	Seconds        float64
}

// noise is a running maker of noise.
type noise struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
	errs  *bytes.Buffer
}

func startNoise(ctx context.Context, endpoint, prefix, socket string) (*noise, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, noiseVerb, endpoint, prefix, socket)
	n := &noise{cmd: cmd, errs: &bytes.Buffer{}}
	cmd.Stderr = n.errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	n.stdin, n.out = stdin, bufio.NewReader(stdout)
	if _, err := n.out.ReadString('\n'); err != nil {
		_, err2 := n.end()
		return nil, fmt.Errorf("the noise did not begin: %w", errors.Join(err, err2))
	}
	return n, nil
}

// end stops the noise and returns what it was.
func (n *noise) end() (made, error) {
	n.stdin.Close()
	var m made
	err := json.NewDecoder(n.out).Decode(&m)
	if err2 := n.cmd.Wait(); err2 != nil {
		err = fmt.Errorf("%w: %s", err2, n.errs)
	}
	if err != nil {
		return m, fmt.Errorf("make noise: %w", err)
	}
	return m, nil
}

func runNoise(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("want ETCD PREFIX SOCKET")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until it is closed
		cancel()
	}()
	etcd, err := dialEtcd(args[0])
	if err != nil {
		return err
	}
	defer etcd.Close()
	conn, err := grpc.NewClient("unix:"+args[2], grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		return err
	}
	defer conn.Close()
	lookup := lbagentv1.NewLookupServiceClient(conn)
	n := &noiser{etcd: etcd, lookup: lookup, prefix: args[1]}
	// Both work before it counts.
	if err := errors.Join(n.change(ctx, 0), pick(ctx, lookup, 1)); err != nil {
		return err
	}
	fmt.Println("begun")
	m, err := n.make(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(m)
}

// noiser changes lists and picks.
type noiser struct {
	etcd   *clientv3.Client
	lookup lbagentv1.LookupServiceClient
	prefix string

	revision int64  // of the last change; its goroutine's
	service  string // of the last change

	failed atomic.Int64
	cause  atomic.Pointer[string] // of the first that failed
}

// fails counts a change or a pick that failed.
func (n *noiser) fails(err error) {
	n.failed.Add(1)
	text := err.Error()
	n.cause.CompareAndSwap(nil, &text)
}

// finish is a context for a call that is to be finished though the noise ends meanwhile, but not forever.
func finish(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
}

// change makes the n-th change: of the relayed service the weight of a backend, of the others a backend more or one fewer.
func (n *noiser) change(ctx context.Context, turn int) error {
	n.service = serviceOf(turn % noisyServices)
	dir := n.prefix + "/" + n.service + "/"
	odd := turn / noisyServices % 2
	extra := nobody(noisyBackends)
	if n.service != benchService {
		if odd == 1 {
			return n.write(ctx, clientv3.OpDelete(dir+extra))
		}
		return n.write(ctx, clientv3.OpPut(dir+extra, record(extra, 100)))
	}
	all, err := n.etcd.Get(ctx, dir, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithLimit(1))
	if err != nil {
		return fmt.Errorf("find a backend of %s: %w", n.service, err)
	}
	if len(all.Kvs) == 0 {
		return fmt.Errorf("find a backend of %s: there is none", n.service)
	}
	key := string(all.Kvs[0].Key)
	return n.write(ctx, clientv3.OpPut(key, record(key[len(dir):], 100+odd)))
}

func (n *noiser) write(ctx context.Context, op clientv3.Op) error {
	answer, err := n.etcd.Txn(ctx).Then(op).Commit()
	if err != nil {
		return err
	}
	n.revision = answer.Header.Revision
	return nil
}

// make makes noise until ctx ends and then sees whether the agent has followed.
func (n *noiser) make(ctx context.Context) (made, error) {
	var m made
	var picks atomic.Int64
	begin := time.Now()
	var workers sync.WaitGroup
	workers.Go(func() {
		m.Changes = n.changes(ctx)
	})
	due := make(chan time.Duration, 1<<12)
	for range 32 {
		workers.Go(func() {
			for range due {
				// The end is not the failure of the picks on their way.
				ctx, cancel := finish(ctx)
				if err := pick(ctx, n.lookup, 1); err != nil {
					n.fails(err)
				} else {
					picks.Add(1)
				}
				cancel()
			}
		})
	}
	err := pace(ctx, begin, noisePicks, time.Hour, func(at time.Duration) error {
		select {
		case due <- at:
		default:
			m.Late++
		}
		return nil
	})
	close(due)
	workers.Wait()
	m.Seconds = time.Since(begin).Seconds()
	m.Picks, m.Failed = int(picks.Load()), int(n.failed.Load())
	if cause := n.cause.Load(); cause != nil {
		m.Cause = *cause
	}
	if !errors.Is(err, context.Canceled) {
		return m, err
	}
	return m, n.followed(ctx)
}

// changes makes changes until ctx ends and returns how many.
func (n *noiser) changes(ctx context.Context) int {
	tick := time.NewTicker(time.Second / noiseChanges)
	defer tick.Stop()
	for done := 1; ; {
		select {
		case <-ctx.Done():
			return done - 1
		case <-tick.C:
			ctx, cancel := finish(ctx)
			if err := n.change(ctx, done); err != nil {
				n.fails(err)
			}
			cancel()
			done++
		}
	}
}

// followed returns nil once the agent's list is as new as the last change: noise that the agent doesn't hear is none.
func (n *noiser) followed(ctx context.Context) error {
	ctx, cancel := finish(ctx)
	defer cancel()
	for {
		list, err := n.lookup.List(ctx, &lbagentv1.ListRequest{Service: n.service})
		if err == nil && list.GetProvenance().GetRevision() >= n.revision {
			return nil
		}
		if wait(ctx, 20*time.Millisecond) != nil {
			return fmt.Errorf("the agent's list of %s is of revision %d, the last change of %d: %w", n.service, list.GetProvenance().GetRevision(), n.revision, err)
		}
	}
}

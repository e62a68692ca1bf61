package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	lookupBackends = 20
	// bareCall is an empty call of a grpc-go server that has nothing else, on a socket of its own.
	bareCall = "bare grpc-go"
	// batchSize picks are asked for at once, by as many callers.
	batchSize, batchCallers = 100, 4
)

func startLookupShape(ctx context.Context, r *rig) ([]cell, error) {
	backends, err := r.listeners(lookupBackends)
	if err != nil {
		return nil, err
	}
	agent, socket, err := r.lookupAgent(ctx, backends)
	if err != nil {
		return nil, err
	}
	bareSocket := filepath.Join(r.dir, "bare.sock")
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	bare, err := startProcess(ctx, "unix:"+bareSocket, nil, self, grpcBackendVerb, "unix:"+bareSocket)
	if err != nil {
		return nil, err
	}
	r.onClose(bare.stop)
	toAgent, err := r.dialUnix(socket)
	if err != nil {
		return nil, err
	}
	toBare, err := r.dialUnix(bareSocket)
	if err != nil {
		return nil, err
	}
	health, lookup := healthpb.NewHealthClient(toAgent), lbagentv1.NewLookupServiceClient(toAgent)
	turns := []turn{
		{bareCall, func(ctx context.Context) error {
			return toBare.Invoke(ctx, sayMethod, &wrapperspb.BytesValue{}, &wrapperspb.BytesValue{})
		}},
		{emptyCall, func(ctx context.Context) error {
			_, err := health.Check(ctx, &healthpb.HealthCheckRequest{})
			return err
		}},
		{pickCall, func(ctx context.Context) error { return pick(ctx, lookup, 1) }},
	}
	return []cell{
		{loadSingle, "all in turn", func(ctx context.Context, d time.Duration) ([]reading, error) { return takeTurns(ctx, turns, d) }},
		{loadBatch, pickCall, func(ctx context.Context, d time.Duration) ([]reading, error) { return batches(ctx, lookup, agent, d) }},
	}, nil
}

// lookupAgent starts an agent that nobody dials, and returns its socket.
func (r *rig) lookupAgent(ctx context.Context, backends []string) (*process, string, error) {
	dir, err := os.MkdirTemp(r.dir, lbagent)
	if err != nil {
		return nil, "", err
	}
	listen, err := freePort()
	if err != nil {
		return nil, "", err
	}
	p, err := startLbagent(ctx, r.options, job{modeH2, listen, backends, dir})
	if err != nil {
		return nil, "", err
	}
	r.onClose(p.stop)
	return p, agentSocket(dir), nil
}

// listeners are n addresses where probes are accepted.
func (r *rig) listeners(n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		r.onClose(func() { l.Close() })
		addrs = append(addrs, l.Addr().String())
		go func() {
			for c, err := l.Accept(); err == nil; c, err = l.Accept() {
				c.Close()
			}
		}()
	}
	return addrs, nil
}

func (r *rig) dialUnix(socket string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", socket, err)
	}
	r.onClose(func() { conn.Close() })
	return conn, nil
}

// pick asks for n picks and wants them.
func pick(ctx context.Context, lookup lbagentv1.LookupServiceClient, n uint32) error {
	answer, err := lookup.Pick(ctx, &lbagentv1.PickRequest{Service: benchService, Count: n})
	if err != nil {
		return err
	}
	got := uint32(0)
	for _, p := range answer.GetPicks() {
		got += max(1, p.GetCount())
	}
	if got != n {
		return fmt.Errorf("%d picks came, of %d", got, n)
	}
	return nil
}

// turn is a call that is compared with others.
type turn struct {
	name string
	call func(context.Context) error
}

// A turn is turnCalls calls, of which the first are not counted: a process that was not called last is slow to wake.
const turnCalls, turnWarmUp = 20, 2

// takeTurns makes the calls one at a time, turn by turn, so that what disturbs one disturbs all.
func takeTurns(ctx context.Context, turns []turn, d time.Duration) ([]reading, error) {
	ctx, cancel := context.WithTimeout(ctx, d+callTimeout) // for all of them: a timer each would be part of what is measured
	defer cancel()
	took := make([][]time.Duration, len(turns))
	failed := make([]int, len(turns))
	for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil; {
		for i, t := range turns {
			for n := range turnCalls {
				begin := time.Now()
				if err := t.call(ctx); err != nil {
					failed[i]++
				} else if n >= turnWarmUp {
					took[i] = append(took[i], time.Since(begin))
				}
			}
		}
	}
	var out []reading
	for i, t := range turns {
		slices.Sort(took[i])
		p := paced{took: took[i]}
		out = append(out, reading{t.name, map[figure]float64{
			onePickMedian: micros(p.quantile(0.5)),
			onePickTail:   micros(p.quantile(0.99)),
		}, len(took[i]), failed[i]})
	}
	return out, ctx.Err()
}

// batches asks for picks by the hundred.
func batches(ctx context.Context, lookup lbagentv1.LookupServiceClient, agent *process, d time.Duration) ([]reading, error) {
	ctx, cancel := context.WithTimeout(ctx, d+callTimeout)
	defer cancel()
	agentBefore, err1 := agent.cpu()
	selfBefore, err2 := cpuOf(unix.Getpid())
	begin := time.Now()
	var done, failed atomic.Int64
	var callers sync.WaitGroup
	for range batchCallers {
		callers.Go(func() {
			for time.Since(begin) < d && ctx.Err() == nil {
				if pick(ctx, lookup, batchSize) != nil {
					failed.Add(1)
				} else {
					done.Add(1)
				}
			}
		})
	}
	callers.Wait()
	elapsed := time.Since(begin)
	agentAfter, err3 := agent.cpu()
	selfAfter, err4 := cpuOf(unix.Getpid())
	if err := errors.Join(err1, err2, err3, err4, ctx.Err()); err != nil {
		return nil, err
	}
	picks, ofAgent, ofSelf := float64(batchSize*done.Load()), agentAfter-agentBefore, selfAfter-selfBefore
	return []reading{{pickCall, map[figure]float64{
		picksPerCPU:   picks / (ofAgent + ofSelf).Seconds(),
		picksPerAgent: picks / ofAgent.Seconds(),
		picksPerSec:   picks / elapsed.Seconds(),
	}, int(done.Load()), int(failed.Load())}}, nil
}

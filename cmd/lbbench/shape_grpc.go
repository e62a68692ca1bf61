package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The grpc shape is what a Go programmer's callers and servers do: grpc-go on both ends, 10 connections, 32 bytes there and back.
const (
	grpcConns   = 10
	grpcWorkers = 512 // calls at once at the fixed rate; a call that finds none free waits, and its waiting counts
	grpcClosed  = "10x10"
	grpcStreams = 10
)

func startGRPCShape(ctx context.Context, r *rig) ([]cell, error) {
	backends, err := r.selfBackends(ctx, grpcBackendVerb)
	if err != nil {
		return nil, err
	}
	running, err := r.startAll(ctx, modeH2, backends)
	if err != nil {
		return nil, err
	}
	var cells []cell
	for _, one := range running {
		cells = append(cells, cell{grpcClosed, one.name, func(ctx context.Context, d time.Duration) ([]reading, error) {
			seen, err := one.callClosed(ctx, d)
			return []reading{one.atClosedLoop(seen)}, err
		}})
	}
	rate, err := r.fixedRate(running, func(one runner) (float64, error) {
		seen, err := one.callClosed(ctx, r.duration)
		return float64(seen.requests) / seen.elapsed.Seconds(), err
	})
	if err != nil {
		return nil, err
	}
	for _, one := range running {
		cells = append(cells, cell{loadFixed, one.name, func(ctx context.Context, d time.Duration) ([]reading, error) {
			seen, err := one.callAtRate(ctx, rate, d)
			return []reading{one.atFixedRate(seen)}, err
		}})
	}
	return cells, nil
}

// atClosedLoop is atFixedRate without the quantiles, which say something of independent callers only.
func (one runner) atClosedLoop(seen paced) reading {
	m := one.atFixedRate(seen)
	delete(m.Figures, medianLatency)
	delete(m.Figures, tailLatency)
	return m
}

// callClosed makes the next call when the last is answered, on each of 100 streams.
func (one runner) callClosed(ctx context.Context, d time.Duration) (paced, error) {
	return one.call(ctx, grpcConns*grpcStreams, func(ctx context.Context, base time.Time, due chan<- time.Duration) error {
		for time.Since(base) < d && ctx.Err() == nil {
			due <- time.Since(base)
		}
		return nil
	})
}

// callAtRate makes calls at a rate whatever comes back.
func (one runner) callAtRate(ctx context.Context, rate float64, d time.Duration) (paced, error) {
	return one.call(ctx, grpcWorkers, func(ctx context.Context, base time.Time, due chan<- time.Duration) error {
		return pace(ctx, base, rate, d, func(at time.Duration) error {
			select {
			case due <- at:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
}

// call has workers make the calls that feed says are due.
func (one runner) call(ctx context.Context, workers int, feed func(context.Context, time.Time, chan<- time.Duration) error) (paced, error) {
	conns, err := dialGRPC(ctx, "passthrough:///"+one.addr, grpcConns)
	if err != nil {
		return paced{}, err
	}
	defer closeGRPC(conns)
	before, err := one.process.cpu()
	if err != nil {
		return paced{}, err
	}
	base := time.Now()
	due := make(chan time.Duration)
	if workers > grpcConns*grpcStreams {
		due = make(chan time.Duration, 1<<16)
	}
	each := make([]paced, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for at := range due {
				if err := say(ctx, conns[i%len(conns)]); err != nil {
					each[i].failed++
				} else {
					each[i].took = append(each[i].took, time.Since(base)-at)
				}
			}
		})
	}
	err = feed(ctx, base, due)
	close(due)
	wg.Wait()
	out := paced{elapsed: time.Since(base)}
	after, err2 := one.process.cpu()
	out.cpu = after - before
	for _, e := range each {
		out.took, out.failed = append(out.took, e.took...), out.failed+e.failed
	}
	out.requests = len(out.took)
	slices.Sort(out.took)
	return out, errors.Join(err, err2)
}

// dialGRPC makes connections and has a call answered on each.
func dialGRPC(ctx context.Context, target string, n int) ([]*grpc.ClientConn, error) {
	var conns []*grpc.ClientConn
	for range n {
		conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
		if err == nil {
			conns = append(conns, conn)
			err = say(ctx, conn)
		}
		if err != nil {
			closeGRPC(conns)
			return nil, fmt.Errorf("first call to %s: %w", target, err)
		}
	}
	return conns, nil
}

func closeGRPC(conns []*grpc.ClientConn) {
	for _, c := range conns {
		c.Close()
	}
}

// callTimeout ends a call that nobody answers, so that a run always ends.
const callTimeout = 10 * time.Second

// say makes one call of 32 bytes and wants them back.
func say(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	in, out := &wrapperspb.BytesValue{Value: make([]byte, smallBytes)}, &wrapperspb.BytesValue{}
	if err := conn.Invoke(ctx, sayMethod, in, out); err != nil {
		return err
	}
	if len(out.Value) != smallBytes {
		return fmt.Errorf("%d bytes came back", len(out.Value))
	}
	return nil
}

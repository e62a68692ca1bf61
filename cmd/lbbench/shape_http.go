package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// httpShape is what the shapes h2 and http1 share.
type httpShape struct {
	mode        mode
	wire        func(addr string) wire
	connections int // of the fixed rate
	loads       []load
	backends    []string
}

func startH2Shape(ctx context.Context, r *rig) ([]cell, error) {
	backends, err := r.h2Backends(ctx)
	if err != nil {
		return nil, err
	}
	return r.startHTTP(ctx, httpShape{modeH2, newH2Wire, 10, r.loads, backends})
}

// startHTTP1Shape: more connections at the fixed rate, since each carries one request at a time.
func startHTTP1Shape(ctx context.Context, r *rig) ([]cell, error) {
	backends, err := r.selfBackends(ctx, http1BackendVerb)
	if err != nil {
		return nil, err
	}
	if err := r.writeBodies(); err != nil {
		return nil, err
	}
	var loads []load
	for _, l := range r.loads {
		if l.streams == 1 {
			loads = append(loads, l)
		}
	}
	return r.startHTTP(ctx, httpShape{modeHTTP1, newHTTP1Wire, 64, loads, backends})
}

func (r *rig) startHTTP(ctx context.Context, s httpShape) ([]cell, error) {
	if _, err := program("", "h2load", "nghttp2-client"); err != nil {
		return nil, fmt.Errorf("%w: %w", errSkip, err)
	}
	running, err := r.startAll(ctx, s.mode, s.backends)
	if err != nil {
		return nil, err
	}
	small := asked{http1: s.mode == modeHTTP1, path: smallPath}
	var cells []cell
	for _, l := range s.loads {
		for _, one := range running {
			cells = append(cells, cell{l.String(), one.name, one.closedLoop(small, l, requestFigures)})
		}
	}
	down, up := small, small
	down.path, up.upload = largePath, filepath.Join(r.dir, largePath)
	for _, one := range running {
		cells = append(cells, cell{loadDown, one.name, one.closedLoop(down, load{4, 1}, bulkFigures)})
	}
	for _, one := range running {
		cells = append(cells, cell{loadUp, one.name, one.closedLoop(up, load{4, 1}, bulkFigures)})
	}
	rate, err := r.fixedRate(running, func(one runner) (float64, error) {
		seen, err := h2load(ctx, one.addr, small, load{s.connections, 1}, r.duration)
		return seen.rate, err
	})
	if err != nil {
		return nil, err
	}
	for _, one := range running {
		cells = append(cells, cell{loadFixed, one.name, func(ctx context.Context, d time.Duration) ([]reading, error) {
			seen, err := runOpenLoop(ctx, s.wire, one.addr, s.connections, rate, d, one.process)
			return []reading{one.atFixedRate(seen)}, err
		}})
	}
	return cells, nil
}

// calibrations are how often the most is looked for; their median counts.
const calibrations = 3

// fixedRate is half of the most that HAProxy does, the same for all; of who else takes part if HAProxy doesn't.
func (r *rig) fixedRate(running []runner, most func(runner) (float64, error)) (float64, error) {
	if r.rate > 0 {
		r.note("fixed rate: %.0f requests/s, as asked for", r.rate)
		return r.rate, nil
	}
	var from runner
	for _, one := range running {
		if from.name == "" || one.name == haproxy {
			from = one
		}
	}
	if from.name == "" {
		return 0, fmt.Errorf("%w: no contender takes part", errSkip)
	}
	var found []float64
	for range calibrations {
		n, err := most(from)
		if err != nil {
			return 0, fmt.Errorf("find the most that %s does: %w", from.name, err)
		}
		found = append(found, n)
	}
	half := max(summarize(found).median/2, 1)
	r.note("fixed rate: %.0f requests/s, half of what %s does", half, from.name)
	return half, nil
}

// longestTry bounds how long an answer is waited for.
const longestTry = 10 * time.Second

// closedLoop measures a contender by h2load, after a short warm-up.
func (one runner) closedLoop(a asked, l load, figures func(loaded, time.Duration) map[figure]float64) func(context.Context, time.Duration) ([]reading, error) {
	return func(ctx context.Context, d time.Duration) ([]reading, error) {
		if _, err := h2load(ctx, one.addr, a, l, max(d/10, 100*time.Millisecond)); err != nil {
			return nil, err
		}
		for ; ; d *= 2 {
			before, err := one.process.cpu()
			if err != nil {
				return nil, err
			}
			seen, err := h2load(ctx, one.addr, a, l, d)
			if err != nil {
				return nil, err
			}
			after, err := one.process.cpu()
			if err != nil {
				return nil, err
			}
			// On a busy machine a short measurement may see no answer at all.
			if seen.requests > 0 || d > longestTry {
				return []reading{{one.name, figures(seen, after-before), seen.requests, seen.failed}}, nil
			}
		}
	}
}

func requestFigures(seen loaded, cpu time.Duration) map[figure]float64 {
	out := map[figure]float64{rate: seen.rate, meanLatency: micros(seen.mean)}
	if cpu > 0 && seen.requests > 0 {
		out[cpuPerRequest] = micros(cpu) / float64(seen.requests)
	}
	return out
}

func bulkFigures(seen loaded, cpu time.Duration) map[figure]float64 {
	out := map[figure]float64{throughput: seen.rate * largeBytes / (1 << 20)}
	if cpu > 0 && seen.requests > 0 {
		out[bytesPerCPU] = float64(seen.requests) * largeBytes / (1 << 20) / cpu.Seconds()
	}
	return out
}

// atFixedRate turns what the open loop saw into figures.
func (one runner) atFixedRate(seen paced) reading {
	out := map[figure]float64{
		rate:          float64(seen.requests) / seen.elapsed.Seconds(),
		medianLatency: micros(seen.quantile(0.5)),
		tailLatency:   micros(seen.quantile(0.99)),
	}
	if one.process != nil && seen.requests > 0 {
		out[cpuPerRequest] = micros(seen.cpu) / float64(seen.requests)
	}
	return reading{one.name, out, seen.requests, seen.failed}
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

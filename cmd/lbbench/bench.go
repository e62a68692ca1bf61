package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// shape is a kind of work.
type shape struct {
	name, what string
	// start brings everything up and returns what is to be measured, in the order of measuring.
	start func(context.Context, *rig) ([]cell, error)
}

func shapes() []shape {
	return []shape{
		{"h2", "HTTP/2 over cleartext: h2load in a closed loop, 1 MiB bodies, and a fixed rate", startH2Shape},
		{"grpc", "grpc-go on both ends: 100 calls at once, and a fixed rate", startGRPCShape},
		{"http1", "HTTP/1.1: as h2", startHTTP1Shape},
		{"idle", "memory per idle client connection", startIdleShape},
		{"tcp", "TCP: bytes in either direction, and new connections", startTCPShape},
		{"lookup", "Pick over the unix socket, beside an empty call, and in batches", startLookupShape},
		{"noisy", "the relay's tail latency beside list changes and Pick calls", startNoisyShape},
	}
}

func shapeNames() []string {
	var out []string
	for _, s := range shapes() {
		out = append(out, s.name)
	}
	return out
}

// cell is what is measured in one go: a contender under a load, or several that take turns within it.
type cell struct {
	load, who string
	measure   func(ctx context.Context, d time.Duration) ([]reading, error)
}

// rig is what the shapes are built on.
type rig struct {
	options

	dir      string
	progress io.Writer
	results  *results
	shape    string
	closers  []func()
}

func (r *rig) onClose(f func()) { r.closers = append(r.closers, f) }

// close stops what a shape has started, last first.
func (r *rig) close() {
	for _, f := range slices.Backward(r.closers) {
		f()
	}
	r.closers = nil
}

func (r *rig) missing(who string, why error) {
	text := fmt.Sprintf("%s: %s: %v", r.shape, who, why)
	r.results.Missing = append(r.results.Missing, text)
	fmt.Fprintln(r.progress, "missing:", text)
}

func (r *rig) note(format string, args ...any) {
	text := r.shape + ": " + fmt.Sprintf(format, args...)
	r.results.Notes = append(r.results.Notes, text)
	fmt.Fprintln(r.progress, "note:", text)
}

// wanted are the contenders that the options name.
func (r *rig) wanted() []contender {
	return slices.DeleteFunc(contenders(), func(c contender) bool { return !slices.Contains(r.contenders, c.name) })
}

// bench runs every wanted shape. One that fails doesn't take from the others what they have measured: there are results beside the error.
func bench(ctx context.Context, o options, progress io.Writer) (*results, error) {
	dir, err := os.MkdirTemp("", "lbbench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if o.lbagent == "" {
		fmt.Fprintln(progress, "building lbagent")
		if o.lbagent, err = buildLbagent(ctx, dir); err != nil {
			return nil, err
		}
	}
	r := &rig{options: o, dir: dir, progress: progress, results: &results{}}
	r.results.Machine = describeMachine(ctx, o)
	var failures []error
	for _, s := range shapes() {
		if !slices.Contains(o.shapes, s.name) || ctx.Err() != nil {
			continue
		}
		if err := r.run(ctx, s); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", s.name, err))
			fmt.Fprintln(progress, failures[len(failures)-1])
		}
	}
	r.results.Machine.LoadAfter = loadAverage()
	r.results.judge()
	return r.results, errors.Join(failures...)
}

// errSkip ends a shape that can't be measured here; the others go on.
var errSkip = errors.New("shape left out")

// run measures a shape's cells in turn, round after round, so that what disturbs the machine disturbs all alike.
func (r *rig) run(ctx context.Context, s shape) error {
	r.shape = s.name
	defer r.close()
	cells, err := s.start(ctx, r)
	if errors.Is(err, errSkip) {
		r.missing("all", err)
		return nil
	}
	if err != nil {
		return err
	}
	began, done, total := time.Now(), 0, (r.rounds+r.settle)*len(cells)
	for round := 1 - r.settle; round <= r.rounds; round++ {
		var same []measurement // one load of this round
		for i, c := range cells {
			readings, err := c.measure(ctx, r.duration)
			if err != nil {
				return fmt.Errorf("%s %s: %w", c.load, c.who, err)
			}
			done++
			for _, one := range readings {
				m := measurement{s.name, c.load, round, one}
				same = append(same, m)
				r.show(m, done, total, began)
			}
			if i == len(cells)-1 || cells[i+1].load != c.load {
				addLatencies(same)
				if round > 0 { // the rounds before were to settle everybody
					r.results.Measurements = append(r.results.Measurements, same...)
				}
				same = nil
			}
		}
	}
	return nil
}

// show prints a measurement as it comes.
func (r *rig) show(m measurement, done, total int, began time.Time) {
	left := time.Duration(float64(time.Since(began)) / float64(done) * float64(total-done))
	fmt.Fprintf(r.progress, "%s %d/%d (%v left) round %d, %s, %s:", m.Shape, done, total, left.Round(time.Second), m.Round, m.Load, m.Contender)
	sign := " "
	for _, f := range figures() {
		if v, ok := m.Figures[f.figure]; ok {
			fmt.Fprintf(r.progress, "%s"+f.format+" %s", sign, v, f.title)
			sign = ", "
		}
	}
	if m.Failed > 0 {
		fmt.Fprintf(r.progress, ", %d FAILED", m.Failed)
	}
	fmt.Fprintln(r.progress)
}

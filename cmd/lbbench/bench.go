package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"text/tabwriter"
	"time"
)

// measurement is one contender under one load in one round.
type measurement struct {
	Contender     string  `json:"contender"`
	Load          string  `json:"load"`
	Round         int     `json:"round"`
	CPUMicros     float64 `json:"cpu_us_per_request"` // of the proxy process; 0 without a proxy
	Rate          float64 `json:"requests_per_second"`
	LatencyMicros float64 `json:"mean_latency_us"`
	Requests      int     `json:"requests"`
	Failed        int     `json:"failed"`
}

// results are all measurements of a run.
type results struct {
	Shape        string        `json:"shape"`
	Measurements []measurement `json:"measurements"`
	Missing      []string      `json:"missing"` // contenders that could not run, and why
}

// bench measures every contender under every load, interleaved, so that what disturbs the machine disturbs all alike.
func bench(ctx context.Context, o options, progress io.Writer) (*results, error) {
	dir, err := os.MkdirTemp("", "lbbench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	backends, addrs, err := startBackends(ctx, dir, 2)
	if err != nil {
		return nil, err
	}
	defer stopAll(backends)

	r := &results{Shape: o.shape}
	var running []runner
	for _, c := range contenders() {
		if !slices.Contains(o.contenders, c.name) {
			continue
		}
		one, err := startContender(ctx, c, o.programs, addrs)
		if err != nil {
			r.Missing = append(r.Missing, c.name+": "+err.Error())
			fmt.Fprintf(progress, "%s does not take part: %v\n", c.name, err)
			continue
		}
		defer one.stop()
		running = append(running, one)
	}
	total := o.rounds * len(o.loads) * len(running)
	for round := range o.rounds {
		for _, l := range o.loads {
			for _, one := range running {
				m, err := one.measure(ctx, l, o.duration)
				if err != nil {
					return nil, fmt.Errorf("%s at %s: %w", one.name, l, err)
				}
				m.Round = round + 1
				r.Measurements = append(r.Measurements, m)
				fmt.Fprintf(progress, "%d/%d round %d %s %s: %.1f us CPU per request, %.0f requests/s, %d failed\n",
					len(r.Measurements), total, m.Round, m.Load, m.Contender, m.CPUMicros, m.Rate, m.Failed)
			}
		}
	}
	return r, nil
}

func stopAll(all []*process) {
	for _, p := range all {
		p.stop()
	}
}

// runner is a contender that is up.
type runner struct {
	name, addr, dir string
	process         *process
}

func startContender(ctx context.Context, c contender, p programs, backends []string) (runner, error) {
	if c.start == nil {
		return runner{name: c.name, addr: backends[0]}, nil
	}
	dir, err := os.MkdirTemp("", "lbbench-"+c.name)
	if err != nil {
		return runner{}, err
	}
	listen, err := freePort()
	if err != nil {
		return runner{}, err
	}
	proc, err := c.start(ctx, p, dir, listen, backends)
	if err != nil {
		os.RemoveAll(dir)
		return runner{}, err
	}
	return runner{c.name, listen, dir, proc}, nil
}

func (r runner) stop() {
	if r.process != nil {
		r.process.stop()
		os.RemoveAll(r.dir)
	}
}

// measure loads a contender once, after a short warm-up.
func (r runner) measure(ctx context.Context, l load, d time.Duration) (measurement, error) {
	if _, err := h2load(ctx, r.addr, l, max(d/10, 100*time.Millisecond)); err != nil {
		return measurement{}, err
	}
	var before, after time.Duration
	var err error
	if r.process != nil {
		if before, err = r.process.cpu(); err != nil {
			return measurement{}, err
		}
	}
	seen, err := h2load(ctx, r.addr, l, d)
	if err != nil {
		return measurement{}, err
	}
	if r.process != nil {
		if after, err = r.process.cpu(); err != nil {
			return measurement{}, err
		}
	}
	m := measurement{Contender: r.name, Load: l.String(), Rate: seen.rate, LatencyMicros: float64(seen.mean) / 1e3, Requests: seen.requests, Failed: seen.failed}
	if seen.requests > 0 {
		m.CPUMicros = float64(after-before) / 1e3 / float64(seen.requests)
	}
	return m, nil
}

// summary is a median with its bounds.
type summary struct{ median, least, greatest float64 }

func summarize(values []float64) summary {
	if len(values) == 0 {
		return summary{math.NaN(), math.NaN(), math.NaN()}
	}
	slices.Sort(values)
	n := len(values)
	return summary{(values[(n-1)/2] + values[n/2]) / 2, values[0], values[n-1]}
}

// of summarizes one figure of all rounds of a contender under a load.
func (r *results) of(contender, load string, figure func(measurement) float64) summary {
	var values []float64
	for _, m := range r.Measurements {
		if m.Contender == contender && m.Load == load {
			values = append(values, figure(m))
		}
	}
	return summarize(values)
}

// table prints medians, bounds, and the ratio of lbagent's CPU to each other's.
func (r *results) table(w io.Writer) error {
	var loads, names []string
	failed := 0
	for _, m := range r.Measurements {
		if !slices.Contains(loads, m.Load) {
			loads = append(loads, m.Load)
		}
		if !slices.Contains(names, m.Contender) {
			names = append(names, m.Contender)
		}
		failed += m.Failed
	}
	cpu := func(m measurement) float64 { return m.CPUMicros }
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LOAD\tCONTENDER\tCPU us/request\t(least-greatest)\tlbagent/this\trequests/s\tmean latency us")
	for _, l := range loads {
		own := r.of("lbagent", l, cpu).median
		for _, name := range names {
			c := r.of(name, l, cpu)
			ratio := "-"
			if c.median > 0 && !math.IsNaN(own) {
				ratio = fmt.Sprintf("%.2f", own/c.median)
			}
			fmt.Fprintf(t, "%s\t%s\t%.1f\t(%.1f-%.1f)\t%s\t%.0f\t%.0f\n", l, name, c.median, c.least, c.greatest, ratio,
				r.of(name, l, func(m measurement) float64 { return m.Rate }).median,
				r.of(name, l, func(m measurement) float64 { return m.LatencyMicros }).median)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, m := range r.Missing {
		fmt.Fprintln(w, "missing:", m)
	}
	if failed > 0 {
		fmt.Fprintf(w, "%d requests failed: the figures are not comparable\n", failed)
	}
	return nil
}

package main

import (
	"math"
	"slices"
)

// figure is what is measured, by its name in the JSON.
type figure string

const (
	cpuPerRequest   figure = "cpu_us_per_request" // of the proxy process
	rate            figure = "per_second"
	meanLatency     figure = "mean_latency_us"
	medianLatency   figure = "p50_us"
	tailLatency     figure = "p99_us"
	addedMedian     figure = "added_p50_us" // over no proxy
	addedTail       figure = "added_p99_us"
	bytesPerCPU     figure = "mib_per_cpu_second"
	throughput      figure = "mib_per_second"
	connsPerCPU     figure = "connections_per_cpu_second"
	rssPerConn      figure = "rss_bytes_per_connection"
	kernelPerConn   figure = "kernel_bytes_per_connection"
	picksPerCPU     figure = "picks_per_cpu_second"
	picksPerAgent   figure = "picks_per_agent_cpu_second"
	changesPerSec   figure = "list_changes_per_second"
	picksPerSec     figure = "picks_per_second"
	latePerSec      figure = "late_picks_per_second"
	onePickMedian   figure = "call_p50_us"
	onePickTail     figure = "call_p99_us"
	withoutDecimals        = "%.0f"
	withOneDecimal         = "%.1f"
)

// figureText is how a figure is shown.
type figureText struct {
	figure
	title  string
	format string
	more   bool // more is better
	ratio  bool // lbagent's is divided by each other's
}

// figures are all of them, in the order of the table.
func figures() []figureText {
	return []figureText{
		{cpuPerRequest, "CPU us/request", withOneDecimal, false, true},
		{bytesPerCPU, "MiB per CPU second", withoutDecimals, true, true},
		{connsPerCPU, "new connections per CPU second", withoutDecimals, true, true},
		{rssPerConn, "RSS bytes per idle connection", withoutDecimals, false, true},
		{kernelPerConn, "kernel bytes per idle connection, of all processes together", withoutDecimals, false, false},
		{onePickMedian, "us per call, p50", withOneDecimal, false, true},
		{onePickTail, "us per call, p99", withOneDecimal, false, true},
		{picksPerCPU, "picks per CPU second, agent and client together", withoutDecimals, true, false},
		{picksPerAgent, "picks per CPU second of the agent", withoutDecimals, true, false},
		{medianLatency, "latency us, p50", withoutDecimals, false, false},
		{tailLatency, "latency us, p99", withoutDecimals, false, false},
		{addedMedian, "added latency us, p50", withoutDecimals, false, true},
		{addedTail, "added latency us, p99", withoutDecimals, false, true},
		{meanLatency, "mean latency us", withoutDecimals, false, false},
		{rate, "per second", withoutDecimals, true, false},
		{throughput, "MiB per second", withoutDecimals, true, false},
		{changesPerSec, "list changes per second", withoutDecimals, true, false},
		{picksPerSec, "picks per second", withoutDecimals, true, false},
		{latePerSec, "picks per second that were not asked for, as those before had no answer yet", withoutDecimals, false, false},
	}
}

// reading is one contender under one load, measured once.
type reading struct {
	Contender string             `json:"contender"`
	Figures   map[figure]float64 `json:"figures"`
	Requests  int                `json:"requests"`
	Failed    int                `json:"failed"`
}

// measurement is a reading and where it belongs.
type measurement struct {
	Shape string `json:"shape"`
	Load  string `json:"load"`
	Round int    `json:"round"`
	reading
}

// results are all measurements of a run.
type results struct {
	Machine      machine       `json:"machine"`
	Measurements []measurement `json:"measurements"`
	Missing      []string      `json:"missing"` // who could not take part in what, and why
	Notes        []string      `json:"notes"`   // what was found out before measuring, such as a fixed rate
	Judgements   []judgement   `json:"judgements"`
}

// addLatencies derives what a proxy adds to the latency of no proxy from the readings of one round of a load.
func addLatencies(all []measurement) {
	var bare reading
	for _, m := range all {
		if m.Contender == none {
			bare = m.reading
		}
	}
	for _, m := range all {
		for _, pair := range [][2]figure{{medianLatency, addedMedian}, {tailLatency, addedTail}} {
			own, ok1 := m.Figures[pair[0]]
			base, ok2 := bare.Figures[pair[0]]
			if ok1 && ok2 && m.Contender != none {
				m.Figures[pair[1]] = own - base
			}
		}
	}
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

// of summarizes one figure of all rounds of a contender under a load; false if there is none.
func (r *results) of(shape, load, contender string, f figure) (summary, bool) {
	var values []float64
	for _, m := range r.Measurements {
		if v, ok := m.Figures[f]; ok && m.Shape == shape && m.Load == load && m.Contender == contender {
			values = append(values, v)
		}
	}
	return summarize(values), len(values) > 0
}

// distinct are the values of key in the measurements of a shape, each once, in the order of their first.
func (r *results) distinct(shape string, key func(measurement) string) []string {
	var out []string
	for _, m := range r.Measurements {
		if k := key(m); m.Shape == shape && !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

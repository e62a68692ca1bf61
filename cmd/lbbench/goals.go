package main

import (
	"fmt"
	"math"
)

// goal is a row of the table of goals: how lbagent's figure has to stand to another's, or its own to a bound.
type goal struct {
	shape, load string
	figure      figure
	against     string // contender; empty = the figure itself
	bound       float64
}

// Loads that have goals under names of their own.
const (
	loadFixed   = "fixed rate"
	loadDown    = "1 MiB down"
	loadUp      = "1 MiB up"
	loadBytes   = "bytes down"
	loadBytesUp = "bytes up"
	loadConnect = "connect"
	loadSingle  = "one at a time"
	loadBatch   = "batches of 100"
)

// goals are the project's. A figure of which more is better has to reach its bound, another to stay below.
func goals() []goal {
	all := []goal{
		{"h2", loadDown, bytesPerCPU, haproxy, 1},
		{"h2", loadUp, bytesPerCPU, haproxy, 1},
		{"tcp", loadBytes, bytesPerCPU, haproxy, 1},
		{"tcp", loadBytesUp, bytesPerCPU, haproxy, 1},
		{"tcp", loadConnect, connsPerCPU, haproxy, 1},
		{"idle", "h2", rssPerConn, haproxy, 0.5},
		{"idle", "h2", rssPerConn, "", 8 << 10},
		{"lookup", loadSingle, onePickMedian, emptyCall, 1.15},
		{"lookup", loadBatch, picksPerCPU, "", 1e6},
	}
	for _, shape := range []string{"h2", "grpc"} {
		all = append(all,
			goal{shape, loadFixed, cpuPerRequest, haproxy, 0.7},
			goal{shape, loadFixed, addedMedian, haproxy, 0.7},
			goal{shape, loadFixed, addedTail, haproxy, 0.8})
	}
	for _, g := range []struct {
		load          string
		haproxy       float64
		nginx, goProx float64
	}{
		{"1x1", 0.85, 0, 0.4},
		{"10x1", 0.7, 0.65, 0.25},
		{"50x1", 0.6, 0.55, 0.2},
		{"4x32", 0.6, 0.15, 0.06},
		{"1x100", 0.6, 0.15, 0.06},
	} {
		all = append(all, goal{"h2", g.load, cpuPerRequest, haproxy, g.haproxy}, goal{"h2", g.load, cpuPerRequest, goProxy, g.goProx})
		if g.nginx > 0 {
			all = append(all, goal{"h2", g.load, cpuPerRequest, nginx, g.nginx})
		}
	}
	return all
}

// Subjects of the shapes that compare lbagent with itself or with grpc-go.
const (
	quiet, noisy        = "quiet", "noisy"
	emptyCall, pickCall = "empty call", "pick"
)

// noisyGoal holds for every load of its shape, which are named after the GOMAXPROCS of the agent.
const noisyGoal = 1.3

func goalFor(shape, load string, f figure, against string) (float64, bool) {
	if shape == "noisy" && f == tailLatency && against == quiet {
		return noisyGoal, true
	}
	for _, g := range goals() {
		if g.shape == shape && g.load == load && g.figure == f && g.against == against {
			return g.bound, true
		}
	}
	return 0, false
}

// subject is whose figures are held against the others' in a shape.
func subject(shape string) string {
	switch shape {
	case "lookup":
		return pickCall
	case "noisy":
		return noisy
	}
	return lbagent
}

// judgement is a ratio, or a figure by itself, with its goal if it has one.
type judgement struct {
	Shape   string   `json:"shape"`
	Load    string   `json:"load"`
	Figure  figure   `json:"figure"`
	Against string   `json:"against,omitempty"` // empty: Value is the subject's own figure
	Value   float64  `json:"value"`
	Goal    *float64 `json:"goal,omitempty"`
	Met     *bool    `json:"met,omitempty"` // absent beside a goal: there is no ratio to nothing
	more    bool
}

// judge holds medians against each other and against the goals.
func (r *results) judge() {
	r.Judgements = nil
	for _, shape := range shapeNames() {
		names := r.distinct(shape, func(m measurement) string { return m.Contender })
		for _, load := range r.distinct(shape, func(m measurement) string { return m.Load }) {
			for _, f := range figures() {
				own, ok := r.of(shape, load, subject(shape), f.figure)
				if !ok {
					continue
				}
				r.rule(f, judgement{Shape: shape, Load: load, Figure: f.figure, Value: own.median})
				for _, name := range names {
					other, ok := r.of(shape, load, name, f.figure)
					if ok && name != subject(shape) {
						r.rule(f, judgement{Shape: shape, Load: load, Figure: f.figure, Against: name, Value: ratioOf(own.median, other.median)})
					}
				}
			}
		}
	}
}

// ratioOf is NaN if the other is nothing, or less: on a busy machine a proxy may seem to answer before no proxy does.
func ratioOf(own, other float64) float64 {
	if other <= 0 {
		return math.NaN()
	}
	return max(own, 0) / other
}

// rule keeps a judgement that has a goal, or is a ratio that is shown.
func (r *results) rule(f figureText, j judgement) {
	bound, ok := goalFor(j.Shape, j.Load, j.Figure, j.Against)
	unclear := math.IsNaN(j.Value)
	if unclear {
		j.Value = 0 // which JSON knows
	}
	if ok {
		j.Goal, j.more = &bound, f.more
	}
	if ok && !unclear {
		met := j.Value <= bound
		if f.more {
			met = j.Value >= bound
		}
		j.Met = &met
	}
	shown := f.ratio
	if j.Shape == "noisy" { // there the noise's own cost is in the CPU time
		shown = f.figure == medianLatency || f.figure == tailLatency
	}
	if ok || shown && j.Against != "" && !unclear {
		r.Judgements = append(r.Judgements, j)
	}
}

func (r *results) judgementOf(shape, load string, f figure, against string) (judgement, bool) {
	for _, j := range r.Judgements {
		if j.Shape == shape && j.Load == load && j.Figure == f && j.Against == against {
			return j, true
		}
	}
	return judgement{}, false
}

// String is the value with its goal, as in "0.62 met <=0.70".
func (j judgement) String() string {
	digits := 2
	if j.Against == "" {
		digits = 0
	}
	text := fmt.Sprintf("%.*f", digits, j.Value)
	if j.Goal == nil {
		return text
	}
	sign := "<="
	if j.more {
		sign = ">="
	}
	if j.Met == nil {
		return fmt.Sprintf("unclear %s%.*f", sign, digits, *j.Goal)
	}
	word := "MISSED"
	if *j.Met {
		word = "met"
	}
	return fmt.Sprintf("%s %s %s%.*f", text, word, sign, digits, *j.Goal)
}

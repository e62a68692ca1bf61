package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// measured makes measurements of one figure, a round each.
func measured(r *results, shape, load, contender string, f figure, values ...float64) {
	for i, v := range values {
		r.Measurements = append(r.Measurements, measurement{shape, load, i + 1, reading{contender, map[figure]float64{f: v}, 10, 0}})
	}
}

func TestTableShowsMediansRatiosAndGoals(t *testing.T) {
	r := &results{Missing: []string{"h2: nginx: no program nginx"}, Notes: []string{"h2: fixed rate: 7"}}
	measured(r, "h2", "10x1", haproxy, cpuPerRequest, 10, 30, 20)
	measured(r, "h2", "10x1", lbagent, cpuPerRequest, 15, 5, 10)
	measured(r, "h2", "10x1", goProxy, cpuPerRequest, 25, 25, 25)
	measured(r, "h2", "50x1", none, rate, 7)
	measured(r, "h2", loadDown, haproxy, bytesPerCPU, 100)
	measured(r, "h2", loadDown, lbagent, bytesPerCPU, 99)
	r.Measurements[0].Failed = 3
	r.judge()
	var out bytes.Buffer
	if err := r.table(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"20.0 (10.0-30.0)", "10.0 (5.0-15.0)  25.0",
		"0.50 met <=0.70", "0.40 MISSED <=0.25", "0.99 MISSED >=1.00", "1 of 3 goals met, 0 unclear",
		"missing: h2: nginx", "note: h2: fixed rate", "FAILED: h2 10x1 haproxy: 3, with 30 done",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
}

// A goal without a contender is a bound of lbagent's own figure.
func TestOwnBound(t *testing.T) {
	for value, met := range map[float64]bool{8192: true, 8193: false} {
		r := &results{}
		measured(r, "idle", "h2", lbagent, rssPerConn, value)
		r.judge()
		if len(r.Judgements) != 1 || r.Judgements[0].Met == nil || *r.Judgements[0].Met != met || r.Judgements[0].Against != "" {
			t.Errorf("%v bytes: %+v, want met %v", value, r.Judgements, met)
		}
	}
}

// A goal that can't be judged is told, not left out; who adds nothing has met it.
func TestNoRatioToNothing(t *testing.T) {
	for _, c := range []struct {
		own, other float64
		want       string
	}{
		{5, 10, "0.50 met <=0.70"}, {-5, 10, "0.00 met <=0.70"}, {5, -10, "unclear <=0.70"}, {5, 0, "unclear <=0.70"}, {-5, -10, "unclear <=0.70"},
	} {
		r := &results{}
		measured(r, "h2", loadFixed, lbagent, addedMedian, c.own)
		measured(r, "h2", loadFixed, haproxy, addedMedian, c.other)
		measured(r, "h2", loadFixed, nginx, addedMedian, -1) // without a goal there is nothing to tell
		r.judge()
		var out bytes.Buffer
		if err := r.table(&out); err != nil {
			t.Fatal(err)
		}
		if len(r.Judgements) != 1 || r.Judgements[0].String() != c.want || !strings.Contains(out.String(), "1 of 1 goals met") == strings.HasPrefix(c.want, "0") {
			t.Errorf("%v to %v: %v, want %s\n%s", c.own, c.other, r.Judgements, c.want, out.String())
		}
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
	}
}

// Every goal names a shape, a figure and a contender that exist, or it would never be judged.
func TestGoalsCanBeJudged(t *testing.T) {
	known := map[figure]bool{}
	for _, f := range figures() {
		known[f.figure] = true
	}
	names := append(contenderNames(), quiet, emptyCall, "")
	shapes := strings.Join(shapeNames(), " ")
	for _, g := range goals() {
		ok := false
		for _, n := range names {
			ok = ok || n == g.against
		}
		if !ok || !known[g.figure] || g.bound <= 0 || !strings.Contains(shapes, g.shape) {
			t.Errorf("nobody can meet %+v", g)
		}
	}
}

func TestAddedLatencyIsOverNoProxyOfTheSameRound(t *testing.T) {
	all := []measurement{
		{"h2", loadFixed, 1, reading{none, map[figure]float64{medianLatency: 50, tailLatency: 100}, 1, 0}},
		{"h2", loadFixed, 1, reading{lbagent, map[figure]float64{medianLatency: 80, tailLatency: 300}, 1, 0}},
	}
	addLatencies(all)
	if got := all[1].Figures; got[addedMedian] != 30 || got[addedTail] != 200 {
		t.Errorf("added %v", got)
	}
	if _, ok := all[0].Figures[addedMedian]; ok {
		t.Error("no proxy adds to itself")
	}
}

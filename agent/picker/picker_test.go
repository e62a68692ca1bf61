package picker

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/lbagent/lbagent/health"
)

var errRefused = errors.New("connection refused")

func candidates(now time.Time, weights ...float64) []Candidate {
	cs := make([]Candidate, len(weights))
	for i, w := range weights {
		cs[i] = Candidate{Weight: w, State: health.NewState(now)}
	}
	return cs
}

func equal(now time.Time, n int) []Candidate {
	return candidates(now, slices.Repeat([]float64{100}, n)...)
}

func skewed(now time.Time, n int) []Candidate {
	cs := equal(now, n)
	for i := range cs {
		cs[i].Weight = float64(1 + i%1000)
	}
	return cs
}

func mustNew(t testing.TB, policy Policy, cs []Candidate, m *Median) Picker {
	t.Helper()
	p, err := New(policy, cs, m)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// shares picks n times and returns how often each candidate came, relative to an even share.
func shares(p Picker, now time.Time, candidates, n int) []float64 {
	counts := make([]float64, candidates)
	for range n {
		counts[p.Pick(now, 0, nil)]++
	}
	for i := range counts {
		counts[i] *= float64(candidates) / float64(n)
	}
	return counts
}

func within(t *testing.T, what string, got, want []float64, tolerance float64) {
	t.Helper()
	for i := range got {
		if math.Abs(got[i]-want[i]) > tolerance*want[i] {
			t.Errorf("%s: candidate %d has %.3f of an even share, want %.3f ±%.0f %% (all: %.3f)", what, i, got[i], want[i], tolerance*100, got)
		}
	}
}

// With equal scores the shares are exactly the weights (3.1).
func TestSharesAreTheWeights(t *testing.T) {
	now := time.Now()
	for _, policy := range []Policy{P2C, RoundRobin, LeastRequest, Weighted} {
		for _, weights := range [][]float64{{100, 100}, {100, 100, 100, 100, 100}, {2, 1}, {1, 2, 3, 4}, {1000, 1, 1, 1, 1, 1, 1, 1, 1}, {0.5, 0.25, 0.25}} {
			t.Run(fmt.Sprint(policy, weights), func(t *testing.T) {
				sum := 0.0
				for _, w := range weights {
					sum += w
				}
				p := mustNew(t, policy, candidates(now, weights...), nil)
				const n = 150_000
				got := shares(p, now, len(weights), n)
				for i := range got {
					want := weights[i] / sum * float64(len(weights))
					// Five standard deviations of a draw; round robin is far better.
					sigma := math.Sqrt(n*weights[i]/sum*(1-weights[i]/sum)) / n * float64(len(weights))
					if math.Abs(got[i]-want) > 5*sigma {
						t.Errorf("candidate %d: share %.4f, want %.4f ±%.4f", i, got[i], want, 5*sigma)
					}
				}
			})
		}
	}
}

func TestNotIsHonoured(t *testing.T) {
	now := time.Now()
	for _, policy := range []Policy{P2C, RoundRobin, LeastRequest, Weighted} {
		for _, cs := range [][]Candidate{equal(now, 5), candidates(now, 1000, 1, 1, 1, 1), equal(now, 1), nil} {
			p := mustNew(t, policy, cs, nil)
			var not []*health.State
			for range cs {
				i := p.Pick(now, 0, not)
				if i < 0 || slices.Contains(not, cs[i].State) {
					t.Fatalf("%s: pick %d with %d of %d excluded", policy, i, len(not), len(cs))
				}
				for range 1000 {
					if j := p.Pick(now, 0, not); slices.Contains(not, cs[j].State) {
						t.Fatalf("%s: picked excluded candidate %d", policy, j)
					}
				}
				not = append(not, cs[i].State)
			}
			if i := p.Pick(now, 0, not); i != -1 {
				t.Fatalf("%s: pick %d of %d with all excluded, want -1", policy, i, len(cs))
			}
		}
	}
}

// What is left shares as its weights say, after any number of exclusions (the slow path of 3.11 too).
func TestSharesWithout(t *testing.T) {
	now := time.Now()
	cs := candidates(now, 100_000, 100_000, 1, 2)
	p := mustNew(t, P2C, cs, nil)
	counts := make([]float64, 4)
	for range 30_000 {
		counts[p.Pick(now, 0, []*health.State{cs[0].State, cs[1].State})]++
	}
	within(t, "without the heavy ones", []float64{counts[2], counts[3]}, []float64{10_000, 20_000}, 0.06)
}

// The score of 3.1, factor by factor: of two candidates the one with the worse score comes only when it is drawn twice, 1 in 4.
func TestWorseScoreLoses(t *testing.T) {
	start := time.Now()
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		worse  func(s *health.State)
		median time.Duration
		after  time.Duration
		share  float64 // of the worse one, of an even share
	}{
		"outstanding": {worse: func(s *health.State) { s.Begin() }, share: 0.5},
		"penalty":     {worse: func(s *health.State) { s.ConnectionLost(start, errRefused.Error()) }, share: 0.5},
		"overloaded": {worse: func(s *health.State) {
			s.Begin()
			s.End(start, health.Overloaded, ms, true, "RESOURCE_EXHAUSTED")
		}, share: 0.5},
		"penalty is gone in time": {worse: func(s *health.State) { s.ConnectionLost(start, errRefused.Error()) }, after: time.Minute, share: 1},
		"slow": {worse: func(s *health.State) {
			for range 3 {
				s.Begin()
				s.End(start, health.Success, 21*ms, true, "")
			}
		}, median: 10 * ms, share: 0.5},
		"one call was slow": {worse: func(s *health.State) {
			s.Begin()
			s.End(start, health.Success, 29*ms, true, "")
		}, median: 10 * ms, share: 1},
		"slow, within the dead band": {worse: func(s *health.State) {
			s.Begin()
			s.End(start, health.Success, 15*ms, true, "")
		}, median: 10 * ms, share: 1},
		"slow, long ago": {worse: func(s *health.State) {
			s.Begin()
			s.End(start, health.Success, time.Second, true, "")
		}, median: 10 * ms, after: 2 * time.Minute, share: 1},
		"slow, request had not ended": {worse: func(s *health.State) {
			s.Begin()
			s.End(start, health.Success, time.Second, false, "")
		}, median: 10 * ms, share: 1},
	} {
		t.Run(name, func(t *testing.T) {
			var m Median
			m.Set(c.median)
			cs := equal(start, 2)
			c.worse(cs[1].State)
			got := shares(mustNew(t, P2C, cs, &m), start.Add(c.after), 2, 100_000)
			within(t, name, got, []float64{2 - c.share, c.share}, 0.03)
		})
	}
}

// Outstanding counts against weight: a backend of twice the weight carries twice the calls at the same score.
func TestOutstandingIsWeighted(t *testing.T) {
	now := time.Now()
	cs := candidates(now, 200, 100)
	p := mustNew(t, P2C, cs, nil)
	// Calls that never end: p2c keeps outstanding / w level.
	for range 30_000 {
		cs[p.Pick(now, 0, nil)].State.Begin()
	}
	ratio := float64(cs[0].State.Outstanding()) / float64(cs[1].State.Outstanding())
	if math.Abs(ratio-2) > 0.01 {
		t.Errorf("outstanding %d and %d: ratio %.3f, want 2", cs[0].State.Outstanding(), cs[1].State.Outstanding(), ratio)
	}
}

// L is at most 10 (3.4): above that a slow backend competes by outstanding like any other.
func TestLagIsBounded(t *testing.T) {
	now := time.Now()
	var m Median
	m.Set(time.Millisecond)
	cs := equal(now, 2)
	cs[1].State.Begin()
	cs[1].State.End(now, health.Success, time.Hour, true, "")
	p := newP2C(cs, sumUp(cs), &m)
	if got := p.score(now, 1, m.load()); got != 10 {
		t.Errorf("score %v, want 10", got)
	}
}

func TestRoundRobinIsSmooth(t *testing.T) {
	now := time.Now()
	for _, weights := range [][]float64{{1, 1, 1}, {100, 100, 100, 100}, {5, 1, 1}, {2, 1}, {3, 2, 1}, {7, 5, 3, 1}, {1e6, 3e6}, {0.1, 0.3}} {
		cs := candidates(now, weights...)
		p := newRoundRobin(cs, sumUp(cs), Random{})
		counts := make([]uint64, len(weights))
		last := make([]int, len(weights)) // turn of the last pick
		sum := 0.0
		for _, w := range weights {
			sum += w
		}
		cycle := int(p.sum)
		for turn := 1; turn <= 3*cycle; turn++ {
			i := p.Pick(now, 0, nil)
			counts[i]++
			// Three distances: a gap is at most about the sum of the two smaller ones; three times the mean is a loose bound that bursts break.
			if gap, mean := turn-last[i], sum/weights[i]; turn > cycle && float64(gap) > 3*mean+1 {
				t.Fatalf("weights %v: candidate %d waited %d turns, its mean is %.1f", weights, i, gap, mean)
			}
			last[i] = turn
		}
		for i, w := range weights {
			want := w / sum * float64(3*cycle)
			if math.Abs(float64(counts[i])-want) > 1e-3*want {
				t.Errorf("weights %v: %d picks of candidate %d in three cycles, want %.0f", weights, counts[i], i, want)
			}
		}
	}
}

// Pickers are made anew with each view: if all began with the first candidate, it would get more than its share (3.10).
func TestRoundRobinStartsAnywhere(t *testing.T) {
	now := time.Now()
	counts := make([]float64, 4)
	cs := equal(now, 4)
	for range 40_000 {
		counts[newRoundRobin(cs, sumUp(cs), Random{}).Pick(now, 0, nil)]++
	}
	within(t, "first picks", counts, []float64{10_000, 10_000, 10_000, 10_000}, 0.06)
}

func TestNewRefuses(t *testing.T) {
	now := time.Now()
	if _, err := New("maglev", nil, nil); err == nil {
		t.Error("unknown policy was taken")
	}
	for _, w := range []float64{0, -1, math.NaN(), math.Inf(1)} {
		if _, err := New(P2C, candidates(now, 1, w), nil); err == nil {
			t.Errorf("weight %v was taken", w)
		}
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	now := time.Now()
	for _, policy := range []Policy{P2C, RoundRobin, LeastRequest, Weighted} {
		for name, cs := range map[string][]Candidate{"equal": equal(now, 1000), "skewed": skewed(now, 1000)} {
			p := mustNew(t, policy, cs, nil)
			not := []*health.State{cs[3].State}
			if n := testing.AllocsPerRun(1000, func() { p.Pick(now, 0, nil); p.Pick(now, 0, not) }); n != 0 {
				t.Errorf("%s, %s: %v allocations per pick", policy, name, n)
			}
		}
	}
}

func BenchmarkPick(b *testing.B) {
	now := time.Now()
	for _, policy := range []Policy{P2C, RoundRobin, LeastRequest, Weighted} {
		for _, n := range []int{1, 10, 100, 1000, 10_000} {
			for _, kind := range []string{"equal", "skewed"} {
				b.Run(fmt.Sprintf("%s/%s/%d", policy, kind, n), func(b *testing.B) {
					cs := equal(now, n)
					if kind == "skewed" {
						cs = skewed(now, n)
					}
					for i := range cs { // as in traffic: all have calls and latencies
						cs[i].State.Begin()
						cs[i].State.Begin()
						cs[i].State.End(now, health.Success, time.Millisecond, true, "")
					}
					m := new(Median)
					m.Set(time.Millisecond)
					p := mustNew(b, policy, cs, m)
					b.ReportAllocs()
					for b.Loop() {
						p.Pick(now, 0, nil)
					}
				})
			}
		}
	}
}

package localapi

import (
	"context"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
)

// Each gets the whole part of its quota and at most one more; over many starts the shares are exactly the weights, small batches and light backends included.
func TestApportion(t *testing.T) {
	for _, c := range []struct {
		weights []float64
		n       int
	}{
		{[]float64{1}, 1}, {[]float64{1, 1, 1}, 3}, {[]float64{1, 1, 1}, 100}, {[]float64{3, 1}, 1}, {[]float64{100, 1}, 2},
		{[]float64{0.1, 0.2, 0.3, 0.4}, 10}, {[]float64{1, 2, 3, 4, 5, 6, 7}, 5}, {[]float64{1e-9, 1e9}, 100}, {[]float64{1, 0.1, 1}, 10000},
	} {
		sum := 0.0
		for _, w := range c.weights {
			sum += w
		}
		const rounds = 20000
		total := make([]int, len(c.weights))
		for range rounds {
			all := 0
			for i, n := range apportion(c.weights, c.n, rand.Float64()) {
				quota := float64(c.n) * c.weights[i] / sum
				if float64(n) < math.Floor(quota+1e-6) || float64(n) > math.Ceil(quota-1e-6) {
					t.Fatalf("%v of %d: %d for a quota of %v", c.weights, c.n, n, quota)
				}
				total[i] += n
				all += n
			}
			if all != c.n {
				t.Fatalf("%v: %d instead of %d", c.weights, all, c.n)
			}
		}
		for i, n := range total {
			mean, quota := float64(n)/rounds, float64(c.n)*c.weights[i]/sum
			if math.Abs(mean-quota) > 0.02 {
				t.Errorf("%v of %d: index %d gets %.3f in the mean, its quota is %.3f", c.weights, c.n, i, mean, quota)
			}
		}
	}
	if got := apportion([]float64{0, 0}, 5, 0.5); got[0]+got[1] != 0 {
		t.Error(got)
	}
}

// Nobody's calls come in a lump: any window of the batch holds about each one's share.
func TestInterleave(t *testing.T) {
	for _, counts := range [][]int{{5}, {20, 20, 20, 20, 20}, {50, 30, 15, 5}, {99, 1}, {0, 3, 0}, {2000, 2000, 6000}, make([]int, 300)} {
		total := 0
		for i := range counts {
			if len(counts) == 300 {
				counts[i] = 33
			}
			total += counts[i]
		}
		got := interleave(counts, rand.IntN(len(counts)))
		if len(got) > maxEntries+len(counts) {
			t.Errorf("%v: %d entries", counts, len(got))
		}
		sums := make([]int, len(counts))
		done := 0
		for _, s := range got {
			if s.n <= 0 {
				t.Fatalf("%v: empty entry", counts)
			}
			sums[s.index] += s.n
			done += s.n
			// As many as its share of what is out so far, give or take a few entries.
			group := float64(total+maxEntries-1) / maxEntries
			if want := float64(counts[s.index]) * float64(done) / float64(total); math.Abs(float64(sums[s.index])-want) > 2*math.Ceil(group)+float64(len(counts))/10 {
				t.Errorf("%v: after %d, index %d has %d, its share is %.1f", counts, done, s.index, sums[s.index], want)
			}
		}
		for i := range counts {
			if sums[i] != counts[i] {
				t.Errorf("%v: got %v", counts, sums)
				break
			}
		}
	}
	if got := interleave([]int{0, 0}, 1); got != nil {
		t.Error(got)
	}
}

// A backend that is found to be slower than the median gets less by the square of that factor; one a little slower gets its full share (3.4, 3.5).
func TestPlanByLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tab, err := table.New(table.Config{Log: hclog.NewNullLogger(), Events: event.NewLog(10)})
		if err != nil {
			t.Fatal(err)
		}
		tab.SetSpec(time.Now(), specOf("user"))
		tab.Apply(time.Now(), listOf("user", 1, 2, 3, 4, 5))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- tab.Run(ctx) }()
		v := tab.Lookup("user").View()
		for i, ms := range []time.Duration{10, 10, 14, 40, 500} {
			for range 100 {
				v.Backend(i).State.Begin()
				v.Backend(i).State.End(time.Now(), health.Success, ms*time.Millisecond, true, "")
			}
		}
		advance(2 * time.Second)
		got := newPlan(v, time.Now()).weights
		n := 20 * math.Exp(-0.2) // what 2 s have left of 20 samples
		lag := 1 + (40.0/14-1)*n/(n+3)
		for i, want := range []float64{100, 100, 100, 100 / lag / lag, 100 / 10.0 / 10.0} {
			if math.Abs(got[i]-want) > 0.01 {
				t.Errorf("backend %d has %v, want %v", i, got[i], want)
			}
		}
		// With everybody unreachable all are tried in random order (2.9): the slow one may be the first that is back.
		var changes []health.Change
		for i := range v.Len() {
			changes = append(changes, health.Change{Group: "user", Addr: v.Backend(i).Addr, State: v.Backend(i).State, To: health.Part{Kind: health.Unreachable}})
		}
		tab.SetVerdicts(time.Now(), changes)
		if got := newPlan(tab.Lookup("user").View(), time.Now()).weights; !slices.Equal(got, []float64{1, 1, 1, 1, 1}) {
			t.Errorf("the last resort has weights %v", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// What is read to tell the protocols apart is what was sent, and only the preface is HTTP/2.
func FuzzSniff(f *testing.F) {
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 1)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), 3)
	f.Add([]byte("PRX"), 2)
	f.Fuzz(func(t *testing.T, sent []byte, step int) {
		step = max(1, min(step, 64))
		rest := sent
		ahead, isH2, err := sniff(reader(func(p []byte) (int, error) {
			if len(rest) == 0 {
				return 0, io.EOF
			}
			n := copy(p, rest[:min(step, len(rest))])
			rest = rest[n:]
			return n, nil
		}))
		if err != nil {
			if len(sent) >= 4 {
				t.Fatalf("%q: %v", sent, err)
			}
			return
		}
		if string(ahead)+string(rest) != string(sent) {
			t.Fatalf("%q became %q and %q", sent, ahead, rest)
		}
		if isH2 != (len(sent) >= 4 && string(sent[:4]) == "PRI ") {
			t.Fatalf("%q: HTTP/2 is %v", sent, isH2)
		}
	})
}

type reader func([]byte) (int, error)

func (r reader) Read(p []byte) (int, error) { return r(p) }

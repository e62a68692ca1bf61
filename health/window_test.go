package health

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// What each outcome weighs in the windows of 2.5, and in the counters of 3.3 (the table of outcomes in SEMANTICS 2). In hundredths of a call.
func TestOutcomeWeights(t *testing.T) {
	type want struct {
		rate, few   sums
		calls, good float64
	}
	none := want{}
	end := func(r Result, elapsed time.Duration) func(*State) {
		return func(s *State) { s.Begin(); s.End(after(0), r, elapsed, true, "x") }
	}
	for _, c := range []struct {
		name string
		do   func(*State)
		want want
	}{
		{"success", end(Success, ms), want{sums{100, 0}, sums{100, 0}, 1, 1}},
		{"cancel", end(Neutral, time.Hour), none},
		{"503", end(Failure, ms), want{sums{100, 100}, sums{100, 100}, 1, 0}},
		{"failed dial", func(s *State) { s.ConnectFailed(after(0), "x") }, want{sums{100, 100}, sums{100, 100}, 1, 0}},
		{"lost connection", func(s *State) { s.ConnectionLost(after(0), "x") }, want{sums{100, 100}, sums{100, 100}, 1, 0}},
		{"429", end(Overloaded, ms), want{sums{100, 0}, sums{100, 0}, 0, 0}},
		{"500", end(AppError, ms), want{sums{100, 0}, sums{100, 0}, 1, 0}},
		{"timeout of 20 ms", end(Timeout, 20*ms), want{sums{100, 20}, sums{100, 20}, 1, 0.8}},
		{"timeout of 100 ms", end(Timeout, 100*ms), want{sums{100, 100}, sums{100, 100}, 1, 0}},
		{"timeout of 350 ms", end(Timeout, 350*ms), want{sums{350, 350}, sums{100, 100}, 1, 0}},
		{"timeout of a minute", end(Timeout, time.Minute), want{sums{1000, 1000}, sums{100, 100}, 1, 0}},
		{"timeout of unknown length", end(Timeout, 0), want{sums{100, 100}, sums{100, 100}, 1, 0}},
		{"connect", func(s *State) { s.Connected(after(0)) }, none},
		{"probe refused", func(s *State) { s.probeUnreachable(after(0)) }, none},
	} {
		s := NewState(epoch)
		before := s.totals()
		for range 3 { // the first makes the tally
			before = s.totals()
			c.do(s)
		}
		got := want{rate: s.totals().rate.own.minus(before.rate.own), few: s.totals().few.own.minus(before.few.own)}
		got.calls, got.good = s.Calls()
		got.calls, got.good = got.calls/3, math.Round(got.good/3*1e6)/1e6
		if got != c.want {
			t.Errorf("%s weighs %+v, want %+v", c.name, got, c.want)
		}
		if s.totals().rate.all != s.totals().rate.own {
			t.Errorf("%s counts as reported", c.name)
		}
	}
}

// One report weighs as a call does, a summary as many, but apart from the agent's own.
func TestReportWeights(t *testing.T) {
	for _, c := range []struct {
		r           Result
		elapsed     time.Duration
		n           int
		rate        sums
		calls, good float64
	}{
		{Success, ms, 1, sums{100, 0}, 1, 1},
		{Success, ms, 50, sums{5000, 0}, 50, 50},
		{Success, ms, 0, sums{100, 0}, 1, 1},
		{Success, ms, -5, sums{100, 0}, 1, 1},
		{Success, ms, 1 << 40, sums{100 * summaryMost, 0}, summaryMost, summaryMost},
		{Failure, 0, 7, sums{700, 700}, 7, 0},
		{Timeout, 200 * ms, 5, sums{1000, 1000}, 5, 0},
		{Overloaded, ms, 5, sums{500, 0}, 0, 0},
		{AppError, ms, 5, sums{500, 0}, 5, 0},
		{Neutral, ms, 5, sums{}, 0, 0},
	} {
		s := NewState(epoch)
		s.Report(after(0), 1000, c.r, c.elapsed, c.n, "reported")
		is := s.totals().rate
		calls, good := s.Calls()
		if is.own != (sums{}) || is.all != c.rate || calls != c.calls || good != c.good {
			t.Errorf("%d reports of result %d weigh %+v, %v calls, %v good; want %+v, %v, %v", c.n, c.r, is, calls, good, c.rate, c.calls, c.good)
		}
	}
}

// The windows hold what a list of everything says.
func TestWindowAgainstNaive(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 11))
		type entry struct {
			few, rate sumsOf
			roll      int // in which it was seen
		}
		var history []entry
		sum := func(from, to int) (all totals) { // of the rolls after from, up to to
			for _, e := range history {
				if e.roll > from && e.roll <= to {
					all.few = sumsOf{all.few.own.plus(e.few.own), all.few.all.plus(e.few.all)}
					all.rate = sumsOf{all.rate.own.plus(e.rate.own), all.rate.all.plus(e.rate.all)}
				}
			}
			return all
		}
		now := epoch
		w := newWindow(now, totals{})
		begin, halves, halfAt := 0, []int{0}, now // rolls: when it was restarted, and when each half minute ended
		for roll := 1; roll < 200; roll++ {
			for range r.IntN(4) {
				n, m := uint64(r.IntN(500)), uint64(r.IntN(300))
				own := sums{n, uint64(r.IntN(int(n) + 1))}
				all := own.plus(sums{m, uint64(r.IntN(int(m) + 1))})
				history = append(history, entry{sumsOf{own, all}, sumsOf{own, all}, roll})
			}
			now = now.Add(time.Duration(900+r.IntN(1500)) * ms)
			w.roll(now, sum(0, roll))
			if now.Sub(halfAt) >= fewTime {
				halves, halfAt = append(halves, roll), now
			}
			if got, want := w.rate, sum(max(begin, roll-rateSeconds), roll).rate; got != want {
				t.Fatalf("seed %d, roll %d: the rate window holds %v, want %v", seed, roll, got, want)
			}
			for i, got := range []sumsOf{w.half, w.before} {
				var want sumsOf
				if n := len(halves) - 1 - i; n > 0 {
					want = sum(halves[n-1], halves[n]).few
				}
				if got != want {
					t.Fatalf("seed %d, roll %d: half minute %d before holds %v, want %v", seed, roll, i, got, want)
				}
			}
			if r.IntN(60) == 0 {
				w.restart(now, sum(0, roll))
				begin, halves, halfAt = roll, []int{roll}, now
			}
		}
	}
}

// What the windows find: success below 50 % of at least 20 calls; more than 70 % failed of at least 3, twice in a row; reports only if they are borne out (2.5).
func TestWindowFinds(t *testing.T) {
	of := func(calls, bad uint64) sums { return sums{calls * callUnits, bad * callUnits} }
	for _, c := range []struct {
		name    string
		w       window
		percent int
		borne   time.Duration // how old the agent's own evidence is; 0 = there is none
		want    string
	}{
		{"nothing", window{}, 50, 0, ""},
		{"half fail", window{rate: sumsOf{of(40, 20), of(40, 20)}}, 50, 0, ""},
		{"more than half fail", window{rate: sumsOf{of(41, 21), of(41, 21)}}, 50, 0, "success 48 % of 41 calls in 10 s"},
		{"of 19", window{rate: sumsOf{of(19, 19), of(19, 19)}}, 50, 0, ""},
		{"of 20", window{rate: sumsOf{of(20, 11), of(20, 11)}}, 50, 0, "success 45 % of 20 calls in 10 s"},
		{"stricter", window{rate: sumsOf{of(100, 11), of(100, 11)}}, 90, 0, "success 89 % of 100 calls in 10 s"},
		{"off", window{rate: sumsOf{of(100, 100), of(100, 100)}}, 0, 0, ""},
		{"once", window{half: sumsOf{of(10, 10), of(10, 10)}}, 50, 0, ""},
		{"twice", window{half: sumsOf{of(4, 3), of(4, 3)}, before: sumsOf{of(3, 3), of(3, 3)}}, 50, 0,
			"75 % of 4 calls failed in 30 s, and 100 % of 3 calls in the 30 s before"},
		{"twice 70 %", window{half: sumsOf{of(10, 7), of(10, 7)}, before: sumsOf{of(10, 7), of(10, 7)}}, 50, 0, ""},
		{"twice too few", window{half: sumsOf{of(2, 2), of(2, 2)}, before: sumsOf{of(3, 3), of(3, 3)}}, 50, 0, ""},
		{"reports", window{rate: sumsOf{of(1, 1), of(100, 100)}}, 50, 0, ""},
		{"reports, borne out", window{rate: sumsOf{of(1, 1), of(100, 100)}}, 50, 5 * time.Second, "success 0 % of 100 calls in 10 s reported"},
		{"reports, borne out long ago", window{rate: sumsOf{of(1, 1), of(100, 100)}}, 50, 11 * time.Second, ""},
		{"few reports", window{half: sumsOf{of(0, 0), of(4, 4)}, before: sumsOf{of(0, 0), of(4, 4)}}, 50, 50 * time.Second,
			"100 % of 4 calls failed in 30 s, and 100 % of 4 calls in the 30 s before reported"},
		{"reports that excuse", window{rate: sumsOf{of(30, 30), of(1000, 30)}}, 50, 0, "success 0 % of 30 calls in 10 s"},
	} {
		f := c.w.find(c.percent, func(d time.Duration) bool { return c.borne > 0 && c.borne < d })
		got := f.cause
		if f.reported {
			got += " reported"
		}
		if got != c.want || f.found != (c.want != "") {
			t.Errorf("%s: %+v, want %q", c.name, f, c.want)
		}
	}
}

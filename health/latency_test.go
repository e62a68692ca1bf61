package health

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func TestLatency(t *testing.T) {
	s := NewState(epoch)
	end := func(at time.Duration, r Result, d time.Duration, sample bool) {
		s.Begin()
		s.End(after(at), r, d, sample, "")
	}
	check := func(at, want time.Duration, fresh bool) {
		t.Helper()
		got, f := s.Latency(after(at))
		if f != fresh || (got-want).Abs() > time.Microsecond {
			t.Errorf("at %v: latency %v, fresh %v; want %v, %v", at, got, f, want, fresh)
		}
	}
	check(0, 0, false)
	end(0, Success, 10*ms, true)
	check(0, 10*ms, true)
	end(0, Success, 30*ms, true) // the mean of both
	check(0, 20*ms, true)
	end(0, Success, 0, true) // no headers: no sample
	end(0, Success, ms, false)
	check(0, 20*ms, true)
	end(10*time.Second, Success, 10*ms, true) // the two weigh 2/e by now
	mean := 10*ms + time.Duration(math.Round(10e6*2/(2+math.E)))
	check(10*time.Second, mean, true)
	end(10*time.Second, Failure, ms, true) // a fast failure isn't fast
	end(10*time.Second, Neutral, ms, true) // nor is a quick cancel,
	check(10*time.Second, mean, true)
	end(10*time.Second, Neutral, time.Second, true) // but a late one is slow
	if got, _ := s.Latency(after(10 * time.Second)); got < 300*ms || got > 500*ms {
		t.Errorf("latency %v after one of 1 s", got)
	}
	for range 40 * latencyMost {
		end(10*time.Second, Success, 5*ms, true) // no more than so many count
	}
	check(10*time.Second, 5*ms, true)
	end(10*time.Second, Success, (5+latencyMost)*ms, true)
	check(10*time.Second, 6*ms, true)
	check(10*time.Second+latencyFresh-1, 6*ms, true)
	check(10*time.Second+latencyFresh, 6*ms, false)
}

// L follows the mean once enough calls bear it out, and is forgotten with them (3.4).
func TestLag(t *testing.T) {
	const median = 10 * ms
	for name, c := range map[string]struct {
		calls int
		each  time.Duration
		after time.Duration
		want  float64
	}{
		"never called":      {0, 0, 0, 1},
		"one slow call":     {1, 2 * median, 0, 1},
		"one very slow":     {1, 7 * median, 0, 2.5}, // 1 + 6 x 1/(1+3)
		"within the band":   {1000, 15 * ms, 0, 1},
		"twice as slow":     {1000, 2 * median, 0, 1 + 20.0/23},
		"at most 10":        {1000, 100 * median, 0, 10},
		"fast":              {1000, median / 10, 0, 1},
		"less sure":         {1000, 4 * median, 10 * time.Second, 1 + 3*(20/math.E)/(20/math.E+3)},
		"forgotten":         {1000, 2 * median, 30 * time.Second, 1},
		"not forgotten yet": {1000, 10 * median, 30 * time.Second, 1 + 9*0.9957/3.9957},
	} {
		s := NewState(epoch)
		for range c.calls {
			s.Begin()
			s.End(epoch, Success, c.each, true, "")
		}
		if got := s.Lag(after(c.after), median); math.Abs(got-c.want) > 0.001 {
			t.Errorf("%s: L is %.4f, want %.4f", name, got, c.want)
		}
		if got := s.Lag(after(c.after), 0); got != 1 {
			t.Errorf("%s: L is %.4f without a median", name, got)
		}
	}
}

// Against the definition: a mean of all samples, each weighing e^(-age/10 s), while there are few.
func TestLatencyIsTheWeightedMean(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 100 {
		s, at := NewState(epoch), time.Duration(0)
		var times, samples []time.Duration
		for range 1 + r.IntN(latencyMost) {
			at += time.Duration(r.ExpFloat64() * float64(5*time.Second))
			d := time.Duration(r.ExpFloat64()*1e7) + 1
			s.Begin()
			s.End(after(at), Success, d, true, "")
			times, samples = append(times, at), append(samples, d)
		}
		sum, weight := 0.0, 0.0
		for i, d := range samples {
			w := math.Exp(-float64(at-times[i]) / float64(latencyDecay))
			sum, weight = sum+w*float64(d), weight+w
		}
		got, _ := s.Latency(after(at))
		if want := sum / weight; math.Abs(float64(got)/want-1) > 1e-5 {
			t.Fatalf("%d samples: %v, want %v", len(samples), got, time.Duration(want))
		}
	}
}

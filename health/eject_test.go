package health

import (
	"testing"
	"time"
)

func windows() Options {
	o := defaults()
	o.SuccessRate = 50
	o.Probe = ProbeNone
	return o
}

// mixed has good and bad calls come, so that no streak grows, evenly over d.
func (s *story) mixed(i, good, bad int, d time.Duration) {
	s.t.Helper()
	n := good + bad
	for k := range n {
		r := Success
		if (k+1)*bad/n > k*bad/n {
			r = Failure
		}
		s.calls(i, 1, r)
		s.pass(d / time.Duration(n))
	}
}

// Success < 50 % of 20 calls and more in 10 s ejects; a running call's success doesn't end that, the trial does (2.5, 2.7).
func TestEjectedByRate(t *testing.T) {
	s := newStory(t, windows(), 2)
	s.mixed(0, 20, 21, 8*time.Second)
	s.is(0) // 49 %, but the success of the first seconds is not in all windows yet
	s.mixed(0, 3, 9, 3*time.Second)
	s.is(0, Ejected)
	v := s.states[0].Verdict()
	if v.By != ByRate || !v.Soft {
		t.Errorf("ejected: %+v", v)
	}
	if s.stats.ejections[ByRate].Load() != 1 {
		t.Error("not counted by its reason")
	}
	s.calls(0, 3, Success)
	s.is(0, Ejected)
	s.to(v.Next.Sub(epoch))
	if !s.states[0].TryTrial(s.now) {
		t.Fatal("no trial at the end of the hold-down")
	}
	s.calls(0, 1, Success)
	s.is(0)
	if ago := s.states[0].ReturnedAgo(s.now); ago != 0 {
		t.Errorf("returned %v ago, want now (3.7)", ago)
	}
	s.pass(5 * time.Second)
	s.is(0) // what was in the window has been paid for
	if ago := s.states[0].ReturnedAgo(s.now); ago != 5*time.Second {
		t.Errorf("returned %v ago, want 5 s", ago)
	}
}

// How slow it was before it went out is forgotten when it is back, and only then: nobody would have called it often enough to see that it is well (3.4, 3.7).
func TestLatencyIsForgottenByAReturn(t *testing.T) {
	s := newStory(t, windows(), 2)
	slow := func() {
		s.states[0].Begin()
		s.states[0].End(s.now, Timeout, 2*time.Second, true, "timeout")
	}
	for range 20 {
		slow()
	}
	s.calls(0, 5, Failure)
	s.is(0, Ejected)
	if lag := s.states[0].Lag(s.now, 10*ms); lag != lagMost {
		t.Errorf("while it is out its L is %v, want %v", lag, lagMost)
	}
	s.to(s.states[0].Verdict().Next.Sub(epoch))
	if !s.states[0].TryTrial(s.now) {
		t.Fatal("no trial at the end of the hold-down")
	}
	s.calls(0, 1, Success)
	s.is(0)
	if mean, fresh := s.states[0].Latency(s.now); fresh || s.states[0].Lag(s.now, 10*ms) != 1 {
		t.Errorf("back, and still it is taken to need %v", mean)
	}
	slow()
	if lag := s.states[0].Lag(s.now, 10*ms); lag <= lagFrom {
		t.Errorf("L is %v after a slow call", lag)
	}
}

func TestRateWords(t *testing.T) {
	s := newStory(t, windows(), 2)
	s.pass(250 * ms)
	for range 21 {
		s.calls(0, 1, Success)
		s.calls(0, 2, Failure)
	}
	s.pass(2 * time.Second)
	s.words(0, `ejected: success 33 % of 63 calls in 10 s, last "HTTP 503", 2 s ago, trial due`)
}

// At its trial a backend ejected by rate goes on where it was; after the trial passed by a call's success at the right time, not before (2.7).
func TestSuccessAfterHoldDownEndsIt(t *testing.T) {
	s := newStory(t, windows(), 2)
	s.mixed(0, 10, 30, 2*time.Second)
	s.is(0, Ejected)
	for range 100 { // in panic, say
		if v := s.states[0].Verdict(); v == nil || !s.now.Before(v.Next) {
			break
		}
		s.calls(0, 1, Success)
		s.is(0, Ejected)
		s.pass(100 * ms)
	}
	s.calls(0, 1, Success)
	s.pass(1100 * ms)
	s.is(0)
}

// A streak's ejection that the rate bears out isn't over with one success.
func TestStreakTurnsIntoRate(t *testing.T) {
	s := newStory(t, windows(), 2)
	s.mixed(0, 6, 18, 900*ms) // three in four
	s.calls(0, 5, Failure)
	s.is(0, Ejected)
	s.pass(200 * ms)
	s.calls(0, 1, Success)
	s.is(0, Ejected)
	if v := s.states[0].Verdict(); v.By != ByRate {
		t.Errorf("ejected by %v, want %v", v.By, ByRate)
	}

	s = newStory(t, windows(), 2)
	s.mixed(0, 100, 0, 900*ms)
	s.calls(0, 5, Failure)
	s.is(0, Ejected)
	s.pass(200 * ms)
	s.calls(0, 1, Success)
	s.is(0)
}

// observe: all is judged, told and counted, and nothing is taken out.
func TestObserve(t *testing.T) {
	for _, probe := range []ProbeType{ProbeNone, ProbeTCP} {
		o := defaults()
		o.Observe, o.Probe = true, probe
		s := newStory(t, o, 2)
		would := func() (n int) {
			for _, c := range s.told {
				if c.Would != nil {
					n++
				}
				if c.From.Kind != Up || c.To.Kind != Up {
					t.Fatalf("%s: told %+v", probe, c)
				}
			}
			s.told = nil
			return n
		}
		s.calls(0, 5, Failure)
		if v := s.states[0].Verdict(); v != nil {
			t.Fatalf("%s: a verdict: %v", probe, v)
		}
		if n := would(); n != 1 || s.stats.wouldEject[ByStreak].Load() != 1 || s.stats.ejections[ByStreak].Load() != 0 {
			t.Errorf("%s: told %d times, counted %d", probe, n, s.stats.wouldEject[ByStreak].Load())
		}
		parts := s.states[0].Snapshot(s.now).Parts
		if len(parts) != 1 || !parts[0].Observed {
			t.Fatalf("%s: parts %v", probe, parts)
		}
		equal(t, "words", parts[0].Words(s.now), `would be ejected: 5 failures in a row, last "HTTP 503", 0 ms ago, trial in 1 s`)
		s.calls(1, 5, Failure)
		if would() != 0 {
			t.Errorf("%s: the cap doesn't hold", probe)
		}
		s.calls(1, 1, Success)
		s.pass(1100 * ms) // the hold-down is over
		s.is(0)
		s.calls(0, 1, Failure)
		if n := would(); n != 1 {
			t.Errorf("%s: told %d times of the next failure, want once", probe, n)
		}
		s.calls(0, 1, Success)
		s.is(0)
		s.calls(0, 5, Failure)
		o.Observe = false
		s.set(o, 2)
		if v := s.states[0].Verdict(); v == nil || v.Kind != Ejected {
			t.Errorf("%s: %v, want ejected: now it's meant", probe, v)
		}
		o.Observe = true
		s.set(o, 2)
		if v := s.states[0].Verdict(); v != nil {
			t.Errorf("%s: still out: %v", probe, v)
		}
	}
}

// The list of those that the cap held back doesn't grow with how often it did.
func TestHeldOnce(t *testing.T) {
	s := newStory(t, defaults(), 1)
	for range 100 {
		s.calls(0, 5, Failure)
		s.calls(0, 1, Success)
	}
	if n := len(s.c.groups["g"].held); n > 1 {
		t.Errorf("one backend is %d times in the list", n)
	}
}

// Calls that panic sends to an ejected backend don't lengthen its hold-down, be it over or not (2.7).
func TestFailuresInPanic(t *testing.T) {
	s := newStory(t, windows(), 2)
	s.calls(0, 5, Failure)
	next := s.states[0].Verdict().Next
	for range 30 {
		s.calls(0, 7, Failure)
		s.pass(100 * ms)
	}
	s.is(0, Ejected)
	if got := s.states[0].Verdict().Next; !got.Equal(next) {
		t.Errorf("the hold-down ends at %v, want %v", got.Sub(epoch), next.Sub(epoch))
	}
	if !s.states[0].TryTrial(s.now) {
		t.Fatal("no trial")
	}
	s.calls(0, 1, Failure)
	if got := s.states[0].Verdict().Next.Sub(s.now); got != 2*time.Second {
		t.Errorf("held down for %v after one failed trial, want 2 s", got)
	}
}

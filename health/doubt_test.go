package health

import (
	"testing"
	"time"
)

func (s *story) report(i int, uid uint32, n int, r Result) {
	for range n {
		s.states[i].Report(s.now, uid, r, 0, 1, "reported: call failed")
	}
	s.work()
}

// probed is how many probes of a backend began.
func (s *story) probed(i int) (n int) {
	for _, p := range s.probes {
		if p.backend == i {
			n++
		}
	}
	return n
}

// Reported failures in a row have a backend probed at once, and again each second while the probes fail: it is out long before the probes' own rhythm would find it.
func TestReportedFailuresAskForProbes(t *testing.T) {
	s := newStory(t, defaults(), 4)
	s.to(time.Minute)
	s.answers[0] = refused
	before := s.probed(0)
	s.report(0, 7, 4, Failure)
	s.pass(10 * ms)
	if n := s.probed(0); n != before {
		t.Fatalf("%d probes for fewer reports than eject", n-before)
	}
	s.report(0, 7, 1, Failure)
	s.pass(10 * ms)
	if n := s.probed(0); n != before+1 {
		t.Fatalf("%d probes at once, want 1", n-before)
	}
	s.is(0, Ejected) // the failed probe bears the reports out (2.5)
	s.pass(2500 * ms)
	if v := s.states[0].Verdict(); v == nil || v.Kind != Down {
		t.Errorf("2.5 s later it is %v, want down", v)
	}
}

// Reports ask once: whoever goes on to tell of failures that no probe finds does not have a backend probed more often.
func TestReportsThatNoProbeBearsOut(t *testing.T) {
	s := newStory(t, defaults(), 4)
	s.to(time.Minute)
	quiet := s.probed(1)
	busy := s.probed(0)
	for range 600 {
		s.report(0, 7, 5, Failure)
		s.pass(100 * ms)
	}
	quiet, busy = s.probed(1)-quiet, s.probed(0)-busy
	if busy > quiet+1 {
		t.Errorf("%d probes beside %d of another backend", busy, quiet)
	}
	for range 600 { // a streak of its own each time
		s.report(0, 7, 5, Failure)
		s.report(0, 7, 1, Success)
		s.pass(100 * ms)
	}
	if n := s.probed(0) - busy; n > 80+busy {
		t.Errorf("%d probes in a minute, want one a second at most", n)
	}
	s.is(0)
}

// A program that succeeds with a backend that is out, as in panic, has it probed at once: it is back then, however rarely it is probed by now.
func TestReportedSuccessAsksForAProbe(t *testing.T) {
	o := defaults()
	o.Eject, o.Rise, o.Interval = false, 1, time.Minute
	s := newStory(t, o, 2)
	s.answers[0], s.answers[1] = refused, refused
	s.to(10*time.Minute + 30*time.Second)
	s.is(0, Down, Unreachable)
	s.answers[0] = outcome{}
	before := s.probed(0)
	s.report(0, 7, 10, Success)
	s.pass(10 * ms)
	if n := s.probed(0) - before; n != 1 {
		t.Errorf("%d probes, want 1", n)
	}
	s.is(0)
	s.report(1, 7, 1000, Success) // it isn't
	s.pass(10 * ms)
	s.is(1, Down, Unreachable)
}

package health

import (
	"testing"
	"time"
)

// Reports alone eject nobody; with a failed call or probe of the agent's own they do, one backend a minute of each user (SEMANTICS 2, the table's last row).
func TestReportsEject(t *testing.T) {
	report := func(s *story, i int, uid uint32, n int, r Result) {
		for range n {
			s.states[i].Report(s.now, uid, r, 0, 1, "reported: call failed")
		}
		s.work()
	}
	s := newStory(t, windows(), 8)
	report(s, 0, 1, 100, Failure)
	s.pass(3 * time.Second)
	s.is(0)
	s.calls(0, 1, Failure)
	s.is(0, Ejected)
	s.words(0, `ejected: 101 failures in a row, partly as reported, last "HTTP 503", 0 ms ago, trial in 1 s`)
	report(s, 1, 1, 5, Failure)
	s.calls(1, 1, Failure)
	s.pass(2 * time.Second)
	s.is(1) // that user has ejected one
	report(s, 2, 2, 4, Failure)
	s.calls(2, 1, Failure)
	s.is(2, Ejected) // another user
	report(s, 3, 3, 4, Failure)
	report(s, 3, 3, 1, Success)
	s.calls(3, 1, Failure)
	s.is(3) // the reported streak was over

	// A reported success excuses nothing that this agent saw.
	s.calls(3, 3, Failure)
	report(s, 3, 3, 1000, Success)
	s.calls(3, 1, Failure)
	s.is(3, Ejected)
	s.pass(time.Minute)
	s.calls(1, 1, Failure) // the evidence is fresh again, and so is the user's right
	s.pass(time.Second)
	if v := s.states[1].Verdict(); v == nil || v.Kind != Ejected {
		t.Errorf("backend 1 is %v a minute later, want ejected", v)
	}
}

// A failed probe bears reports out too, and what they say counts in the windows.
func TestReportsWithFailedProbe(t *testing.T) {
	o := windows()
	o.Probe = ProbeTCP
	s := newStory(t, o, 2)
	s.answers[0] = saysNo
	s.states[0].Report(s.now, 7, Failure, 0, 1000, "reported: call failed")
	s.pass(time.Second)
	s.is(0)
	s.states[0].Report(s.now, 7, Failure, 0, 1000, "reported: call failed")
	s.to(2600 * ms) // the probe fails
	s.is(0, Ejected)
	if v := s.states[0].Verdict(); v.By != ByRate {
		t.Errorf("%+v", v)
	}
}

// After a trial by probe, which is no call, one failed call is enough, until one succeeds (2.7).
func TestParole(t *testing.T) {
	o := defaults()
	s := newStory(t, o, 2)
	s.calls(0, 5, Failure)
	s.is(0, Ejected)
	s.pass(time.Second) // the probe passes
	s.is(0)
	s.calls(0, 1, Failure)
	s.words(0, `ejected: a call failed after the trial, before any succeeded, last "HTTP 503", 0 ms ago, trial in 2 s`)
	s.pass(2 * time.Second)
	s.is(0)
	s.calls(0, 1, Success)
	s.calls(0, 4, Failure)
	s.is(0)
	s.calls(0, 1, Failure)
	s.words(0, `ejected: 5 failures in a row, last "HTTP 503", 0 ms ago, trial in 4 s`)
}

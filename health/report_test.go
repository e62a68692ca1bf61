package health

import (
	"testing"
	"time"
)

// Hearsay moves what a pick prefers, and never a streak, a trial or what is outstanding: nobody ejects a backend by telling tales, nor keeps one in.
func TestReport(t *testing.T) {
	now := time.Now()
	s := NewState(now)
	for range 100 {
		s.Report(now, 1, Failure, 0, 1, "reported: call failed")
	}
	if got := s.Snapshot(now); got.Streak != 0 || got.Failures != 100 || got.Penalty < penaltyMax-0.001 || got.LastFailure != "reported: call failed" || got.Outstanding != 0 {
		t.Errorf("after 100 reported failures: %+v", got)
	}
	s.Begin()
	s.End(now, Failure, 0, false, "HTTP 503")
	s.Report(now, 1, Success, 30*time.Millisecond, 1, "")
	got := s.Snapshot(now)
	if got.Streak != 1 || got.Successes != 1 {
		t.Errorf("a reported success after a real failure: %+v", got)
	}
	if l, fresh := s.Latency(now); l != 30*time.Millisecond || !fresh {
		t.Errorf("latency %v, fresh %v", l, fresh)
	}
	s.Report(now, 1, Success, time.Second, 1000, "")
	s.Report(now, 1, Failure, time.Second, 1000, "x")
	if l, _ := s.Latency(now); l != 30*time.Millisecond {
		t.Errorf("a summary of many calls moved the latency to %v", l)
	}
	if got := s.Snapshot(now); got.Successes != 1001 || got.Failures != 1101 {
		t.Errorf("%+v", got)
	}
	later := now.Add(time.Minute)
	s.Report(later, 1, Overloaded, 0, 1, "")
	if p := s.Penalty(later); p < 0.9 || p > 1.1 {
		t.Errorf("penalty of one overload: %v", p)
	}
	s.Report(later, 1, Failure, 0, 1000, "x")
	if p := s.Penalty(later); p < 0.9 || p > 1.1 {
		t.Errorf("a summary of many calls moved the penalty to %v", p)
	}
}

package health

import (
	"testing"
	"time"
)

// No ejection begins that would bring panic, nor in it: panic would ignore it (2.9). What the few that had to carry all did meanwhile isn't held against them when the others are back.
func TestNoEjectionInPanic(t *testing.T) {
	o := windows()
	o.Probe, o.PanicPercent = ProbeNone, 50
	s := newStory(t, o, 10)
	for i := range 9 {
		s.connects(i, 3, false)
	}
	for range 5 {
		s.calls(9, 30, Failure)
		s.calls(9, 1, Success)
		s.pass(time.Second)
	}
	s.is(9) // the only one
	for i := range 4 {
		s.connects(i, 1, true)
		s.calls(9, 30, Failure)
		s.calls(9, 1, Success)
		s.pass(time.Second)
	}
	s.is(9) // there are five: one less would be panic
	s.connects(4, 1, true)
	s.is(4)
	s.pass(2 * time.Second)
	s.is(9) // what its windows held is forgotten
	s.calls(9, 5, Failure)
	s.is(9, Ejected)
	s.calls(0, 5, Failure)
	s.is(0) // five are left
}

// The same streak as would eject one of many is held back while few are left, and ejects when there is room, if it lasts.
func TestStreakInPanicWaits(t *testing.T) {
	o := defaults()
	o.Probe, o.PanicPercent = ProbeNone, 50
	s := newStory(t, o, 4)
	s.connects(0, 3, false)
	s.connects(1, 3, false)
	s.calls(2, 5, Failure)
	s.is(2)
	s.connects(0, 1, true)
	s.is(0)
	s.is(2, Ejected)
}

// As many reported failures in a row as eject are told once, whatever probes do meanwhile, and again only after a success.
func TestAccused(t *testing.T) {
	for _, probe := range []ProbeType{ProbeNone, ProbeTCP} {
		o := defaults()
		o.Probe = probe
		s := newStory(t, o, 3)
		var accused int
		report := func(n int, r Result) {
			for range n {
				s.states[0].Report(s.now, 1, r, 0, 1, "reported: call failed")
			}
			for tt := range s.c.inbox.take() {
				s.c.judge(s.now, tt)
			}
			for _, c := range s.c.takeChanges() {
				if c.Accused && c.State == s.states[0] && c.From.Kind == c.To.Kind {
					accused++
				}
			}
		}
		for i, step := range []struct {
			n    int
			r    Result
			want int
		}{{4, Failure, 0}, {1, Failure, 1}, {50, Failure, 1}, {1, Success, 1}, {4, Failure, 1}, {9, Timeout, 1}, {1, Failure, 2}} {
			if report(step.n, step.r); accused != step.want {
				t.Fatalf("%s, step %d: accused %d times, want %d", probe, i, accused, step.want)
			}
		}
		s.is(0)
	}
}

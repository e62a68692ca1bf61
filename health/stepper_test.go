package health

import (
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// stepped is a Stepper whose probes end as the test says, at once.
type stepped struct {
	*Stepper
	t       *testing.T
	now     time.Time
	check   Check
	probes  int
	changes []Change
}

func newStepped(t *testing.T, o Options, n int) (*stepped, fixed) {
	s := &stepped{t: t, now: epoch, check: Check{Passed: true}}
	var err error
	s.Stepper, err = NewStepper(Config{
		Log:      hclog.NewNullLogger(),
		OnChange: func(_ time.Time, changes []Change) { s.changes = append(s.changes, changes...) },
	}, func() float64 { return 0.5 })
	if err != nil {
		t.Fatal(err)
	}
	targets := make(fixed, n)
	for i := range targets {
		targets[i] = Target{Addr: backend(i), State: NewState(s.now)}
	}
	s.SetGroup(s.now, "g", o, targets)
	s.SetActive(s.now, "g", true)
	return s, targets
}

// until steps from one time to the next that Step asks for, while it asks for one before end.
func (s *stepped) until(end time.Time) {
	s.t.Helper()
	for {
		probes, next := s.Step(s.now)
		for _, p := range probes {
			s.probes++
			if p.Addr() != backend(0) || p.Options().Timeout == 0 {
				s.t.Fatalf("probe of %v by %+v", p.Addr(), p.Options())
			}
			s.Answer(s.now, p, s.check)
		}
		switch {
		case len(probes) > 0: // Step is to be called again
		case next.IsZero() || !next.Before(end):
			s.now = end
			return
		case next.Sub(s.now) < wakeGrain:
			s.t.Fatalf("wants to be stepped %v after a step", next.Sub(s.now))
		default:
			s.now = next
		}
	}
}

func TestStepperProbes(t *testing.T) {
	for _, c := range []struct {
		name  string
		check Check
		kind  Kind
		soft  bool
	}{
		{"passed", Check{Passed: true}, Up, false},
		{"local", Check{Local: true, Cause: "too many open files"}, Up, false},
		{"refused", Check{Refused: true, Cause: "connection refused"}, Down, false},
		{"answered", Check{Answered: true, Cause: "HTTP 503"}, Down, true},
		{"silent", Check{Cause: "no answer within 1 s"}, Down, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, targets := newStepped(t, defaults(), 1)
			s.check = c.check
			s.until(epoch.Add(time.Minute))
			if s.probes < 9 {
				t.Errorf("%d probes in a minute, at an interval of 5 s", s.probes)
			}
			v := orUp(targets[0].State.Verdict())
			if v.Kind != c.kind || v.Soft != c.soft || c.kind != Up && v.Last != c.check.Cause {
				t.Errorf("verdict %+v", v)
			}
			parts := targets[0].State.Snapshot(s.now).Parts
			if noWay := slices.ContainsFunc(parts, func(p Part) bool { return p.Kind == Unreachable }); noWay != (c.kind == Down && !c.soft) {
				t.Errorf("parts %+v", parts) // a tcp probe that is not answered had no connection, or no SETTINGS on it
			}
			if told := len(s.changes) > 0; told != (c.kind != Up) {
				t.Errorf("changes: %+v", s.changes)
			}
			s.check = Check{Passed: true}
			s.until(s.now.Add(30 * time.Second))
			if v := targets[0].State.Verdict(); v != nil {
				t.Errorf("%+v, but probes pass", v)
			}
		})
	}
}

// A crossing is judged by the next Step, whatever that was to be; the trial is offered when Step is called at the time that it asked for.
func TestStepperCrossing(t *testing.T) {
	o := defaults()
	o.Probe = ProbeNone
	s, targets := newStepped(t, o, 3)
	s.until(epoch.Add(time.Second))
	state := targets[1].State
	for range o.Consecutive {
		state.Begin()
		state.End(s.now, Failure, 0, false, "HTTP 503")
	}
	s.until(s.now.Add(time.Millisecond))
	if len(s.changes) != 1 || s.changes[0].Addr != backend(1) || s.changes[0].To.Kind != Ejected {
		t.Fatalf("changes: %+v", s.changes)
	}
	if state.TryTrial(s.now) {
		t.Fatal("a trial before the hold-down is over")
	}
	s.until(s.now.Add(2 * time.Second))
	if !state.TryTrial(s.now) {
		t.Fatal("no trial after it")
	}
	state.Begin()
	state.End(s.now, Success, time.Millisecond, true, "")
	s.until(s.now.Add(time.Millisecond))
	if len(s.changes) != 2 || s.changes[1].To.Kind != Up {
		t.Fatalf("changes: %+v", s.changes)
	}
}

func TestStepperIsTold(t *testing.T) {
	for _, c := range []Config{{}, {Log: hclog.NewNullLogger()}} {
		if _, err := NewStepper(c, func() float64 { return 0 }); err == nil {
			t.Errorf("%+v will do", c)
		}
	}
}

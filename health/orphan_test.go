package health

import (
	"testing"
	"time"
)

// orphans makes all backends of a story orphans, in a group that is not in use.
func (s *story) orphans(o Options, active bool) {
	targets := make(fixed, len(s.states))
	for i := range targets {
		targets[i] = Target{Addr: backend(i), State: s.states[i], Orphan: true}
	}
	s.c.setActive(s.now, "g", active)
	s.c.setGroup(s.now, "g", o, targets)
	s.told = nil
	s.work()
}

func (s *story) gone() []string {
	var out []string
	for _, c := range s.told {
		if c.Gone != "" {
			out = append(out, c.Gone)
		}
	}
	return out
}

// An orphan is probed every second, in use or not, whether its service is probed or not, and stays while it passes (1.10).
func TestOrphanIsProbed(t *testing.T) {
	for name, c := range map[string]struct {
		probe  ProbeType
		active bool
	}{"in use": {ProbeTCP, true}, "not in use": {ProbeTCP, false}, "without probes": {ProbeNone, false}} {
		t.Run(name, func(t *testing.T) {
			o := defaults()
			o.Probe = c.probe
			s := newStory(t, o, 2)
			s.orphans(o, c.active)
			s.probes = nil
			s.pass(10 * time.Second)
			if n := len(s.probes); n < 18 || n > 22 {
				t.Errorf("%d probes of 2 orphans in 10 s", n)
			}
			if len(s.gone()) != 0 {
				t.Errorf("gone: %v", s.gone())
			}
			s.set(o, 2) // their keys are back
			s.probes = nil
			s.pass(10 * time.Second)
			if n := len(s.probes); n > 6 || !c.active && n > 0 {
				t.Errorf("%d probes of 2 backends in 10 s", n)
			}
		})
	}
}

// When an orphan leaves: after two refused connects, or down by 2.2; each told once (1.10).
func TestOrphanLeaves(t *testing.T) {
	o := defaults()
	for name, c := range map[string]struct {
		answers []outcome // one after another; the last goes on
		within  time.Duration
		why     string
	}{
		"refused twice":        {[]outcome{refusedProbe}, 2500 * time.Millisecond, "connection refused"},
		"refused once":         {[]outcome{refusedProbe, {}}, 0, ""},
		"by turns":             {[]outcome{refusedProbe, {}, refusedProbe, {}, refusedProbe, {}}, 0, ""},
		"unreachable: by fall": {[]outcome{refused}, 3500 * time.Millisecond, `probe failed 3 times, last "connection refused"`},
		"refuses to be well":   {[]outcome{saysNo}, 3500 * time.Millisecond, `probe failed 3 times, last "HTTP 503"`},
		"answers in between":   {[]outcome{refusedProbe, saysNo, refusedProbe}, 3500 * time.Millisecond, `probe failed 3 times, last "connection refused"`},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStory(t, o, 1)
			s.orphans(o, false)
			s.probes = nil
			began := s.at()
			var at time.Duration
			for s.at() < began+20*time.Second {
				s.answers[0] = c.answers[min(len(s.probes), len(c.answers)-1)]
				s.pass(100 * time.Millisecond)
				if at == 0 && len(s.gone()) > 0 {
					at = s.at() - began
				}
			}
			got := s.gone()
			switch {
			case c.why == "" && len(got) > 0, c.why != "" && (len(got) != 1 || got[0] != c.why):
				t.Errorf("gone: %q, want %q", got, c.why)
			case at > c.within:
				t.Errorf("after %v, want within %v", at, c.within)
			}
		})
	}
}

// refusedProbe is a probe that found nobody listening.
var refusedProbe = outcome{kind: probeUnreachable, cause: "connection refused", refused: true}

// A goodbye, or a call that failed, has an orphan probed at once, and is one of the two refused connects; a backend that still listens only ended a connection (1.10).
func TestOrphanSuspected(t *testing.T) {
	for name, say := range map[string]func(s *story){
		"goodbye":         func(s *story) { s.states[0].Goodbye() },
		"connect failed":  func(s *story) { s.states[0].ConnectFailed(s.now, "connection refused") },
		"connection lost": func(s *story) { s.states[0].ConnectionLost(s.now, "connection reset") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStory(t, defaults(), 1)
			s.orphans(defaults(), false)
			s.pass(5 * time.Second)
			s.pass(orphanGap)
			s.probes = nil
			say(s)
			s.pass(orphanGap)
			if len(s.probes) != 1 || len(s.gone()) != 0 {
				t.Fatalf("%d probes, gone %v", len(s.probes), s.gone())
			}
			s.pass(5 * time.Second)
			if len(s.gone()) != 0 {
				t.Fatalf("gone: %v", s.gone())
			}
			s.answers[0] = refusedProbe
			s.pass(orphanGap)
			say(s)
			s.pass(orphanGap + 20*time.Millisecond)
			if got := s.gone(); len(got) != 1 || got[0] != "connection refused" {
				t.Errorf("gone: %v", got)
			}
		})
	}
	t.Run("all the time", func(t *testing.T) {
		s := newStory(t, defaults(), 1)
		s.orphans(defaults(), false)
		s.pass(time.Second)
		s.probes = nil
		for range 1000 {
			s.states[0].Goodbye()
			s.pass(time.Millisecond)
		}
		if n := len(s.probes); n < 5 || n > 11 {
			t.Errorf("%d probes in a second", n)
		}
	})
	t.Run("listed", func(t *testing.T) {
		s := newStory(t, defaults(), 1)
		s.pass(time.Second)
		s.probes = nil
		s.states[0].Goodbye()
		s.pass(orphanGap)
		if len(s.probes) != 0 || len(s.gone()) != 0 {
			t.Errorf("%d probes, gone %v", len(s.probes), s.gone())
		}
	})
}

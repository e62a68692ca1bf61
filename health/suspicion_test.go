package health

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

func TestCensus(t *testing.T) {
	for _, c := range []struct {
		n                   census
		suspicious, trusted bool
	}{
		{census{backends: 12, groups: 3, bad: 12, turned: 12}, true, false},
		{census{backends: 12, groups: 3, bad: 9, turned: 5}, true, false},
		{census{backends: 10, groups: 3, bad: 7, turned: 7}, false, false}, // 70 % isn't more than 70 %
		{census{backends: 9, groups: 3, bad: 9, turned: 9}, false, false},
		{census{backends: 12, groups: 2, bad: 12, turned: 12}, false, false},
		{census{backends: 12, groups: 3, bad: 12, turned: 6}, false, false}, // half of them were bad before
		{census{backends: 12, groups: 3, bad: 6, turned: 6}, false, false},
		{census{backends: 12, groups: 3, bad: 5, turned: 5}, false, true},
		{census{}, false, true}, // nothing is in use any more
	} {
		if got := c.n.suspicious(); got != c.suspicious {
			t.Errorf("%+v suspicious: %v", c.n, got)
		}
		if got := c.n.trusted(); got != c.trusted {
			t.Errorf("%+v trusted: %v", c.n, got)
		}
	}
}

// newFleet has services of as many backends each, numbered from 0 on, all of them good for a minute. Probes have jitter, and take 50 ms.
func newFleet(t *testing.T, o Options, services, each int) *story {
	s := newStory(t, o, 0)
	s.c.random = rand.New(rand.NewPCG(1, 2)).Float64
	s.delay = 50 * ms
	for g := range services {
		all := make(fixed, each)
		for i := range all {
			n := g*each + i
			s.states[n] = NewState(s.now)
			all[i] = Target{Addr: backend(n), State: s.states[n]}
		}
		name := fmt.Sprint("s", g)
		s.c.setGroup(s.now, name, o, all)
		s.c.setActive(s.now, name, true)
	}
	s.work()
	s.to(time.Minute)
	return s
}

// all has probes of backends from..to-1 answered in this way.
func (s *story) all(from, to int, o outcome) {
	for i := from; i < to; i++ {
		s.answers[i] = o
	}
}

func (s *story) wantSuspicion(on bool) {
	s.t.Helper()
	if s.c.suspicion.on != on {
		s.t.Fatalf("%v: suspicion is %v", s.at(), s.c.suspicion.on)
	}
}

// outs counts backends that are down, unreachable, ejected.
func (s *story) outs() (n [Kinds]int) {
	for _, st := range s.states {
		for _, p := range st.Snapshot(s.now).Parts {
			n[p.Kind]++
		}
	}
	return n
}

// This host's network is cut: whatever way probes fail, nobody goes out, in no order of events, and nobody does afterwards (2.10).
func TestSuspicionOfACut(t *testing.T) {
	for _, how := range []outcome{silent, refused, {kind: probeUnreachable, cause: "timeout"}} {
		t.Run(how.cause, func(t *testing.T) {
			s := newFleet(t, defaults(), 3, 4)
			s.all(0, 12, how)
			s.delay = time.Second   // so that some are still under way when it is over
			s.pass(7 * time.Second) // every one was probed
			s.wantSuspicion(true)
			s.pass(10 * time.Minute)
			s.wantSuspicion(true)
			if !s.c.suspicion.cut {
				t.Error("not one was reached, and it isn't a cut")
			}
			s.all(0, 12, outcome{})
			s.delay = 50 * ms
			s.pass(8 * time.Second)
			s.wantSuspicion(false)
			s.pass(time.Minute)
			if tale := s.tale(); tale != "" {
				t.Errorf("told %s", tale)
			}
			// From now on all is as ever.
			s.all(0, 2, how)
			s.pass(20 * time.Second)
			s.wantSuspicion(false)
			if n := s.outs(); n[Down] != 2 {
				t.Errorf("out %v, want 2 down", n)
			}
		})
	}
}

// A host that sees nothing for some intervals, since it has no processor for its probes, doesn't trust itself for that: those that could not be reached are no better for it. If
// nothing comes at all, it does in the end.
func TestSuspicionOutlastsSilence(t *testing.T) {
	s := newFleet(t, defaults(), 3, 4)
	s.all(0, 12, silent)
	s.pass(7 * time.Second)
	s.wantSuspicion(true)
	s.delay = 20 * time.Second // no probe ends for three intervals
	s.pass(5 * time.Minute)
	s.wantSuspicion(true)
	if tale := s.tale(); tale != "" {
		t.Errorf("told %s", tale)
	}
	s.delay = time.Hour
	s.pass(time.Minute)
	s.wantSuspicion(false)
}

// What is no reason for suspicion: few backends, few services, one after the other, answers.
func TestNoSuspicion(t *testing.T) {
	for _, c := range []struct {
		name           string
		services, each int
		bad            int
		how            outcome
		gap            time.Duration
	}{
		{"2 of 12", 3, 4, 2, silent, 0},
		{"8 of 12", 3, 4, 8, silent, 0},
		{"few backends", 3, 3, 9, silent, 0},
		{"few services", 2, 10, 20, silent, 0},
		{"one after the other", 3, 4, 12, silent, 15 * time.Second},
		{"they answer", 3, 4, 12, saysNo, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFleet(t, defaults(), c.services, c.each)
			for i := range c.bad {
				s.answers[i] = c.how
				s.pass(c.gap)
				s.wantSuspicion(false)
			}
			s.pass(20 * time.Second)
			s.wantSuspicion(false)
			if n := s.outs(); n[Down] != c.bad {
				t.Errorf("out %v, want %d down", n, c.bad)
			}
		})
	}
}

// A zone is gone, with three quarters of all backends: suspicion keeps them from being down, but what can't be connected to is out (2.4), since others are left.
func TestSuspicionOfAZone(t *testing.T) {
	s := newFleet(t, defaults(), 3, 4)
	s.all(0, 9, outcome{kind: probeUnreachable, cause: "timeout"})
	s.pass(20 * time.Second)
	s.wantSuspicion(true)
	if n := s.outs(); n[Down] != 0 || n[Unreachable] != 9 {
		t.Errorf("out %v, want 9 unreachable", n)
	}
	s.all(4, 9, outcome{}) // under a half is left
	s.pass(7 * time.Second)
	s.wantSuspicion(false)
	s.pass(20 * time.Second)
	if n := s.outs(); n[Down] != 4 || n[Unreachable] != 4 {
		t.Errorf("out %v, want 4, down and unreachable", n)
	}
}

// Services that nobody probes: calls are evidence as good, and what failed during suspicion is forgotten.
func TestSuspicionByCalls(t *testing.T) {
	o := defaults()
	o.Probe = ProbeNone
	s := newFleet(t, o, 3, 4)
	for i := range 12 {
		s.calls(i, 1, Success)
	}
	s.pass(time.Second)
	for range 10 {
		for i := range 12 {
			s.connects(i, 1, false)
		}
		s.pass(100 * ms)
	}
	s.wantSuspicion(true)
	for i := range 12 {
		s.calls(i, 5, Failure)
	}
	if tale := s.tale(); tale != "" {
		t.Errorf("told %s", tale)
	}
	for i := 1; i < 12; i++ {
		s.calls(i, 1, Success)
	}
	s.pass(2 * time.Second)
	s.wantSuspicion(false)
	if tale := s.tale(); tale != "" {
		t.Errorf("told %s", tale)
	}
	s.calls(0, 4, Failure)
	s.is(0)
	s.calls(0, 1, Failure)
	s.is(0, Ejected)
}

// A backend that was ejected by the first failures of a cut, before there were enough to be suspicious, is back with the others when the cut is over: nobody waits for its
// hold-down, and what it was ejected for does not eject it again.
func TestSuspicionForgivesWhatCameBefore(t *testing.T) {
	for _, unreachable := range []bool{false, true} {
		o := defaults()
		o.Interval, o.EjectBase = 30*time.Second, 5*time.Minute
		s := newFleet(t, o, 3, 4)
		s.all(0, 12, refused)
		for i := range 12 {
			s.calls(i, 1, Success)
		}
		s.pass(time.Second)
		s.calls(0, 5, Failure)
		if unreachable {
			s.connects(0, 3, false)
			s.is(0, Unreachable, Ejected)
		} else {
			s.is(0, Ejected)
		}
		for i := range 12 {
			s.connects(i, 5, false)
		}
		s.pass(time.Second)
		s.wantSuspicion(true)
		s.pass(20 * time.Second)
		s.all(0, 12, outcome{})
		s.pass(trustEvery / 4) // between two looks
		s.calls(1, 1, Success)
		if s.pass(suspectGrain); s.c.suspicion.cut {
			t.Error("a backend was reached, and nobody looked whether others can be")
		}
		if n := s.outs(); n[Ejected] != 0 {
			t.Errorf("unreachable %v: out %v once one was reached", unreachable, n)
		}
		for i := 2; i < 12; i++ {
			s.calls(i, 1, Success)
		}
		s.pass(3 * time.Second) // a probe of whoever is unreachable is asked for
		s.wantSuspicion(false)
		if n := s.outs(); n != [Kinds]int{} {
			t.Errorf("unreachable %v: out %v", unreachable, n)
		}
	}
}

// Orphans are not let go while this host is under suspicion (1.10, 2.10), and need new evidence afterwards.
func TestSuspicionKeepsOrphans(t *testing.T) {
	s := newFleet(t, defaults(), 3, 4)
	o := defaults()
	all := make(fixed, 4)
	for i := range all {
		all[i] = Target{Addr: backend(i), State: s.states[i], Orphan: true}
	}
	s.all(0, 12, outcome{kind: probeUnreachable, cause: "connection refused", refused: true})
	s.pass(6 * time.Second)
	s.wantSuspicion(true)
	s.c.setGroup(s.now, "s0", o, all)
	s.work()
	s.pass(time.Minute)
	for _, c := range s.told {
		t.Errorf("told %+v", c.Change)
	}
	s.all(1, 12, outcome{})
	s.pass(7 * time.Second)
	s.wantSuspicion(false)
	s.pass(10 * time.Second)
	gone := map[int]int{}
	for _, c := range s.told {
		if c.Gone != "" {
			gone[number(c.Addr)]++
		}
	}
	if len(gone) != 1 || gone[0] != 1 {
		t.Errorf("let go %v, want backend 0, once", gone)
	}
}

// A look at ten thousand backends is taken a few times a second at most, however many fail at once.
func BenchmarkCensus(b *testing.B) {
	c := newCore(newInbox(), rand.Float64, &stats{}, nil)
	now := epoch.Add(time.Minute)
	for g := range 10 {
		name := fmt.Sprint(g)
		ts := targets(epoch, 1000)
		c.setGroup(epoch, name, defaults(), ts)
		c.setActive(epoch, name, true)
		for i := range ts {
			ts[i].State.watch.Load().reached = ts[i].State.at(now)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if n := c.census(now); n.backends != 10_000 || n.groups != 10 {
			b.Fatalf("%+v", n)
		}
	}
}

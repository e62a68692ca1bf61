package table

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/health"
)

// Only what is usable gets calls, and each by its weight.
func TestPicksAreUsable(t *testing.T) {
	r, s := user(t, 4)
	r.judge(s, 0, downSoft)
	r.judge(s, 1, ejected)
	if v := s.View(); v.Panic || v.Usable != 2 {
		t.Fatalf("usable %d, panic %v", v.Usable, v.Panic)
	}
	if got := picked(counts(s.View(), r.now, 1000)); !slices.Equal(got, []int{2, 3}) {
		t.Errorf("picked %v", got)
	}
	r.judge(s, 1, isUp)
	if got := picked(counts(s.View(), r.now, 1000)); !slices.Equal(got, []int{1, 2, 3}) {
		t.Errorf("picked %v", got)
	}
	if n := s.Picks(); n != 2000 {
		t.Errorf("%d picks counted, want 2000", n)
	}
	if e := s.Entered(health.Ejected); e != 1 {
		t.Errorf("entered ejected %d times", e)
	}
}

// Usable backends first, then all that are neither draining nor muted, once each (4.1).
func TestPickTried(t *testing.T) {
	r, s := user(t, 6)
	sp := spec("user")
	sp.PanicPercent = 30 // 2 of 5 are enough: no panic
	r.SetSpec(r.now, sp)
	r.judge(s, 0, downHard)
	r.judge(s, 1, unreachable)
	r.judge(s, 2, ejected)
	l := list("user", ids(6)...)
	l.Backends[5].Draining = true
	r.Apply(r.now, l)
	for range 200 {
		v := s.View()
		var tried []*health.State
		var order []int
		for {
			b := v.Pick(r.now, tried)
			if b == nil {
				break
			}
			if slices.Contains(tried, b.State) {
				t.Fatalf("backend %d twice", number(b))
			}
			tried = append(tried, b.State)
			order = append(order, number(b))
		}
		if len(order) != 5 {
			t.Fatalf("tried %v, want all but the draining one", order)
		}
		first, rest := slices.Sorted(slices.Values(order[:2])), slices.Sorted(slices.Values(order[2:]))
		if !slices.Equal(first, []int{3, 4}) || !slices.Equal(rest, []int{0, 1, 2}) {
			t.Fatalf("tried in the order %v, want 3 and 4 first", order)
		}
	}
}

// With panic off and nothing usable, nothing (4.5 then says why).
func TestPanicOff(t *testing.T) {
	r, s := user(t, 2)
	sp := spec("user")
	sp.PanicPercent = 0
	r.SetSpec(r.now, sp)
	r.judge(s, 0, ejected)
	r.judge(s, 1, downSoft)
	v := s.View()
	if v.Panic || v.Pick(r.now, nil) != nil {
		t.Error("panic is off")
	}
	r.judge(s, 1, isUp)
	v = s.View()
	b := v.Pick(r.now, nil)
	if number(b) != 1 {
		t.Fatalf("picked %d", number(b))
	}
	if next := v.Pick(r.now, []*health.State{b.State}); next == nil || number(next) != 0 {
		t.Error("a call that was at every usable backend may try the others (4.1)")
	}
}

// Fewer usable than panic_percent: soft verdicts are ignored, evidence isn't (2.9).
func TestPanic(t *testing.T) {
	r, s := user(t, 5)
	r.judge(s, 0, downSoft)
	r.judge(s, 1, ejected)
	if s.View().Panic {
		t.Fatal("panic at 3 of 5")
	}
	r.judge(s, 2, downHard)
	v := s.View()
	if !v.Panic || v.Usable != 2 {
		t.Fatalf("panic %v at %d of 5", v.Panic, v.Usable)
	}
	if got := picked(counts(v, r.now, 1000)); !slices.Equal(got, []int{0, 1, 3, 4}) {
		t.Errorf("picked %v, want all but the one that is surely down", got)
	}

	// A failed connect of less than 5 s ago is evidence while another backend remains.
	v.Find(addr(0)).State.ConnectFailed(r.now, "connection refused")
	v.Find(addr(3)).State.ConnectFailed(r.now, "connection refused")
	if got := picked(counts(v, r.now.Add(5*time.Second-1), 1000)); !slices.Equal(got, []int{1, 4}) {
		t.Errorf("picked %v", got)
	}
	if got := picked(counts(v, r.now.Add(5*time.Second), 3000)); !slices.Equal(got, []int{0, 1, 3, 4}) {
		t.Errorf("picked %v after 5 s", got)
	}
	tried := []*health.State{v.Find(addr(1)).State, v.Find(addr(4)).State}
	if got := picked(counts(v, r.now, 1000, tried...)); !slices.Equal(got, []int{0, 3}) {
		t.Errorf("picked %v when no other remains", got)
	}

	r.judge(s, 2, isUp)
	if s.View().Panic {
		t.Error("panic at 3 of 5")
	}
	got := r.details(event.Panic)
	want := []string{"panic began: 2 of 5 backends usable, doubtful ones get calls, too", "panic ended: 3 of 5 backends usable"}
	if !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
}

// In a long list too, the one backend without evidence against it is found.
func TestPanicFindsTheOneLeft(t *testing.T) {
	r, s := user(t, 200)
	var changes []health.Change
	v := s.View()
	for i := range v.Len() {
		b := v.Backend(i)
		changes = append(changes, health.Change{Group: "user", Addr: b.Addr, State: b.State, From: isUp, To: ejected})
		if i != 123 {
			b.State.ConnectFailed(r.now, "connection refused")
		}
	}
	r.SetVerdicts(r.now, changes)
	if got := counts(s.View(), r.now, 100); got[123] != 100 {
		t.Errorf("picks %v, want all of 123", got)
	}
	if len(s.View().trials) != 0 {
		t.Error("calls on trial where probes decide")
	}
}

// All unreachable: all are tried, in random order (2.9).
func TestAllUnreachable(t *testing.T) {
	r, s := user(t, 4)
	for i := range 4 {
		r.judge(s, i, unreachable)
	}
	v := s.View()
	if !v.Panic || v.Usable != 0 {
		t.Fatalf("panic %v, usable %d", v.Panic, v.Usable)
	}
	got := counts(v, r.now, 40_000)
	for i := range 4 {
		if got[i] < 9_000 || got[i] > 11_000 {
			t.Errorf("backend %d came first %d times of 40,000", i, got[i])
		}
	}
}

// Draining backends are out on purpose: they don't count (2.9).
func TestDrainingIsNoPanic(t *testing.T) {
	r, s := user(t, 10)
	l := list("user", ids(10)...)
	for i := range 8 {
		l.Backends[i].Draining = true
	}
	r.Apply(r.now, l)
	v := s.View()
	if v.Panic || v.Usable != 2 {
		t.Errorf("panic %v, usable %d", v.Panic, v.Usable)
	}
	if w := v.Backend(0).Verdict.Words(r.now.Add(3 * time.Second)); w != "draining: its record says that it is out of service, for 3 s" {
		t.Errorf("words %q", w)
	}
	r.judge(s, 8, ejected)
	r.judge(s, 9, ejected)
	v = s.View()
	if got := picked(counts(v, r.now, 1000)); !slices.Equal(got, []int{8, 9}) {
		t.Errorf("picked %v", got)
	}
	// Health's verdict on a draining backend is kept for the day when it is back.
	r.judge(s, 0, downHard)
	if k := s.View().Backend(0).Verdict.Kind; k != health.Draining {
		t.Errorf("verdict %v", k)
	}
}

// A backend that nothing probes gets one call when its hold-down is over, and API picks don't take that away (2.7).
func TestTrials(t *testing.T) {
	r := newRig(t)
	sp := spec("user")
	sp.Health.Probe = health.ProbeNone
	r.SetSpec(r.now, sp)
	r.Apply(r.now, list("user", ids(4)...))
	s := r.Lookup("user")

	synctest.Test(t, func(t *testing.T) {
		defer monitor(t, r, s)()
		b := s.View().Find(addr(0))
		for range 5 {
			b.State.Begin()
			b.State.End(time.Now(), health.Failure, 0, true, "HTTP 503")
		}
		synctest.Wait()
		if k := s.View().Find(addr(0)).Verdict.Kind; k != health.Ejected {
			t.Fatalf("verdict %v", k)
		}
		if got := counts(s.View(), time.Now(), 1000); got[0] != 0 {
			t.Fatalf("%d picks of an ejected backend", got[0])
		}
		advance(1500 * time.Millisecond) // the longest first hold-down
		now := time.Now()
		for range 1000 {
			if b := s.View().Advise(now, 0, nil); number(b) == 0 {
				t.Fatal("an API pick got the trial")
			}
		}
		if b := s.View().Pick(now, []*health.State{b.State}); number(b) == 0 {
			t.Fatal("a call that was there already got the trial")
		}
		if got := counts(s.View(), now, 1000); got[0] != 1 {
			t.Fatalf("%d picks of a backend on trial, want 1", got[0])
		}
		b.State.Begin()
		b.State.End(time.Now(), health.Success, time.Millisecond, true, "")
		synctest.Wait()
		if got := counts(s.View(), time.Now(), 1000); got[0] < 30 { // its penalty hasn't gone yet: 1 in 16
			t.Errorf("%d picks of 1000 after the trial passed", got[0])
		}
	})
}

// monitor runs a real Monitor for the table of r, in this bubble.
func monitor(t *testing.T, r *rig, s *Service) (end func()) {
	t.Helper()
	m, err := health.New(health.Config{Log: hclog.NewNullLogger(), OnChange: r.SetVerdicts})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	m.SetGroup(s.Name(), s.Spec().Health, targets{s.View()})
	m.SetActive(s.Name(), true)
	synctest.Wait()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	r, s := user(t, 100)
	for i := range 60 { // in panic, with evidence: the longest way
		r.judge(s, i, ejected)
		s.View().Find(addr(i)).State.ConnectFailed(r.now, "connection refused")
	}
	v := s.View()
	tried := []*health.State{v.Backend(80).State}
	if n := testing.AllocsPerRun(1000, func() { v.Pick(r.now, nil); v.Pick(r.now, tried); v.Advise(r.now, 0, nil) }); n != 0 {
		t.Errorf("%v allocations per pick", n)
	}
}

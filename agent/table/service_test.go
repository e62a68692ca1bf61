package table

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/health"
)

func TestBeforeTheFirstList(t *testing.T) {
	r := newRig(t)
	r.SetSpec(r.now, spec("user"))
	s := r.Lookup("user")
	v := s.View()
	if v == nil || v.Ready || v.List == nil || v.Len() != 0 || v.Panic {
		t.Fatalf("view before the first list: %+v", v)
	}
	if b := v.Pick(r.now, nil); b != nil {
		t.Fatalf("picked %v of nothing", b.Addr)
	}
	if got, want := v.Unusable(r.now), "lbagent: user: no list yet"; got != want {
		t.Errorf("Unusable %q, want %q", got, want)
	}
	r.Apply(r.now, list("user"))
	if v := s.View(); !v.Ready {
		t.Error("an empty list is a list: want Ready")
	}
	if got, want := s.View().Unusable(r.now), "lbagent: user: 0 backends, 0 usable"; got != want {
		t.Errorf("Unusable %q, want %q", got, want)
	}
	if r.Lookup("nobody") != nil {
		t.Error("Lookup of an unknown service")
	}
	r.Apply(r.now, list("nobody", 1)) // ignored
}

func TestChanged(t *testing.T) {
	r, s := user(t, 1)
	v, newer := s.Changed()
	if v != s.View() {
		t.Fatal("Changed isn't the view of now")
	}
	select {
	case <-newer:
		t.Fatal("there is nothing newer")
	default:
	}
	for range 100 {
		r.Apply(r.now, list("user", 0, 1)) // a slow reader
	}
	<-newer
	v, newer = s.Changed()
	if v.Len() != 2 {
		t.Error("the latest wins")
	}
	r.Remove(r.now, "user")
	<-newer
	v, newer = s.Changed()
	if !v.Gone || v.Len() != 2 {
		t.Errorf("the last view: gone %v, %d backends", v.Gone, v.Len())
	}
	<-newer // whoever reads on doesn't hang
	if r.Lookup("user") != nil || len(r.Services()) != 0 {
		t.Error("a removed service is still there")
	}
	if r.targets["user"] != nil || r.active["user"] {
		t.Error("health wasn't told")
	}
	r.Remove(r.now, "user") // twice is no harm
	r.SetSpec(r.now, spec("user"))
	if again := r.Lookup("user"); again == s || again.View().Gone {
		t.Error("a service of that name again is a new one")
	}
}

func TestAge(t *testing.T) {
	r, s := user(t, 1)
	if age := s.Age(r.now); age < 24*time.Hour {
		t.Errorf("age %v of a list that nobody confirmed", age)
	}
	r.Confirm("user", r.now)
	r.Confirm("user", r.now.Add(-time.Hour)) // an older one says nothing
	r.Confirm("nobody", r.now)
	if age := s.Age(r.now.Add(3 * time.Second)); age != 3*time.Second {
		t.Errorf("age %v, want 3 s", age)
	}
	l := list("user", 0)
	l.Confirmed = r.now.Add(time.Second)
	r.Apply(r.now, l)
	if age := s.Age(r.now.Add(3 * time.Second)); age != 2*time.Second {
		t.Errorf("age %v, want 2 s", age)
	}
	if age := s.Age(r.now); age != 0 {
		t.Errorf("age %v of a confirmation from the future, want 0", age)
	}
}

// What did not change is not touched (6.1).
func TestSetSpec(t *testing.T) {
	r, s := user(t, 3)
	sent, marks := r.sent, r.marks
	sp := spec("user")
	sp.Listeners, sp.Drain = []string{"127.0.0.1:7001"}, time.Minute
	r.SetSpec(r.now, sp)
	if r.sent != sent || r.marks != marks {
		t.Error("listeners and drain don't concern health or views")
	}
	if s.Spec().Drain != time.Minute {
		t.Error("the new spec isn't there")
	}
	state := s.View().Backend(0).State
	sp.Policy = picker.RoundRobin
	r.SetSpec(r.now, sp)
	if r.sent != sent || r.marks != marks+1 || s.View().Backend(0).State != state || !s.View().Ready {
		t.Error("a new policy is a new view with the same states")
	}
	first := number(s.View().Pick(r.now, nil))
	for i := 1; i < 7; i++ {
		if got := number(s.View().Pick(r.now, nil)); got != (first+i)%3 {
			t.Fatalf("pick %d is %d: not round robin", i, got)
		}
	}
	sp.Health.Interval = time.Minute
	r.SetSpec(r.now, sp)
	if r.sent != sent+1 {
		t.Error("health wasn't told of its options")
	}
	sp.InUse = false
	r.SetSpec(r.now, sp)
	if r.active["user"] {
		t.Error("a service without a listener is in use")
	}
	r.judge(s, 0, ejected)
	r.judge(s, 1, ejected)
	sp.PanicPercent = 30
	r.SetSpec(r.now, sp)
	if s.View().Panic {
		t.Error("1 of 3 is more than 30 %")
	}
	sp.Policy = "nonsense"
	r.SetSpec(r.now, sp)
	if got := s.Spec().Policy; got != picker.P2C {
		t.Errorf("policy %q", got)
	}
}

// Asked in the last 5 min = in use (2.3); medians while it is; nothing to do, no wake-up.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.now = time.Now()
		sp := spec("user")
		sp.InUse = false
		r.SetSpec(r.now, sp)
		r.Apply(r.now, list("user", ids(3)...))
		s := r.Lookup("user")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		active := func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.active["user"] }
		if active() || r.sent != 0 {
			t.Fatal("in use before anybody asked")
		}
		s.Asked(time.Now())
		synctest.Wait()
		if !active() {
			t.Fatal("asked, and not in use at once")
		}
		if ts := r.targets["user"]; ts == nil || ts.Len() != 3 || ts.At(1).Addr != addr(1) {
			t.Fatalf("health has the targets %v", ts)
		}
		for i, ms := range []int{1, 2, 30} {
			st := s.View().Backend(i).State
			st.Begin()
			st.End(time.Now(), health.Success, time.Duration(ms)*time.Millisecond, true, "")
		}
		advance(time.Second)
		if m := s.Median(); m != 2*time.Millisecond {
			t.Errorf("median %v, want 2 ms", m)
		}
		advance(30 * time.Second)
		if m := s.Median(); m != 0 {
			t.Errorf("median %v of latencies of 31 s ago", m)
		}
		advance(4*time.Minute + 25*time.Second)
		s.Asked(time.Now())
		advance(4*time.Minute + 50*time.Second)
		if !active() {
			t.Error("asked less than 5 min ago, and out of use")
		}
		advance(12 * time.Second)
		if active() {
			t.Error("in use 5 min after the last question")
		}
		if _, busy := r.second(time.Now()); busy {
			t.Error("Run wants to be woken for nothing")
		}

		r.Apply(time.Now(), list("user", 0))
		advance(31 * time.Second)
		r.mu.Lock()
		left := s.left
		r.mu.Unlock()
		if left != nil {
			t.Error("a backend that left is kept beyond its drain")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Of two backends the slow one stands out.
func TestMedianOfTwo(t *testing.T) {
	r, s := user(t, 2)
	for i, d := range []time.Duration{time.Millisecond, time.Second} {
		st := s.View().Backend(i).State
		st.Begin()
		st.End(r.now, health.Success, d, true, "")
	}
	s.setMedian(r.now, nil)
	if m := s.Median(); m != time.Millisecond {
		t.Errorf("median %v, want 1 ms", m)
	}
}

func TestServicesAreSorted(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"b", "c", "a"} {
		r.SetSpec(r.now, spec(name))
	}
	var names []string
	for _, s := range r.Services() {
		names = append(names, s.Name())
	}
	if !slices.Equal(names, []string{"a", "b", "c"}) {
		t.Errorf("services %v", names)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("a table without Log and Events")
	}
	if _, err := New(Config{Log: hclog.NewNullLogger(), Events: event.NewLog(1)}); err != nil {
		t.Errorf("hooks are optional: %v", err)
	}
}

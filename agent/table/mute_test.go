package table

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// muteOf is a mute of backend id of "user", by alice for an hour.
func muteOf(now time.Time, id int, fleet bool) service.Mute {
	m := service.Mute{Service: "user", Addr: addr(id), Author: "alice", Host: "web-1", Since: now, Until: now.Add(time.Hour), Fleet: fleet}
	if fleet {
		m.Reason = "bad disk"
	}
	return m
}

func kinds(parts []health.Part) []health.Kind {
	var all []health.Kind
	for _, p := range parts {
		all = append(all, p.Kind)
	}
	return all
}

// A muted backend gets no calls, whoever asks and whatever else is wrong, until the mute is over (2.8).
func TestMute(t *testing.T) {
	r, s := user(t, 3)
	marks := r.marks
	r.SetMutes(r.now, []service.Mute{muteOf(r.now, 1, false)})
	if r.marks != marks+1 {
		t.Errorf("%d views", r.marks-marks)
	}
	v := s.View()
	if got := picked(counts(v, r.now, 200)); !slices.Equal(got, []int{0, 2}) {
		t.Errorf("picks went to %v", got)
	}
	if v.Usable != 2 || v.Panic {
		t.Errorf("%d usable, panic %v", v.Usable, v.Panic)
	}
	// Also when the others have been tried (4.1).
	if b := v.Pick(r.now, []*health.State{v.Backend(0).State, v.Backend(2).State}); b != nil {
		t.Errorf("a call that has been at all others was sent to %v", b.Addr)
	}
	words := v.Backend(1).Verdict.Words(r.now)
	if want := "muted: by alice for 1 h (this host), until "; !strings.HasPrefix(words, want) || !strings.HasSuffix(words, ", ends in 60 min") {
		t.Errorf("words %q, want %q...", words, want)
	}
	// Health counts it out, so that the last of the others isn't ejected (2.6), and goes on probing it.
	if target := r.targets["user"].At(1); !target.Draining || r.targets["user"].At(0).Draining {
		t.Errorf("health was told %+v", target)
	}
	// The same again is nothing new.
	marks = r.marks
	r.SetMutes(r.now, []service.Mute{muteOf(r.now, 1, false)})
	if r.marks != marks {
		t.Error("a view was published for nothing")
	}
	r.SetMutes(r.now, nil)
	if got := picked(counts(s.View(), r.now, 200)); !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("after the end picks went to %v", got)
	}
	if r.targets["user"].At(1).Draining {
		t.Error("health still counts it out")
	}
	if s.Entered(health.Muted) != 1 {
		t.Errorf("entered muted %d times", s.Entered(health.Muted))
	}
}

// The key is the address: leaving, coming back, restarting and a new record change nothing.
func TestMuteIsOfTheAddress(t *testing.T) {
	r := newRig(t)
	r.SetMutes(r.now, []service.Mute{muteOf(r.now, 1, true)}) // before the service is followed
	r.SetSpec(r.now, spec("user"))
	s := r.Lookup("user")
	check := func(what string) {
		t.Helper()
		b := s.View().Find(addr(1))
		if b == nil || b.Verdict.Kind != health.Muted {
			t.Fatalf("%s: %+v", what, b)
		}
		if got := picked(counts(s.View(), r.now, 100)); !slices.Equal(got, []int{0}) {
			t.Errorf("%s: picks went to %v", what, got)
		}
	}
	r.Apply(r.now, list("user", 0, 1))
	check("first list")
	r.Apply(r.now, list("user", 0))
	r.Apply(r.now, list("user", 0, 1))
	check("left and came back")
	l := list("user", 0, 1)
	l.Backends[1].Created = 2
	r.Apply(r.now, l)
	check("restarted")
	l = list("user", 0, 1)
	l.Backends[1].Created, l.Backends[1].Weight = 2, 50
	r.Apply(r.now, l)
	check("another weight")
	r.Remove(r.now, "user")
	r.SetSpec(r.now, spec("user"))
	s = r.Lookup("user")
	r.Apply(r.now, list("user", 0, 1))
	check("followed anew")
}

// The parts are kept apart: what health finds meanwhile counts when the mute is over, draining weighs more (2.8).
func TestMuteAndOtherVerdicts(t *testing.T) {
	r, s := user(t, 4)
	here, fleet := muteOf(r.now, 1, false), muteOf(r.now, 1, true)
	fleet.Until = fleet.Until.Add(time.Hour)
	r.SetMutes(r.now, []service.Mute{here, fleet})
	r.judge(s, 1, downHard)
	b := s.View().Find(addr(1))
	if b.Verdict.Kind != health.Muted || !b.Verdict.Next.Equal(fleet.Until) {
		t.Errorf("verdict %+v, want the mute that lasts longer", b.Verdict)
	}
	if got, want := kinds(s.View().Parts(r.now, b)), []health.Kind{health.Muted, health.Muted}; !slices.Equal(got, want) {
		t.Errorf("parts %v, want %v", got, want)
	}
	draining := list("user", ids(4)...)
	draining.Backends[1].Draining = true
	r.Apply(r.now, draining)
	b = s.View().Find(addr(1))
	if got, want := kinds(s.View().Parts(r.now, b)), []health.Kind{health.Draining, health.Muted, health.Muted}; !slices.Equal(got, want) {
		t.Errorf("parts %v, want %v", got, want)
	}
	since := b.Verdict.Since
	r.SetMutes(r.now.Add(time.Second), []service.Mute{here})
	if b = s.View().Find(addr(1)); b.Verdict.Kind != health.Draining || !b.Verdict.Since.Equal(since) {
		t.Errorf("an end of a mute made of draining %+v", b.Verdict)
	}
	r.Apply(r.now, list("user", ids(4)...))
	if b = s.View().Find(addr(1)); b.Verdict.Kind != health.Muted {
		t.Errorf("after draining: %+v", b.Verdict)
	}
}

// Muted is hard: panic is neither caused by it nor ignores it, and a service whose backends are all muted has none, with that reason (2.9, 4.5).
func TestMuteAndPanic(t *testing.T) {
	r, s := user(t, 4)
	mutes := []service.Mute{muteOf(r.now, 0, false), muteOf(r.now, 1, false), muteOf(r.now, 2, false)}
	r.SetMutes(r.now, mutes)
	if v := s.View(); v.Usable != 1 || v.Panic {
		t.Errorf("%d usable, panic %v", v.Usable, v.Panic)
	}
	r.judge(s, 3, ejected) // the only one left: panic, which ignores soft verdicts and nothing else
	v := s.View()
	if got := picked(counts(v, r.now, 300)); !v.Panic || !slices.Equal(got, []int{3}) {
		t.Errorf("panic %v, picks went to %v", v.Panic, got)
	}
	r.judge(s, 3, unreachable)
	v = s.View()
	if got := picked(counts(v, r.now, 300)); !slices.Equal(got, []int{3}) {
		t.Errorf("all unreachable: picks went to %v", got)
	}
	if b := v.Pick(r.now, []*health.State{v.Backend(3).State}); b != nil {
		t.Errorf("the last resort was %v", b.Addr)
	}
	r.judge(s, 3, isUp)
	r.SetMutes(r.now, append(mutes, muteOf(r.now, 3, true)))
	v = s.View()
	if b := v.Pick(r.now, nil); b != nil || v.Panic || v.Usable != 0 {
		t.Errorf("all are muted, picked %+v, panic %v, %d usable", b, v.Panic, v.Usable)
	}
	got := v.Unusable(r.now.Add(2 * time.Second))
	if want := "lbagent: user: 4 backends, 0 usable; 10.0.0.0:80 muted: by alice for 1 h (this host), until "; !strings.HasPrefix(got, want) {
		t.Errorf("Unusable %q, want %q...", got, want)
	}
}

// What runs on a muted backend goes on (4.7): unlike one that drains, it may be back any moment.
func TestMutedIsNotLeaving(t *testing.T) {
	r, s := user(t, 2)
	r.SetMutes(r.now, []service.Mute{muteOf(r.now, 1, false)})
	if s.View().Leaving(addr(1)) {
		t.Error("running calls would end")
	}
	l := list("user", ids(2)...)
	l.Backends[1].Draining = true
	r.Apply(r.now, l)
	if !s.View().Leaving(addr(1)) {
		t.Error("a draining one isn't leaving")
	}
}

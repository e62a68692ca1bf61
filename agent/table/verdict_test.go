package table

import (
	"slices"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/health"
)

// Verdicts of a state that was replaced meanwhile are not for its successor.
func TestLateVerdicts(t *testing.T) {
	r, s := user(t, 2)
	was := s.View().Backend(0)
	l := list("user", ids(2)...)
	l.Backends[0].Created = 5
	r.Apply(r.now, l)
	v := s.View()
	r.SetVerdicts(r.now, []health.Change{
		{Group: "user", Addr: was.Addr, State: was.State, From: isUp, To: ejected},
		{Group: "user", Addr: addr(77), State: was.State, From: isUp, To: ejected},
		{Group: "gone", Addr: was.Addr, State: was.State, From: isUp, To: ejected},
	})
	if s.View() != v {
		t.Error("a view was published for nothing")
	}
	if got := r.details(event.Verdict); len(got) != 0 {
		t.Errorf("events %q", got)
	}
}

func TestVerdictEvents(t *testing.T) {
	r, s := user(t, 2)
	p := ejected
	p.Since, p.At, p.Next = r.now, r.now, r.now.Add(time.Second)
	r.judge(s, 0, p)
	r.judge(s, 0, isUp)
	r.judge(s, 1, downSoft)
	hard := downHard
	r.judge(s, 1, hard) // another cause, the same verdict
	got := r.details(event.Verdict)
	want := []string{
		`was up, now ejected: 5 failures in a row, last "connection reset", trial after 1 s`,
		"was ejected, now up",
		`was up, now down: probe failed 3 times, last "HTTP 503"`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("events\n%q\nwant\n%q", got, want)
	}
	if s.View().Find(addr(1)).Verdict.Soft {
		t.Error("the new cause isn't in the view")
	}
	if e := s.Entered(health.Down); e != 1 {
		t.Errorf("entered down %d times", e)
	}
}

// A storm of verdicts is one view and a bounded number of events.
func TestVerdictStorm(t *testing.T) {
	r, s := user(t, 1000)
	v := s.View()
	var changes []health.Change
	for i := range v.Len() {
		changes = append(changes, health.Change{Group: "user", Addr: v.Backend(i).Addr, State: v.Backend(i).State, From: isUp, To: downHard})
	}
	marks := r.marks
	r.SetVerdicts(r.now, changes)
	if r.marks != marks+1 {
		t.Errorf("%d views", r.marks-marks)
	}
	if got := r.details(event.Verdict); len(got) != voiceBurst {
		t.Errorf("%d events at once", len(got))
	}
	if _, busy := r.second(r.now); !busy {
		t.Error("Run goes to sleep with something untold")
	}
	r.now = r.now.Add(time.Second)
	r.second(r.now)
	if got := r.details(event.Verdict); len(got) != voiceBurst+1 || got[voiceBurst] != "980 more verdicts moved" {
		t.Errorf("%d events, the last %q", len(got), got[len(got)-1])
	}
}

// A service whose list changes all the time doesn't drown the others, and what it did is told as a number.
func TestListStorm(t *testing.T) {
	r, _ := user(t, 1)
	for i := range 1000 {
		r.now = r.now.Add(10 * time.Millisecond)
		r.Apply(r.now, list("user", ids(1+i%2)...))
		if i%100 == 99 {
			r.second(r.now)
		}
	}
	got := r.details(event.List)
	if len(got) < voiceBurst || len(got) > voiceBurst+10*voiceRate {
		t.Errorf("%d events in 10 s", len(got))
	}
	if last := got[len(got)-1]; last != "99 more changes of the list" { // one of the hundred was told by itself
		t.Errorf("the last says %q", last)
	}
}

// The sentence looks at a bounded number of backends that are up: thousands of calls may each need one.
func TestUnusableIsBounded(t *testing.T) {
	r, s := user(t, 1000)
	s.View().Find(addr(upMost)).State.ConnectFailed(r.now, "connection refused")
	if got, want := s.View().Unusable(r.now), "lbagent: user: 1000 backends, 1000 usable"; got != want {
		t.Errorf("Unusable %q, want %q", got, want)
	}
	s.View().Find(addr(upMost-1)).State.ConnectFailed(r.now, "connection refused")
	if got, want := s.View().Unusable(r.now), "lbagent: user: 1000 backends, 1000 usable; 10.0.0.99:80 up: connection refused"; got != want {
		t.Errorf("Unusable %q, want %q", got, want)
	}
}

// The sentence of 4.5.
func TestUnusable(t *testing.T) {
	r, s := user(t, 5)
	at := r.now
	r.now = r.now.Add(2 * time.Second)
	why := func(want string) {
		t.Helper()
		if got := s.View().Unusable(r.now); got != want {
			t.Errorf("Unusable\n\t%s\nwant\n\t%s", got, want)
		}
	}
	why("lbagent: user: 5 backends, 5 usable")
	s.View().Find(addr(4)).State.ConnectFailed(at, "no route to host")
	why("lbagent: user: 5 backends, 5 usable; 10.0.0.4:80 up: no route to host (2 s ago)")
	p := unreachable
	p.Since, p.At = at, at
	r.judge(s, 2, p)
	why("lbagent: user: 5 backends, 4 usable; 10.0.0.2:80 unreachable: connection refused (2 s ago); 10.0.0.4:80 up: no route to host (2 s ago)")
	l := list("user", ids(5)...)
	l.Backends[0].Draining = true
	r.Apply(at, l)
	why("lbagent: user: 5 backends, 3 usable; 10.0.0.0:80 draining: its record says that it is out of service (2 s ago); " +
		"10.0.0.2:80 unreachable: connection refused (2 s ago); 10.0.0.4:80 up: no route to host (2 s ago)")
	r.judge(s, 1, p)
	r.judge(s, 3, p)
	why("lbagent: user: 5 backends, 1 usable; 10.0.0.0:80 draining: its record says that it is out of service (2 s ago); " +
		"10.0.0.1:80 unreachable: connection refused (2 s ago); 10.0.0.2:80 unreachable: connection refused (2 s ago)")
	r.Remove(r.now, "user")
	why("lbagent: user: the service was removed")
}

// An ejection that is only observed is told with its evidence, and takes nothing out.
func TestObservedIsTold(t *testing.T) {
	r, s := user(t, 2)
	b := s.View().Find(addr(0))
	would := &health.Part{Kind: health.Ejected, Soft: true, Observed: true, Since: r.now, Cause: "5 failures in a row", Last: "HTTP 503", At: r.now}
	up := health.Part{Kind: health.Up}
	before := s.View()
	r.SetVerdicts(r.now, []health.Change{{Group: "user", Addr: b.Addr, State: b.State, From: up, To: up, Would: would}})
	if s.View() != before {
		t.Error("it made a new view")
	}
	events, _ := r.events.Since(0)
	last := events[len(events)-1]
	want := `is up, would be ejected: 5 failures in a row, last "HTTP 503" (eject: observe)`
	if last.Kind != event.Verdict || last.Backend != b.Addr.String() || last.Detail != want {
		t.Errorf("told %+v, want %q", last, want)
	}
}

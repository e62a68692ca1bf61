package health

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// What comes next is told at each stage of a backend's fall and return (2.2, 2.7, 2.8).
func TestOutlook(t *testing.T) {
	s := newStory(t, defaults(), 4)
	name := s.groupName()
	if all := s.c.outlooks(name, netip.AddrPort{}); len(all) != 4 || len(s.c.outlooks(name, backend(1))) != 1 || s.c.outlooks("none", backend(1)) != nil {
		t.Fatalf("%v", all)
	}
	ahead := func(i int) string {
		o := s.c.outlooks(name, backend(i))[backend(i)]
		return o.Words(s.now)
	}
	want := func(i int, has ...string) {
		t.Helper()
		for _, one := range has {
			if got := ahead(i); !strings.Contains(got, one) {
				t.Errorf("%v: ahead of %d is %q, want %q in it", s.at(), i, got, one)
			}
		}
	}
	s.pass(3 * time.Second)
	want(0, "probe in ")
	s.answers[0] = saysNo
	s.delay = 100 * ms
	s.pass(4600 * ms)
	want(0, "after 1 probe that failed")
	s.calls(1, 5, Failure)
	s.is(1, Ejected)
	want(1, "trial in 1 s, by a probe")
	s.calls(2, 5, Failure)
	s.calls(3, 5, Failure)
	want(3, "held back from ejection")
	if o := s.c.outlooks(name, backend(3))[backend(3)]; !o.HeldBack || o.Probe.IsZero() {
		t.Errorf("%+v", o)
	}
	s.c.setActive(s.now, name, false)
	s.work()
	want(0, "not probed: nobody uses the service")

	o := defaults()
	o.Probe = ProbeNone
	s = newStory(t, o, 4)
	name = s.groupName()
	want(0, "not probed: the service has no probe")
	s.calls(1, 5, Failure)
	want(1, "trial in 1 s, by the next call")
	s.pass(2 * time.Second)
	want(1, "trial by the next call")
	if !s.states[1].TryTrial(s.now) {
		t.Fatal("no trial")
	}
	want(1, "a call is its trial now")
}

func (s *story) groupName() string {
	for name := range s.c.groups {
		return name
	}
	s.t.Fatal("no group")
	return ""
}

// The last eight outcomes that were no success are kept, the newest first, with what was seen (2.8): calls, connects and reports alike.
func TestPastOutcomes(t *testing.T) {
	s := NewState(epoch)
	if s.Outcomes() != nil || !s.LastSuccess(epoch).IsZero() {
		t.Error("something is known of a new backend")
	}
	for i := range 5 {
		call(s, time.Duration(i)*time.Second, Overloaded) // pushed out below, but for the last two
	}
	call(s, 10*time.Second, Success)
	call(s, 10*time.Second, Neutral)
	s.ConnectFailed(after(11*time.Second), "connection refused")
	s.ConnectionLost(after(12*time.Second), "reset")
	call(s, 13*time.Second, Failure)
	s.Begin()
	s.End(after(14*time.Second), Timeout, 300*ms, true, "deadline")
	s.Report(after(15*time.Second), 1000, AppError, 20*ms, 7, "reported: error")
	s.Report(after(15*time.Second), 1000, Success, 20*ms, 7, "")
	call(s, 16*time.Second, AppError)
	want := []Outcome{
		{after(16 * time.Second), AppError, "HTTP 503", ms, 1, false},
		{after(15 * time.Second), AppError, "reported: error", 20 * ms, 7, true},
		{after(14 * time.Second), Timeout, "deadline", 300 * ms, 1, false},
		{after(13 * time.Second), Failure, "HTTP 503", 0, 1, false},
		{after(12 * time.Second), Failure, "reset", 0, 1, false},
		{after(11 * time.Second), Failure, "connection refused", 0, 1, false},
		{after(4 * time.Second), Overloaded, "HTTP 503", ms, 1, false},
		{after(3 * time.Second), Overloaded, "HTTP 503", ms, 1, false},
	}
	if got := s.Outcomes(); !slices.Equal(got, want) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
	if got := s.LastSuccess(after(20 * time.Second)); !got.Equal(after(10 * time.Second)) {
		t.Errorf("last success %v", got)
	}
}

// The window of a service that nobody uses any more says nothing of now.
func TestRecentEndsWithUse(t *testing.T) {
	s := newStory(t, defaults(), 2)
	s.calls(0, 16, AppError)
	s.calls(0, 4, Failure)
	s.pass(2 * time.Second)
	if c := s.states[0].Snapshot(s.now); c.Recent != 20 || c.RecentFailed != 4 {
		t.Errorf("%+v", c)
	}
	s.c.setActive(s.now, s.groupName(), false)
	if c := s.states[0].Snapshot(s.now); c.Recent != 0 || c.RecentFailed != 0 {
		t.Errorf("%+v", c)
	}
}

// Who asks a Monitor gets what its core has in mind; a Monitor that does not answer keeps nobody for longer than ctx.
func TestOutlooksOfAMonitor(t *testing.T) {
	inBubble(t, func(b *bubble) {
		b.SetGroup("user", defaults(), fixed{{Addr: backend(0), State: NewState(time.Now())}, {Addr: backend(1), State: NewState(time.Now())}})
		b.SetActive("user", true)
		advance(1100 * ms) // probes begin on a grid of 250 ms, and none runs now
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		all := b.Outlooks(ctx, "user", netip.AddrPort{})
		one := b.Outlooks(ctx, "user", backend(1))
		if len(all) != 2 || len(one) != 1 || !one[backend(1)].Probe.After(time.Now()) {
			t.Errorf("%v, %v", all, one)
		}
	})
}

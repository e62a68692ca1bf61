package health

import (
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

func windows() Options {
	o := defaults()
	o.SuccessRate = 50
	o.Probe = ProbeNone
	return o
}

// mixed has good and bad calls come, so that no streak grows, evenly over d.
func (s *story) mixed(i, good, bad int, d time.Duration) {
	s.t.Helper()
	n := good + bad
	for k := range n {
		r := Success
		if (k+1)*bad/n > k*bad/n {
			r = Failure
		}
		s.calls(i, 1, r)
		s.pass(d / time.Duration(n))
	}
}

// Success < 50 % of 20 calls and more in 10 s ejects; a running call's success doesn't end that, the trial does (2.5, 2.7).
func TestEjectedByRate(t *testing.T) {
	s := newStory(t, windows(), 2)
	s.mixed(0, 20, 21, 8*time.Second)
	s.is(0) // 49 %, but the success of the first seconds is not in all windows yet
	s.mixed(0, 3, 9, 3*time.Second)
	s.is(0, Ejected)
	v := s.states[0].Verdict()
	if v.By != ByRate || !v.Soft {
		t.Errorf("ejected: %+v", v)
	}
	if s.stats.ejections[ByRate].Load() != 1 {
		t.Error("not counted by its reason")
	}
	s.calls(0, 3, Success)
	s.is(0, Ejected)
	s.to(v.Next.Sub(epoch))
	if !s.states[0].TryTrial(s.now) {
		t.Fatal("no trial at the end of the hold-down")
	}
	s.calls(0, 1, Success)
	s.is(0)
	if ago := s.states[0].ReturnedAgo(s.now); ago != 0 {
		t.Errorf("returned %v ago, want now (3.7)", ago)
	}
	s.pass(5 * time.Second)
	s.is(0) // what was in the window has been paid for
	if ago := s.states[0].ReturnedAgo(s.now); ago != 5*time.Second {
		t.Errorf("returned %v ago, want 5 s", ago)
	}
}

// How slow it was before it went out is forgotten when it is back, and only then: nobody would have called it often enough to see that it is well (3.4, 3.7).
func TestLatencyIsForgottenByAReturn(t *testing.T) {
	s := newStory(t, windows(), 2)
	slow := func() {
		s.states[0].Begin()
		s.states[0].End(s.now, Timeout, 2*time.Second, true, "timeout")
	}
	for range 20 {
		slow()
	}
	s.calls(0, 5, Failure)
	s.is(0, Ejected)
	if lag := s.states[0].Lag(s.now, 10*ms); lag != lagMost {
		t.Errorf("while it is out its L is %v, want %v", lag, lagMost)
	}
	s.to(s.states[0].Verdict().Next.Sub(epoch))
	if !s.states[0].TryTrial(s.now) {
		t.Fatal("no trial at the end of the hold-down")
	}
	s.calls(0, 1, Success)
	s.is(0)
	if mean, fresh := s.states[0].Latency(s.now); fresh || s.states[0].Lag(s.now, 10*ms) != 1 {
		t.Errorf("back, and still it is taken to need %v", mean)
	}
	slow()
	if lag := s.states[0].Lag(s.now, 10*ms); lag <= lagFrom {
		t.Errorf("L is %v after a slow call", lag)
	}
}

func TestRateWords(t *testing.T) {
	s := newStory(t, windows(), 2)
	s.pass(250 * ms)
	for range 21 {
		s.calls(0, 1, Success)
		s.calls(0, 2, Failure)
	}
	s.pass(2 * time.Second)
	s.words(0, `ejected: success 33 % of 63 calls in 10 s, last "HTTP 503", 2 s ago, trial due`)
}

// At its trial a backend ejected by rate goes on where it was; after the trial passed by a call's success at the right time, not before (2.7).
func TestSuccessAfterHoldDownEndsIt(t *testing.T) {
	s := newStory(t, windows(), 2)
	s.mixed(0, 10, 30, 2*time.Second)
	s.is(0, Ejected)
	for range 100 { // in panic, say
		if v := s.states[0].Verdict(); v == nil || !s.now.Before(v.Next) {
			break
		}
		s.calls(0, 1, Success)
		s.is(0, Ejected)
		s.pass(100 * ms)
	}
	s.calls(0, 1, Success)
	s.pass(1100 * ms)
	s.is(0)
}

// A streak's ejection that the rate bears out isn't over with one success.
func TestStreakTurnsIntoRate(t *testing.T) {
	s := newStory(t, windows(), 2)
	s.mixed(0, 6, 18, 900*ms) // three in four
	s.calls(0, 5, Failure)
	s.is(0, Ejected)
	s.pass(200 * ms)
	s.calls(0, 1, Success)
	s.is(0, Ejected)
	if v := s.states[0].Verdict(); v.By != ByRate {
		t.Errorf("ejected by %v, want %v", v.By, ByRate)
	}

	s = newStory(t, windows(), 2)
	s.mixed(0, 100, 0, 900*ms)
	s.calls(0, 5, Failure)
	s.is(0, Ejected)
	s.pass(200 * ms)
	s.calls(0, 1, Success)
	s.is(0)
}

// 20 calls a minute, most of which fail, never five in a row: out after a minute; 429, 500 and quick timeouts eject nobody (2.5).
func TestFewCalls(t *testing.T) {
	for _, c := range []struct {
		name string
		of   []Result
		want bool
	}{
		{"four in five fail", []Result{Failure, Failure, Failure, Failure, Success}, true},
		{"two in three fail", []Result{Failure, Failure, Success}, false},
		{"429", []Result{Overloaded}, false},
		{"500", []Result{AppError}, false},
		{"cancels", []Result{Neutral}, false},
		{"timeouts of 1 ms", []Result{Timeout}, false},
	} {
		s := newStory(t, windows(), 2)
		for k := range 21 {
			s.calls(0, 1, c.of[k%len(c.of)])
			s.pass(3 * time.Second)
		}
		v := s.states[0].Verdict()
		if got := v != nil && v.Kind == Ejected && v.By == ByFewCalls; got != c.want {
			t.Errorf("%s: %v, want %v", c.name, v, c.want)
		}
	}
}

// One slow method with a short deadline ejects nobody; calls that hang for a second do, with the reason (2.5).
func TestTimeouts(t *testing.T) {
	for _, c := range []struct {
		took time.Duration
		want string
	}{
		{40 * ms, ""},
		{time.Second, `ejected: success 0 % of 30 calls in 10 s, by timeouts, for 1 s, trial due`},
	} {
		s := newStory(t, windows(), 2)
		s.pass(250 * ms)
		for range 3 {
			s.states[0].Begin()
			s.states[0].End(s.now, Timeout, c.took, true, "the caller's deadline passed")
			s.work()
		}
		s.pass(2 * time.Second)
		if c.want == "" {
			s.is(0)
			continue
		}
		s.words(0, c.want)
	}
}

// Reports alone eject nobody; with a failed call or probe of the agent's own they do, one backend a minute of each user (SEMANTICS 2, the table's last row).
func TestReportsEject(t *testing.T) {
	report := func(s *story, i int, uid uint32, n int, r Result) {
		for range n {
			s.states[i].Report(s.now, uid, r, 0, 1, "reported: call failed")
		}
		s.work()
	}
	s := newStory(t, windows(), 8)
	report(s, 0, 1, 100, Failure)
	s.pass(3 * time.Second)
	s.is(0)
	s.calls(0, 1, Failure)
	s.is(0, Ejected)
	s.words(0, `ejected: 101 failures in a row, partly as reported, last "HTTP 503", 0 ms ago, trial in 1 s`)
	report(s, 1, 1, 5, Failure)
	s.calls(1, 1, Failure)
	s.pass(2 * time.Second)
	s.is(1) // that user has ejected one
	report(s, 2, 2, 4, Failure)
	s.calls(2, 1, Failure)
	s.is(2, Ejected) // another user
	report(s, 3, 3, 4, Failure)
	report(s, 3, 3, 1, Success)
	s.calls(3, 1, Failure)
	s.is(3) // the reported streak was over

	// A reported success excuses nothing that this agent saw.
	s.calls(3, 3, Failure)
	report(s, 3, 3, 1000, Success)
	s.calls(3, 1, Failure)
	s.is(3, Ejected)
	s.pass(time.Minute)
	s.calls(1, 1, Failure) // the evidence is fresh again, and so is the user's right
	s.pass(time.Second)
	if v := s.states[1].Verdict(); v == nil || v.Kind != Ejected {
		t.Errorf("backend 1 is %v a minute later, want ejected", v)
	}
}

// A failed probe bears reports out too, and what they say counts in the windows.
func TestReportsWithFailedProbe(t *testing.T) {
	o := windows()
	o.Probe = ProbeTCP
	s := newStory(t, o, 2)
	s.answers[0] = saysNo
	s.states[0].Report(s.now, 7, Failure, 0, 1000, "reported: call failed")
	s.pass(time.Second)
	s.is(0)
	s.states[0].Report(s.now, 7, Failure, 0, 1000, "reported: call failed")
	s.to(2600 * ms) // the probe fails
	s.is(0, Ejected)
	if v := s.states[0].Verdict(); v.By != ByRate {
		t.Errorf("%+v", v)
	}
}

// After a trial by probe, which is no call, one failed call is enough, until one succeeds (2.7).
func TestParole(t *testing.T) {
	o := defaults()
	s := newStory(t, o, 2)
	s.calls(0, 5, Failure)
	s.is(0, Ejected)
	s.pass(time.Second) // the probe passes
	s.is(0)
	s.calls(0, 1, Failure)
	s.words(0, `ejected: a call failed after the trial, before any succeeded, last "HTTP 503", 0 ms ago, trial in 2 s`)
	s.pass(2 * time.Second)
	s.is(0)
	s.calls(0, 1, Success)
	s.calls(0, 4, Failure)
	s.is(0)
	s.calls(0, 1, Failure)
	s.words(0, `ejected: 5 failures in a row, last "HTTP 503", 0 ms ago, trial in 4 s`)
}

// observe: all is judged, told and counted, and nothing is taken out.
func TestObserve(t *testing.T) {
	for _, probe := range []ProbeType{ProbeNone, ProbeTCP} {
		o := defaults()
		o.Observe, o.Probe = true, probe
		s := newStory(t, o, 2)
		would := func() (n int) {
			for _, c := range s.told {
				if c.Would != nil {
					n++
				}
				if c.From.Kind != Up || c.To.Kind != Up {
					t.Fatalf("%s: told %+v", probe, c)
				}
			}
			s.told = nil
			return n
		}
		s.calls(0, 5, Failure)
		if v := s.states[0].Verdict(); v != nil {
			t.Fatalf("%s: a verdict: %v", probe, v)
		}
		if n := would(); n != 1 || s.stats.wouldEject[ByStreak].Load() != 1 || s.stats.ejections[ByStreak].Load() != 0 {
			t.Errorf("%s: told %d times, counted %d", probe, n, s.stats.wouldEject[ByStreak].Load())
		}
		parts := s.states[0].Snapshot(s.now).Parts
		if len(parts) != 1 || !parts[0].Observed {
			t.Fatalf("%s: parts %v", probe, parts)
		}
		equal(t, "words", parts[0].Words(s.now), `would be ejected: 5 failures in a row, last "HTTP 503", 0 ms ago, trial in 1 s`)
		s.calls(1, 5, Failure)
		if would() != 0 {
			t.Errorf("%s: the cap doesn't hold", probe)
		}
		s.calls(1, 1, Success)
		s.pass(1100 * ms) // the hold-down is over
		s.is(0)
		s.calls(0, 1, Failure)
		if n := would(); n != 1 {
			t.Errorf("%s: told %d times of the next failure, want once", probe, n)
		}
		s.calls(0, 1, Success)
		s.is(0)
		s.calls(0, 5, Failure)
		o.Observe = false
		s.set(o, 2)
		if v := s.states[0].Verdict(); v == nil || v.Kind != Ejected {
			t.Errorf("%s: %v, want ejected: now it's meant", probe, v)
		}
		o.Observe = true
		s.set(o, 2)
		if v := s.states[0].Verdict(); v != nil {
			t.Errorf("%s: still out: %v", probe, v)
		}
	}
}

// Windows roll only while calls come, and are dropped with the use of their group.
func TestWindowsOfIdleBackends(t *testing.T) {
	s := newStory(t, windows(), 3)
	if _, ok := s.c.next(s.now); ok {
		t.Fatal("an idle core wants to be woken")
	}
	s.calls(0, 1, Success)
	s.pass(10 * time.Second)
	s.calls(1, 1, Success)
	if len(s.c.rolling) != 2 || s.states[2].watch.Load().window != nil {
		t.Errorf("%d windows roll, want 2", len(s.c.rolling))
	}
	s.pass(2 * time.Minute)
	if next, ok := s.c.next(s.now); ok || len(s.c.rolling) != 0 {
		t.Fatalf("%d windows still roll, next in %v", len(s.c.rolling), next.Sub(s.now))
	}
	// What begins again has lost nothing.
	s.calls(0, 30, AppError)
	for range 12 {
		s.calls(0, 1, Success)
		s.calls(0, 3, Failure)
	}
	s.pass(time.Second)
	if got := s.states[0].Snapshot(s.now); got.Recent != 78 || got.RecentFailed != 36 {
		t.Errorf("the window holds %v calls, %v failed; want 78, 36", got.Recent, got.RecentFailed)
	}
	s.c.setActive(s.now, "g", false)
	s.pass(2 * time.Second)
	if w := s.states[0].watch.Load().window; w != nil || len(s.c.rolling) != 0 {
		t.Error("a group that nobody uses keeps windows")
	}
}

// The list of those that the cap held back doesn't grow with how often it did.
func TestHeldOnce(t *testing.T) {
	s := newStory(t, defaults(), 1)
	for range 100 {
		s.calls(0, 5, Failure)
		s.calls(0, 1, Success)
	}
	if n := len(s.c.groups["g"].held); n > 1 {
		t.Errorf("one backend is %d times in the list", n)
	}
}

// Failed connects are the unreachable verdict's, not the windows' (2.4): when it ends, the backend is back.
func TestUnreachableIsNotInTheWindows(t *testing.T) {
	s := newStory(t, windows(), 2)
	for range 40 {
		s.connects(0, 1, false)
		s.pass(100 * ms)
	}
	s.is(0, Unreachable)
	s.connects(0, 1, true)
	s.is(0)
	s.pass(5 * time.Second)
	s.is(0)
}

// Calls that panic sends to an ejected backend don't lengthen its hold-down, be it over or not (2.7).
func TestFailuresInPanic(t *testing.T) {
	s := newStory(t, windows(), 2)
	s.calls(0, 5, Failure)
	next := s.states[0].Verdict().Next
	for range 30 {
		s.calls(0, 7, Failure)
		s.pass(100 * ms)
	}
	s.is(0, Ejected)
	if got := s.states[0].Verdict().Next; !got.Equal(next) {
		t.Errorf("the hold-down ends at %v, want %v", got.Sub(epoch), next.Sub(epoch))
	}
	if !s.states[0].TryTrial(s.now) {
		t.Fatal("no trial")
	}
	s.calls(0, 1, Failure)
	if got := s.states[0].Verdict().Next.Sub(s.now); got != 2*time.Second {
		t.Errorf("held down for %v after one failed trial, want 2 s", got)
	}
}

// In the Monitor, with its own clock: a backend that fails two of three calls is out at the end of that second, and the Monitor sleeps when the calls are over.
func TestMonitorRollsWindows(t *testing.T) {
	inBubble(t, func(b *bubble) {
		ts := targets(time.Now(), 4)
		b.SetActive("g", true)
		b.SetGroup("g", windows(), ts)
		advance(0)
		for range 20 {
			for k := range 3 {
				ts[1].State.Begin()
				ts[1].State.End(time.Now(), []Result{Success, Failure, Failure}[k], ms, true, "HTTP 503")
			}
			advance(20 * ms)
		}
		b.want()
		advance(time.Second)
		b.want(Ejected)
		if s := b.Stats(); s.Ejections[ByRate] != 1 {
			t.Errorf("stats %+v", s)
		}
		advance(2 * time.Minute)
		b.ask(b.t.Context(), func(c *core) {
			if len(c.rolling) != 0 || !c.rollAt.IsZero() {
				t.Errorf("%d windows roll two minutes after the last call", len(c.rolling))
			}
		})
	})
}

// Whatever writers do meanwhile, no outcome is lost from the windows once they roll, and none that ends while they stop keeps them from rolling again.
func TestWindowsOfManyWriters(t *testing.T) {
	c := newCore(newInbox(), func() float64 { return 0.5 }, &stats{}, hclog.NewNullLogger())
	all := targets(epoch, 8)
	o := windows()
	o.MaxPercent = 0 // nobody goes out, or windows would begin anew
	c.setGroup(epoch, "g", o, all)
	c.setActive(epoch, "g", true)
	const writers, each = 4, 5000
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				s := all[(i+w)%len(all)].State
				if w == 0 {
					s.Report(epoch, uint32(i), []Result{Success, Failure, Timeout}[i%3], 0, 1+i%2, "reported")
					continue
				}
				call(s, 0, []Result{Success, Failure, AppError, Timeout, Neutral, Overloaded}[i%6])
			}
		})
	}
	stopped := make(chan struct{})
	go func() { wg.Wait(); close(stopped) }()
	now, done := epoch, false
	for !done {
		select {
		case <-stopped:
			done = true // and once more: what came before that is seen now
		default:
		}
		for t := range c.inbox.take() {
			c.judge(now, t)
		}
		now = now.Add(3 * windowIdle) // all stop, and begin again if calls came
		c.roll(now)
	}
	for t := range c.inbox.take() {
		c.judge(now, t)
	}
	c.roll(now.Add(3 * windowIdle))
	for i := range all {
		tg := all[i].State.watch.Load()
		if got, want := tg.window.last, all[i].State.totals(); got != want {
			t.Errorf("backend %d: the windows have seen %+v, want %+v", i, got, want)
		}
	}
}

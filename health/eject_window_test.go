package health

import (
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

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

package health

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
	"unsafe"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const ms = time.Millisecond

func after(d time.Duration) time.Time { return epoch.Add(d) }

// call is one call that ends at the time at.
func call(s *State, at time.Duration, r Result) {
	s.Begin()
	first := time.Duration(0)
	if r == Success || r == Overloaded || r == AppError {
		first = ms
	}
	s.End(after(at), r, first, true, "HTTP 503")
}

// What a pick reads and what the end of a call writes lie on two cache lines of their own.
func TestStateIsTwoCacheLines(t *testing.T) {
	var s State
	if size := unsafe.Sizeof(s); size != 128 {
		t.Errorf("State has %d bytes, want 128", size)
	}
	if at := unsafe.Offsetof(s.streaks); at != 64 {
		t.Errorf("what a call's end writes begins at %d, want 64", at)
	}
	all := make(map[*State]bool) // on the heap, as the table's
	for range 100 {
		all[NewState(epoch)] = true
	}
	for one := range all {
		if p := uintptr(unsafe.Pointer(one)); p%64 != 0 {
			t.Fatalf("a State lies at %#x, across cache lines", p)
		}
	}
}

// The table of outcomes in SEMANTICS 2, row by row.
func TestOutcomes(t *testing.T) {
	type want struct {
		hard    int // the streak, after two failures before
		failed  uint64
		penalty float64
		unreach int
		good    bool
	}
	for _, c := range []struct {
		name string
		do   func(s *State)
		want want
	}{
		{"failed dial", func(s *State) { s.ConnectFailed(after(0), "connection refused") }, want{hard: 3, failed: 3, penalty: 3, unreach: 1}},
		{"failed dial with 3 calls waiting", func(s *State) {
			for range 3 {
				s.Begin()
			}
			s.ConnectFailed(after(0), "connection refused")
			for range 3 {
				s.End(after(0), Neutral, 0, true, "")
			}
		}, want{hard: 3, failed: 3, penalty: 3, unreach: 1}},
		{"lost connection with 3 calls on it", func(s *State) {
			for range 3 {
				s.Begin()
			}
			s.ConnectionLost(after(0), "connection reset")
			for range 3 {
				s.End(after(0), Neutral, 0, true, "")
			}
		}, want{hard: 3, failed: 3, penalty: 3}},
		{"503", func(s *State) { call(s, 0, Failure) }, want{hard: 3, failed: 3, penalty: 3}},
		{"caller's cancel", func(s *State) { call(s, 0, Neutral) }, want{hard: 2, failed: 2, penalty: 2}},
		{"timeout", func(s *State) { call(s, 0, Timeout) }, want{hard: 2, failed: 2, penalty: 2}},
		{"429", func(s *State) { call(s, 0, Overloaded) }, want{hard: 2, failed: 2, penalty: 3}},
		{"500", func(s *State) { call(s, 0, AppError) }, want{hard: 2, failed: 2, penalty: 2}},
		{"success", func(s *State) { call(s, 0, Success) }, want{hard: 0, failed: 2, penalty: 2, good: true}},
		{"connect", func(s *State) { s.Connected(after(0)) }, want{hard: 2, failed: 2, penalty: 2}},
		{"connect after a failed one", func(s *State) { s.ConnectFailed(after(0), ""); s.Connected(after(0)) }, want{hard: 2, failed: 3, penalty: 3}},
		{"probe refused", func(s *State) { s.probeUnreachable(after(0)) }, want{hard: 2, failed: 2, penalty: 2, unreach: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := NewState(epoch)
			call(s, 0, Failure)
			call(s, 0, Failure)
			c.do(s)
			n := s.Snapshot(after(0))
			k := streaks(s.streaks.Load())
			got := want{n.Streak, n.Failures, math.Round(n.Penalty*1e6) / 1e6, k.connects() + k.probes(), s.goodWithin(after(0), time.Second)}
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if n.Outstanding != 0 {
				t.Errorf("outstanding %d after all has ended", n.Outstanding)
			}
		})
	}
}

func TestPenalty(t *testing.T) {
	s := NewState(epoch)
	check := func(at time.Duration, want float64) {
		t.Helper()
		if got := s.Penalty(after(at)); math.Abs(got-want) > 1e-6 {
			t.Errorf("penalty %v at %v, want %v", got, at, want)
		}
	}
	check(0, 0)
	call(s, 0, Failure)
	check(0, 1)
	check(2*time.Second, 0.5)
	check(4*time.Second, 0.25)
	call(s, 4*time.Second, Overloaded)
	check(4*time.Second, 1.25)
	check(time.Hour, 0)
	for range 50 {
		call(s, time.Hour, Failure)
	}
	check(time.Hour, 10)
	check(time.Hour+2*time.Second, 5)
}

func TestConnectFailedAgo(t *testing.T) {
	s := NewState(epoch)
	if d := s.ConnectFailedAgo(after(time.Hour)); d < 24*time.Hour {
		t.Errorf("%v since a connect failed; none ever did", d)
	}
	s.ConnectFailed(after(time.Second), "connection refused")
	if d := s.ConnectFailedAgo(after(3 * time.Second)); d != 2*time.Second {
		t.Errorf("%v ago, want 2 s", d)
	}
	s.Connected(after(4 * time.Second))
	if d := s.ConnectFailedAgo(after(4 * time.Second)); d < 24*time.Hour {
		t.Errorf("%v since a connect failed; one succeeded since", d)
	}
}

// A time before the state was made never looks like never.
func TestTimesBeforeTheState(t *testing.T) {
	s := NewState(epoch)
	early := epoch.Add(-time.Hour)
	s.Begin()
	s.End(early, Success, 10*ms, true, "")
	s.ConnectFailed(early, "connection refused")
	if !s.goodWithin(epoch, time.Second) {
		t.Error("a success is forgotten")
	}
	if _, fresh := s.Latency(epoch); !fresh {
		t.Error("a sample is forgotten")
	}
	if d := s.ConnectFailedAgo(epoch); d > time.Second {
		t.Errorf("a failed connect was %v ago", d)
	}
}

// A trial has one claimant, and its call decides (2.7).
func TestTrial(t *testing.T) {
	for r, want := range map[Result]uint32{Success: trialPassed, Overloaded: trialPassed, AppError: trialPassed,
		Failure: trialFailed, Timeout: trialFailed, Neutral: trialReady} {
		s := NewState(epoch)
		if s.TryTrial(epoch) {
			t.Fatal("claimed a trial that nobody offered")
		}
		s.trial.Store(trialReady)
		if !s.TryTrial(epoch) || s.TryTrial(epoch) {
			t.Fatal("a trial is for one")
		}
		call(s, 0, r)
		if got := s.trial.Load(); got != want {
			t.Errorf("result %d left the trial at %d, want %d", r, got, want)
		}
	}
	s := NewState(epoch)
	s.Answered() // of any other call
	s.trial.Store(trialReady)
	s.TryTrial(epoch)
	s.Answered()
	if got := s.trial.Load(); got != trialPassed {
		t.Errorf("trial %d after response headers came, want %d", got, trialPassed)
	}
	for _, fail := range []func(*State){
		func(s *State) { s.ConnectFailed(epoch, "") },
		func(s *State) { s.ConnectionLost(epoch, "") },
	} {
		s := NewState(epoch)
		s.trial.Store(trialClaimed)
		fail(s)
		if got := s.trial.Load(); got != trialFailed {
			t.Errorf("trial %d after a failed connection, want %d", got, trialFailed)
		}
	}
}

// The streaks never overflow into each other, and each crossing wakes exactly once.
func TestStreaks(t *testing.T) {
	k := streaks(0)
	for _, plus := range []func(streaks) streaks{streaks.plusFailure, streaks.plusConnect, streaks.plusProbe, streaks.plusReport} {
		for range streakTop + 5 {
			k = plus(k)
		}
	}
	if k.failures() != streakTop || k.connects() != streakTop || k.probes() != streakTop || k.reports() != streakTop {
		t.Errorf("after many failures of each kind: %d, %d, %d", k.failures(), k.connects(), k.probes())
	}
	if c := k.connected(); c.failures() != streakTop || c.connects() != 0 || c.probes() != 0 {
		t.Errorf("after a connect: %d, %d, %d", c.failures(), c.connects(), c.probes())
	}
}

// Whatever the interleaving of writers, a threshold that was crossed is told, each target is in the inbox once, and nothing told is lost.
func TestCrossingsFromManyGoroutines(t *testing.T) {
	b := newInbox()
	states := make([]*State, 4)
	targets := map[*target]*State{}
	for i := range states {
		states[i] = NewState(epoch)
		states[i].limit.Store(5)
		tg := &target{inbox: b}
		targets[tg] = states[i]
		states[i].watch.Store(tg)
	}
	seen := map[*State]streaks{} // as a Monitor would see them: only when told
	var wg sync.WaitGroup
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		look := func() {
			for tg := range b.take() {
				seen[targets[tg]] = streaks(targets[tg].streaks.Load())
			}
		}
		for {
			select {
			case <-b.wake:
				look()
			case <-stop:
				look()
				return
			}
		}
	}()
	for range 8 {
		wg.Go(func() {
			for range 20_000 {
				s := states[rand.IntN(len(states))]
				switch rand.IntN(4) {
				case 0, 1:
					call(s, 0, Failure)
				case 2:
					s.ConnectFailed(epoch, "")
				case 3:
					call(s, 0, Success)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	<-done
	for i, s := range states {
		now := streaks(s.streaks.Load())
		if told := seen[s]; told.over(5) != now.over(5) || told.unreachable() != now.unreachable() {
			t.Errorf("state %d is at %v failures, %v connects; the last told was %v, %v", i, now.failures(), now.connects(), told.failures(), told.connects())
		}
		if n := s.Outstanding(); n != 0 {
			t.Errorf("outstanding %d at the end", n)
		}
	}
}

func TestSuccessAllocatesNothing(t *testing.T) {
	s := NewState(epoch)
	n := 0
	if allocs := testing.AllocsPerRun(1000, func() {
		n++
		now := after(time.Duration(n) * ms)
		s.Begin()
		s.Connected(now)
		s.End(now, Success, time.Duration(n%7)*ms, true, "")
		s.Load(now, 0)
	}); allocs != 0 {
		t.Errorf("%v allocations per call", allocs)
	}
}

func TestWords(t *testing.T) {
	for want, p := range map[string]Part{
		`up`: {Kind: Up},
		`ejected: 5 failures in a row, last "connection reset", 12 s ago, trial in 3 s`: {Kind: Ejected, Since: after(0),
			Cause: "5 failures in a row", Last: "connection reset", At: after(8 * time.Second), Next: after(23 * time.Second)},
		`ejected: 5 failures in a row, last "HTTP 503", 20 s ago, trial due`: {Kind: Ejected, Since: after(0),
			Cause: "5 failures in a row", Last: "HTTP 503", At: after(0), Next: after(20 * time.Second)},
		`down: probe failed 3 times, last "HTTP 503", 500 ms ago, probe in 1 s`: {Kind: Down, Since: after(0),
			Cause: "probe failed 3 times", Last: "HTTP 503", At: after(19500 * ms), Next: after(21 * time.Second)},
		`draining: its record says so, for 20 s`: {Kind: Draining, Since: after(0), Cause: "its record says so"},
		`muted`:                                  {Kind: Muted},
	} {
		if got := p.Words(after(20 * time.Second)); got != want {
			t.Errorf("words\n\t%s\nwant\n\t%s", got, want)
		}
	}
	at := after(20 * time.Second)
	for _, tt := range []struct {
		p              Part
		standing, told string
	}{
		{Part{Kind: Up}, "up", "up"},
		{Part{Kind: Up, Since: after(0)}, "up for 20 s", "up"},
		{Part{Kind: Ejected, Since: after(0), Cause: "5 failures in a row", Last: "HTTP 503", At: after(8 * time.Second), Next: after(23 * time.Second)},
			`ejected for 20 s: 5 failures in a row, last "HTTP 503", 12 s ago`, `ejected: 5 failures in a row, last "HTTP 503", trial after 3 s`},
		{Part{Kind: Ejected, Observed: true, Cause: "5 failures in a row", Last: "HTTP 503", At: at},
			`would be ejected: 5 failures in a row, last "HTTP 503", 0 ms ago`, `would be ejected: 5 failures in a row, last "HTTP 503"`},
		{Part{Kind: Down, Since: after(0), Cause: "probe failed 3 times", Last: "HTTP 503", At: at, Next: after(21 * time.Second)},
			`down for 20 s: probe failed 3 times, last "HTTP 503", 0 ms ago`, `down: probe failed 3 times, last "HTTP 503"`},
		{Part{Kind: Draining, Since: after(0), Cause: "its record says so"}, "draining for 20 s: its record says so", "draining: its record says so"},
		{Part{Kind: Muted, Since: after(0), Cause: "by root", Next: after(80 * time.Second)}, "muted: by root, ends in 60 s", "muted: by root"},
	} {
		if got := tt.p.Standing(at); got != tt.standing {
			t.Errorf("standing\n\t%s\nwant\n\t%s", got, tt.standing)
		}
		if got := tt.p.Told(at); got != tt.told {
			t.Errorf("told\n\t%s\nwant\n\t%s", got, tt.told)
		}
	}
	for d, want := range map[time.Duration]string{-1: "0 ms", 999 * ms: "999 ms", time.Second: "1 s", 119 * time.Second: "119 s",
		2 * time.Minute: "2 min", 3 * time.Hour: "3 h", 50 * time.Hour: "2 d"} {
		if got := Ago(d); got != want {
			t.Errorf("Ago(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestKinds(t *testing.T) {
	words := map[string]bool{}
	for k := range Kind(Kinds) {
		words[k.String()] = true
		if usable := k == Up || k == Orphaned; k.Usable() != usable {
			t.Errorf("%v.Usable() = %v", k, k.Usable())
		}
	}
	if len(words) != Kinds {
		t.Errorf("words of the verdicts: %v", words)
	}
}

func BenchmarkCall(b *testing.B) {
	s := NewState(epoch)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		now := after(time.Duration(n) * 20 * time.Microsecond)
		s.Begin()
		s.End(now, Success, time.Duration(500+n%100)*time.Microsecond, true, "")
	}
}

func BenchmarkCallParallel(b *testing.B) {
	for _, states := range []int{1, 16} {
		b.Run(fmt.Sprint(states), func(b *testing.B) {
			ss := make([]*State, states)
			for i := range ss {
				ss[i] = NewState(epoch)
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					s := ss[rand.IntN(states)]
					s.Begin()
					s.End(epoch, Success, ms, true, "")
				}
			})
		})
	}
}

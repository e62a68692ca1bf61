package health

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// story drives a core through time, answering its probes, and keeps what it told.
type story struct {
	t     *testing.T
	c     *core
	stats stats
	now   time.Time

	states  map[int]*State
	answers map[int]outcome // to probes, by backend; absent = it passes
	delay   time.Duration   // how long a probe takes
	running []running
	probes  []seen // when which backend was probed
	told    []told

	note func(backend int, what happened) // if set, is told what happens to backends beside calls
}

type running struct {
	result
	at time.Time
}

type seen struct {
	backend int
	at      time.Duration
}

type told struct {
	Change

	at time.Duration
}

// fixed is a set of targets.
type fixed []Target

func (f fixed) Len() int        { return len(f) }
func (f fixed) At(i int) Target { return f[i] }

var (
	saysNo  = outcome{kind: probeAnswered, cause: "HTTP 503"}
	refused = outcome{kind: probeUnreachable, cause: "connection refused"}
	silent  = outcome{kind: probeSilent, cause: "no answer within 1 s"}
)

func defaults() Options {
	return Options{Probe: ProbeTCP, Interval: 5 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3,
		Eject: true, Consecutive: 5, EjectBase: time.Second, EjectMax: time.Minute, MaxPercent: 50}
}

func backend(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
}

func number(a netip.AddrPort) int {
	b := a.Addr().As4()
	return int(b[2])<<8 | int(b[3])
}

// newStory has an active group of n backends. Jitter is off: every random number is the middle.
func newStory(t *testing.T, o Options, n int) *story {
	s := &story{t: t, now: epoch, states: map[int]*State{}, answers: map[int]outcome{}}
	s.c = newCore(newInbox(), func() float64 { return 0.5 }, &s.stats, hclog.NewNullLogger())
	for i := range n {
		s.states[i] = NewState(s.now)
	}
	s.c.setActive(s.now, "g", true)
	s.set(o, n)
	s.work()
	return s
}

// set gives the group its first n backends, and those in draining.
func (s *story) set(o Options, n int, draining ...int) {
	targets := make(fixed, n)
	for i := range targets {
		targets[i] = Target{Addr: backend(i), State: s.states[i], Draining: slices.Contains(draining, i)}
	}
	s.c.setGroup(s.now, "g", o, targets)
}

func (s *story) at() time.Duration { return s.now.Sub(epoch) }

// work does what the Monitor's loop does at one moment.
func (s *story) work() {
	for {
		for t := range s.c.inbox.take() {
			s.c.judge(s.now, t)
		}
		s.running = slices.DeleteFunc(s.running, func(r running) bool {
			if r.at.After(s.now) {
				return false
			}
			s.noteProbe(r.result)
			s.c.probed(s.now, r.result)
			return true
		})
		s.noteSpared()
		jobs := s.c.tick(s.now)
		for _, j := range jobs {
			n := number(j.addr)
			s.probes = append(s.probes, seen{n, s.at()})
			s.running = append(s.running, running{result{t: j.t, outcome: s.answers[n]}, s.now.Add(s.delay)})
		}
		for _, c := range s.c.takeChanges() {
			s.told = append(s.told, told{c, s.at()})
		}
		if len(jobs) == 0 && s.c.inbox.head.Load() == nil {
			return
		}
	}
}

// pass lets time go by.
func (s *story) pass(d time.Duration) {
	s.t.Helper()
	s.work()
	end := s.now.Add(d)
	for steps := 0; ; steps++ {
		if steps > 1_000_000 {
			s.t.Fatalf("the core spins at %v", s.at())
		}
		next, ok := s.c.next(s.now)
		for _, r := range s.running {
			if !ok || r.at.Before(next) {
				next, ok = r.at, true
			}
		}
		if !ok || next.After(end) {
			break
		}
		s.now = later(s.now, next)
		s.work()
	}
	s.now = end
	s.work()
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func (s *story) to(at time.Duration) { s.t.Helper(); s.pass(at - s.at()) }

// calls has n calls end in the same way.
func (s *story) calls(i, n int, r Result) {
	for range n {
		s.states[i].Begin()
		s.states[i].End(s.now, r, ms, true, "HTTP 503")
	}
	s.work()
}

func (s *story) connects(i, n int, ok bool) {
	for range n {
		if ok {
			s.states[i].Connected(s.now)
		} else {
			s.states[i].ConnectFailed(s.now, "connection refused")
		}
	}
	s.work()
}

func (s *story) is(i int, want ...Kind) {
	s.t.Helper()
	var got []Kind
	for _, p := range s.states[i].Snapshot(s.now).Parts {
		got = append(got, p.Kind)
	}
	if !slices.Equal(got, want) {
		s.t.Fatalf("%v: backend %d is %v, want %v", s.at(), i, got, want)
	}
}

func (s *story) words(i int, want string) {
	s.t.Helper()
	if got := s.states[i].Verdict().Words(s.now); got != want {
		s.t.Errorf("%v: backend %d is\n\t%s\nwant\n\t%s", s.at(), i, got, want)
	}
}

// probesOf are the times at which a backend was probed, in milliseconds.
func (s *story) probesOf(i int) string {
	var at []string
	for _, p := range s.probes {
		if p.backend == i {
			at = append(at, fmt.Sprint(p.at.Milliseconds()))
		}
	}
	s.probes = nil
	return strings.Join(at, " ")
}

// tale is what OnChange was told since the last tale.
func (s *story) tale() string {
	var all []string
	for _, c := range s.told {
		all = append(all, fmt.Sprintf("%d:%v>%v@%d", number(c.Addr), c.From.Kind, c.To.Kind, c.at.Milliseconds()))
	}
	s.told = nil
	return strings.Join(all, " ")
}

func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n\t%s\nwant\n\t%s", what, got, want)
	}
}

// Fall 3, rise 2; every 1 s for 30 s, then each interval (2.1, 2.2).
func TestDownAndUp(t *testing.T) {
	s := newStory(t, defaults(), 1)
	s.is(0) // usable before its first probe
	s.to(8 * time.Second)
	equal(t, "probes", s.probesOf(0), "2500 7500")
	s.answers[0] = saysNo
	s.to(22 * time.Second)
	s.is(0)
	s.to(22500 * ms)
	s.is(0, Down)
	s.words(0, `down: probe failed 3 times, last "HTTP 503", 0 ms ago, probe in 1 s`)
	equal(t, "probes", s.probesOf(0), "12500 17500 22500")
	s.to(25 * time.Second)
	s.words(0, `down: probe failed 5 times, last "HTTP 503", 500 ms ago, probe in 500 ms`)
	s.probes = nil
	s.to(50 * time.Second)
	s.probes = nil
	s.to(70 * time.Second)
	equal(t, "probes", s.probesOf(0), "50500 51500 52500 57500 62500 67500")
	delete(s.answers, 0)
	s.to(72500 * ms)
	s.is(0, Down)
	s.to(77500 * ms)
	s.is(0)
	equal(t, "told", s.tale(), "0:up>down@22500 0:down>up@77500")
	s.answers[0] = saysNo
	s.to(88 * time.Second)
	delete(s.answers, 0)
	s.to(93 * time.Second)
	s.answers[0] = saysNo
	s.to(103 * time.Second)
	s.is(0) // never three in a row
}

// What panic may ignore: a failed probe with an answer; not one without (2.9).
func TestSoftness(t *testing.T) {
	for want, answers := range map[bool][]outcome{
		true:  {saysNo, refused, saysNo},
		false: {saysNo, saysNo, silent},
	} {
		o := defaults()
		s := newStory(t, o, 1)
		for i, a := range answers {
			s.answers[0] = a
			s.to(time.Duration(i+1) * 5 * time.Second)
		}
		s.is(0, Down)
		if got := s.states[0].Verdict().Soft; got != want {
			t.Errorf("after %v: soft %v, want %v", answers, got, want)
		}
		// When the evidence changes, so does what is told, though the verdict is the same.
		s.told = nil
		s.answers[0] = map[bool]outcome{true: silent, false: saysNo}[want]
		s.pass(time.Second)
		if len(s.told) != 1 || s.told[0].From.Kind != Down || s.told[0].To.Kind != Down || s.told[0].To.Soft == want {
			t.Errorf("told %+v", s.told)
		}
	}
}

// Another life of an address: probed at once, up after one success (1.1, 2.2).
func TestRestarted(t *testing.T) {
	s := newStory(t, defaults(), 2)
	s.answers[0] = refused
	s.to(13 * time.Second)
	s.is(0, Down, Unreachable)
	s.tale()
	s.probes = nil
	s.states[0] = NewState(s.now)
	s.set(defaults(), 2)
	s.work()
	equal(t, "told", s.tale(), "0:down>down@13000") // whoever shows it has to know that the new state is down
	s.is(0, Down)
	equal(t, "probes", s.probesOf(0), "13000")
	delete(s.answers, 0)
	s.pass(time.Second)
	equal(t, "told", s.tale(), "0:down>up@14000")

	s.states[1] = NewState(s.now) // was up: usable at once, and still probed at once
	s.set(defaults(), 2)
	s.is(1)
	s.probes = nil
	s.work()
	equal(t, "probes", s.probesOf(1), "14000")
	equal(t, "told", s.tale(), "1:up>up@14000")
}

// A State that left and came back while the mail was late, or after it: whoever knew its old verdict is told the new one.
func TestLeftAndBack(t *testing.T) {
	s := newStory(t, defaults(), 2)
	s.answers[0] = saysNo
	s.to(13 * time.Second)
	s.is(0, Down)
	s.tale()
	gone := s.states[0]
	s.c.setGroup(s.now, "g", defaults(), fixed{{Addr: backend(1), State: s.states[1]}})
	s.pass(time.Second)
	if v := gone.Verdict(); v == nil || v.Kind != Down {
		t.Fatalf("a state that left lost its last verdict: %v", v)
	}
	delete(s.answers, 0)
	s.set(defaults(), 2)
	s.work()
	s.is(0)
	equal(t, "told", s.tale(), "0:down>up@14000")
}

// 3 of the unreachable kind in a row, by calls and probes alike; not capped; ended by whatever connects (2.4).
func TestUnreachable(t *testing.T) {
	s := newStory(t, defaults(), 3)
	for i := range 3 {
		s.connects(i, 2, false)
		s.is(i)
		s.connects(i, 1, false)
		s.is(i, Unreachable)
		s.words(i, `unreachable: 3 failed connects in a row, last "connection refused", 0 ms ago, probe in 1 s`)
	}
	s.connects(0, 1, true)
	s.is(0)
	s.calls(1, 1, Success)
	s.is(1)
	s.pass(999 * ms)
	s.is(2, Unreachable)
	s.pass(ms) // a probe finds it
	s.is(2)

	s.answers[2] = refused
	s.connects(2, 1, false)
	s.pass(6 * time.Second)
	s.is(2)
	s.pass(5 * time.Second) // two more, by probes; from then on they come every second
	s.is(2, Down, Unreachable)
	if soft := s.states[2].Verdict().Soft; soft {
		t.Error("unreachable is hard evidence")
	}
	s.connects(0, 2, false)
	s.connects(0, 1, true)
	s.connects(0, 2, false)
	s.is(0) // never 3 in a row
}

// 5 hard failures in a row eject; the hold-down doubles with each failed trial; a probe is the trial (2.5, 2.7).
func TestEjected(t *testing.T) {
	o := defaults()
	o.Interval = time.Minute // out of the way
	s := newStory(t, o, 2)
	s.calls(0, 4, Failure)
	s.calls(0, 3, Timeout) // not in the streak
	s.is(0)
	s.calls(0, 1, Failure)
	s.is(0, Ejected)
	s.words(0, `ejected: 5 failures in a row, last "HTTP 503", 0 ms ago, trial in 1 s`)
	if soft := s.states[0].Verdict().Soft; !soft {
		t.Error("a streak is soft evidence")
	}
	s.answers[0] = saysNo
	s.to(35 * time.Second)
	// Hold-downs of 1, 2 and 4 s: a trial after each. Down after these, it is probed every second, and its hold-down doesn't grow: what its ejection waits for is that it is up.
	s.is(0, Down, Ejected)
	s.words(0, `down: probe failed 31 times, last "HTTP 503", 0 ms ago, probe in 1 s`)
	delete(s.answers, 0)
	s.pass(60 * time.Second)
	s.is(0)
	equal(t, "told", s.tale(), "0:up>ejected@0 0:ejected>down@7000 0:down>up@37000")
}

// A success at any time ends an ejection; n falls by one per quiet minute (2.7).
func TestHoldDownGrowsAndForgets(t *testing.T) {
	o := defaults()
	o.Probe = ProbeNone
	s := newStory(t, o, 2)
	hold := func() time.Duration {
		t.Helper()
		s.is(0, Ejected)
		return s.states[0].Verdict().Next.Sub(s.now)
	}
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		s.calls(0, 5, Failure)
		if got := hold(); got != want*time.Second {
			t.Errorf("%v: hold-down %v, want %v s", s.at(), got, int(want))
		}
		s.calls(0, 1, Success) // of a call that was running
		s.is(0)
	}
	s.pass(3*time.Minute + time.Second)
	s.calls(0, 5, Failure)
	if got := hold(); got != 8*time.Second {
		t.Errorf("hold-down %v after three quiet minutes, want 8 s", got)
	}
	s.calls(0, 1, Success)
	s.pass(time.Hour)
	s.calls(0, 5, Failure)
	if got := hold(); got != time.Second {
		t.Errorf("hold-down %v after an hour, want 1 s", got)
	}
}

// Jitter is ±50 %, and the maximum is one (2.7).
func TestHoldDownJitter(t *testing.T) {
	for random, want := range map[float64]time.Duration{0: 500 * ms, 0.5: time.Second, 1: 1500 * ms} {
		s := newStory(t, defaults(), 2)
		s.c.random = func() float64 { return random }
		s.calls(0, 5, Failure)
		if got := s.states[0].Verdict().Next.Sub(s.now); got != want {
			t.Errorf("random %v: hold-down %v, want %v", random, got, want)
		}
	}
}

// At most half, counted as if the next were out already, never the last one usable; who was held back goes when there is room (2.6).
func TestEjectionCap(t *testing.T) {
	for _, c := range []struct{ backends, percent, draining, want int }{
		{1, 50, 0, 0}, {2, 50, 0, 1}, {3, 50, 0, 1}, {4, 50, 0, 2}, {10, 50, 0, 5}, {10, 10, 0, 1}, {10, 9, 0, 0}, {10, 100, 0, 9}, {1, 100, 0, 0},
		{10, 50, 6, 2}, // of the four that are in service
	} {
		o := defaults()
		o.MaxPercent = c.percent
		o.Probe = ProbeNone
		s := newStory(t, o, c.backends)
		draining := make([]int, c.draining)
		for i := range draining {
			draining[i] = c.backends - 1 - i
		}
		s.set(o, c.backends, draining...)
		for i := range c.backends {
			s.calls(i, 5, Failure)
		}
		out := func() (n int) {
			for i := range c.backends {
				if v := s.states[i].Verdict(); v != nil && v.Kind == Ejected {
					n++
				}
			}
			return n
		}
		if got := out(); got != c.want {
			t.Errorf("%d backends, %d draining, %d %%: %d ejected, want %d", c.backends, c.draining, c.percent, got, c.want)
		}
		if c.want == 0 {
			continue
		}
		s.calls(0, 1, Success) // one is back: another takes its place
		s.is(0)
		if got := out(); c.percent < 100 && c.want < c.backends-c.draining-1 && got != c.want {
			t.Errorf("%d backends, %d %%: %d ejected after one came back, want %d", c.backends, c.percent, got, c.want)
		}
	}
}

// A longer list has room for one more, at once.
func TestEjectionCapOfLongerList(t *testing.T) {
	o := defaults()
	o.Probe = ProbeNone
	s := newStory(t, o, 2)
	s.calls(0, 5, Failure)
	s.calls(1, 5, Failure)
	s.is(0, Ejected)
	s.is(1)
	s.states[2], s.states[3] = NewState(s.now), NewState(s.now)
	s.set(o, 4)
	s.is(1, Ejected)
}

// Never the last one usable: others that are down or unreachable are no help (2.6).
func TestLastUsableStays(t *testing.T) {
	o := defaults()
	o.Probe = ProbeNone
	s := newStory(t, o, 4)
	for i := range 3 {
		s.connects(i, 3, false)
	}
	s.calls(3, 5, Failure)
	s.is(3)
	s.connects(0, 1, true)
	s.is(0)
	s.is(3, Ejected) // now there is another
}

// The cap binds only 2.5: unreachable has none, and what it takes out doesn't use the cap up.
func TestCapBindsEjectionOnly(t *testing.T) {
	o := defaults()
	o.Probe = ProbeNone
	s := newStory(t, o, 10)
	for i := range 4 {
		s.connects(i, 3, false)
	}
	for i := 4; i < 10; i++ {
		s.calls(i, 5, Failure)
	}
	out := map[Kind]int{}
	for i := range 10 {
		if v := s.states[i].Verdict(); v != nil {
			out[v.Kind]++
		}
	}
	if out[Unreachable] != 4 || out[Ejected] != 5 {
		t.Errorf("verdicts %v, want 4 unreachable and 5 ejected", out)
	}
}

// Without probes one call is the trial (2.7).
func TestTrialByCall(t *testing.T) {
	o := defaults()
	o.Probe = ProbeNone
	s := newStory(t, o, 2)
	s.calls(0, 5, Failure)
	s.pass(999 * ms)
	if s.states[0].TryTrial(s.now) {
		t.Fatal("a trial before the hold-down was over")
	}
	s.pass(ms)
	claim := func() {
		t.Helper()
		if !s.states[0].TryTrial(s.now) {
			t.Fatalf("%v: no trial", s.at())
		}
		if s.states[0].TryTrial(s.now) {
			t.Fatalf("%v: a second trial", s.at())
		}
		s.work()
	}
	claim()
	s.calls(0, 1, Failure)
	s.is(0, Ejected)
	s.words(0, `ejected: 5 failures in a row, last "HTTP 503", 0 ms ago, trial in 2 s`)
	s.pass(2 * time.Second)
	claim()
	s.calls(0, 1, Neutral) // the caller gave up: another one
	claim()
	s.work()
	s.now = s.now.Add(3 * time.Second) // this process was stopped, and not the backend that slow
	s.work()
	s.pass(999 * ms)
	s.words(0, `ejected: 5 failures in a row, last "HTTP 503", 5 s ago, trial due`)
	s.pass(ms) // no answer in 1 s
	s.words(0, `ejected: 5 failures in a row, last "no answer to the trial within 1 s", 0 ms ago, trial in 4 s`)
	s.pass(4 * time.Second)
	claim()
	s.calls(0, 1, AppError) // an answer
	s.is(0)
	s.pass(time.Hour)
	if s.states[0].TryTrial(s.now) {
		t.Error("a trial of a backend that is up")
	}
	equal(t, "told", s.tale(), "0:up>ejected@0 0:ejected>up@11000")
}

// An unreachable backend that nothing probes gets calls on trial too, at least every 10 s (4.10).
func TestUnreachableWithoutProbes(t *testing.T) {
	o := defaults()
	o.Probe = ProbeNone
	o.Eject = false
	s := newStory(t, o, 1) // not capped: the only one
	s.connects(0, 3, false)
	s.is(0, Unreachable)
	for _, wait := range []time.Duration{1, 2, 4, 8, 10, 10} {
		s.pass(wait*time.Second - ms)
		if s.states[0].TryTrial(s.now) {
			t.Fatalf("%v: trial too early", s.at())
		}
		s.pass(ms)
		if !s.states[0].TryTrial(s.now) {
			t.Fatalf("%v: no trial", s.at())
		}
		s.connects(0, 1, false)
	}
	s.pass(10 * time.Second)
	s.states[0].TryTrial(s.now)
	s.connects(0, 1, true)
	s.is(0)
}

// A connect takes back what failed connects had said, and nothing but failed connects is unreachable, not ejected as well.
func TestFailedConnectsInTheStreak(t *testing.T) {
	s := newStory(t, defaults(), 2)
	s.connects(0, 2, false)
	s.calls(0, 3, Failure)
	s.is(0, Ejected)
	s.connects(0, 1, true)
	s.is(0)
	s.calls(0, 2, Failure)
	s.is(0, Ejected)
	s.connects(0, 1, true)
	s.is(0, Ejected) // what failed was behind the connect
	s.calls(0, 1, Success)
	s.connects(0, 50, false)
	s.is(0, Unreachable)
	s.connects(0, 1, true)
	s.is(0)
}

// Only groups in use are probed (2.3), and an idle core asks for no wake-up.
func TestOnlyInUse(t *testing.T) {
	s := newStory(t, defaults(), 3)
	s.answers[0] = saysNo
	s.to(13 * time.Second)
	s.is(0, Down)
	s.c.setActive(s.now, "g", false)
	s.probes = nil
	if next, ok := s.c.next(s.now); ok {
		t.Fatalf("an idle core wants to be woken in %v", next.Sub(s.now))
	}
	s.pass(time.Hour)
	if len(s.probes) != 0 {
		t.Fatalf("%d probes of a group that nobody uses", len(s.probes))
	}
	s.is(0, Down)
	delete(s.answers, 0)
	s.c.setActive(s.now, "g", true)
	s.work()
	if len(s.probes) != 1 || s.probes[0].backend != 0 {
		t.Fatalf("probed %v at once, want the one that is down", s.probes)
	}
	s.c.setGroup(s.now, "g", defaults(), nil)
	s.c.setActive(s.now, "g", false)
	s.work()
	if _, ok := s.c.next(s.now); ok || len(s.c.groups) != 0 {
		t.Error("a group that is gone is still there")
	}
}

// A list may be empty for a while: the group stays in use.
func TestEmptyGroupStaysInUse(t *testing.T) {
	s := newStory(t, defaults(), 1)
	s.c.setGroup(s.now, "g", defaults(), nil)
	s.work()
	s.set(defaults(), 1)
	s.probes = nil
	s.pass(5 * time.Second)
	if len(s.probes) != 1 {
		t.Errorf("%d probes in an interval, want 1", len(s.probes))
	}
}

// First probes are spread over an interval, later ones jittered by ±20 % (2.1).
func TestProbesAreSpread(t *testing.T) {
	s := newStory(t, defaults(), 0)
	random := []float64{0, 0.25, 0.999}
	i := 0
	s.c.random = func() float64 { i++; return random[(i-1)%len(random)] }
	for i := range 3 {
		s.states[i] = NewState(s.now)
	}
	s.set(defaults(), 3)
	s.to(10 * time.Second)
	equal(t, "probes of 0", s.probesOf(0), "0 4000 10000") // 5 s - 20 %, 5 s + 20 %, on the grid
}

// Probes of many backends begin together, a few times a second, so that a thousand backends don't keep a host awake; one of a backend that is out has a time of its own.
func TestProbesOnGrid(t *testing.T) {
	s := newStory(t, defaults(), 0)
	s.c.random = rand.New(rand.NewPCG(3, 4)).Float64
	for i := range 400 {
		s.states[i] = NewState(s.now)
	}
	s.set(defaults(), 400)
	s.answers[7] = silent
	s.to(40 * time.Second)
	off := 0
	for _, p := range s.probes {
		switch {
		case p.at%gridMost == 0:
		case p.backend == 7:
			off++
		default:
			t.Fatalf("backend %d was probed at %v", p.backend, p.at)
		}
	}
	if off < 10 {
		t.Errorf("the backend that is out was probed %d times beside the grid", off)
	}
}

// A good outcome in the last interval stands for a probe (2.3).
func TestGoodOutcomeStandsForProbe(t *testing.T) {
	s := newStory(t, defaults(), 1)
	for range 60 {
		s.pass(time.Second)
		s.calls(0, 1, Success)
	}
	if len(s.probes) != 0 {
		t.Errorf("%d probes of a backend that answers calls", len(s.probes))
	}
	if n := s.stats.probesSpared.Load(); n != 12 {
		t.Errorf("%d probes spared, want 12", n)
	}
	s.pass(10 * time.Second)
	if len(s.probes) == 0 {
		t.Error("no probe once the calls had ended")
	}
	for range 10 {
		s.pass(time.Second)
		s.calls(0, 1, AppError) // not a good outcome
	}
	if len(s.probes) < 3 {
		t.Errorf("%d probes in 20 s", len(s.probes))
	}
}

// At most 200 probes in any second; the others are later, and late is not failed (2.3).
func TestPace(t *testing.T) {
	const n = 1500
	s := newStory(t, defaults(), n)
	s.delay = 900 * ms
	s.to(30 * time.Second)
	first := 0
	for i, p := range s.probes {
		for ; s.probes[first].at <= p.at-time.Second; first++ {
		}
		if i-first+1 > 200 {
			t.Fatalf("%d probes in the second before %v", i-first+1, p.at)
		}
	}
	if got := len(s.probes); got < 27*195 {
		t.Errorf("%d probes in 30 s: want all that the pace allows from 2.5 s on", got)
	}
	if s.c.running > probesAtOnce {
		t.Errorf("%d probes at once", s.c.running)
	}
	byBackend := make([]int, n)
	for _, p := range s.probes {
		byBackend[p.backend]++
	}
	if least := slices.Min(byBackend); least < 3 {
		t.Errorf("a backend was probed %d times in 30 s, others %d: want all in turn", least, slices.Max(byBackend))
	}
	if len(s.told) != 0 {
		t.Errorf("verdicts moved: %v", s.tale())
	}
}

// More backends than the pace can follow: one that goes out is still looked at in its own time, and the others in turn.
func TestUrgentProbesFirst(t *testing.T) {
	s := newStory(t, defaults(), 3000)
	s.to(20 * time.Second)
	waiting := number(s.c.routine[len(s.c.routine)-1].t.addr) // the last in the row
	s.connects(waiting, 3, false)
	s.is(waiting, Unreachable)
	s.pass(paceTime)
	s.is(waiting)
	for i := range 2000 {
		s.answers[i] = saysNo
		s.connects(i, 3, false)
	}
	s.probes = nil
	s.pass(60 * time.Second)
	routine := 0
	for _, p := range s.probes {
		if p.backend >= 2000 {
			routine++
		}
	}
	if least := 60 * 200 / 12; routine < least { // a quarter of all, less what was in the row before
		t.Errorf("%d probes of backends that are well in a minute, want at least %d", routine, least)
	}
}

// No more than probesAtOnce at once, however slow they are.
func TestProbesAtOnce(t *testing.T) {
	s := newStory(t, defaults(), 1000)
	s.delay = 10 * time.Second
	for range 100 {
		s.pass(100 * ms)
		if s.c.running > probesAtOnce || len(s.running) != s.c.running {
			t.Fatalf("%d probes at once (%d counted), want at most %d", len(s.running), s.c.running, probesAtOnce)
		}
	}
	if s.c.running != probesAtOnce {
		t.Errorf("%d probes at once, want %d", s.c.running, probesAtOnce)
	}
}

// What this host can't probe hasn't failed (2.3).
func TestLocalTroubleIsNoEvidence(t *testing.T) {
	s := newStory(t, defaults(), 1)
	s.answers[0] = outcome{kind: probeLocal, cause: "too many open files"}
	s.to(time.Minute)
	s.is(0)
	if s.stats.probesPutOff.Load() < 10 || s.stats.probeFailures.Load() != 0 {
		t.Errorf("put off %d, failed %d", s.stats.probesPutOff.Load(), s.stats.probeFailures.Load())
	}
}

// A probe that ends after its target left, or is probed no more, says nothing.
func TestLateProbe(t *testing.T) {
	s := newStory(t, defaults(), 2)
	s.delay = time.Second
	s.answers[0], s.answers[1] = refused, refused
	s.to(2600 * ms)
	if len(s.running) != 2 {
		t.Fatalf("%d probes running", len(s.running))
	}
	none := defaults()
	none.Probe = ProbeNone
	s.set(none, 1)
	s.to(10 * time.Second)
	for i := range 2 {
		if k := streaks(s.states[i].streaks.Load()); k != 0 {
			t.Errorf("backend %d: streaks %x", i, k)
		}
	}
	if s.c.running != 0 {
		t.Errorf("%d probes counted as running", s.c.running)
	}
}

// New options take hold at once (6.1).
func TestOptionsChange(t *testing.T) {
	s := newStory(t, defaults(), 4)
	s.answers[0] = saysNo
	s.to(13 * time.Second)
	s.calls(1, 5, Failure)
	s.calls(2, 3, Failure)
	s.is(0, Down)
	s.is(1, Ejected)
	s.is(2)

	o := defaults()
	o.Probe, o.Consecutive = ProbeNone, 3
	s.set(o, 4)
	s.is(0)
	s.is(2, Ejected)
	s.pass(time.Minute)
	if !s.states[1].TryTrial(s.now) {
		t.Error("the hold-down's end has to offer a call the trial, now that nothing probes")
	}
	o.Eject = false
	s.set(o, 4)
	s.is(1)
	s.is(2)
	if s.states[1].TryTrial(s.now) || s.states[2].TryTrial(s.now) {
		t.Error("a trial without an ejection")
	}
	s.calls(3, 100, Failure)
	s.is(3)
}

// A draining backend is probed, but neither ejected nor counted.
func TestDraining(t *testing.T) {
	s := newStory(t, defaults(), 4)
	s.calls(0, 5, Failure)
	s.is(0, Ejected)
	s.set(defaults(), 4, 0, 1)
	s.is(0)
	s.calls(1, 5, Failure)
	s.is(1)
	s.calls(2, 5, Failure)
	s.is(2, Ejected)
	s.calls(3, 5, Failure)
	s.is(3)
	s.answers[1] = saysNo
	s.to(20 * time.Second)
	s.is(1, Down)
	s.set(defaults(), 4)
	s.work()
	s.is(1, Down, Ejected) // undrained: its streak counts again
}

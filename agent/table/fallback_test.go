package table

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// withFallback is a list of n own backends, 0 to n-1, and m of its fallback after them.
func withFallback(name string, n, m int) *service.List {
	l := list(name, ids(n+m)...)
	for i := n; i < n+m; i++ {
		l.Backends[i].Fallback = true
	}
	return l
}

func (r *rig) drains(name string, id int) bool {
	r.t.Helper()
	ts := r.targets[name]
	for i := range ts.Len() {
		if ts.At(i).Addr == addr(id) {
			return ts.At(i).Draining
		}
	}
	r.t.Fatalf("%d is no target", id)
	return false
}

func TestFallbackTurn(t *testing.T) {
	now := time.Unix(1000, 0)
	well, soft, dead := prospects{true, true}, prospects{false, true}, prospects{}
	type step struct {
		after      time.Duration
		own, other prospects
		used       bool
	}
	for name, steps := range map[string][]step{
		"not while an own one is usable":       {{0, well, well, false}},
		"not while panic has something to try": {{0, soft, well, false}},
		"used when nothing is left":            {{0, dead, well, true}},
		"used if the fallback is dead too":     {{0, dead, dead, true}},
		"left after 10 s":                      {{0, dead, well, true}, {time.Second, well, well, true}, {9 * time.Second, well, well, true}, {time.Second, well, well, false}},
		"10 s in a row":                        {{0, dead, well, true}, {0, well, well, true}, {9 * time.Second, dead, well, true}, {time.Second, well, well, true}, {9 * time.Second, well, well, true}, {time.Second, well, well, false}},
		"what panic would try is not health":   {{0, dead, well, true}, {0, soft, well, true}, {time.Minute, soft, well, true}},
		"left at once for a dead fallback":     {{0, dead, well, true}, {0, well, dead, false}},
		"left at once for panic":               {{0, dead, well, true}, {0, soft, dead, false}},
		"used again at once":                   {{0, dead, well, true}, {0, well, well, true}, {10 * time.Second, well, well, false}, {0, dead, well, true}},
		"stays where both are dead":            {{0, dead, well, true}, {time.Hour, dead, dead, true}},
		"its clock begins with the health":     {{0, dead, well, true}, {time.Hour, well, well, true}, {10 * time.Second, well, well, false}},
	} {
		f, at := fallback{known: true}, now
		for i, s := range steps {
			at = at.Add(s.after)
			was := f.used
			if turned := f.turn(at, s.own, s.other); f.used != s.used || turned != (was != s.used) {
				t.Errorf("%s: step %d: used %v, turned %v", name, i, f.used, turned)
			}
		}
	}
	f := fallback{used: true}
	if f.turn(now, dead, well); f.used {
		t.Error("a fallback that the configuration no longer has is used")
	}
}

// 1.16: the fallback is used while no own backend is usable and panic is exhausted, seen in everything, and left after 10 s of health; its backends are probed all
// the time, but nobody's business before that.
func TestFallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.now = time.Now()
		done := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { defer close(done); _ = r.Run(ctx) }()
		r.SetSpec(r.now, spec("user"))
		r.Apply(r.now, withFallback("user", 3, 2))
		s := r.Lookup("user")
		v := s.View()
		if v.Fallback || v.Total != 3 || v.Usable != 3 || v.Panic || v.Source() != service.FromEtcd {
			t.Errorf("at first: %d of %d, fallback %v, panic %v", v.Usable, v.Total, v.Fallback, v.Panic)
		}
		if got := picked(counts(v, r.now, 200)); !slices.Equal(got, []int{0, 1, 2}) {
			t.Errorf("picked %v", got)
		}
		if r.drains("user", 0) || !r.drains("user", 3) {
			t.Error("of the fallback's backends health should want nothing but probes")
		}
		// While something is left to try, it is not used: not by a call that was everywhere either.
		all := []*health.State{v.Backend(0).State, v.Backend(1).State, v.Backend(2).State}
		if b := v.Pick(r.now, all); b != nil {
			t.Errorf("a call that was everywhere gets %v", b.Addr)
		}
		r.judge(s, 0, unreachable)
		r.judge(s, 1, downHard)
		r.judge(s, 2, ejected)
		if v = s.View(); v.Fallback || !v.Panic || !slices.Equal(picked(counts(v, r.now, 200)), []int{2}) {
			t.Errorf("in panic: fallback %v, panic %v, picked %v", v.Fallback, v.Panic, picked(counts(v, r.now, 200)))
		}
		r.judge(s, 2, unreachable)
		v = s.View()
		if !v.Fallback || v.Total != 2 || v.Usable != 2 || v.Panic || v.Source() != service.FromFallback {
			t.Errorf("used: %d of %d, fallback %v, panic %v, source %s", v.Usable, v.Total, v.Fallback, v.Panic, v.Source())
		}
		if got := picked(counts(v, r.now, 200)); !slices.Equal(got, []int{3, 4}) {
			t.Errorf("picked %v", got)
		}
		if r.drains("user", 3) || r.drains("user", 0) {
			t.Error("health should judge those in use, and those that may be back")
		}
		if v.Leaving(addr(0)) || v.Leaving(addr(3)) {
			t.Error("what runs on a backend that is only out must go on")
		}
		// One own backend is back: the fallback goes on for 10 s, then calls are its.
		advance(5 * time.Second)
		r.now = time.Now()
		r.judge(s, 1, isUp)
		if v = s.View(); !v.Fallback || !slices.Equal(picked(counts(v, r.now, 200)), []int{3, 4}) {
			t.Errorf("at once: fallback %v, picked %v", v.Fallback, picked(counts(v, r.now, 200)))
		}
		advance(9 * time.Second)
		if !s.View().Fallback {
			t.Error("left too early")
		}
		advance(3 * time.Second)
		v = s.View()
		if v.Fallback || !slices.Equal(picked(counts(v, time.Now(), 200)), []int{1}) || !r.drains("user", 3) {
			t.Errorf("after 12 s: fallback %v, picked %v", v.Fallback, picked(counts(v, time.Now(), 200)))
		}
		told := r.details(event.Fallback)
		if len(told) != 2 || !strings.HasPrefix(told[0], "the fallback is used: no backend of the service is usable; 2 of 2 backends of the fallback usable") ||
			told[1] != "the fallback is left: 1 of 3 backends usable" {
			t.Errorf("told %q", told)
		}
		cancel()
		<-done
	})
}

// A list without an own backend, or with draining ones only, is the fallback's case; without a fallback nothing of this happens; with panic off, what is not usable is
// no hope.
func TestFallbackOfAnEmptyList(t *testing.T) {
	r := newRig(t)
	sp := spec("user")
	r.SetSpec(r.now, sp)
	r.Apply(r.now, withFallback("user", 0, 2))
	s := r.Lookup("user")
	if v := s.View(); !v.Fallback || v.Usable != 2 {
		t.Errorf("without own backends: fallback %v, %d usable", v.Fallback, v.Usable)
	}
	l := withFallback("user", 1, 2)
	l.Backends[0].Draining = true
	r.Apply(r.now, l)
	if v := s.View(); !v.Fallback {
		t.Error("with a draining one it is not used")
	}
	r.Apply(r.now, list("user"))
	if v := s.View(); v.Fallback || v.Usable != 0 || v.Total != v.Len() {
		t.Errorf("without fallback: %v, %d usable", v.Fallback, v.Usable)
	}

	sp.Name, sp.PanicPercent = "calm", 0
	r.SetSpec(r.now, sp)
	r.Apply(r.now, withFallback("calm", 1, 1))
	s = r.Lookup("calm")
	r.judge(s, 0, ejected)
	if v := s.View(); !v.Fallback || !slices.Equal(picked(counts(v, r.now, 100)), []int{1}) {
		t.Errorf("panic off: fallback %v", v.Fallback)
	}
	// When both are dead, all are tried.
	sp.PanicPercent = 50
	r.SetSpec(r.now, sp)
	r.judge(s, 0, unreachable)
	r.judge(s, 1, unreachable)
	if v := s.View(); !slices.Equal(picked(counts(v, r.now, 100)), []int{0, 1}) {
		t.Errorf("all dead: fallback %v, picked %v", v.Fallback, picked(counts(v, r.now, 100)))
	}
}

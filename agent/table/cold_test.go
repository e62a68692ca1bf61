package table

import (
	"sync"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// unused is a service without a listener, for which nobody has asked.
func unused(t testing.TB, n int) (*rig, *Service) {
	r := newRig(t)
	sp := spec("user")
	sp.InUse = false
	r.SetSpec(r.now, sp)
	r.Apply(r.now, list("user", ids(n)...))
	return r, r.Lookup("user")
}

func stateless(v *View) int {
	n := 0
	for i := range v.Len() {
		if v.Backend(i).State == nil {
			n++
		}
	}
	return n
}

// The backends of a service that nobody uses cost no state, no picker and no target, whatever happens to its list; all that is shown of them is there.
func TestUnusedCostsNothing(t *testing.T) {
	r, s := unused(t, 4)
	l := list("user", 1, 2, 3, 4)
	l.Backends[0].Draining = true
	l.Backends[1].Created = 7 // restarted
	r.Apply(r.now, l)
	r.SetMutes(r.now, []service.Mute{{Service: "user", Addr: addr(3), Since: r.now, Until: r.now.Add(time.Hour), Author: "o"}})

	v := s.View()
	if n := stateless(v); n != 4 || v.picker != nil || v.candidates != nil || r.sent != 0 || s.left != nil {
		t.Errorf("%d of 4 backends without a state, picker %v, %d candidates, %d times targets, left %v", n, v.picker, len(v.candidates), r.sent, s.left)
	}
	if v.Usable != 2 || v.Total != 4 || v.Panic {
		t.Errorf("%d of %d usable, panic %v", v.Usable, v.Total, v.Panic)
	}
	for i, want := range []health.Kind{health.Draining, health.Up, health.Muted, health.Up} {
		b := v.Backend(i)
		if b.Verdict.Kind != want || b.Evidence().Kind != want || v.Parts(r.now, b.Backend)[0].Kind != want {
			t.Errorf("%s is %s, want %s", b.Addr, b.Verdict.Kind, want)
		}
	}
	if got := v.Unusable(r.now); got == "" {
		t.Error("no sentence")
	}
}

// The first use gives every backend a state, and health its targets: by an ask, by a pick of a view from before, by a listener, or because there are orphans (1.10).
func TestFirstUse(t *testing.T) {
	for name, use := range map[string]func(*rig, *Service){
		"asked":  func(r *rig, s *Service) { s.Asked(r.now) },
		"picked": func(r *rig, s *Service) { s.View().Pick(r.now, nil) },
		"listener": func(r *rig, s *Service) {
			r.SetSpec(r.now, spec("user"))
		},
		"orphan": func(r *rig, s *Service) {
			l := list("user", ids(3)...)
			l.Backends[1].Orphaned = r.now
			r.Apply(r.now, l)
		},
	} {
		r, s := unused(t, 3)
		_, changed := s.Changed()
		use(r, s)
		v := s.View()
		if n := stateless(v); n != 0 {
			t.Errorf("%s: %d backends without a state", name, n)
		}
		select {
		case <-changed:
		default:
			t.Errorf("%s: those who wait for a view weren't told", name)
		}
		if r.targets["user"] == nil || r.targets["user"].Len() != 3 || r.targets["user"].At(2).State != v.Backend(2).State {
			t.Errorf("%s: health has other targets than the view", name)
		}
		if got := counts(v, r.now, 100); got[-1] != 0 || len(got) != 3 {
			t.Errorf("%s: picks %v", name, got)
		}
		was := v.Backend(0).State
		r.Apply(r.now, list("user", ids(4)...))
		if v = s.View(); v.Backend(0).State != was || stateless(v) != 0 {
			t.Errorf("%s: the next list lost a state", name)
		}
	}
}

// A view from before the first use picks as the view of now does; of a service that was removed unused, nobody.
func TestPickOfUnused(t *testing.T) {
	r, s := unused(t, 3)
	old := s.View()
	if b := old.Pick(r.now, nil); b == nil || b.State == nil {
		t.Errorf("picked %v", b)
	}
	if got := counts(old, r.now, 100, s.View().Backend(0).State); got[0] != 0 || got[-1] != 0 || len(got) != 2 {
		t.Errorf("without the first one %v", got)
	}

	r, s = unused(t, 3)
	r.Remove(r.now, "user")
	if b := s.View().Pick(r.now, nil); b != nil || !s.View().Gone || r.sent != 0 {
		t.Errorf("a removed service gave %v, gone %v", b, s.View().Gone)
	}
}

// An ask before the first list doesn't begin anew the time for which callers wait for it.
func TestFirstUseBeforeList(t *testing.T) {
	r := newRig(t)
	r.SetSpec(r.now, Spec{Name: "user", Policy: picker.P2C})
	s := r.Lookup("user")
	s.Asked(r.now.Add(time.Minute))
	if v := s.View(); v.Ready || !v.At.Equal(r.now) {
		t.Errorf("ready %v, of %v, want %v", v.Ready, v.At, r.now)
	}
}

// Whoever has asked finds states, also if others ask for the first time at the same moment: the view that has them takes its time to be made.
func TestFirstUseByMany(t *testing.T) {
	for range 20 {
		r, s := unused(t, 2000)
		var callers sync.WaitGroup
		for range 4 {
			callers.Go(func() {
				s.Asked(r.now)
				if n := stateless(s.View()); n != 0 {
					t.Errorf("%d of 2000 backends have no state", n)
				}
			})
		}
		callers.Wait()
	}
}

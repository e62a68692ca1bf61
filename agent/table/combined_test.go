package table

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// orphan makes the given backends of l orphans.
func orphan(now time.Time, l *service.List, ids ...int) *service.List {
	for _, i := range ids {
		l.Backends[i].Orphaned = now
	}
	return l
}

// 1.10 and 1.16: orphans are own backends. While one is alive, or may be, nothing stands in for them; when all fail the fallback does, although they are still in the list.
func TestOrphansBeforeFallback(t *testing.T) {
	r := newRig(t)
	r.SetSpec(r.now, spec("user"))
	since := r.now
	r.Apply(r.now, orphan(since, withFallback("user", 2, 2), 0, 1))
	s := r.Lookup("user")
	s.View().Pick(r.now, nil)
	want := func(what string, used bool, ids ...int) {
		t.Helper()
		v := s.View()
		if got := picked(counts(v, r.now, 200)); v.Fallback != used || !slices.Equal(got, ids) {
			t.Errorf("%s: fallback %v, picked %v, want %v", what, v.Fallback, got, ids)
		}
	}
	want("alive", false, 0, 1)
	r.judge(s, 0, unreachable)
	want("one is dead", false, 1)
	r.judge(s, 1, ejected)
	want("the other has soft evidence against it: panic", false, 1)
	r.judge(s, 1, downHard)
	want("both are dead", true, 2, 3)
	if !r.drains("user", 2) == r.drains("user", 0) {
		t.Errorf("health was told: orphan drains %v, fallback %v", r.drains("user", 0), r.drains("user", 2))
	}
	r.judge(s, 1, isUp)
	want("one is back", true, 2, 3)
	r.now = r.now.Add(fallbackQuiet)
	r.Apply(r.now, orphan(since, withFallback("user", 2, 2), 0, 1))
	want("and was for 10 s", false, 1)
	r.judge(s, 1, unreachable)
	want("dead again", true, 2, 3)
	// The second witness has taken both out.
	l := withFallback("user", 2, 2)
	l.Backends = l.Backends[2:]
	r.Apply(r.now, l)
	want("both have left", true, 2, 3)
	// Keys come back, for one of them as draining: that is nobody to wait for.
	l = withFallback("user", 2, 2)
	l.Backends[0].Draining = true
	r.Apply(r.now, l)
	r.judge(s, 1, unreachable)
	want("one drains, the other is dead", true, 2, 3)
}

// 2.7: where nothing probes, a call finds out about an orphan that fails, as about any other; nobody else would.
func TestTrialOfAnOrphan(t *testing.T) {
	r := newRig(t)
	sp := spec("user")
	sp.Health.Probe = health.ProbeNone
	r.SetSpec(r.now, sp)
	r.Apply(r.now, orphan(r.now, list("user", 0, 1), 0))
	s := r.Lookup("user")
	s.View().Pick(r.now, nil)
	r.judge(s, 0, ejected)
	if v := s.View(); !slices.Equal(v.trials, []int32{0}) {
		t.Errorf("trials %v", v.trials)
	}
	r.judge(s, 0, isUp)
	if v := s.View(); len(v.trials) != 0 {
		t.Errorf("an orphan that is well has to be tried: %v", v.trials)
	}
}

// 1.9, 1.11, 2.8: an orphan whose key comes back with the mark is draining, and gets no calls; it is listed then. An orphan that somebody mutes is muted.
func TestOrphanDrains(t *testing.T) {
	r := newRig(t)
	r.SetSpec(r.now, spec("user"))
	r.Apply(r.now, list("user", 0, 1, 2))
	s := r.Lookup("user")
	s.View().Pick(r.now, nil)
	r.Apply(r.now, orphan(r.now, list("user", 0, 1, 2), 1, 2))
	state := s.View().Find(addr(1)).State
	l := orphan(r.now, list("user", 0, 1, 2), 2)
	l.Backends[1].Draining, l.Backends[1].Created = true, 2
	r.Apply(r.now, l)
	v := s.View()
	b := v.Find(addr(1))
	if b.Verdict.Kind != health.Draining || b.State != state || v.Orphans() != 1 || !v.Leaving(b.Addr) {
		t.Errorf("%+v, %d orphans, state kept %v", b.Verdict, v.Orphans(), b.State == state)
	}
	if got := picked(counts(v, r.now, 200)); !slices.Equal(got, []int{0, 2}) {
		t.Errorf("picked %v", got)
	}
	if target := r.targets["user"].At(1); target.Orphan || !target.Draining {
		t.Errorf("health was told %+v", target)
	}
	// A failed orphan is gone by the second witness only while it is one.
	r.SetMutes(r.now, []service.Mute{muteOf(r.now, 2, false)})
	v = s.View()
	b = v.Find(addr(2))
	if got, want := kinds(v.Parts(r.now, b)), []health.Kind{health.Muted, health.Orphaned}; !slices.Equal(got[:min(2, len(got))], want) {
		t.Errorf("parts %v, want %v", got, want)
	}
	if got := picked(counts(v, r.now, 200)); !slices.Equal(got, []int{0}) {
		t.Errorf("with a mute: picked %v", got)
	}
	if target := r.targets["user"].At(2); !target.Orphan || !target.Draining {
		t.Errorf("health was told %+v", target)
	}
}

// 2.8 and 1.16: a service whose own backends are all muted has its fallback, at once; a muted one of the fallback stays out; who unmutes gets the own ones back 10 s
// later, as after any other end.
func TestMuteAndFallback(t *testing.T) {
	r := newRig(t)
	r.SetSpec(r.now, spec("user"))
	r.Apply(r.now, withFallback("user", 2, 2))
	s := r.Lookup("user")
	s.View().Pick(r.now, nil)
	mutes := []service.Mute{muteOf(r.now, 0, false), muteOf(r.now, 1, true)}
	r.SetMutes(r.now, mutes[:1])
	if v := s.View(); v.Fallback {
		t.Error("the fallback is used while an own backend is well")
	}
	r.SetMutes(r.now, mutes)
	v := s.View()
	if got := picked(counts(v, r.now, 200)); !v.Fallback || v.Panic || !slices.Equal(got, []int{2, 3}) {
		t.Errorf("all muted: fallback %v, panic %v, picked %v", v.Fallback, v.Panic, got)
	}
	if !r.drains("user", 0) || r.drains("user", 2) {
		t.Error("health wasn't told who is in use")
	}
	mutes = append(mutes, muteOf(r.now, 3, false))
	r.SetMutes(r.now, mutes)
	v = s.View()
	if got := picked(counts(v, r.now, 200)); !v.Fallback || v.Usable != 1 || v.Panic || !slices.Equal(got, []int{2}) {
		t.Errorf("one of the fallback muted: fallback %v, %d usable, picked %v", v.Fallback, v.Usable, got)
	}
	mutes = append(mutes, muteOf(r.now, 2, false))
	r.SetMutes(r.now, mutes)
	v = s.View()
	if b := v.Pick(r.now, nil); b != nil || !strings.Contains(v.Unusable(r.now), "muted: by alice") {
		t.Errorf("everything is muted: picked %v, %s", b, v.Unusable(r.now))
	}
	r.SetMutes(r.now, mutes[2:3]) // 3 of the fallback alone
	if v = s.View(); !v.Fallback {
		t.Error("the fallback was left without 10 s of health")
	}
	r.now = r.now.Add(fallbackQuiet)
	r.Apply(r.now, withFallback("user", 2, 2))
	v = s.View()
	if got := picked(counts(v, r.now, 200)); v.Fallback || !slices.Equal(got, []int{0, 1}) {
		t.Errorf("10 s after: fallback %v, picked %v", v.Fallback, got)
	}
	// An address that is the service's own and the fallback's is muted as what it is now.
	l := withFallback("user", 2, 2)
	l.Backends[3].Fallback = false
	r.Apply(r.now, l)
	if b := s.View().Find(addr(3)); b.Verdict.Kind != health.Muted {
		t.Errorf("moved from the fallback: %+v", b.Verdict)
	}
}

// 3.8 and 2.9: soft verdicts are ignored only when all tiers together can't take the calls and too few are usable; then loads are shared by what may be tried. Hard
// evidence keeps a backend out while another remains, in whatever tier that is.
func TestTiersPanicModel(t *testing.T) {
	panics, calm := 0, 0
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 4))
		r := newRig(t)
		r.SetSpec(r.now, spec("user"))
		n := 2 + rng.IntN(12)
		prios := make([]uint16, n)
		for i := range prios {
			prios[i] = uint16(i % 2)
			if rng.IntN(3) == 0 {
				prios[i] = 2
			}
		}
		l := tiered("user", prios...)
		for i := range l.Backends {
			l.Backends[i].Weight = uint32(1 + rng.IntN(5))
			l.Backends[i].Draining = rng.IntN(8) == 0
		}
		r.Apply(r.now, l)
		s := r.Lookup("user")
		s.View().Pick(r.now, nil)
		hard, soft := map[int]bool{}, map[int]bool{}
		for id := range n {
			if l.Backends[id].Draining {
				continue
			}
			switch rng.IntN(5) {
			case 0:
				r.judge(s, id, unreachable)
				hard[id] = true
			case 1, 2:
				r.judge(s, id, ejected)
				soft[id] = true
			}
		}
		m := tierModel{prios: prios, list: l, out: func(id int) bool { return hard[id] || soft[id] }}
		loads, enough := m.loads()
		panicking := !enough && 2*m.usable() < m.all()
		if panicking {
			m.out = func(id int) bool { return hard[id] }
			loads, _ = m.loads()
			panics++
		} else {
			calm++
		}
		v := s.View()
		if v.Panic != panicking {
			t.Errorf("seed %d: panic %v, want %v: tiers %+v", seed, v.Panic, panicking, v.Tiers)
			continue
		}
		if m.usable() == 0 {
			for id := range counts(v, r.now, 500) {
				if id >= 0 && l.Backends[id].Draining {
					t.Errorf("seed %d: a draining one was tried", seed)
				}
			}
			continue
		}
		const picks = 8000
		got := counts(v, r.now, picks)
		for id, p := range prios {
			want := 0.0
			if !m.out(id) && !l.Backends[id].Draining {
				want = loads[p] * float64(l.Backends[id].Weight) / m.weights(p)
			}
			if share := float64(got[id]) / picks; math.Abs(share-want) > 0.03 || want == 0 && share > 0 {
				t.Errorf("seed %d: panic %v: backend %d has %.3f of the calls, want %.3f; tiers %+v", seed, v.Panic, id, share, want, v.Tiers)
			}
		}
	}
	if panics < 10 || calm < 10 {
		t.Errorf("%d times panic, %d times not: the cases are too much alike", panics, calm)
	}
}

// tierModel is 3.8 done slowly.
type tierModel struct {
	prios []uint16
	list  *service.List
	out   func(id int) bool
}

func (m *tierModel) count(of func(id int, p uint16) bool) (n int) {
	for id, p := range m.prios {
		if !m.list.Backends[id].Draining && of(id, p) {
			n++
		}
	}
	return n
}

func (m *tierModel) all() int    { return m.count(func(int, uint16) bool { return true }) }
func (m *tierModel) usable() int { return m.count(func(id int, _ uint16) bool { return !m.out(id) }) }

func (m *tierModel) weights(of uint16) (sum float64) {
	m.count(func(id int, p uint16) bool {
		if p == of && !m.out(id) {
			sum += float64(m.list.Backends[id].Weight)
		}
		return false
	})
	return sum
}

func (m *tierModel) loads() ([]float64, bool) {
	var shares []float64
	for of := range uint16(3) {
		all := m.count(func(_ int, p uint16) bool { return p == of })
		usable := m.count(func(id int, p uint16) bool { return p == of && !m.out(id) })
		shares = append(shares, float64(usable)/float64(max(1, all)))
	}
	return picker.Spill(shares)
}

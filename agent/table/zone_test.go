package table

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// zoned is a list whose backends are in those zones, in order.
func zoned(zones ...string) *service.List {
	l := list("user", ids(len(zones))...)
	for i := range l.Backends {
		l.Backends[i].Zone = zones[i]
	}
	return l
}

// in is the share of picks that go to a zone.
func in(v *View, now time.Time, zone string) float64 {
	const n = 20_000
	got := 0
	for range n {
		if v.Pick(now, nil).Zone == zone {
			got++
		}
	}
	return float64(got) / n
}

// 3.8: all but 2 % stay in the own zone while its usable share x 1.4 is 100 %; beyond that they spill in proportion.
func TestZones(t *testing.T) {
	r := seeded(t)
	sp := spec("user")
	sp.Zone = "a"
	r.SetSpec(r.now, sp)
	r.Apply(r.now, zoned("b", "a", "a", "a", "a", "b", "", "c"))
	s := r.Lookup("user")
	near := func(want float64, what string) {
		t.Helper()
		if got := in(s.View(), r.now, "a"); math.Abs(got-want) > 0.012 {
			t.Errorf("%s: %.3f stay, want %.3f", what, got, want)
		}
	}
	says := func(want string, wantGone bool) {
		t.Helper()
		if words, gone := s.View().ZoneWords(); words != want || gone != wantGone {
			t.Errorf("it says %q, %v; want %q", words, gone, want)
		}
	}
	near(0.98, "all are well")
	says("", false)
	if v := s.View(); v.Backend(0).Factors.Zone != v.Backend(7).Factors.Zone || math.Abs(float64(v.Backend(0).Factors.Zone)-0.02/0.98) > 1e-6 || v.Backend(1).Factors.Zone != 1 {
		t.Errorf("factors %v and %v", v.Backend(0).Factors, v.Backend(1).Factors)
	}
	r.judge(s, 1, downHard)
	near(0.98, "3 of 4")
	says("", false)
	r.judge(s, 2, downHard)
	near(0.7, "2 of 4")
	says("this host's zone a has 2 of 4 backends usable: some calls go to other zones", false)
	r.judge(s, 3, downHard)
	near(0.35, "1 of 4")
	r.judge(s, 4, downHard)
	near(0, "none")
	says("this host's zone a has no usable backend (of 4): all calls go to other zones", true)
	if b := s.View().Backend(0); b.Weight != 100 || b.Factors.Zone != 1 {
		t.Errorf("without a backend here: %+v", b)
	}
	for i := range 5 {
		r.judge(s, i, isUp)
	}
	near(0.98, "all are back")
	for _, i := range []int{0, 5, 6, 7} {
		r.judge(s, i, downHard)
	}
	near(1, "nobody elsewhere")
	says("", false)
	for _, i := range []int{0, 5, 6, 7} {
		r.judge(s, i, isUp)
	}
	sp.Zone = "c"
	r.SetSpec(r.now, sp)
	if got := in(s.View(), r.now, "c"); math.Abs(got-0.98) > 0.01 {
		t.Errorf("this host is in c now: %.3f stay", got)
	}
	l := zoned("b", "a", "a", "a", "a", "b", "", "b")
	l.Backends[7].Modified = 2
	r.Apply(r.now, l)
	near(0.5, "no backend is in c any more")
	says("", false)
	sp.Zone = ""
	r.SetSpec(r.now, sp)
	near(0.5, "zones don't matter")
	sp.Zone, sp.Policy = "a", picker.Hash
	r.SetSpec(r.now, sp)
	near(0.5, "keys don't know zones")
}

// A draining backend is no loss of the zone, and each tier has its own share (3.8).
func TestZonesAndTiers(t *testing.T) {
	r := seeded(t)
	sp := spec("user")
	sp.Zone = "a"
	r.SetSpec(r.now, sp)
	l := zoned("a", "a", "b", "b", "a", "b")
	for i := range l.Backends {
		l.Backends[i].Priority = uint16(i / 4)
	}
	l.Backends[0].Draining = true
	r.Apply(r.now, l)
	s := r.Lookup("user")
	if got := in(s.View(), r.now, "a"); math.Abs(got-0.98) > 0.01 {
		t.Errorf("%.3f stay, want 0.98", got)
	}
	r.judge(s, 2, downHard) // 2 of 3 are left of the first tier: 93 %
	got := counts(s.View(), r.now, 40_000)
	for id, want := range map[int]float64{1: 14. / 15 * .98, 3: 14. / 15 * .02, 4: .98 / 15, 5: .02 / 15} {
		if share := float64(got[id]) / 40_000; math.Abs(share-want) > 0.01 {
			t.Errorf("backend %d has %.4f, want %.4f", id, share, want)
		}
	}
}

// Many zones are told apart as far as that goes, and never taken for the own one.
func TestManyZones(t *testing.T) {
	r := seeded(t)
	sp := spec("user")
	sp.Zone, sp.Subset = "z5", 32
	r.SetSpec(r.now, sp)
	var zones []string
	for i := range 300 {
		zones = append(zones, fmt.Sprint("z", i%150))
	}
	r.Apply(r.now, zoned(zones...))
	v := r.Lookup("user").View()
	for _, b := range v.Backends() {
		if (b.zone == ownZone) != (b.Zone == "z5") || b.zone >= zonesMost {
			t.Fatalf("%s has number %d", b.Zone, b.zone)
		}
	}
	if got := in(v, r.now, "z5"); math.Abs(got-0.98) > 0.01 {
		t.Errorf("%.3f stay, want 0.98", got)
	}
}

func inside(v *View) (all []int) {
	for i := range v.Len() {
		if !v.Backend(i).Outside && v.Backend(i).Verdict.Usable() {
			all = append(all, number(v.Backend(i).Backend))
		}
	}
	return all
}

// 3.9: above 100 backends a host calls 32 of them, until there are fewer than 80; who is out is replaced, and gets its place back.
func TestSubset(t *testing.T) {
	r, s := weighing(t, 100, func(sp *Spec) { sp.SlowStart = 0 })
	subset := func(n, want int) {
		t.Helper()
		r.Apply(r.now, list("user", ids(n)...))
		v := s.View()
		got := picked(counts(v, r.now, 20_000))
		if len(got) != max(want, n*b2i(want == 0)) || v.Subset() != want || want > 0 && !slices.Equal(got, inside(v)) || v.Usable != n || v.Total != n {
			t.Errorf("%d of %d backends get calls, want %d; subset %d", len(got), n, want, v.Subset())
		}
	}
	subset(100, 0)
	subset(101, 32)
	first := inside(s.View())
	subset(80, 32)
	subset(79, 0)
	subset(100, 0)
	subset(101, 32)
	if got := inside(s.View()); !slices.Equal(got, first) {
		t.Errorf("another subset of the same list: %v, was %v", got, first)
	}
	r.judge(s, first[3], downHard)
	r.judge(s, first[5], downHard)
	second := inside(s.View())
	missing := 0
	for _, id := range first {
		if !slices.Contains(second, id) {
			missing++
		}
	}
	if len(second) != 32 || missing != 2 || s.View().Panic {
		t.Errorf("%v after two of %v went", second, first)
	}
	r.judge(s, first[3], isUp)
	r.judge(s, first[5], isUp)
	if got := inside(s.View()); !slices.Equal(got, first) {
		t.Errorf("%v, was %v", got, first)
	}
	// Calls that have been everywhere go on outside, to who is well (4.1).
	r.judge(s, outsideOne(s.View()), downHard)
	v := s.View()
	var tried []*health.State
	for i := range v.Len() {
		if !v.Backend(i).Outside {
			tried = append(tried, v.Backend(i).State)
		}
	}
	for range 500 {
		b := v.Pick(r.now, tried)
		if b == nil {
			t.Fatal("nobody is left")
		}
		if i, _ := v.roster.index(b.Addr); !v.Backend(i).Outside || !b.Verdict.Usable() || v.Backend(i).Weight != 0 {
			t.Fatalf("got %v", b)
		}
	}
	if n := testing.AllocsPerRun(100, func() { v.Pick(r.now, tried); v.Pick(r.now, nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	// The whole list counts before panic fires (2.9).
	var changes []health.Change
	for i := range v.Len() {
		if b := v.Backend(i); !b.Outside {
			changes = append(changes, health.Change{Group: "user", Addr: b.Addr, State: b.State, From: isUp, To: ejected})
		}
	}
	r.SetVerdicts(r.now, changes)
	if v = s.View(); v.Panic || len(inside(v)) != 32 {
		t.Errorf("panic %v, %d get calls", v.Panic, len(inside(v)))
	}
	for _, change := range []func(*Spec){func(sp *Spec) { sp.Policy = picker.Hash }, func(sp *Spec) { sp.Subset = 0 }} {
		sp := *s.Spec()
		change(&sp)
		r.SetSpec(r.now, sp)
		if s.View().Subset() != 0 {
			t.Error("a subset")
		}
		sp.Policy, sp.Subset = picker.P2C, 32
		r.SetSpec(r.now, sp)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func outsideOne(v *View) int {
	for i := range v.Len() {
		if v.Backend(i).Outside {
			return number(v.Backend(i).Backend)
		}
	}
	return -1
}

// The subsets of many hosts together are even, and one backend more changes each of them by one place at most.
func TestSubsetsOfAFleet(t *testing.T) {
	const backends, hosts = 200, 200
	counts := make([]int, backends+1)
	for h := range hosts {
		r := newRig(t)
		r.cfg.Seed = uint64(h)
		sp := spec("user")
		sp.Subset = 32
		r.SetSpec(r.now, sp)
		s := r.Lookup("user")
		r.Apply(r.now, list("user", ids(backends)...))
		before := inside(s.View())
		for _, id := range before {
			counts[id]++
		}
		r.Apply(r.now, list("user", ids(backends+1)...))
		gone, after := 0, inside(s.View())
		for _, id := range before {
			if !slices.Contains(after, id) {
				gone++
			}
		}
		if gone > 1 || len(after) != 32 {
			t.Fatalf("host %d: one backend more, and %d of 32 are others", h, gone)
		}
	}
	for id, n := range counts[:backends] { // 32 each in the mean, with a deviation of 5
		if n < 32-25 || n > 32+25 {
			t.Errorf("backend %d is in %d of %d subsets", id, n, hosts)
		}
	}
}

// Each zone has its part of the subset, and those first that come first in the host's order: against the slow way.
func TestSubsetModel(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 39))
		r := newRig(t)
		r.cfg.Seed = rng.Uint64()
		sp := spec("user")
		sp.Subset, sp.PanicPercent = 1+rng.IntN(60), 0
		r.SetSpec(r.now, sp)
		n := 101 + rng.IntN(200)
		zones := make([]string, n)
		for i := range zones {
			zones[i] = string(rune('a' + rng.IntN(1+int(seed%6))*rng.IntN(2)))
		}
		r.Apply(r.now, zoned(zones...))
		s := r.Lookup("user")
		var changes []health.Change
		for _, b := range s.View().Backends() {
			if rng.Uint64()%100 < seed {
				changes = append(changes, health.Change{Group: "user", Addr: b.Addr, State: b.State, From: isUp, To: downHard})
			}
		}
		r.SetVerdicts(r.now, changes)
		v := s.View()
		all, usable, got := map[string]int{}, map[string][]uint32{}, map[string][]uint32{}
		sum := 0
		for i := range v.Len() {
			b := v.Backend(i)
			all[b.Zone]++
			if b.Verdict.Usable() {
				sum++
				usable[b.Zone] = append(usable[b.Zone], b.rank)
				if !b.Outside {
					got[b.Zone] = append(got[b.Zone], b.rank)
				}
			}
		}
		total, short := 0, false
		for zone := range all {
			fair := float64(sp.Subset) * float64(all[zone]) / float64(n)
			short = short || float64(len(usable[zone])) < math.Ceil(fair)
			total += len(got[zone])
		}
		if total != min(sp.Subset, sum) {
			t.Fatalf("seed %d: %d in the subset, want %d", seed, total, min(sp.Subset, sum))
		}
		for zone := range all {
			slices.Sort(usable[zone])
			slices.Sort(got[zone])
			if !slices.Equal(got[zone], usable[zone][:len(got[zone])]) {
				t.Errorf("seed %d: zone %s: %v are not the first of %v", seed, zone, got[zone], usable[zone])
			}
			fair := float64(sp.Subset) * float64(all[zone]) / float64(n)
			if !short && len(all) <= sp.Subset && fair >= 1 && math.Abs(float64(len(got[zone]))-fair) > float64(len(all)) {
				t.Errorf("seed %d: zone %s has %d places, its part is %.1f", seed, zone, len(got[zone]), fair)
			}
		}
	}
}

// Under hash, what a verdict takes out moves its own keys only, and the ring follows the list, at most once a second.
func TestRingFollowsTheList(t *testing.T) {
	r, s := weighing(t, 20, func(sp *Spec) { sp.Policy, sp.SlowStart = picker.Hash, 0 })
	home := func() map[uint64]int {
		all := map[uint64]int{}
		v := s.View()
		for k := range uint64(2000) {
			key := picker.KeyOf(fmt.Sprint("k", k))
			all[key] = number(v.PickFor(r.now, key, nil))
		}
		return all
	}
	before := home()
	made := s.ring.Ring
	r.judge(s, 3, ejected)
	for key, id := range home() {
		if was := before[key]; was != 3 && id != was || id == 3 {
			t.Fatalf("a key of %d moved to %d as 3 went", was, id)
		}
	}
	r.judge(s, 3, isUp)
	if s.ring.Ring != made {
		t.Error("a verdict made a ring")
	}
	r.tick()
	r.Apply(r.now, list("user", ids(21)...))
	if s.ring.Ring == made {
		t.Error("a list made no ring")
	}
	made, before = s.ring.Ring, home()
	r.Apply(r.now, list("user", ids(22)[1:]...)) // 0 has left, 21 is new
	if s.ring.Ring != made || !s.ring.stale {
		t.Error("two rings in a second")
	}
	for key, id := range home() {
		if was := before[key]; id == 0 || id == 21 || id != was && was != 0 {
			t.Fatalf("a key of %d moved to %d", was, id)
		}
	}
	r.tick()
	if s.ring.Ring == made || s.ring.stale {
		t.Error("the ring is of an old list")
	}
	seen := map[int]bool{}
	for _, id := range home() {
		seen[id] = true
	}
	if seen[0] || !seen[21] || len(seen) != 21 {
		t.Errorf("keys are at %v", seen)
	}
}

// Of several tiers each has its own subset, and one that has become small is called as a whole again.
func TestSubsetOfTiers(t *testing.T) {
	r, s := weighing(t, 0, func(sp *Spec) { sp.SlowStart = 0 })
	tiers := func(first, second int) []int {
		var prios []uint16
		for i := range first + second {
			prios = append(prios, uint16(b2i(i >= first)))
		}
		l := tiered("user", prios...)
		for i := range l.Backends {
			l.Backends[i].Modified = int64(first)
		}
		r.Apply(r.now, l)
		v, got := s.View(), []int{0, 0}
		for i := range v.Len() {
			if !v.Backend(i).Outside {
				got[v.Backend(i).Priority]++
			}
		}
		for range 500 {
			b := v.Pick(r.now, nil)
			if i, _ := v.roster.index(b.Addr); v.Backend(i).Outside || b.Priority != 0 {
				t.Fatalf("picked %+v", b)
			}
		}
		return got
	}
	for _, tt := range [][4]int{{90, 90, 32, 32}, {90, 20, 32, 20}, {20, 90, 20, 32}, {90, 90, 32, 32}, {40, 30, 40, 30}} {
		if got := tiers(tt[0], tt[1]); got[0] != tt[2] || got[1] != tt[3] {
			t.Errorf("%d and %d backends: %v are in it, want %v", tt[0], tt[1], got, tt[2:])
		}
	}
}

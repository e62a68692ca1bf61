package picker

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/lbagent/lbagent/health"
)

func members(n int) []Member {
	all := make([]Member, n)
	for i := range all {
		all[i] = Member{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80), 100}
	}
	return all
}

func slotCounts(r *Ring) []int {
	counts := make([]int, len(r.Members))
	for _, m := range r.slots {
		counts[m]++
	}
	return counts
}

// Every member has the slots that its weight asks for, whatever the weights are: they are given out, not left over (3.10).
func TestRingShares(t *testing.T) {
	for name, weigh := range map[string]func(i int) uint32{
		"equal":    func(int) uint32 { return 100 },
		"two to 1": func(i int) uint32 { return uint32(1 + i%2) },
		"far":      func(i int) uint32 { return uint32(1 + i%7*1_000_000) },
		"largest":  func(int) uint32 { return math.MaxUint32 },
	} {
		for _, n := range []int{1, 2, 3, 50, 1000} {
			all := members(n)
			sum := 0.0
			for i := range all {
				all[i].Weight = weigh(i)
				sum += float64(all[i].Weight)
			}
			total := 0
			for i, got := range slotCounts(NewRing(all)) {
				want := 1 + float64(slots-n)*float64(all[i].Weight)/sum
				if math.Abs(float64(got)-want) > 1 {
					t.Errorf("%s: member %d of %d has %d slots, want %.1f", name, i, n, got, want)
				}
				total += got
			}
			if total != slots {
				t.Errorf("%s: %d slots of %d members", name, total, n)
			}
		}
	}
	if r := NewRing(members(maxMembers + 10)); len(r.Members) != maxMembers {
		t.Errorf("%d members", len(r.Members))
	}
	if r := NewRing(nil); len(r.Members) != 0 {
		t.Errorf("%d members of none", len(r.Members))
	}
}

// A member more or less moves little but its own keys.
func TestRingMovesFewKeys(t *testing.T) {
	for _, n := range []int{10, 100, 1000} {
		all := members(n + 1)
		before, after := NewRing(all[:n]), NewRing(all)
		moved := 0
		for i := range before.slots {
			if before.slots[i] != after.slots[i] {
				moved++
			}
		}
		// 1/(n+1) has to. Maglev moves a few more, the more the more members there are (NSDI 2016, 5.3).
		if must, most := float64(slots)/float64(n+1), 0.05+1.05/float64(n+1); float64(moved) < must*0.9 || float64(moved) > most*slots {
			t.Errorf("%d members: %d of %d keys moved, %.0f had to", n, moved, slots, must)
		}
	}
}

// ringOf is a hash picker over all members but those that are out.
func hashOver(t testing.TB, ring *Ring, cs []Candidate, out map[int]bool, tiers int, m *Median) Picker {
	t.Helper()
	at := make([]int32, len(cs))
	var in []Candidate
	for i := range cs {
		if at[i] = -1; !out[i] {
			at[i] = int32(len(in))
			in = append(in, cs[i])
		}
	}
	all := []Tier{{in, 1}}
	if tiers == 2 {
		all = []Tier{{in[:len(in)/2], 0.5}, {in[len(in)/2:], 0.5}}
	}
	p, err := NewHash(ring, at, all, m, new(Busy))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A key's calls all go to one backend; when that is out, to the next one, and nobody else's move; when it is back, back.
func TestHashKeepsKeys(t *testing.T) {
	now := time.Now()
	const n = 20
	ring, cs := NewRing(members(n)), equal(now, n)
	all := hashOver(t, ring, cs, nil, 1, nil)
	without := hashOver(t, ring, cs, map[int]bool{7: true}, 1, nil)
	counts := make([]float64, n)
	for k := range 20_000 {
		key := KeyOf(fmt.Sprint("user-", k))
		was := all.Pick(now, key, nil)
		counts[was]++
		for range 3 {
			if i := all.Pick(now, key, nil); i != was {
				t.Fatalf("key %d at %d and %d", k, was, i)
			}
		}
		is := without.Pick(now, key, nil)
		if is >= 7 {
			is++ // the candidates' numbers
		}
		if was != 7 && is != was || is == 7 {
			t.Fatalf("key %d moved from %d to %d, as 7 went", k, was, is)
		}
		if i := all.Pick(now, key, []*health.State{cs[was].State}); i == was || i < 0 {
			t.Fatalf("key %d again at %d, which it has been to", k, i)
		}
	}
	for i := range counts {
		counts[i] /= 20_000. / n
	}
	want := make([]float64, n)
	for i := range want {
		want[i] = 1
	}
	within(t, "keys", counts, want, 0.15)
}

// However many are out, a key stays with one of those that are left, and a call that has been everywhere gets none.
func TestHashWithFewLeft(t *testing.T) {
	now := time.Now()
	ring, cs := NewRing(members(2000)), equal(now, 2000)
	out := map[int]bool{}
	for i := range cs {
		out[i] = i != 33 && i != 1500
	}
	p := hashOver(t, ring, cs, out, 1, nil)
	seen := map[int]int{}
	for k := range 1000 {
		key := KeyOf(fmt.Sprint(k))
		i := p.Pick(now, key, nil)
		if i != p.Pick(now, key, nil) {
			t.Fatalf("key %d doesn't stay", k)
		}
		seen[i]++
		if other := p.Pick(now, key, []*health.State{cs[[]int{33, 1500}[i]].State}); other != 1-i {
			t.Fatalf("without %d: %d", i, other)
		}
	}
	if seen[0] < 400 || seen[1] < 400 {
		t.Errorf("%v of 1000", seen)
	}
	if i := p.Pick(now, 5, []*health.State{cs[33].State, cs[1500].State}); i != -1 {
		t.Errorf("%d although all are excluded", i)
	}
	if i := hashOver(t, NewRing(nil), nil, nil, 1, nil).Pick(now, 5, nil); i != -1 {
		t.Errorf("%d of nobody", i)
	}
}

// A backend carries at most 1.25 times its share, by weight, whatever the keys are (3.10); a key alone in the world stays where it belongs.
func TestHashBound(t *testing.T) {
	now := time.Now()
	for _, weights := range [][]float64{{1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {4, 1, 1, 1, 1, 1, 1}} {
		cs := candidates(now, weights...)
		all := members(len(cs))
		sum := 0.0
		for i, w := range weights {
			all[i].Weight = uint32(w)
			sum += w
		}
		m := &Median{Random: NewRandom(rand.NewPCG(1, 25))}
		p := hashOver(t, NewRing(all), cs, nil, 1, m)
		rng := rand.New(rand.NewPCG(2, 3))
		var running []int
		for range 20_000 {
			key := KeyOf(fmt.Sprint("hot", rng.IntN(3))) // three keys for all calls
			i := p.Pick(now, key, nil)
			cs[i].State.Begin()
			running = append(running, i)
			if len(running) > 400 {
				k := rng.IntN(len(running))
				cs[running[k]].State.End(now, health.Success, time.Millisecond, true, "")
				running[k] = running[len(running)-1]
				running = running[:len(running)-1]
			}
		}
		for i, w := range weights {
			share := 400 * w / sum
			if got := float64(cs[i].State.Outstanding()); got > 1.25*share*1.1+2 { // the mean is an estimate
				t.Errorf("weights %v: %d carries %.0f, its share is %.0f", weights, i, got, share)
			}
		}
	}
	cs := equal(now, 5)
	p := hashOver(t, NewRing(members(5)), cs, nil, 1, nil)
	key := KeyOf("alone")
	home := p.Pick(now, key, nil)
	for range spare - 1 { // a few at once are no reason to go elsewhere
		cs[home].State.Begin()
	}
	for range 1000 {
		i := p.Pick(now, key, nil)
		if i != home {
			t.Fatalf("at %d, home is %d", i, home)
		}
		cs[i].State.Begin()
		cs[i].State.End(now, health.Success, time.Millisecond, true, "")
	}
}

// Tiers have their part of the keys, always the same ones; calls without a key go as with p2c.
func TestHashTiers(t *testing.T) {
	now := time.Now()
	cs := equal(now, 10)
	p := hashOver(t, NewRing(members(10)), cs, nil, 2, &Median{Random: NewRandom(rand.NewPCG(1, 2))})
	first := 0
	for k := range 10_000 {
		key := KeyOf(fmt.Sprint(k))
		i := p.Pick(now, key, nil)
		if i != p.Pick(now, key, nil) {
			t.Fatal("a key has two homes")
		}
		if i < 5 {
			first++
		}
	}
	if first < 4700 || first > 5300 {
		t.Errorf("%d of 10,000 keys in the first tier, want half", first)
	}
	counts := make([]float64, 10)
	for range 50_000 {
		counts[p.Pick(now, 0, nil)] += 10. / 50_000
	}
	within(t, "without a key", counts, []float64{1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 0.08)
	not := []*health.State{cs[1].State, cs[2].State}
	if n := testing.AllocsPerRun(1000, func() { p.Pick(now, 12345, nil); p.Pick(now, 54321, not) }); n != 0 {
		t.Errorf("%v allocations per pick", n)
	}
}

func BenchmarkHash(b *testing.B) {
	now := time.Now()
	for _, n := range []int{1, 10, 100, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			cs := equal(now, n)
			p := hashOver(b, NewRing(members(n)), cs, nil, 1, nil)
			b.ReportAllocs()
			key := uint64(1)
			for b.Loop() {
				key = key*6364136223846793005 + 1442695040888963407
				p.Pick(now, key, nil)
			}
		})
	}
}

// What a change of the list costs, weights a million apart included.
func BenchmarkRing(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000, maxMembers} {
		for _, kind := range []string{"equal", "skewed"} {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				all := members(n)
				if kind == "skewed" {
					all[n/2].Weight = 1 << 30
				}
				b.ReportAllocs()
				for b.Loop() {
					NewRing(all)
				}
			})
		}
	}
}

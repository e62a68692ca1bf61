package picker

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/health"
)

const (
	// bound is how much more than its share a backend may carry before a key goes on to the next slot (3.10; Mirrokni et al., Consistent Hashing with Bounded Loads).
	// Lower is more even, higher leaves more keys where they belong.
	bound = 1.25

	// spare is how many calls a backend may carry in any case: where a handful are open in all, two of one key at once would be more than a share, and a key's calls
	// hardly ever meet. Higher keeps more keys together, lower spreads the hot ones sooner.
	spare = 8

	// strides is how many slots a key looks at: with one backend in ten usable, one key in a thousand finds none of them so.
	strides = 64

	// lag is over how many picks the mean of what is outstanding is taken.
	lag = 64
)

// Busy is how many calls a service's backends have outstanding, in the mean: each pick looks at one of them. It outlives pickers. It may lose a look to another pick at
// the same moment, which is no matter.
type Busy struct{ mean atomic.Uint64 } // float64

func (b *Busy) look(outstanding int) float64 {
	mean := math.Float64frombits(b.mean.Load())
	mean += (float64(outstanding) - mean) / lag
	b.mean.Store(math.Float64bits(mean))
	return mean
}

// hash sends a key to the backend that its slot of the ring belongs to, or that of the next slots, if that one can't be picked or carries too much.
type hash struct {
	without    Picker // for calls without a key
	ring       *Ring
	at         []int32 // of each member, its number among the candidates; -1 = it is none
	candidates []Candidate
	tiers      []span
	busy       *Busy
	random     Random
}

// span is the candidates of a tier.
type span struct {
	from, to int
	upTo     float64 // the running sum of loads
	weight   float64 // of all its candidates
}

// NewHash returns a picker by key over the candidates of all tiers, numbered through, of which at says which members of ring they are.
func NewHash(ring *Ring, at []int32, tiers []Tier, median *Median, busy *Busy) (Picker, error) {
	without, err := NewTiered(P2C, tiers, median)
	if err != nil {
		return nil, err
	}
	h := &hash{without: without, ring: ring, at: at, busy: busy}
	if median != nil {
		h.random = median.Random
	}
	upTo := 0.0
	for _, t := range tiers {
		w := sumUp(t.Candidates)
		upTo += t.Load
		h.tiers = append(h.tiers, span{len(h.candidates), len(h.candidates) + len(t.Candidates), upTo, w.sum})
		h.candidates = append(h.candidates, t.Candidates...)
	}
	return h, nil
}

func (h *hash) Pick(now time.Time, key uint64, not []*health.State) int {
	if key == 0 || len(h.candidates) == 0 || len(h.at) == 0 {
		return h.without.Pick(now, 0, not)
	}
	t := h.tier(key)
	n := t.to - t.from
	if n == 0 {
		return h.without.Pick(now, 0, not)
	}
	// What a backend may carry per weight, this call counted in.
	mean := h.busy.look(h.candidates[t.from+h.random.IntN(n)].State.Outstanding())
	most := bound * (mean*float64(n) + 1) / t.weight
	slot := uint32(key % slots)
	first := -1
	for range strides {
		i := int(h.at[h.ring.slots[slot]])
		if slot++; slot == slots {
			slot = 0
		}
		if i < t.from || i >= t.to || excluded(not, h.candidates[i].State) {
			continue
		}
		c := &h.candidates[i]
		if float64(c.State.Outstanding()) < max(math.Ceil(most*c.Weight), spare) {
			return i
		}
		if first < 0 {
			first = i
		}
	}
	if first >= 0 {
		return first // all near ones carry too much: it stays where it belongs
	}
	// Hardly anybody is left: the key goes to one of those all the same, as long as they stay.
	begin := int(key >> 32 * uint64(n) >> 32)
	for k := range n {
		if i := t.from + (begin+k)%n; !excluded(not, h.candidates[i].State) {
			return i
		}
	}
	return h.without.Pick(now, 0, not)
}

// tier is that of a key: each gets its load's part of all keys, always the same ones.
func (h *hash) tier(key uint64) *span {
	x := float64(key>>11) / (1 << 53)
	i := 0
	for i < len(h.tiers)-1 && x >= h.tiers[i].upTo {
		i++
	}
	return &h.tiers[i]
}

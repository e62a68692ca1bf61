package localapi

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/table"
)

// maxEntries bounds the entries of a batch's answer: up to this many picks are interleaved one by one, more of them in small groups. A service with more
// backends than this gets one entry for each that has a share.
const maxEntries = 32

// share is one entry of a batch: n calls for the backend of that index.
type share struct{ index, n int }

// Share is one entry of a batch: N calls for a backend, before those of the next entry.
type Share struct {
	Backend *table.Backend
	N       int
}

// Batch is what Pick answers if n calls are asked for at once (3.5), for whoever has the view itself; nothing if no backend gets calls, and View.Advise has the last resort.
func Batch(v *table.View, now time.Time, n int, random picker.Random) []Share {
	p := newPlan(v, now)
	if len(p.backends) == 0 {
		return nil
	}
	shares := p.cut(n, random)
	out := make([]Share, len(shares))
	for i, s := range shares {
		out[i] = Share{p.backends[s.index], s.n}
	}
	return out
}

// cut takes n calls from the plan, which has a backend, in the order in which they are to be made.
func (p *plan) cut(n int, random picker.Random) []share {
	return interleave(apportion(p.weights, n, random.Float64()), random.IntN(len(p.backends)))
}

// apportion splits n calls by weight. Each index gets the whole part of its quota; what is left is drawn by systematic sampling from start, in [0,1): each gets
// at most one more, and in the mean over random starts exactly its fraction. (Handing it to the largest remainders would give a light backend no call
// at all, for ever, when batches are small.)
func apportion(weights []float64, n int, start float64) []int {
	out := make([]int, len(weights))
	sum := 0.0
	for _, w := range weights {
		sum += w
	}
	if n <= 0 || !(sum > 0) {
		return out
	}
	// Quotas of whole numbers must not fall below themselves by rounding.
	const eps = 1e-9
	left := n
	for i, w := range weights {
		out[i] = int(math.Floor(float64(n)*w/sum + eps))
		left -= out[i]
	}
	drawn, run := 0, start
	last := -1
	for i, w := range weights {
		quota := float64(n) * w / sum
		fraction := quota - float64(out[i])
		if fraction <= eps {
			continue
		}
		last = i
		run += fraction
		if drawn < left && run >= float64(drawn+1) {
			out[i]++
			drawn++
		}
	}
	if drawn < left && last >= 0 { // rounding held the last one back
		out[last] += left - drawn
	}
	return out
}

// interleave orders counts so that each backend's calls are spread over the whole batch, beginning at index first.
func interleave(counts []int, first int) []share {
	total := 0
	for _, n := range counts {
		total += n
	}
	if total == 0 {
		return nil
	}
	group := (total + maxEntries - 1) / maxEntries
	type slot struct {
		at float64
		share
	}
	slots := make([]slot, 0, min(total, maxEntries+len(counts)))
	for k := range counts {
		i := (first + k) % len(counts)
		entries := (counts[i] + group - 1) / group
		given := 0
		for e := range entries {
			upTo := counts[i] * (e + 1) / entries
			slots = append(slots, slot{(float64(e) + 0.5) / float64(entries), share{i, upTo - given}})
			given = upTo
		}
	}
	slices.SortStableFunc(slots, func(a, b slot) int { return cmp.Compare(a.at, b.at) })
	out := make([]share, len(slots))
	for i, s := range slots {
		out[i] = s.share
	}
	return out
}

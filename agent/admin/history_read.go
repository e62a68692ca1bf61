package admin

import (
	"net/netip"
	"slices"
	"time"
)

// lines are the past of one service for the page: a number per slot, the oldest first. -1 = unknown.
type lines struct {
	Calls  []int64 `json:"calls"`
	Failed []int64 `json:"failed"`
	P50    []int64 `json:"p50"` // in µs
	P99    []int64 `json:"p99"`
}

// allLines is the past of all services that have one.
type allLines struct {
	Times    []int64           `json:"times"` // when each slot ended, Unix ms
	Services map[string]*lines `json:"services"`
}

// kept are the numbers of the slots that there are, the oldest first.
func (h *history) kept() (from, to int64) { return max(1, h.slot-slots+1), h.slot }

func (h *history) timesLocked() []int64 {
	from, to := h.kept()
	out := make([]int64, 0, slots)
	for n := from; n <= to; n++ {
		out = append(out, h.times[n%slots].UnixMilli())
	}
	return out
}

func (h *history) linesLocked(e *past) *lines {
	from, to := h.kept()
	out := &lines{}
	for n := from; n <= to; n++ {
		one := e.ring[n%slots]
		out.add(&one)
	}
	return out
}

func (l *lines) add(s *sample) {
	row := s.row()
	l.Calls, l.Failed = append(l.Calls, row[0]), append(l.Failed, row[1])
	l.P50, l.P99 = append(l.P50, row[2]), append(l.P99, row[3])
}

// row is calls, failed, p50 and p99 in µs.
func (s *sample) row() [4]int64 {
	if s.unknown {
		return [4]int64{-1, -1, -1, -1}
	}
	return [4]int64{int64(s.calls), int64(s.failed), s.p50.Microseconds(), s.p99.Microseconds()}
}

// all is the past of every service that had a call.
func (h *history) all() allLines {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := allLines{Times: h.timesLocked(), Services: make(map[string]*lines)}
	for name, e := range h.services {
		if l := h.linesLocked(e); slices.ContainsFunc(l.Calls, func(n int64) bool { return n != 0 }) {
			out.Services[name] = l
		}
	}
	return out
}

// slotOf is the last slot, of every service that had a call in it.
type slotOf struct {
	Time     int64               `json:"time"`
	Services map[string][4]int64 `json:"services"`
}

func (h *history) last() slotOf {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := h.slot % slots
	out := slotOf{Time: h.times[at].UnixMilli(), Services: make(map[string][4]int64)}
	for name, e := range h.services {
		if one := e.ring[at]; one.calls > 0 || one.unknown {
			out.Services[name] = one.row()
		}
	}
	return out
}

// recentSlots are what an alarm about failing calls looks at.
const recentSlots = 6

// recent sums up the last half minute of each service that had calls, and says how long it was.
func (h *history) recent() (of map[string]sample, length time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	of = make(map[string]sample)
	for name, e := range h.services {
		var sum sample
		for n := max(1, h.slot-recentSlots+1); n <= h.slot; n++ {
			sum.calls += e.ring[n%slots].calls
			sum.failed += e.ring[n%slots].failed
		}
		if sum.calls > 0 {
			of[name] = sum
		}
	}
	return of, recentSlots * slotLength
}

// shares are the calls per backend of one service, a number per wide slot, the oldest first.
type shares struct {
	Times []int64            `json:"times"` // when each wide slot ended, Unix ms
	Of    map[string][]int64 `json:"of"`
	Over  int                `json:"over,omitempty"` // backends without a past, for there are too many
}

// of is the past of one service, nil if it has none.
func (h *history) of(name string) (l *lines, times []int64, s *shares) {
	h.mu.Lock()
	defer h.mu.Unlock()
	times = h.timesLocked()
	e := h.services[name]
	if e == nil {
		return nil, times, nil
	}
	s = &shares{Of: make(map[string][]int64), Over: e.over}
	from, to := h.kept()
	first, last := (from+wide-1)/wide, to/wide // the oldest may have lost its first half
	for w := first; w <= last; w++ {
		s.Times = append(s.Times, h.times[min(w*wide+wide-1, to)%slots].UnixMilli())
	}
	for addr, b := range e.backends {
		if b.ring == nil {
			continue
		}
		s.Of[addr.String()] = b.line(first, last)
	}
	return h.linesLocked(e), times, s
}

func (b *backendPast) line(first, last int64) []int64 {
	out := make([]int64, 0, wideSlots)
	for w := first; w <= last; w++ {
		out = append(out, int64(b.ring[w%wideSlots]))
	}
	return out
}

// sum is a backend's calls in all of s.
func (s *shares) sum(addr string) (n int64) {
	for _, one := range s.Of[addr] {
		n += one
	}
	return n
}

// fold leaves the lines of those that are wanted and of the most busy, and returns the sum of the others.
func (s *shares) fold(wanted map[string]bool, most int) (others []int64, folded int) {
	by := make([]string, 0, len(s.Of))
	for addr := range s.Of {
		by = append(by, addr)
	}
	slices.SortFunc(by, func(a, b string) int {
		if d := s.sum(b) - s.sum(a); d != 0 {
			return int(max(-1, min(1, d)))
		}
		x, _ := netip.ParseAddrPort(a)
		y, _ := netip.ParseAddrPort(b)
		return x.Compare(y)
	})
	others = make([]int64, len(s.Times))
	for i, addr := range by {
		if i < most || wanted[addr] {
			continue
		}
		for j, n := range s.Of[addr] {
			others[j] += n
		}
		delete(s.Of, addr)
		folded++
	}
	return others, folded
}

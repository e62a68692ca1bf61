package discovery

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/service"
)

// guardStory drives a guard with verbs: `0s list 1-10`, `+1s list 1,2`, `leave 3`, `accept`, `tend`; `purpose 3-5` names those that somebody takes out with the next
// list, `drain 3` those that drain in the lists from here on.
type guardStory struct {
	t       *testing.T
	g       guard
	now     time.Time
	drains  map[int]bool
	purpose map[int]bool
}

func newGuardStory(t *testing.T) *guardStory {
	return &guardStory{t: t, g: guard{hold: 10 * time.Minute}, now: time.Unix(1e9, 0), drains: map[int]bool{}}
}

func numbers(s string) map[int]bool {
	out := map[int]bool{}
	for part := range strings.SplitSeq(s, ",") {
		var a, b int
		if n, _ := fmt.Sscanf(part, "%d-%d", &a, &b); n == 1 {
			b = a
		} else if n == 0 {
			continue
		}
		for i := a; i <= b; i++ {
			out[i] = true
		}
	}
	return out
}

func addrOf(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
}

func numberOf(a netip.AddrPort) int { b := a.Addr().As4(); return int(b[2])<<8 | int(b[3]) }

func (s *guardStory) backends(of map[int]bool) []*service.Backend {
	var out []*service.Backend
	for i := range of {
		out = append(out, &service.Backend{Addr: addrOf(i), Weight: 1, Draining: s.drains[i]})
	}
	slices.SortFunc(out, byAddr)
	return out
}

func (s *guardStory) do(step string) {
	verb, what, _ := strings.Cut(step, " ")
	if d, err := time.ParseDuration(strings.TrimPrefix(verb, "+")); err == nil {
		s.now = s.now.Add(d)
		s.do(what)
		return
	}
	of := numbers(what)
	switch verb {
	case "list":
		s.g.set(s.now, s.backends(of), func(a netip.AddrPort) bool { return s.purpose[numberOf(a)] })
		s.purpose = nil
	case "purpose":
		s.purpose = of
	case "drain":
		s.drains = of
	case "leave":
		s.g.leave(func(a netip.AddrPort) bool { return of[numberOf(a)] })
	case "accept":
		s.g.accept()
	case "tend":
		s.g.over(s.now)
	default:
		s.t.Fatalf("no such step: %q", step)
	}
}

// state is what the list is: `1 2 3* 4*`, orphans with a star.
func (s *guardStory) state() string {
	var out []string
	for _, b := range s.g.backends() {
		star := ""
		if !b.Orphaned.IsZero() {
			star = "*"
		}
		out = append(out, fmt.Sprint(numberOf(b.Addr), star))
	}
	return strings.Join(out, " ")
}

// 1.9 and 1.10, rule by rule.
func TestGuard(t *testing.T) {
	for name, c := range map[string]struct{ steps, want string }{
		"first list":                       {"list 1-3", "1 2 3"},
		"one leaves":                       {"list 1-10; list 2-10", "2 3 4 5 6 7 8 9 10"},
		"half leaves":                      {"list 1-4; list 1-2", "1 2"},
		"more than half":                   {"list 1-5; list 1-2", "1 2 3* 4* 5*"},
		"all":                              {"list 1-2; list", "1* 2*"},
		"all of one":                       {"list 1; list", "1*"},
		"another for the only one":         {"list 1; list; +1s list 2", "2"},
		"two for the only one":             {"list 1; list; +1s list 2,3", "2 3"},
		"the only one comes back":          {"list 1; list; +1s list 1", "1"},
		"one of two comes back":            {"list 1-2; list; +1s list 1", "1 2*"},
		"another for one of two":           {"list 1-2; list; +1s list 3", "1* 2* 3"},
		"two of three is a mass":           {"list 1-3; list 1", "1 2* 3*"},
		"one of two is none":               {"list 1-2; list 1", "1"},
		"swap":                             {"list 1-10; list 11-20", "11 12 13 14 15 16 17 18 19 20"},
		"swap by adding first":             {"list 1-10; list 1-20; list 11-20", "11 12 13 14 15 16 17 18 19 20"},
		"one after another, fast":          {"list 1-5; +1s list 1-4; +1s list 1-3; +1s list 1-2", "1 2 3* 4* 5*"},
		"one after another, slowly":        {"list 1-5; +11s list 1-4; +11s list 1-3; +11s list 1-2; +11s list 1", "1"},
		"the last one, slowly":             {"list 1-3; +11s list 1-2; +11s list 1; +11s list", "1*"},
		"draining before":                  {"drain 1-3; list 1-6; list 6", "4* 5* 6"},
		"on purpose":                       {"list 1-10; purpose 3-10; list 1-2", "1 2"},
		"one of them on purpose":           {"list 1-10; purpose 3; list 1-2", "1 2 4* 5* 6* 7* 8* 9* 10*"},
		"most on purpose: no mass":         {"list 1-10; purpose 4-10; list 1-2", "1 2"},
		"after some on purpose":            {"list 1-10; purpose 3-10; list 1-2; +1s list 1", "1"},
		"in waves, some on purpose":        {"list 1-10; purpose 1-5; list 7-10; +1s list 10", "6* 7* 8* 9* 10"},
		"what left before, on purpose":     {"list 1-5; +1s list 1-3; purpose 4,5; +1s list 1-2", "1 2"},
		"after a swap on purpose":          {"list 1-5; +1s list 11-15; purpose 1-5; +1s list", "11* 12* 13* 14* 15*"},
		"after swaps one by one":           {"list 1-3; +1s list 2-4; +1s list 3-5; +1s list 4-6; purpose 1-3; +1s list 6", "4* 5* 6"},
		"after one by one, added first":    {"list 1-3; +1s list 1-4; list 2-4; +1s list 2-5; list 3-5; purpose 1,2; +1s list 5", "3* 4* 5"},
		"some of the largest, on purpose":  {"list 1-9; +1s list 1-8; +1s list 1-7; purpose 8-9; +1s list 1-3", "1 2 3 4* 5* 6* 7*"},
		"so many that it is none":          {"list 1-9; +1s list 1-6; purpose 7-9; +1s list 1-4", "1 2 3 4"},
		"back":                             {"list 1-5; list 1; list 1-3", "1 2 3 4* 5*"},
		"all back":                         {"list 1-5; list; list 1-5", "1 2 3 4 5"},
		"back, and away again: no mass":    {"list 1-5; list 1; +1s list 1-5; +11s list 1-4", "1 2 3 4"},
		"leave":                            {"list 1-5; list 1; leave 2,3", "1 4* 5*"},
		"leave what is listed":             {"list 1-5; leave 2,3", "1 2 3 4 5"},
		"another mass while held":          {"list 1-10; list 1-4; +1m list 1-3", "1 2 3 4* 5* 6* 7* 8* 9* 10*"},
		"no mass while held, if recovered": {"list 1-10; list 1-4; +1m list 1-6; +1m list 1-5", "1 2 3 4 5 7* 8* 9* 10*"},
		"not over: list too small":         {"list 1-10; list 1-4; +1h tend", "1 2 3 4 5* 6* 7* 8* 9* 10*"},
		"not over: too early":              {"list 1-10; list 1-4; +1m list 1-6; +8m59s tend", "1 2 3 4 5 6 7* 8* 9* 10*"},
		"over":                             {"list 1-10; list 1-4; +1m list 1-6; +9m tend", "1 2 3 4 5 6"},
		"each by its own since":            {"list 1-10; list 1-4; +1m list 1-3; +1m list 1-3,11-19; +8m tend", "1 2 3 4* 11 12 13 14 15 16 17 18 19"},
		"accept":                           {"list 1-10; list 1-4; accept", "1 2 3 4"},
		"accept, then one leaves":          {"list 1-10; list 1-4; accept; +1s list 1-3", "1 2 3"},
		"accept, then all":                 {"list 1-10; list 1-4; accept; +1s list", "1* 2* 3* 4*"},
		"what left before the mass":        {"list 1-10; +1s list 2-10; +1s list 9-10", "1* 2* 3* 4* 5* 6* 7* 8* 9 10"},
		"what left long before":            {"list 1-10; +1s list 2-10; +10s list 9-10", "2* 3* 4* 5* 6* 7* 8* 9 10"},
		"gone orphans don't come back":     {"list 1-10; list 9-10; leave 1-8; +1s list 9", "9"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newGuardStory(t)
			for step := range strings.SplitSeq(c.steps, "; ") {
				s.do(step)
			}
			if got := s.state(); got != c.want {
				t.Errorf("%s\ngot  %s\nwant %s", c.steps, got, c.want)
			}
		})
	}
}

// A list of the spool is compared with the first one of etcd if it is younger than hold (1.10), and its orphans go on with their since.
func TestGuardSeed(t *testing.T) {
	for name, c := range map[string]struct {
		hold, age time.Duration
		orphans   string
		steps     string
		want      string
	}{
		"young":             {10 * time.Minute, 9 * time.Minute, "", "list 1", "1 2* 3* 4* 5*"},
		"old":               {10 * time.Minute, 10 * time.Minute, "", "list 1", "1"},
		"orphans stay":      {10 * time.Minute, time.Minute, "3-5", "list 1-2", "1 2 3* 4* 5*"},
		"orphans go on":     {10 * time.Minute, time.Minute, "3-5", "list 1-3; +5m tend", "1 2 3"},
		"old orphans go":    {10 * time.Minute, time.Hour, "3-5", "list 1-2", "1 2"},
		"until then, shown": {10 * time.Minute, time.Hour, "3-5", "tend", "1 2 3* 4* 5*"},
		"off":               {0, time.Minute, "3-5", "tend", "1 2"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newGuardStory(t)
			s.g.hold = c.hold
			backends := s.backends(numbers("1-5"))
			for i := range backends {
				if numbers(c.orphans)[numberOf(backends[i].Addr)] {
					backends[i].Orphaned = s.now.Add(-5 * time.Minute)
				}
			}
			listed, orphans := splitOrphans(backends)
			s.g.seed(listed, orphans, c.age)
			for step := range strings.SplitSeq(c.steps, "; ") {
				s.do(step)
			}
			if got := s.state(); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// A person is told every 10 min, and the guard says when it has to be asked (1.10).
func TestGuardDue(t *testing.T) {
	s := newGuardStory(t)
	s.do("list 1-10")
	if at := s.g.due(); !at.IsZero() {
		t.Errorf("due at %v without orphans", at)
	}
	s.do("+1m list 1-2")
	for range 3 {
		at := s.g.due()
		if d := at.Sub(s.now); d != guardRemind {
			t.Fatalf("due in %v", d)
		}
		if s.g.remind(at.Add(-1)) || !s.g.remind(at) || s.g.remind(at) {
			t.Error("not told once")
		}
		s.now = at
	}
	s.do("+1m list 1-9")
	if at := s.g.due(); at.After(s.now) { // the hold is over
		t.Errorf("due at %v", at)
	}
	s.do("tend")
	if got := s.state(); got != "1 2 3 4 5 6 7 8 9" {
		t.Errorf("list %s", got)
	}
}

// Whatever happens: the list has what the keys say, each address once, orphans only of what was listed before, and is never empty without anybody's word; memory is bounded.
func TestGuardRandom(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newGuardStory(t)
		ever := map[int]bool{}
		for range 60 {
			s.now = s.now.Add(time.Duration(r.IntN(20000)) * time.Millisecond)
			had := len(s.g.backends())
			spoken := false
			switch r.IntN(10) {
			case 0:
				spoken = true
				s.g.accept()
			case 1:
				spoken = true
				s.g.leave(func(netip.AddrPort) bool { return r.IntN(3) == 0 })
			case 2:
				s.g.over(s.now)
			}
			of := map[int]bool{}
			for range []int{0, 2, 12, 30}[r.IntN(4)] {
				of[r.IntN(20)] = true
			}
			next := s.backends(of)
			s.g.set(s.now, next, func(netip.AddrPort) bool { return false })
			got := s.g.backends()
			if !slices.IsSortedFunc(got, byAddr) {
				t.Fatalf("seed %d: not sorted: %s", seed, s.state())
			}
			listed := 0
			for i := range got {
				n := numberOf(got[i].Addr)
				if i > 0 && got[i-1].Addr == got[i].Addr {
					t.Fatalf("seed %d: %d twice: %s", seed, n, s.state())
				}
				if got[i].Orphaned.IsZero() {
					listed++
				} else if of[n] || !ever[n] {
					t.Fatalf("seed %d: %d is no orphan: %s", seed, n, s.state())
				}
			}
			if listed != len(of) {
				t.Fatalf("seed %d: %d of %d listed", seed, listed, len(of))
			}
			if had > 0 && len(got) == 0 && !spoken {
				t.Fatalf("seed %d: empty", seed)
			}
			for n := range of {
				ever[n] = true
			}
			if len(s.g.sizes) > 60 || len(s.g.left) > 20 {
				t.Fatalf("seed %d: %d sizes, %d left", seed, len(s.g.sizes), len(s.g.left))
			}
		}
	}
}

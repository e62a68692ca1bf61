package table

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// check compares a roster with the list, and with what is counted from nothing.
func (r *roster) check(l *service.List) error {
	n := 0
	var fresh edit
	for k, c := range r.chunks {
		if len(c.backends) == 0 || len(c.backends) > chunkMost || int(r.starts[k]) != n {
			return fmt.Errorf("chunk %d has %d backends and begins at %d, want %d", k, len(c.backends), r.starts[k], n)
		}
		n += len(c.backends)
		fresh.put(slices.Clone(c.backends))
	}
	if n != len(l.Backends) {
		return fmt.Errorf("%d backends, want %d", n, len(l.Backends))
	}
	fresh.seal()
	if r.sums != fresh.sums || !slices.Equal(r.groups, fresh.groups) {
		return fmt.Errorf("sums %+v of %+v, want %+v of %+v", r.sums, r.groups, fresh.sums, fresh.groups)
	}
	for i, b := range r.each() {
		if r.at(i) != b || b.Addr != l.Backends[i].Addr {
			return fmt.Errorf("backend %d is %v, want %v", i, r.at(i).Addr, l.Backends[i].Addr)
		}
		if at, ok := r.index(b.Addr); !ok || at != i {
			return fmt.Errorf("%v is at %d, want %d", b.Addr, at, i)
		}
	}
	return nil
}

// Random lists and verdicts: what a view counts is what is there, chunks stay small and few, and no view changes when the next is made.
func TestRoster(t *testing.T) {
	for seed := range uint64(2) {
		rng := rand.New(rand.NewPCG(seed, 1))
		r := newRig(t)
		sp := spec("user")
		sp.SlowStart, sp.DynamicWeight, sp.Zone, sp.Subset = 15*time.Second, true, "z0", []int{0, 32}[seed%2]
		r.SetSpec(r.now, sp)
		s := r.Lookup("user")
		in := map[int]bool{}
		for step := range 120 {
			r.now = r.now.Add(time.Duration(rng.IntN(3000)) * time.Millisecond)
			v := s.View()
			before := slices.Collect(func(yield func(Placed) bool) {
				for _, b := range v.Backends() {
					c := *b.Backend
					if b.Backend = &c; !yield(b) {
						return
					}
				}
			})
			switch n := v.Len(); {
			case step%3 == 0 || n == 0:
				for range rng.IntN(1 + rng.IntN(300)) {
					id := rng.IntN(1000)
					in[id] = !in[id]
				}
				l := list("user")
				for id := range 1000 {
					if in[id] {
						l.Backends = append(l.Backends, list("", id).Backends...)
						l.Backends[len(l.Backends)-1].Zone = fmt.Sprint("z", id%3)
						l.Backends[len(l.Backends)-1].Priority = uint16(id % 5 / 4)
					}
				}
				r.Apply(r.now, l)
			case step%3 == 1:
				id := rng.IntN(n)
				b := v.Backend(id)
				r.judge(s, number(b.Backend), []health.Part{isUp, ejected, downHard, unreachable}[rng.IntN(4)])
				next := s.View()
				for k, c := range next.roster.chunks {
					if touched := v.roster.chunkOf(id) == k; touched == (c == v.roster.chunks[k]) && !s.slow && next.roster.sums.slow == v.roster.sums.slow {
						t.Fatalf("seed %d, step %d: chunk %d touched %v, shared %v", seed, step, k, touched, c == v.roster.chunks[k])
					}
				}
			default:
				r.Second(r.now)
			}
			if err := s.View().roster.check(s.View().List); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			for i, b := range before {
				if is := v.Backend(i); *is.Backend != *b.Backend || is.Weight != b.Weight || is.Factors != b.Factors || is.Outside != b.Outside || is.Standby != b.Standby {
					t.Fatalf("seed %d, step %d: backend %d of the view before is %+v, was %+v", seed, step, i, is, b)
				}
			}
		}
		if n, chunks := s.View().Len(), len(s.View().roster.chunks); chunks > 4*(n/chunkMost+1) {
			t.Errorf("seed %d: %d backends in %d chunks", seed, n, chunks)
		}
	}
}

// A list that grows and shrinks by one backend at a time has few chunks at any time.
func TestRosterStaysWhole(t *testing.T) {
	r, s := user(t, 1)
	all := list("user", ids(600)...)
	step := func(from, to int) {
		t.Helper()
		l := *all
		l.Backends = all.Backends[from:to]
		r.Table.Apply(r.now, &l)
		v := s.View()
		if err := v.roster.check(&l); err != nil {
			t.Fatal(err)
		}
		if n, chunks := v.Len(), len(v.roster.chunks); chunks > 2*n/chunkMost+2 {
			t.Fatalf("%d backends in %d chunks", n, chunks)
		}
	}
	for n := range 600 {
		step(0, n+1)
	}
	for n := range 500 {
		step(n, 600)
	}
	for n := range 500 {
		step(500-n, 600)
	}
	for n := range 600 {
		step(0, 600-n)
	}
}

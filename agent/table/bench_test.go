package table

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
	"golang.org/x/sys/unix"
)

// with is l and one backend more.
func with(l *service.List, id int) *service.List {
	n := *l
	b := &service.Backend{Addr: addr(id), Weight: 100, Created: 1, Modified: 1}
	at, _ := slices.BinarySearchFunc(l.Backends, b, func(a, b *service.Backend) int { return a.Addr.Compare(b.Addr) })
	n.Backends = slices.Insert(slices.Clone(l.Backends), at, b)
	return &n
}

// ballast is a heap like that of an agent that knows such lists: beside nothing, the collector would run every few changes.
func ballast(b *testing.B) {
	heap := make([]byte, 64<<20)
	b.Cleanup(func() { runtime.KeepAlive(heap) })
	runtime.GC()
}

// threadTime reports the processor time of the benchmark's own thread: what a change costs, whoever else is on this machine.
func threadTime(b *testing.B) (stop func()) {
	runtime.LockOSThread()
	var before, after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &before); err != nil {
		b.Fatal(err)
	}
	return func() {
		if err := unix.Getrusage(unix.RUSAGE_THREAD, &after); err != nil {
			b.Fatal(err)
		}
		runtime.UnlockOSThread()
		spent := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
		b.ReportMetric(float64(spent)/float64(b.N), "cpu-ns/op")
	}
}

// whole is a service with everything of section 3 on, whose backends are in three zones.
func whole(b *testing.B, n int) (*rig, *Service, *service.List) {
	r := newRig(b)
	sp := spec("user")
	sp.DynamicWeight, sp.SlowStart, sp.Subset, sp.Zone = true, 15*time.Second, 32, "z0"
	r.SetSpec(r.now, sp)
	l := list("user", ids(n)...)
	for i := range l.Backends {
		l.Backends[i].Zone = fmt.Sprint("z", i%3)
	}
	r.Table.Apply(r.now, l)
	r.Second(r.now)
	return r, r.Lookup("user"), l
}

// A change in a list of 10,000 takes at most 200 µs (3.11).
func BenchmarkListChange(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r, _, l := whole(b, n)
			lists := []*service.List{l}
			lists = append(lists, with(lists[0], n))
			b.ReportAllocs()
			ballast(b)
			defer threadTime(b)()
			i := 0
			for b.Loop() {
				i++
				r.Table.Apply(r.now, lists[i%2])
			}
		})
	}
}

func BenchmarkVerdictChange(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r, s := user(b, n)
			backend := s.View().Backend(n / 2)
			change := []health.Change{{Group: "user", Addr: backend.Addr, State: backend.State, From: isUp}}
			b.ReportAllocs()
			ballast(b)
			defer threadTime(b)()
			i := 0
			for b.Loop() {
				i++
				change[0].To = []health.Part{ejected, isUp}[i%2]
				r.SetVerdicts(r.now, change)
			}
		})
	}
}

// A second in which weights move costs as much as any other change (3.11), and one in which none does next to nothing.
func BenchmarkSecond(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000} {
		for _, moves := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d/moves=%v", n, moves), func(b *testing.B) {
				r, s, _ := whole(b, n)
				r.Second(r.now.Add(time.Second))
				b.ReportAllocs()
				ballast(b)
				defer threadTime(b)()
				i := 0
				for b.Loop() {
					i++
					if moves {
						s.View().Backend(i%n).State.End(r.now, health.Failure, 0, true, "HTTP 503")
					}
					r.Second(r.now.Add(time.Duration(i) * sampleTime))
				}
			})
		}
	}
}

// A pick takes at most 200 ns and allocates nothing, whatever the size of the list (3.11).
func BenchmarkViewPick(b *testing.B) {
	for _, policy := range []picker.Policy{picker.P2C, picker.RoundRobin, picker.LeastRequest, picker.Weighted, picker.Hash} {
		for _, n := range []int{1, 10, 100, 1000, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", policy, n), func(b *testing.B) {
				r, s, _ := whole(b, n)
				sp := *s.Spec()
				sp.Policy, sp.Subset = policy, 0
				r.SetSpec(r.now, sp)
				for _, be := range s.View().Backends() {
					be.State.Begin()
					be.State.End(r.now, health.Success, time.Millisecond, true, "")
				}
				b.ReportAllocs()
				defer threadTime(b)()
				for b.Loop() {
					s.View().Pick(r.now, nil)
				}
			})
		}
	}
}

// Two loops and more pick at once: what they share must not slow them down.
func BenchmarkViewPickParallel(b *testing.B) {
	for _, policy := range []picker.Policy{picker.P2C, picker.RoundRobin} {
		b.Run(string(policy), func(b *testing.B) {
			r, s := user(b, 100)
			sp := spec("user")
			sp.Policy = policy
			r.SetSpec(r.now, sp)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					s.View().Pick(r.now, nil)
				}
			})
		})
	}
}

// The sentence for a call that got no backend is made on an event loop.
func BenchmarkUnusable(b *testing.B) {
	for _, n := range []int{5, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r, s := user(b, n)
			b.ReportAllocs()
			for b.Loop() {
				s.View().Unusable(r.now)
			}
		})
	}
}

func BenchmarkLookup(b *testing.B) {
	r := newRig(b)
	for i := range 1000 {
		r.SetSpec(r.now, spec(fmt.Sprintf("service-%d", i)))
	}
	b.ReportAllocs()
	for b.Loop() {
		if r.Lookup("service-500") == nil {
			b.Fatal("not found")
		}
	}
}

// The table of 1,000 services of 100 backends, as at a start with a spool.
func BenchmarkStart(b *testing.B) {
	lists := make([]*service.List, 1000)
	for i := range lists {
		lists[i] = list(fmt.Sprintf("service-%d", i), ids(100)...)
	}
	b.ReportAllocs()
	for b.Loop() {
		r := newRig(b)
		for _, l := range lists {
			r.SetSpec(r.now, spec(l.Service))
			r.Table.Apply(r.now, l)
		}
	}
}

package table

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// rig is a table with what its hooks were told.
type rig struct {
	*Table
	t       testing.TB
	now     time.Time
	events  *event.Log
	targets map[string]health.Targets
	options map[string]health.Options
	active  map[string]bool
	sent    int // calls of OnTargets
	marks   int // calls of OnPublish
}

func newRig(t testing.TB) *rig {
	r := &rig{t: t, now: time.Now(), events: event.NewLog(100), targets: map[string]health.Targets{}, options: map[string]health.Options{}, active: map[string]bool{}}
	table, err := New(Config{
		Log:       hclog.NewNullLogger(),
		Events:    r.events,
		OnTargets: func(g string, o health.Options, ts health.Targets) { r.targets[g], r.options[g] = ts, o; r.sent++ },
		OnActive:  func(g string, a bool) { r.active[g] = a },
		OnPublish: func(*Service) { r.marks++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Table = table
	return r
}

func spec(name string) Spec {
	return Spec{
		Name: name, Policy: picker.P2C, PanicPercent: 50, Drain: 30 * time.Second, InUse: true,
		Health: health.Options{Probe: health.ProbeTCP, Interval: 5 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3,
			Eject: true, Consecutive: 5, EjectBase: time.Second, EjectMax: time.Minute, MaxPercent: 50},
	}
}

// Apply gives the table a copy of l that shares records with the list before where they say the same, as lists of discovery do.
func (r *rig) Apply(now time.Time, l *service.List) {
	n := *l
	n.Backends = slices.Clone(l.Backends)
	var before []*service.Backend
	if s := r.Lookup(l.Service); s != nil {
		before = s.View().List.Backends
	}
	for i, b := range n.Backends {
		n.Backends[i] = new(*b)
		if at, ok := slices.BinarySearchFunc(before, b, func(a, b *service.Backend) int { return a.Addr.Compare(b.Addr) }); ok && reflect.DeepEqual(before[at], b) {
			n.Backends[i] = before[at]
		}
	}
	r.Table.Apply(now, &n)
}

// advance lets time go by in a bubble, and everything that follows from it happen.
func advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func addr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
}

// list has backends with the given numbers, which must rise.
func list(name string, ids ...int) *service.List {
	l := &service.List{Service: name, Source: service.FromEtcd, Epoch: 1, Revision: 1}
	for _, i := range ids {
		l.Backends = append(l.Backends, &service.Backend{Addr: addr(i), Weight: 100, Created: 1, Modified: 1})
	}
	return l
}

func ids(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// user has a service "user" with n backends.
func user(t testing.TB, n int) (*rig, *Service) {
	r := newRig(t)
	r.SetSpec(r.now, spec("user"))
	r.Apply(r.now, list("user", ids(n)...))
	return r, r.Lookup("user")
}

// judge sets the verdict of a backend as health would.
func (r *rig) judge(s *Service, id int, p health.Part) {
	r.t.Helper()
	b := s.View().Find(addr(id))
	if b == nil {
		r.t.Fatalf("no backend %d", id)
	}
	r.SetVerdicts(r.now, []health.Change{{Group: s.Name(), Addr: b.Addr, State: b.State, From: *b.Verdict, To: p}})
}

// counts picks n times and counts backends by number.
func counts(v *View, now time.Time, n int, tried ...*health.State) map[int]int {
	got := map[int]int{}
	for range n {
		b := v.Pick(now, tried)
		if b == nil {
			got[-1]++
			continue
		}
		got[number(b)]++
	}
	return got
}

func number(b *Backend) int {
	a := b.Addr.Addr().As4()
	return int(a[2])<<8 | int(a[3])
}

func picked(got map[int]int) []int {
	var all []int
	for i := range got {
		all = append(all, i)
	}
	slices.Sort(all)
	return all
}

func (r *rig) details(kind event.Kind) []string {
	var all []string
	events, _ := r.events.Since(0)
	for _, e := range events {
		if e.Kind == kind {
			all = append(all, e.Detail)
		}
	}
	return all
}

var (
	downSoft    = health.Part{Kind: health.Down, Soft: true, Cause: "probe failed 3 times", Last: "HTTP 503"}
	downHard    = health.Part{Kind: health.Down, Cause: "probe failed 3 times", Last: "timeout"}
	unreachable = health.Part{Kind: health.Unreachable, Cause: "3 failed connects in a row", Last: "connection refused"}
	ejected     = health.Part{Kind: health.Ejected, Soft: true, Cause: "5 failures in a row", Last: "connection reset"}
	isUp        = health.Part{Kind: health.Up}
)

package admin

import (
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
)

// pastRig drives a history by hand, a slot at a time.
type pastRig struct {
	*history
	now time.Time
}

func newPastRig(t *testing.T) *pastRig {
	t.Helper()
	tab, err := table.New(table.Config{Log: hclog.NewNullLogger(), Events: event.NewLog(10)})
	if err != nil {
		t.Fatal(err)
	}
	return &pastRig{history: newHistory(tab, nil), now: start()}
}

func (r *pastRig) tick(p Proxy) {
	r.now = r.now.Add(slotLength)
	r.take(r.now, p, r.table.Services())
}

func TestSharesFollowTheCalls(t *testing.T) {
	r := newPastRig(t)
	s := put(r.table, "user", 1, 2, 3)
	call(s, 1, 50, health.Success) // before anybody counted: nobody knows when
	r.tick(Proxy{})
	call(s, 1, 3, health.Success)
	call(s, 2, 1, health.Failure)
	r.tick(Proxy{}) // slot 2: the first half of wide slot 1
	call(s, 1, 2, health.Timeout)
	r.tick(Proxy{}) // its second half
	call(s, 2, 7, health.Success)
	put(r.table, "user", 1, 2, 3, 4)
	call(r.table.Lookup("user"), 4, 5, health.Success) // new: all of its calls are of this slot
	r.tick(Proxy{})
	_, _, got := r.of("user")
	if want := map[string][]int64{"10.0.0.1:80": {5, 0}, "10.0.0.2:80": {1, 7}, "10.0.0.4:80": {0, 5}}; !reflect.DeepEqual(got.Of, want) {
		t.Errorf("shares are %v, want %v", got.Of, want)
	}
	if want := []int64{start().Add(3 * slotLength).UnixMilli(), start().Add(4 * slotLength).UnixMilli()}; !reflect.DeepEqual(got.Times, want) {
		t.Errorf("times are %v, want %v", got.Times, want)
	}

	// One that left the list stays in the picture until its calls are ten minutes old; another life of an address begins at 0.
	put(r.table, "user", 1, 3, 4)
	r.tick(Proxy{})
	if _, _, got := r.of("user"); got.sum("10.0.0.2:80") != 8 {
		t.Errorf("the calls of one that left: %v", got.Of)
	}
	for range slots {
		r.tick(Proxy{})
	}
	if _, _, got := r.of("user"); len(got.Of) != 0 {
		t.Errorf("calls from before: %v", got.Of)
	}
	if r.watched != 3 || r.rings != 0 {
		t.Errorf("%d backends are watched and %d have a past, want 3 and 0", r.watched, r.rings)
	}
	put(r.table, "user", 2)
	call(r.table.Lookup("user"), 2, 4, health.Success)
	r.tick(Proxy{})
	if _, _, got := r.of("user"); got.sum("10.0.0.2:80") != 4 {
		t.Errorf("another life: %v", got.Of)
	}
}

// Another life of an address has a state of its own, whose counters begin at 0.
func TestAnotherLifeCountsAnew(t *testing.T) {
	r := newPastRig(t)
	s := put(r.table, "user", 1, 2)
	r.tick(Proxy{})
	call(s, 1, 9, health.Success)
	r.tick(Proxy{})
	l := *s.View().List
	l.Backends = slices.Clone(l.Backends)
	l.Backends[0] = new(*l.Backends[0])
	l.Revision, l.Backends[0].Created = 2, 2
	before := s.View().Find(addr(1)).State
	if r.table.Apply(start(), &l); s.View().Find(addr(1)).State == before {
		t.Fatal("it is the same life")
	}
	call(s, 1, 3, health.Success)
	r.tick(Proxy{})
	if _, _, got := r.of("user"); got.sum("10.0.0.1:80") != 12 {
		t.Errorf("the calls of both lives: %v, want 12", got.Of)
	}
}

func TestLinesComeFromTheProxyAndFromReports(t *testing.T) {
	r := newPastRig(t)
	s := put(r.table, "user", 1)
	bounds := []time.Duration{time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond}
	proxy := func(ok, failed uint64, buckets ...uint64) Proxy {
		return Proxy{LatencyBounds: bounds, Services: []Calls{{
			Service: "user", Codes: []Code{{"grpc", "ok", ok}, {"http1", "4xx", 1}, {"grpc", "unavailable", failed}},
			Latencies: []Latency{{Protocol: "h2", Histogram: Histogram{Buckets: buckets}}, {Protocol: "tcp", Histogram: Histogram{Buckets: []uint64{0, 0, 0, ok}}}},
		}}}
	}
	r.tick(proxy(100, 5, 50, 50, 0, 0))
	s.View().Find(addr(1)).State.Report(r.now, 1000, health.Failure, 0, 3, "HTTP 503")
	r.tick(proxy(120, 10, 50, 150, 0, 0)) // all of 1 to 2 ms
	r.tick(Proxy{Missing: 1})
	r.tick(proxy(121, 10, 50, 150, 0, 0))
	got, times, _ := r.of("user")
	want := &lines{Calls: []int64{0, 28, -1, 1}, Failed: []int64{0, 8, -1, 0}, P50: []int64{0, 1414, -1, 0}, P99: []int64{0, 1986, -1, 0}}
	if !reflect.DeepEqual(got, want) || len(times) != 4 {
		t.Errorf("lines are %+v, want %+v", got, want)
	}
	if of, _ := r.recent(); of["user"].calls != 29 || of["user"].failed != 8 {
		t.Errorf("the last half minute: %+v", of)
	}
	if last := r.last(); last.Services["user"] != [4]int64{1, 0, 0, 0} || last.Time != r.now.UnixMilli() {
		t.Errorf("the last slot: %+v", last)
	}
	if all := r.all(); len(all.Services) != 1 || len(all.Times) != 4 {
		t.Errorf("all: %+v", all)
	}
}

func TestQuantile(t *testing.T) {
	bounds := []time.Duration{time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond}
	tests := []struct {
		q       float64
		buckets []uint64
		want    time.Duration
	}{
		{0.5, []uint64{0, 0, 0, 0}, 0},
		{0.5, []uint64{0, 2, 0, 0}, 1414 * time.Microsecond},
		{0.5, []uint64{1, 1, 1, 1}, 2 * time.Millisecond},
		{0.99, []uint64{99, 0, 1, 0}, time.Millisecond},
		{1, []uint64{0, 0, 1, 0}, 4 * time.Millisecond},
		{0.99, []uint64{0, 0, 0, 5}, 4 * time.Millisecond}, // above the last bound
	}
	for _, tt := range tests {
		total := uint64(0)
		for _, n := range tt.buckets {
			total += n
		}
		if got := quantile(tt.q, tt.buckets, total, bounds).Truncate(time.Microsecond); got != tt.want {
			t.Errorf("%v of %v: %v, want %v", tt.q, tt.buckets, got, tt.want)
		}
	}
}

// Whatever the number of services and backends, what is kept has a bound.
func TestThePastIsBounded(t *testing.T) {
	r := newPastRig(t)
	const services, backends = maxServices + 16, 24 // 24,960 backends with calls
	all := r.fill(services, backends)
	before := heap()
	for range 2 {
		for _, s := range all {
			for b := range backends {
				call(s, b, 1, health.Success)
			}
		}
		r.tick(Proxy{})
	}
	if len(r.services) != maxServices || r.watched != maxWatched || r.rings != maxRings {
		t.Errorf("%d services, %d backends, %d rings are kept; the bounds are %d, %d, %d", len(r.services), r.watched, r.rings, maxServices, maxWatched, maxRings)
	}
	used := heap() - before
	t.Logf("%.1f MiB are kept for %d backends", float64(used)/(1<<20), services*backends)
	if used > 8<<20 {
		t.Errorf("%d bytes are kept", used)
	}
	over := 0
	for _, s := range all {
		if _, _, s := r.of(s.Name()); s != nil {
			over += s.Over
		}
	}
	if over != maxServices*backends-maxRings {
		t.Errorf("%d backends are told to have no past, want %d", over, maxServices*backends-maxRings)
	}
	if r.take(r.now, Proxy{}, nil); len(r.services) != 0 || r.watched != 0 || r.rings != 0 {
		t.Errorf("without services %d are kept, %d backends, %d rings", len(r.services), r.watched, r.rings)
	}
}

// Services that are idle make room for those that wait.
func TestIdleServicesMakeRoom(t *testing.T) {
	r := newPastRig(t)
	all := r.fill(maxServices+1, 1)
	r.tick(Proxy{})
	late := all[0]
	if r.services[late.Name()] != nil {
		t.Fatal("there was room for one more")
	}
	for range slots + 2 {
		call(all[9], 0, 1, health.Success)
		call(late, 0, 1, health.Success)
		r.tick(Proxy{})
	}
	for _, s := range []*table.Service{all[9], late} {
		if _, _, got := r.of(s.Name()); got == nil {
			t.Errorf("%s is busy and has no past", s.Name())
		}
	}
}

// fill gives the table services in use.
func (r *pastRig) fill(services, backends int) (all []*table.Service) {
	var specs []table.Spec
	for i := range services {
		specs = append(specs, table.Spec{Name: name(i), Policy: picker.P2C, PanicPercent: 50, InUse: true})
	}
	r.table.SetSpec(start(), specs...)
	var addrs []int
	for i := range backends {
		addrs = append(addrs, i)
	}
	for i := range services {
		all = append(all, put(r.table, name(i), addrs...))
	}
	return all
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestFoldKeepsTheBusiestAndTheWanted(t *testing.T) {
	s := &shares{Times: []int64{1, 2}, Of: map[string][]int64{}}
	for i := range 6 {
		s.Of[fmt.Sprintf("10.0.0.%d:80", i)] = []int64{int64(i), 1}
	}
	others, folded := s.fold(map[string]bool{"10.0.0.1:80": true}, 2)
	if folded != 3 || !reflect.DeepEqual(others, []int64{0 + 2 + 3, 3}) || len(s.Of) != 3 || s.Of["10.0.0.1:80"] == nil || s.Of["10.0.0.5:80"] == nil {
		t.Errorf("%d folded to %v, left %v", folded, others, s.Of)
	}
}

// BenchmarkTake is what the past costs every five seconds, with all the backends that it watches.
func BenchmarkTake(b *testing.B) {
	tab, err := table.New(table.Config{Log: hclog.NewNullLogger(), Events: event.NewLog(10)})
	if err != nil {
		b.Fatal(err)
	}
	var all []int
	for i := range 100 {
		all = append(all, i)
	}
	for i := range 123 {
		put(tab, name(i), all...)
	}
	h := newHistory(tab, nil)
	for b.Loop() {
		h.take(start(), Proxy{}, tab.Services())
	}
}

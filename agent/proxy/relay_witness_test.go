package proxy

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"runtime/metrics"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

const (
	// slowestCall is what a call of the witness may take while an attack runs, on a machine that has twenty times as much to do as it can, with the race
	// detector. How fast others are served beside an attack, TestTinyFramesTakeTurns and BenchmarkBesideTinyFrames say.
	slowestCall = 20 * time.Second
	// heapGrowth is by how much the heap may grow meanwhile, the attacker's and the backend's own memory included.
	heapGrowth = 64 << 20
)

// witness makes calls, one after the other, while an attack runs, and looks at the heap.
type witness struct {
	t          testing.TB
	what       string
	stop, done chan struct{}

	calls      atomic.Int64
	took       []time.Duration
	failed     error
	heap, most uint64 // in the beginning, and the most that was seen
	growth     uint64 // what the heap may grow by
	goroutines int
}

func (r *rig) witness(what string, client testpb.TestServiceClient) *witness {
	r.t.Helper()
	w := &witness{t: r.t, what: what, growth: heapGrowth, stop: make(chan struct{}), done: make(chan struct{})}
	call := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err := client.UnaryCall(ctx, &testpb.SimpleRequest{ResponseSize: 100})
		return err
	}
	if err := call(); err != nil { // connections are there from now on
		r.t.Fatalf("%s: before the attack: %v", what, err)
	}
	runtime.GC()
	w.heap, w.goroutines = heapInUse(), runtime.NumGoroutine()
	go func() {
		defer close(w.done)
		for w.failed == nil {
			select {
			case <-w.stop:
				return
			default:
			}
			start := time.Now()
			w.failed = call()
			w.took = append(w.took, time.Since(start))
			w.calls.Add(1)
			w.most = max(w.most, heapInUse())
		}
	}()
	return w
}

// end says what was seen. Goroutines must be as many as in the beginning soon.
func (w *witness) end() {
	w.t.Helper()
	close(w.stop)
	<-w.done
	slices.Sort(w.took)
	switch n := len(w.took); {
	case w.failed != nil:
		w.t.Errorf("%s: another client's call failed: %v", w.what, w.failed)
	case n < 10:
		w.t.Errorf("%s: another client came to %d calls", w.what, n)
	case w.took[n-1] > slowestCall:
		w.t.Errorf("%s: %d calls of another client took %v at most", w.what, n, w.took[n-1])
	}
	if w.most > w.heap+w.growth {
		w.t.Errorf("%s: the heap grew by %d MiB", w.what, (w.most-w.heap)>>20)
	}
	await(w.t, w.what+": goroutines as before", func() bool { return runtime.NumGoroutine() <= w.goroutines })
}

// heapInUse is the size of all objects, those that are dead and not yet collected included.
func heapInUse() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// other adds a service beside the rig's own, on the same loop, and returns a client of it.
func (r *rig) other(backends ...string) testpb.TestServiceClient {
	r.t.Helper()
	now := time.Now()
	r.table.SetSpec(now, table.Spec{
		Name: "other", Policy: picker.RoundRobin, PanicPercent: 50, InUse: true, Drain: 30 * time.Second,
		Health: health.Options{
			Probe: health.ProbeNone, HTTP2: true, Interval: 5 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3,
			Eject: true, Consecutive: 5, EjectBase: 100 * time.Millisecond, EjectMax: time.Second, MaxPercent: 100,
		},
	})
	list := &service.List{Service: "other", Source: service.FromStatic, Confirmed: now}
	for _, a := range backends {
		list.Backends = append(list.Backends, &service.Backend{Addr: netip.MustParseAddrPort(a), Weight: 100})
	}
	r.table.Apply(now, list)
	l, err := net.Listen("tcp", "127.0.0.1:0") // a free port
	if err != nil {
		r.t.Fatal(err)
	}
	l.Close()
	s := r.user
	s.Name, s.Listen = "other", []Addr{{TCP: netip.MustParseAddrPort(l.Addr().String())}}
	c, err := r.proxy.Prepare([]Service{r.user, s})
	if err != nil {
		r.t.Fatal(err)
	}
	c.Commit()
	cc, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { cc.Close() })
	return testpb.NewTestServiceClient(cc)
}

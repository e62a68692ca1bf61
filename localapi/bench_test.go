package localapi

import (
	"context"
	"slices"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// A pick beside the cheapest call that gRPC offers on the same socket, turn by turn, so that both see the same noise.
func BenchmarkPickBesideEmptyCall(b *testing.B) {
	r := newRig(b, nil)
	cc := dial(b, r.cfg.Socket)
	ctx := context.Background()
	empty := func() error {
		_, err := healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{})
		return err
	}
	pick := func() error {
		_, err := lbagentv1.NewLookupServiceClient(cc).Pick(ctx, &lbagentv1.PickRequest{Service: "user"})
		return err
	}
	var took [2][]time.Duration
	for b.Loop() {
		for i, call := range []func() error{empty, pick} {
			begin := time.Now()
			if err := call(); err != nil {
				b.Fatal(err)
			}
			took[i] = append(took[i], time.Since(begin))
		}
	}
	p50 := func(d []time.Duration) float64 { slices.Sort(d); return float64(d[len(d)/2]) / 1e3 }
	b.ReportMetric(p50(took[0]), "empty-p50-µs")
	b.ReportMetric(p50(took[1]), "pick-p50-µs")
	b.ReportMetric(p50(took[1])/p50(took[0]), "pick/empty")
}

// Picks per second of processor time, client and server together, in batches of 100.
func BenchmarkBatch100(b *testing.B) {
	r := newRig(b, nil)
	c := lbagentv1.NewLookupServiceClient(dial(b, r.cfg.Socket))
	ctx := context.Background()
	before := cpu(b)
	for b.Loop() {
		resp, err := c.Pick(ctx, &lbagentv1.PickRequest{Service: "user", Count: 100})
		if err != nil || len(resp.Picks) < 5 {
			b.Fatal(resp, err)
		}
	}
	b.ReportMetric(100*float64(b.N)/(cpu(b)-before).Seconds()/1e6, "Mpicks/cpu-s")
	b.ReportMetric(100*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mpicks/s")
}

// The agent's part of a batch, without the wire.
func BenchmarkBatch100Handler(b *testing.B) {
	r := newRig(b, nil)
	l := lookupService{s: r.Server}
	req := &lbagentv1.PickRequest{Service: "user", Count: 100}
	for b.Loop() {
		if _, err := l.Pick(context.Background(), req); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(100*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mpicks/s")
}

// One change of a service with 1,000 backends before 100 watchers.
func BenchmarkWatchFanOut(b *testing.B) {
	r := newRig(b, nil)
	ids := make([]int, 1000)
	for i := range ids {
		ids[i] = i + 1
	}
	var watches []grpc.ServerStreamingClient[lbagentv1.WatchResponse]
	for range 100 {
		w, err := r.lookup().Watch(context.Background(), &lbagentv1.WatchRequest{Service: "user"})
		if err != nil {
			b.Fatal(err)
		}
		watches = append(watches, w)
	}
	before := cpu(b)
	n := 0
	for b.Loop() {
		n++
		r.set("user", ids[n%2:]...)
		for _, w := range watches {
			for {
				l, err := w.Recv()
				if err != nil {
					b.Fatal(err)
				}
				if len(l.Backends) == len(ids)-n%2 {
					break
				}
			}
		}
	}
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(n)/100, "cpu-µs/watcher")
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

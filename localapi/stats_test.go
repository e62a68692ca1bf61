package localapi

import (
	"math"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

func TestStatsOfServices(t *testing.T) {
	var asked atomic.Int64
	r := newRig(t, func(c *Config) {
		c.Traffic = func() []ServiceTraffic {
			n := uint64(asked.Add(1))
			return []ServiceTraffic{{
				Service: "user", Calls: 100 * n, Errors: n, In: 5, Out: 6, Connections: 7,
				Bounds: []time.Duration{time.Millisecond, 2 * time.Millisecond}, Latency: []uint64{50 * n, 50 * n, 0}, LatencySum: time.Duration(n) * 100 * time.Millisecond,
			}}
		}
	})
	r.set("cart", 1)
	stream, err := r.status().Stats(testContext(t), &lbagentv1.StatsRequest{Interval: durationpb.New(statsLeast)})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if len(first.Services) != 2 || first.Services[0].Name != "cart" || first.Over != nil || first.Services[1].CallsPerSecond != 0 || first.Backends != nil {
		t.Fatalf("first %v", first)
	}
	second, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	u, over := second.Services[1], second.GetOver().AsDuration().Seconds()
	if u.Calls != 200 || u.Errors != 2 || u.BytesIn != 5 || u.BytesOut != 6 || u.Connections != 7 || u.Backends != 5 || u.Usable != 5 || !u.Ready {
		t.Errorf("user %v", u)
	}
	if math.Abs(u.CallsPerSecond-100/over) > 1e-6 || math.Abs(u.ErrorsPerSecond-1/over) > 1e-6 {
		t.Errorf("%f calls a second in %f s", u.CallsPerSecond, over)
	}
	if u.Mean.AsDuration() != time.Millisecond || u.P50.AsDuration() != time.Millisecond || u.P99.AsDuration() < 1900*time.Microsecond || u.P99.AsDuration() > 2*time.Millisecond {
		t.Errorf("mean %v, p50 %v, p99 %v", u.Mean.AsDuration(), u.P50.AsDuration(), u.P99.AsDuration())
	}
	if c := second.Services[0]; c.Calls != 0 || c.Mean != nil || !c.Ready {
		t.Errorf("cart, to which nothing came: %v", c)
	}
}

func TestStatsOfBackends(t *testing.T) {
	r := newRig(t, nil)
	svc := r.table.Lookup("user")
	svc.Asked(time.Now())
	svc.View().Find(addr(2)).State.Begin()
	stream, err := r.status().Stats(testContext(t), &lbagentv1.StatsRequest{Service: "user"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Services) != 1 || len(got.Backends) != 5 || got.Backends[1].Outstanding != 1 || got.Backends[1].GetBackend().GetAddress() != "10.0.0.2:80" {
		t.Errorf("got %v", got)
	}
}

func TestStatsRefusals(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range []struct {
		req  *lbagentv1.StatsRequest
		want codes.Code
	}{
		{&lbagentv1.StatsRequest{Service: "nosuch"}, codes.NotFound},
		{&lbagentv1.StatsRequest{Interval: durationpb.New(time.Millisecond)}, codes.InvalidArgument},
		{&lbagentv1.StatsRequest{Interval: durationpb.New(time.Hour)}, codes.InvalidArgument},
	} {
		stream, err := r.status().Stats(testContext(t), c.req)
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != c.want {
			t.Errorf("%v: %v", c.req, err)
		}
	}
	client := r.status()
	for range maxStats {
		stream, err := client.Stats(testContext(t), &lbagentv1.StatsRequest{Interval: durationpb.New(time.Minute)})
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	stream, err := client.Stats(testContext(t), &lbagentv1.StatsRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one stream too many: %v", err)
	}
}

// The loops are asked once for all who look at that moment.
func TestTrafficIsAskedForOnce(t *testing.T) {
	asked := 0
	s := &Server{cfg: Config{Traffic: func() []ServiceTraffic { asked++; return nil }}}
	for range 100 {
		s.trafficNow()
	}
	if asked > 10 { // trafficStale may pass on a slow machine
		t.Errorf("the loops were asked %d times", asked)
	}
}

func TestQuantile(t *testing.T) {
	bounds := []time.Duration{64 * time.Microsecond, 128 * time.Microsecond, 256 * time.Microsecond}
	for _, c := range []struct {
		q      float64
		counts []uint64
		least  time.Duration
		most   time.Duration
	}{
		{0.5, []uint64{10, 0, 0, 0}, 40 * time.Microsecond, 50 * time.Microsecond},
		{0.5, []uint64{10, 10, 0, 0}, 64 * time.Microsecond, 64 * time.Microsecond},
		{0.5, []uint64{0, 10, 0, 0}, 90 * time.Microsecond, 91 * time.Microsecond},
		{0.99, []uint64{98, 0, 2, 0}, 180 * time.Microsecond, 182 * time.Microsecond},
		{0.99, []uint64{1, 0, 0, 99}, 256 * time.Microsecond, 256 * time.Microsecond},
	} {
		if got := quantile(c.q, c.counts, bounds); got < c.least || got > c.most {
			t.Errorf("%v of %v is %v, want %v to %v", c.q, c.counts, got, c.least, c.most)
		}
	}
}

// A loop that doesn't answer in time must not look like calls that were taken back.
func TestRatesNeverFall(t *testing.T) {
	r := newRig(t, nil)
	was := &ServiceTraffic{Calls: 100, Latency: []uint64{100}, Bounds: nil}
	is := &ServiceTraffic{Calls: 60, Latency: []uint64{60}}
	if got := serviceStats(r.table.Lookup("user"), was, is, time.Second); got.CallsPerSecond != 0 || got.Calls != 60 {
		t.Errorf("got %v", got)
	}
}

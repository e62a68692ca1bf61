package proxy

import (
	"math"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestNativeKey compares the bucket of each duration with what Prometheus says it holds: above 2^((k-1)/4) s, up to 2^(k/4) s.
func TestNativeKey(t *testing.T) {
	check := func(d time.Duration) {
		k, s := nativeKey(d), float64(d)/float64(time.Second)
		low, high := math.Pow(2, float64(k-1)/4), math.Pow(2, float64(k)/4)
		if k > nativeFirst && (s <= low*(1-1e-12) || s > high*(1+1e-12)) {
			t.Errorf("%v is in bucket %d, which is from %v to %v s", d, k, low, high)
		}
	}
	for range 20_000 {
		check(time.Duration(math.Exp(rand.Float64() * 43))) // up to 54 days
	}
	for i, want := range map[time.Duration]int{time.Second: 0, 2 * time.Second: 4, 4*time.Second + 1: 9, time.Second / 2: -4, time.Second / 1024: -40, 0: nativeFirst} {
		if got := nativeKey(i); got != want {
			t.Errorf("%v is in bucket %d, want %d", i, got, want)
		}
	}
}

func TestHistogram(t *testing.T) {
	var a, b histogram
	for _, d := range []time.Duration{-time.Second, 0, 500 * time.Nanosecond, 64 * time.Microsecond, 65 * time.Microsecond, 70 * time.Second, 1000 * time.Hour} {
		a.add(d, firstOfCalls)
	}
	b.add(65*time.Microsecond, firstOfCalls)
	sum := a.clone().merge(&b).merge(nil).export()
	bounds := LatencyBounds()
	if len(sum.Buckets) != len(bounds)+1 || bounds[0] != 64*time.Microsecond || bounds[20] != 67108864*time.Microsecond {
		t.Fatalf("%d buckets, bounds %v", len(sum.Buckets), bounds)
	}
	if sum.Buckets[0] != 3 || sum.Buckets[1] != 3 || sum.Buckets[21] != 2 || sum.Count != 8 || a.classic[1] != 2 {
		t.Errorf("classic: %v, of %d; the one that was copied has %v", sum.Buckets, sum.Count, a.classic)
	}
	total := sum.None
	for _, n := range sum.Native {
		total += n
	}
	if total != 8 || sum.None != 3 || sum.Native[len(sum.Native)-1] != 1 { // 41 days, of 12
		t.Errorf("native: %v, and %d", sum.Native, sum.None)
	}
	if want := 500*time.Nanosecond + 64*time.Microsecond + 2*65*time.Microsecond + 70*time.Second + 1000*time.Hour; sum.Sum != want {
		t.Errorf("sum %v, want %v", sum.Sum, want)
	}
	if (*histogram)(nil).clone() != nil || (*histogram)(nil).merge(nil) != nil {
		t.Error("nothing became something")
	}
}

// TestOverhead: what the agent adds is the wait for a connection, and never the time of a backend.
func TestOverhead(t *testing.T) {
	var all beds
	b := all.get(t, 1)
	var backend *peerEnd
	asked := uint32(0)
	b.accept = func(e *peerEnd) {
		backend = e
		e.v.onPing = e.w.pong
		e.v.onHead = func(id uint32, _ []hpack.HeaderField, _ bool) { asked = id }
	}
	client := b.client("client")
	client.v.onPing = client.w.pong
	client.w.settings()
	b.steps(2)
	client.w.ack()
	call := func(id uint32, connect, work time.Duration) {
		asked = 0
		client.w.headers(id, true, ":method", "GET", ":path", "/", ":scheme", "http", ":authority", "user")
		b.steps(2)
		b.advance(connect)
		b.stepOnce()
		if id == 1 {
			backend.w.settings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 10})
			backend.w.ack()
		}
		b.steps(4)
		if asked == 0 {
			t.Fatalf("call %d: the backend was not asked; client sees GOAWAY %v, dials %d", id, client.v.goaway, len(b.dials))
		}
		b.advance(work)
		backend.w.headers(asked, true, ":status", "200")
		b.steps(2)
	}
	call(1, 40*time.Millisecond, 3*time.Second) // until the backend's SETTINGS are there
	call(3, 0, 5*time.Second)
	s := b.w.statsOf(b.rt)
	over, whole := s.overhead[protoH2].clone().export(), s.latency[protoH2].clone().export()
	if over.Count != 2 || over.Sum < 40*time.Millisecond || over.Sum > 50*time.Millisecond {
		t.Errorf("the agent added %v to %d calls, want 40 ms", over.Sum, over.Count)
	}
	if whole.Count != 2 || whole.Sum < 8040*time.Millisecond {
		t.Errorf("%d calls took %v, want 8.04 s", whole.Count, whole.Sum)
	}
	// A turn that takes long is added to what it passed on, once.
	b.relay.hops = append(b.relay.hops, hop{stats: s, delay: time.Millisecond})
	b.relay.turned(6 * time.Millisecond)
	b.relay.turned(time.Hour)
	if got := s.overhead[protoH2].export().Sum - over.Sum; got != 7*time.Millisecond {
		t.Errorf("a turn of 6 ms added %v to a call that had waited 1 ms", got)
	}
	all.end(b)
}

// TestOverheadOfHTTP1: each request counts once, and a backend's time is not in it.
func TestOverheadOfHTTP1(t *testing.T) {
	r := newRig(t, asHTTP1)
	const work = 30 * time.Millisecond
	r.backends(web(t, func(http.ResponseWriter, *http.Request) { <-time.After(work) }))
	c := browser(t)
	for range 5 {
		if code, _ := r.get(c, "/"); code != http.StatusOK {
			t.Fatal(code)
		}
	}
	await(t, "five requests that are counted", func() bool {
		s := r.proxy.Stats().Services
		return len(s) == 1 && len(s[0].Overhead) == 1 && s[0].Overhead[0].Count == 5
	})
	s := r.proxy.Stats().Services[0]
	if over, whole := s.Overhead[0], s.Latency[0]; over.Protocol != "http1" || over.Sum <= 0 || over.Sum > whole.Sum-5*work {
		t.Errorf("%s: the agent added %v to requests of %v, of which backends took %v", over.Protocol, over.Sum, whole.Sum, 5*work)
	}
}

package proxy

import (
	"testing"
	"time"
)

// BenchmarkCounting is what metrics cost a call of HTTP/2: its two hops, its duration, its class and what the agent added, in wake-ups of 8 calls each.
func BenchmarkCounting(b *testing.B) {
	var all beds
	bed := all.get(b, 1)
	s := &serviceStats{}
	calls := make([]call, 8)
	for i := range calls {
		calls[i] = call{relay: bed.relay, client: &clientConn{stats: s}, start: bed.now}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c := &calls[i%len(calls)]
		bed.relay.passes(c)
		bed.relay.returns(c)
		s.grpc(0, 3*time.Millisecond+time.Duration(i))
		if i%len(calls) == 0 {
			bed.relay.turned(40 * time.Microsecond)
		}
	}
}

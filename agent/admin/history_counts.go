package admin

import (
	"math"
	"time"
)

// proxyCounts are a service's counters of the proxy, of all protocols together.
type proxyCounts struct {
	calls, failed uint64
	buckets       [24]uint64 // of whole calls; of tcp none, where a call is a connection
}

func countsOf(c *Calls) (out proxyCounts) {
	if c == nil {
		return out
	}
	for _, code := range c.Codes {
		out.calls += code.Count
		switch code.Class {
		case "5xx", "server_error", "unavailable", "failed":
			out.failed += code.Count
		}
	}
	for _, l := range c.Latencies {
		if l.Protocol == "tcp" {
			continue
		}
		for i, n := range l.Buckets {
			out.buckets[min(i, len(out.buckets)-1)] += n
		}
	}
	return out
}

// since is the slot between two looks. Counters only rise, but those of a service that was removed and is back begin again.
func (c *proxyCounts) since(last *proxyCounts, bounds []time.Duration) sample {
	if c.calls < last.calls || c.failed < last.failed {
		return sample{}
	}
	var buckets [len(c.buckets)]uint64
	total := uint64(0)
	for i := range buckets {
		if c.buckets[i] > last.buckets[i] {
			buckets[i] = c.buckets[i] - last.buckets[i]
			total += buckets[i]
		}
	}
	return sample{
		calls: uint32(c.calls - last.calls), failed: uint32(c.failed - last.failed),
		p50: quantile(0.5, buckets[:], total, bounds), p99: quantile(0.99, buckets[:], total, bounds),
	}
}

// quantile is where the q-th part of total calls was faster. Within a bucket it goes by ratio, as the bounds do: they double.
func quantile(q float64, buckets []uint64, total uint64, bounds []time.Duration) time.Duration {
	if total == 0 || len(bounds) == 0 {
		return 0
	}
	rank, below := q*float64(total), 0.0
	for i, n := range buckets {
		if below += float64(n); n == 0 || below < rank {
			continue
		}
		if i >= len(bounds) {
			return bounds[len(bounds)-1] // slower than that, nobody knows by how much
		}
		low := bounds[i] / 2
		if i > 0 {
			low = bounds[i-1]
		}
		part := 1 - (below-rank)/float64(n)
		return time.Duration(float64(low) * math.Pow(float64(bounds[i])/float64(low), part))
	}
	return bounds[len(bounds)-1]
}

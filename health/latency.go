package health

import (
	"math"
	"time"
)

// How a latency is judged (3.4). The figures were found by `lbbench sim slow`, over distributions from constant to one call in 20 that takes 20 times as long.
const (
	// latencyDecay is in what time the weight of a sample falls to 1/e; higher goes on to tell of the past, lower knows little of backends that are called seldom.
	latencyDecay = 10 * time.Second

	// latencyMost is how many samples a mean stands for at most; higher tells backends apart that are nearly equal, lower is quick to see that one has become slow.
	latencyMost = 20

	// latencyDoubt is how many samples at the median a backend is given in advance, so that one slow call says nothing; higher takes longer to believe in a slow backend.
	latencyDoubt = 3

	// lagFrom is the dead band: up to this multiple of the median latencies are all the same. Higher lets backends keep their share that are slower by less, lower
	// takes chance for a difference.
	lagFrom = 1.5

	// lagMost bounds what latency may do to a score.
	lagMost = 10

	// latencyFresh is after how long a mean is no longer shown, nor counted in the median: next to nothing is left of its weight.
	latencyFresh = 3 * latencyDecay
)

// latency is the mean time to response headers, in nanoseconds, and how many samples it stood for when the last came: in one word, so that nobody sees one
// without the other.
type latency uint64

func newLatency(mean, samples float64) latency {
	return latency(math.Float32bits(float32(mean)))<<32 | latency(math.Float32bits(float32(samples)))
}

func (l latency) mean() float64    { return float64(math.Float32frombits(uint32(l >> 32))) }
func (l latency) samples() float64 { return float64(math.Float32frombits(uint32(l))) }

// left is what is left of the weight of samples after that time.
func left(since int64) float64 { return math.Exp(-float64(max(0, since)) / float64(latencyDecay)) }

// addLatency takes a sample; if fall is false, only one that is above the mean.
func (s *State) addLatency(at int64, d time.Duration, fall bool) {
	for {
		old := latency(s.latency.Load())
		mean := old.mean()
		if !fall && float64(d) <= mean {
			return
		}
		n := min(old.samples()*left(at-s.sampled.Load()), latencyMost-1) + 1
		if s.latency.CompareAndSwap(uint64(old), uint64(newLatency(mean+(float64(d)-mean)/n, n))) {
			s.sampled.Store(at)
			return
		}
	}
}

// forgetLatency has the next samples begin anew. How long callers waited for a backend that was out says nothing of it once it is back; and with few calls, which its
// lag would see to, it would be believed for half a minute.
func (s *State) forgetLatency() {
	s.latency.Store(0)
	s.sampled.Store(0)
}

// Latency is the mean time to response headers (3.4), and whether there were samples lately.
func (s *State) Latency(now time.Time) (mean time.Duration, fresh bool) {
	sampled := s.sampled.Load()
	return time.Duration(latency(s.latency.Load()).mean()), sampled != 0 && s.at(now)-sampled < int64(latencyFresh)
}

// lag is L of 3.4: by what a backend is slower than the median of its service, as far as that is known; 1 if it isn't, or not by much.
func (s *State) lag(at int64, median float64) float64 {
	l := latency(s.latency.Load())
	if median <= 0 || l.mean() <= lagFrom*median {
		return 1
	}
	n := l.samples() * left(at-s.sampled.Load())
	ratio := 1 + (l.mean()/median-1)*n/(n+latencyDoubt)
	if ratio <= lagFrom {
		return 1
	}
	return min(ratio, lagMost)
}

// Lag is L of 3.4 at now, for who picks without a Picker. median is that of the service, in nanoseconds.
func (s *State) Lag(now time.Time, median time.Duration) float64 {
	return s.lag(s.at(now), float64(median))
}

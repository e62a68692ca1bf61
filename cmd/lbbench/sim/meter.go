package sim

import (
	"math"
	"slices"
	"time"
)

// meter sees all that happens, and counts it.
type meter struct {
	w       *world
	latency histogram // of calls that succeeded and began after settle
	ok, bad uint64    // calls that began after settle
	seconds []second
	pairs   []pair // host by host
	probes  int

	delays   []time.Duration // from when a backend went bad until a host had it out
	fails    []int           // failed attempts of that host until then
	missed   int             // a backend was well again before the host had it out
	wrong    int             // good backends that were taken out
	relapses int             // those of them that had been bad before

	alive  int
	back   time.Duration // when the first backend was alive after none was; 0 = that never happened
	served []bool        // hosts that had a success since then
	firsts []time.Duration
}

// second is what happened in one second.
type second struct {
	attempts []uint32 // by backend
	bad      []bool
	settled  []bool // bad for a while
	ok, lost int    // calls
	first    [2]int // attempts of hosts of the first zone: there, and elsewhere
	near     [2]int // likewise of the others, in theirs
}

// pair is what one host thinks of one backend.
type pair struct {
	out   bool // it isn't usable
	known bool // it was out once since it's bad
	fails int32
	outs  int32
}

func newMeter(w *world) *meter {
	n := len(w.backends)
	return &meter{w: w, pairs: make([]pair, len(w.hosts)*n), alive: n, served: make([]bool, len(w.hosts)),
		seconds: make([]second, 0, w.scenario.lasts/time.Second+1)}
}

// second begins another one.
func (m *meter) second() {
	const aWhile = 10 * time.Second
	n := len(m.w.backends)
	s := second{attempts: make([]uint32, n), bad: make([]bool, n), settled: make([]bool, n)}
	for i, b := range m.w.backends {
		s.bad[i] = b.bad()
		s.settled[i] = s.bad[i] && m.w.clock.now-b.since >= aWhile
	}
	m.seconds = append(m.seconds, s)
}

func (m *meter) now() *second { return &m.seconds[len(m.seconds)-1] }

func (m *meter) pair(h *host, i int) *pair { return &m.pairs[h.index*len(m.w.backends)+i] }

// turning is before backend i gets another condition.
func (m *meter) turning(i int, to condition) {
	b := m.w.backends[i]
	if b.refuses != to.refuses {
		if to.refuses {
			m.alive--
		} else if m.alive++; m.alive == 1 {
			m.back = m.w.clock.now
			clear(m.served)
		}
	}
	if b.bad() == to.bad() {
		return
	}
	for _, h := range m.w.hosts {
		p := m.pair(h, i)
		if b.bad() && !p.known {
			m.missed++
		}
		p.known, p.fails = p.out, 0
	}
}

// turned is a verdict of a host.
func (m *meter) turned(h *host, i int, usable bool) {
	p, b, now := m.pair(h, i), m.w.backends[i], m.w.clock.now
	if p.out = !usable; usable {
		return
	}
	p.outs++
	switch {
	case b.bad() && !p.known:
		p.known = true
		m.delays = append(m.delays, now-b.since)
		m.fails = append(m.fails, int(p.fails))
	case b.bad():
	case b.was && now-b.since < m.w.cfg.Timeout: // by calls that were under way
	case b.was:
		m.relapses++
	default:
		m.wrong++
	}
}

func (m *meter) attempt(c *call) {
	s := m.now()
	s.attempts[c.to]++
	if zones := m.w.scenario.zones; zones > 0 {
		count, elsewhere := &s.near, 0
		if c.host.index%zones == 0 {
			count = &s.first
		}
		if c.host.index%zones != c.to%zones {
			elsewhere = 1
		}
		count[elsewhere]++
	}
}

func (m *meter) attemptFailed(c *call) {
	if p := m.pair(c.host, c.to); !p.known {
		p.fails++
	}
}

func (m *meter) callEnded(c *call, ok bool) {
	if !ok {
		m.now().lost++
	} else if m.now().ok++; m.back > 0 && !m.served[c.host.index] {
		m.served[c.host.index] = true
		m.firsts = append(m.firsts, m.w.clock.now-m.back)
	}
	if c.began < settle {
		return
	}
	if !ok {
		m.bad++
		return
	}
	m.ok++
	m.latency.add(m.w.clock.now - c.began)
}

// histogram counts durations in buckets whose bounds are 0.5 % apart.
type histogram struct {
	counts []uint64
	sum    uint64
}

const perDoubling = 128

func (h *histogram) add(d time.Duration) {
	i := int(math.Log2(float64(max(d, 1))) * perDoubling)
	if i >= len(h.counts) {
		h.counts = append(h.counts, make([]uint64, i+1-len(h.counts))...)
	}
	h.counts[i]++
	h.sum++
}

// at is the quantile q.
func (h *histogram) at(q float64) time.Duration {
	left := uint64(q * float64(h.sum))
	for i, n := range h.counts {
		if left < n {
			return time.Duration(math.Exp2((float64(i) + 0.5) / perDoubling))
		}
		left -= n
	}
	return 0
}

// Result is what came of one run. Times are in milliseconds unless they say otherwise; shares are in fair ones: 1 = its weight's part of all attempts.
type Result struct {
	Scenario  string  `json:"scenario"`
	Contender string  `json:"contender"`
	Seed      uint64  `json:"seed"`
	Hosts     int     `json:"hosts"`
	Backends  int     `json:"backends"`
	Servers   int     `json:"servers"` // of each backend
	Rate      float64 `json:"rate"`    // calls per second of a host

	Calls uint64  `json:"calls"`
	P50   float64 `json:"p50"` // of calls that succeeded
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	Fails float64 `json:"fails_percent"`       // of all calls
	Lost  float64 `json:"fails_percent_while"` // of the calls that ended while a backend was bad

	BadShare   float64 `json:"bad_share"`         // of a bad backend, from when it was
	BadSettled float64 `json:"bad_share_settled"` // from 10 s after that
	Least      float64 `json:"least_share"`       // of the backends that are always good
	Most       float64 `json:"most_share"`

	Outs       int     `json:"outs"`             // how often a host took a bad backend out that it had in
	Missed     int     `json:"outs_missed"`      // a backend was well again before
	OutP50     float64 `json:"out_p50_s"`        // from when it was bad; seconds
	OutMax     float64 `json:"out_max_s"`        //
	FailsUntil int     `json:"fails_until_out"`  // the most failed attempts of a host until then
	OutsMinute float64 `json:"outs_per_minute"`  // of the same backend by the same host, the most
	Wrong      int     `json:"outs_wrong"`       // of backends that were never bad
	Relapses   int     `json:"outs_after"`       // of backends that were bad once and aren't any more
	Return     float64 `json:"return_s"`         // from when it was good until it had 0.9 of its share for 5 s; -1 = never, 0 = there was none
	FirstOK    float64 `json:"first_success_ms"` // of the last host, after all backends were gone and one was back
	Probes     int     `json:"probes"`
	Near       float64 `json:"near"`      // share of the calls that stayed in their host's zone, of hosts not in the first one; 0 = there are no zones
	NearHurt   float64 `json:"near_hurt"` // of the others, from 10 s after something went wrong there
}

func (m *meter) result() *Result {
	w := m.w
	r := &Result{
		Scenario: w.cfg.Scenario, Contender: w.cfg.Contender, Seed: w.cfg.Seed, Hosts: w.cfg.Hosts, Backends: w.cfg.Backends,
		Servers: w.servers(), Rate: w.cfg.Rate, Calls: m.ok + m.bad,
		P50: ms(m.latency.at(0.5)), P99: ms(m.latency.at(0.99)), P999: ms(m.latency.at(0.999)), Fails: 100 * ratio(float64(m.bad), float64(m.ok+m.bad)),
		Outs: len(m.delays), Missed: m.missed, Wrong: m.wrong, Relapses: m.relapses, Probes: m.probes,
	}
	m.shares(r)
	m.zones(r)
	if n := len(m.delays); n > 0 {
		slices.Sort(m.delays)
		r.OutP50, r.OutMax, r.FailsUntil = m.delays[n/2].Seconds(), m.delays[n-1].Seconds(), slices.Max(m.fails)
	}
	for i := range m.pairs {
		r.OutsMinute = max(r.OutsMinute, float64(m.pairs[i].outs)/(w.scenario.lasts-onset).Minutes())
	}
	if len(m.firsts) > 0 {
		r.FirstOK = ms(slices.Max(m.firsts))
	}
	for i, b := range w.backends {
		if b.was && !b.bad() && r.Return >= 0 {
			if at := m.returned(i); at < 0 {
				r.Return = -1
			} else {
				r.Return = max(r.Return, at)
			}
		}
	}
	return r
}

// fair is backend i's part of all weight.
func (m *meter) fair(i int) float64 {
	sum := 0.0
	for _, b := range m.w.backends {
		sum += b.weight
	}
	return m.w.backends[i].weight / sum
}

func (m *meter) shares(r *Result) {
	var bad, badFair, settled, settledFair, ok, lost, goodSum, goodWeight float64
	good := make([]float64, len(m.w.backends))
	fair := make([]float64, len(good))
	for i := range fair {
		fair[i] = m.fair(i)
	}
	for at := range m.seconds {
		s := &m.seconds[at]
		sum := 0.0
		for _, n := range s.attempts {
			sum += float64(n)
		}
		for i, n := range s.attempts {
			if s.bad[i] {
				bad, badFair = bad+float64(n), badFair+sum*fair[i]
			}
			if s.settled[i] {
				settled, settledFair = settled+float64(n), settledFair+sum*fair[i]
			}
			if at >= int(settle/time.Second) {
				good[i] += float64(n)
			}
		}
		if slices.Contains(s.bad, true) {
			ok, lost = ok+float64(s.ok), lost+float64(s.lost)
		}
	}
	r.BadShare, r.BadSettled, r.Lost = ratio(bad, badFair), ratio(settled, settledFair), 100*ratio(lost, ok+lost)
	for i, b := range m.w.backends {
		if !b.was && !b.bad() {
			goodSum, goodWeight = goodSum+good[i], goodWeight+fair[i]
		}
	}
	for i, b := range m.w.backends {
		if !b.was && !b.bad() {
			share := ratio(good[i]/goodSum, fair[i]/goodWeight)
			r.Most = max(r.Most, share)
			if r.Least == 0 || share < r.Least {
				r.Least = share
			}
		}
	}
}

// zones is how many calls stayed in their zone.
func (m *meter) zones(r *Result) {
	var near, hurt [2]float64
	for at := int(settle / time.Second); at < len(m.seconds); at++ {
		s := &m.seconds[at]
		settled := slices.Contains(s.settled, true)
		for i := range near {
			near[i] += float64(s.near[i])
			if settled {
				hurt[i] += float64(s.first[i])
			}
		}
	}
	r.Near, r.NearHurt = ratio(near[0], near[0]+near[1]), ratio(hurt[0], hurt[0]+hurt[1])
}

// returned is after how many seconds backend i had its share again for a while; -1 = never.
func (m *meter) returned(i int) float64 {
	const while, enough = 5, 0.9
	since := int(m.w.backends[i].since / time.Second)
	for at := since; at+while <= len(m.seconds); at++ {
		own, all := 0.0, 0.0
		for _, s := range m.seconds[at : at+while] {
			for k, n := range s.attempts {
				if all += float64(n); k == i {
					own += float64(n)
				}
			}
		}
		if own >= enough*all*m.fair(i) {
			return float64(at - since)
		}
	}
	return -1
}

func ms(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}

// ratio is a/b, 0 if there is no b.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

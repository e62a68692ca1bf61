package h2

import "time"

// A peer may make a Conn work for nothing only within a budget, which time and useful work fill again: floods end, bursts don't matter, and whoever
// makes calls may do much else beside them. It's counted in units of about 0.1 µs of this process's CPU time, so that all kinds of floods share it
// (CVE-2019-9511 to -9518, CVE-2023-44487, CVE-2025-8671).
//
// What sane peers do stays far below: a PING per second, or one per DATA frame (gRPC's estimate of the bandwidth, at most one under way); two
// WINDOW_UPDATEs per DATA frame (Python's h2); up to four of five calls cancelled at once (hedging), at any rate; and any number of calls cancelled
// after earlyReset, since the limit of concurrent streams bounds these: 250 streams of 10 ms are 25,000 calls a second, which a client may make anyway.
const (
	// budgetFull is what a connection begins with, and can save up: 10 ms of CPU time. It's 2,000 early resets (nghttp2 and Envoy allow 1,000 and 500)
	// or 25,000 PINGs. More lets a burst cost more, less could meet a client that cancels all it has at once, several times over.
	budgetFull = 100_000
	// budgetWary is what it begins with while others like it had to be ended: 20 early resets, so that to connect anew is no way out, and more than a sane
	// peer needs until its first call is served.
	budgetWary = 1_000
	// budgetPerSecond is 0.2 % of a core: 400 early resets (nghttp2: 33) or 5,000 PINGs a second, for ever.
	budgetPerSecond = 20_000

	costLook   = 1  // a frame that is only looked at
	costAct    = 4  // one that is answered, or lets something go on
	costReset  = 50 // a stream that came to nothing: decoded, perhaps picked for and opened at a backend, reset there
	costInform = 20 // a header list that is of no use, or an informational one
	// costPerByte is how many bytes of a header block that was decoded for nothing cost a unit.
	costPerByte = 16

	// closedBytes is how many bytes of DATA for a stream that isn't open cost a unit: what was under way when it ended is a window at most.
	closedBytes = 1024
	// costPerStream is how many open streams that have to be looked at cost a unit.
	costPerStream = 8

	worthCall = 4 * costReset  // a call that was served: so many resets may come with it
	worthData = 8              // a DATA frame of some size, or a whole message
	someData  = 1024           // what is some size
	worthLate = 3 * costInform // a stream that we reset at a backend: header list, some DATA and trailers may be on their way to it

	// earlyReset is the age below which a stream without a response counts as reset early.
	earlyReset = 10 * time.Millisecond
)

// tick takes the time.
func (c *Conn) tick(now time.Time) {
	if c.began.IsZero() {
		c.began = now
	}
	c.clock = now.Sub(c.began)
}

// spend charges the peer for work of no use.
func (c *Conn) spend(n int, f Fault) error {
	if c.budget -= n; c.budget >= 0 {
		return nil
	}
	if !c.cfg.NoRefill {
		c.budget = min(budgetFull, c.budget+int(min(c.clock-c.filled, time.Minute)*budgetPerSecond/time.Second))
	}
	c.filled = c.clock
	if c.budget >= 0 {
		return nil
	}
	switch f {
	case FaultResets:
		return tooMuch(f, "more streams reset than calls that are served allow")
	case FaultHeaders:
		return tooMuch(f, "more header lists over a limit than calls that are served allow")
	}
	return tooMuch(f, "more frames of no use than calls and DATA allow")
}

// earn gives the peer budget for useful work.
func (c *Conn) earn(n int) { c.budget = min(budgetFull, c.budget+n) }

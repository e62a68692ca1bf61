package admin

import "time"

// Proxy is what went through the proxy since the start. Counts only rise.
type Proxy struct {
	Services       []Calls         // at most one per service
	LatencyBounds  []time.Duration // upper bounds of every Latency's buckets but the last, rising
	OverheadBounds []time.Duration // likewise, of every Overhead's
	ClientsLimit   int             // the most that Clients may be; 0 = none is set
	BufferedLimit  int64           // likewise
	Loops          []Loop
	Clients        int    // client connections now
	Refused        uint64 // client connections over the limit
	Buffered       int64  // bytes parked for peers that don't take them
	// Missing is the number of loops that did not answer in time. Their counts are not in Services, which are left out of the scrape then: a counter that
	// falls looks like a restart.
	Missing int
}

// Calls are the calls of one service: HTTP requests, gRPC calls, TCP connections.
type Calls struct {
	Service   string
	Codes     []Code // at most one per protocol and class
	Latencies []Latency
	Overheads []Latency         // what the agent added
	Sniffed   map[string]uint64 // connections told apart, by protocol
	Silent    uint64            // of these, those that said nothing
	Active    map[string]int    // client connections now, by protocol
	NoBackend uint64            // calls without a usable backend (4.5)
	Retried   map[string]uint64 // attempts after the first, by reason (4.1, 4.2)
	Denied    uint64            // retries that the budget had no room for (4.2)
	In, Out   uint64            // TCP: bytes from clients, and to them
	// Protections counts what peers did that was not put up with, by kind.
	Protections map[string]uint64
	Backends    BackendConns
}

// BackendConns are the HTTP/2 connections to the backends of one service.
type BackendConns struct {
	Open           int
	Opened, Failed uint64            // connects that succeeded, and those that did not
	Closed         map[string]uint64 // by cause: few
}

// Code counts the calls that ended with one class of code. Protocols and classes are few: "http1" and "h2" with "2xx" to "5xx", "grpc" with "ok",
// "client_error", "server_error", "unavailable", "tcp" with "ok" and "failed".
type Code struct {
	Protocol, Class string
	Count           uint64
}

// Latency is a histogram of one protocol.
type Latency struct {
	Protocol string
	Histogram
}

// Histogram counts durations, in one form or two.
type Histogram struct {
	Buckets []uint64 // one per bound, not cumulative, and one more for what is above
	Native  []uint64 // of the keys from -79 on of Prometheus's schema 2, as agent/proxy has them; nil = it has only the other form
	None    uint64   // what is too short for a native bucket
	Sum     time.Duration
}

// Loop is an event loop.
type Loop struct {
	Index   int
	Busy    time.Duration
	Wakeups uint64
	Conns   int
}

// Ask is what the ask door has to do.
type Ask struct {
	Connections             int
	Refused, Picks, Reports uint64
	Methods                 []Method // each once
}

// Method is one method of the API.
type Method struct {
	Name  string
	Open  int
	Ended map[string]uint64 // by gRPC code
}

// Process is what is known of the process and its configuration.
type Process struct {
	Generation, Reloads, Refused uint64
	Applied                      time.Time
	CrashLoop                    int  // starts in a minute; 0 = no loop
	TookOver, Predecessor        bool // this process followed another one, which still runs
	UpgradesFailed               uint64
}

// AccessLog is what became of the access log.
type AccessLog struct {
	On, OK           bool
	Written, Dropped uint64 // lines
}

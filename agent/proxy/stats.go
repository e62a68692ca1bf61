package proxy

import "time"

// class is what a call came to.
type class uint8

const (
	http2xx class = iota // 1xx counts here as well: 101 is the last answer of an upgrade
	http3xx
	http4xx
	http5xx
	grpcOK
	grpcClientError // the caller's doing: CANCELLED, INVALID_ARGUMENT, NOT_FOUND, ...
	grpcServerError
	grpcUnavailable // made here: no backend, or none that answered (4.5)
	tcpOK
	tcpFailed // no backend, or it broke
	classes
)

func (c class) String() string {
	return [...]string{"2xx", "3xx", "4xx", "5xx", "ok", "client_error", "server_error", "unavailable", "ok", "failed"}[c]
}

// label is the protocol that a class is counted under, for a connection served as k.
func (c class) label(k protocol) string {
	if c >= grpcOK && c <= grpcUnavailable {
		return "grpc"
	}
	return k.String()
}

// serviceStats are the counters of one service on one loop: plain, written by that loop only, and copied by it (HTTP2.md 2).
type serviceStats struct {
	calls     [protocols][classes]uint64
	latency   [protocols]*histogram // whole calls; of tcp, whole connections. nil: none yet
	overhead  [protocols]*histogram // what the agent added to calls, up to the response's head; not of tcp
	active    [protocols]int        // client connections
	picks     uint64
	noBackend uint64          // calls and connections that found no usable backend (4.5)
	retried   [reasons]uint64 // attempts after the first
	denied    uint64          // policy retries that the budget had no room for (4.2)
	in, out   uint64          // tcp: bytes from clients and to clients
	sniffed   [protocols]uint64
	silent    uint64 // of the sniffed: those that said nothing for 200 ms
	guards    [protections]guard
	flood     lastFlood // of clients

	backendConns   int // HTTP/2 connections to backends
	backendOpened  uint64
	backendClosed  [closeCauses]uint64
	connectsFailed uint64
}

// took counts how long a call took.
func (s *serviceStats) took(k protocol, d time.Duration) {
	if s.latency[k] == nil {
		s.latency[k] = new(histogram)
	}
	s.latency[k].add(d, firstOfCalls)
}

// added counts what the agent added to a call.
func (s *serviceStats) added(k protocol, d time.Duration) {
	if s.overhead[k] == nil {
		s.overhead[k] = new(histogram)
	}
	s.overhead[k].add(d, firstOfOverhead)
}

// clone is a copy that shares nothing.
func (s *serviceStats) clone() serviceStats {
	c := *s
	for k := range c.latency {
		c.latency[k], c.overhead[k] = c.latency[k].clone(), c.overhead[k].clone()
	}
	return c
}

// http counts a call that ended with an HTTP status.
func (s *serviceStats) http(k protocol, status int, d time.Duration) {
	c := http2xx
	switch {
	case status >= 500:
		c = http5xx
	case status >= 400:
		c = http4xx
	case status >= 300:
		c = http3xx
	}
	s.calls[k][c]++
	s.took(k, d)
}

// grpc counts a gRPC call by the status that the backend gave, or the caller's cancel (1).
func (s *serviceStats) grpc(code int, d time.Duration) {
	c := grpcServerError
	switch code {
	case 0:
		c = grpcOK
	case 1, 3, 5, 6, 7, 9, 10, 11, 16:
		c = grpcClientError
	}
	s.calls[protoH2][c]++
	s.took(protoH2, d)
}

// unavailable counts a gRPC call that was answered here with status 14.
func (s *serviceStats) unavailable(d time.Duration) {
	s.calls[protoH2][grpcUnavailable]++
	s.took(protoH2, d)
}

// tcp counts a connection that is over.
func (s *serviceStats) tcp(ok bool, in, out uint64, d time.Duration) {
	c := tcpFailed
	if ok {
		c = tcpOK
	}
	s.calls[protoTCP][c]++
	s.took(protoTCP, d)
	s.in += in
	s.out += out
}

// add sums up loops.
func (s *serviceStats) add(o *serviceStats) {
	for k := range s.calls {
		for c := range s.calls[k] {
			s.calls[k][c] += o.calls[k][c]
		}
		s.latency[k] = s.latency[k].merge(o.latency[k])
		s.overhead[k] = s.overhead[k].merge(o.overhead[k])
		s.active[k] += o.active[k]
		s.sniffed[k] += o.sniffed[k]
	}
	for k := range s.guards {
		s.guards[k].count += o.guards[k].count
	}
	s.picks += o.picks
	s.noBackend += o.noBackend
	for i, n := range o.retried {
		s.retried[i] += n
	}
	s.denied += o.denied
	s.in += o.in
	s.out += o.out
	s.silent += o.silent
	s.backendConns += o.backendConns
	s.backendOpened += o.backendOpened
	for i := range s.backendClosed {
		s.backendClosed[i] += o.backendClosed[i]
	}
	s.connectsFailed += o.connectsFailed
}

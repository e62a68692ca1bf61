package localapi

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// Limits bounds what callers can make the agent hold. Zero fields have the defaults named here.
type Limits struct {
	// MessageBytes is the largest request, 64 KiB: 1,000 outcomes of ordinary names. Higher costs memory per stream a hostile caller opens.
	MessageBytes int
	// HeaderBytes bounds the headers of a request on both faces, 16 KiB.
	HeaderBytes int
	// Connections to one socket, 8192, and of one uid to one socket, 1024. The sockets are counted apart: nobody can lock the operator out. By TCP what is said of a
	// uid here and below is said of an address.
	Connections, ConnectionsPerUID int
	// StreamsPerConnection is SETTINGS_MAX_CONCURRENT_STREAMS, 512; Streams bounds the gRPC streams that are open on one socket, 8192, and StreamsPerUID those of one uid over all its
	// connections to it, 4096. An open watch takes some 16 KiB.
	StreamsPerConnection   uint32
	Streams, StreamsPerUID int
	// UnfinishedBytes bounds what requests that have not ended may hold on one socket, 64 MiB, and UnfinishedBytesPerUID what those of one uid may, 16 MiB. Ordinary requests end as
	// soon as they begin, and hold nothing. Of all three bounds on all callers of a socket who has next to nothing notices nothing.
	UnfinishedBytes, UnfinishedBytesPerUID int
	// OutcomesPerSecond that one uid may report, 10,000, with bursts of the same size.
	OutcomesPerSecond int
	// FirstBytes is how long a new connection may take to say which protocol it speaks and to end its first headers, 5 s.
	FirstBytes time.Duration
	// Body is how long an HTTP/1.1 request may take to arrive in full, 10 s; Answer how long its answer may take to be read, 30 s (streams: no bound).
	Body, Answer time.Duration
	// Idle closes connections without a call: HTTP/1.1 after 1 min, gRPC after 30 min.
	IdleHTTP, IdleGRPC time.Duration
	// FirstList is how long an ask waits for the first list of a service that was just followed, 1 s (1.15). A caller's deadline may be shorter.
	FirstList time.Duration
	// Settle is how long connections that were accepted just before the agent stops may take to say which protocol they speak, 500 ms; Goodbye how long calls may take to end then, 2 s.
	Settle, Goodbye time.Duration
}

func (l Limits) withDefaults() Limits {
	def(&l.MessageBytes, 64<<10)
	def(&l.HeaderBytes, 16<<10)
	def(&l.Connections, 8192)
	def(&l.ConnectionsPerUID, 1024)
	def(&l.StreamsPerConnection, 512)
	def(&l.Streams, 8192)
	def(&l.StreamsPerUID, 4096)
	def(&l.UnfinishedBytes, 64<<20)
	def(&l.UnfinishedBytesPerUID, 16<<20)
	def(&l.OutcomesPerSecond, 10000)
	def(&l.FirstBytes, 5*time.Second)
	def(&l.Body, 10*time.Second)
	def(&l.Answer, 30*time.Second)
	def(&l.IdleHTTP, time.Minute)
	def(&l.IdleGRPC, 30*time.Minute)
	def(&l.FirstList, time.Second)
	def(&l.Settle, 500*time.Millisecond)
	def(&l.Goodbye, 2*time.Second)
	return l
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// What one request may ask; the protos document them.
const (
	maxCount    = 10000 // picks per request
	maxExclude  = 100   // addresses per request
	maxHashKey  = 4096  // bytes
	maxOutcomes = 1000  // per report
)

// What an unread stream may hold, and a connection with all of its streams. That they are set turns off growing them by measured bandwidth.
const (
	streamWindow = 64 << 10 // grpc takes none that is smaller
	connWindow   = 1 << 20
)

func (l Limits) serverOptions(streams uint32) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(l.MessageBytes),
		grpc.MaxSendMsgSize(maxAnswer),
		grpc.MaxConcurrentStreams(streams),
		grpc.MaxHeaderListSize(uint32(l.HeaderBytes)),
		grpc.ConnectionTimeout(l.FirstBytes),
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connWindow),
		grpc.ReadBufferSize(8 << 10), // requests are small, connections may be many
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		// A process that is gone closes its socket; pings find the one that is stopped.
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: l.IdleGRPC, Time: time.Minute, Timeout: 20 * time.Second}),
	}
}

// maxAnswer bounds an answer: 10,000 backends with metadata take a few MiB.
const maxAnswer = 64 << 20

package proxy

import "golang.org/x/sys/unix"

// Limits bound what the clients of the process may make it hold. A change holds for new connections, Connections and Buffered at once.
type Limits struct {
	Connections          int   // of clients; 0 = as many as there are descriptors
	StreamsPerConnection int   // HTTP/2: SETTINGS_MAX_CONCURRENT_STREAMS of a client's connection
	HeaderBytes          int   // of one header list, from either side
	HeaderFields         int   // of one header list, from either side
	Buffered             int64 // bytes parked for peers that don't take them, HTTP/2; 0 = only by the windows
	BackendConnections   int   // HTTP/2: of one loop to one backend
}

// DefaultLimits are those of DESIGN.md 5.
func DefaultLimits() Limits {
	return Limits{
		Connections: 10_000, StreamsPerConnection: 250, HeaderBytes: 64 << 10, HeaderFields: 200, Buffered: 256 << 20, BackendConnections: 8,
	}
}

// ownDescriptors stay for what isn't a client's connection: etcd, probes, the API, backends. Without them a flood of clients would cut this host off from
// its lists and verdicts.
const ownDescriptors = 256

// SetLimits puts l in force; running connections keep what they have been promised.
func (p *Proxy) SetLimits(l Limits) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		most := max(1, int(min(files.Cur, 1<<30))-ownDescriptors)
		if l.Connections > most {
			p.log.Warn("limits.connections is more than the open files allow: lowered", "limit", l.Connections, "lowered", most, "open_files", files.Cur)
		}
		if l.Connections == 0 || l.Connections > most {
			l.Connections = most
		}
	}
	p.limits.Store(&l)
}

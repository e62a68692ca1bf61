package config

import (
	"fmt"
	"strconv"
	"strings"
)

// Limits are limits:, of the whole process.
type Limits struct {
	Connections          int   // from clients; 0 = as many as there are descriptors
	StreamsPerConnection int   // HTTP/2: SETTINGS_MAX_CONCURRENT_STREAMS of a client's connection
	HeaderBytes          int   // of one header list
	HeaderFields         int   // of one header list
	Buffered             int64 // bytes of DATA and output parked for peers that don't take them, HTTP/2; 0 = only by the windows
	BackendConnections   int   // HTTP/2: of one event loop to one backend
}

func defaultLimits() Limits {
	return Limits{
		Connections: 10_000, StreamsPerConnection: 250, HeaderBytes: 64 << 10, HeaderFields: 200, Buffered: 256 << 20, BackendConnections: 8,
	}
}

func (l *Limits) decode(v value) {
	v.object(keys{
		"connections":            func(v value) { v.integer(&l.Connections, 0, 10_000_000) },
		"streams_per_connection": func(v value) { v.integer(&l.StreamsPerConnection, 1, 100_000) },
		// Not below what an ordinary request with a token takes. Not above what one connection may make the agent hold of a header block that never ends.
		"header_bytes": func(v value) {
			n := int64(l.HeaderBytes)
			v.size(&n, false, 4<<10, 1<<20)
			l.HeaderBytes = int(n)
		},
		"header_fields": func(v value) { v.integer(&l.HeaderFields, 20, 10_000) },
		// Not below a few windows: one stream may have 256 KiB parked.
		"buffered":            func(v value) { v.size(&l.Buffered, true, 4<<20, 1<<40) },
		"backend_connections": func(v value) { v.integer(&l.BackendConnections, 1, 1000) },
	})
}

// units of sizes, largest first. KB and k are refused: they mean 1000 to some and 1024 to others.
var units = [...]struct {
	name string
	n    int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// size reads a number of bytes from low to high. With zero, 0 and off are allowed too.
func (v value) size(to *int64, zero bool, low, high int64) {
	allowed := fmt.Sprintf("a size from %s to %s is allowed, in bytes, KiB, MiB or GiB", inBytes(low), inBytes(high))
	if zero {
		allowed = "0, off, or " + allowed
	}
	s, read := v.text(allowed, false)
	if !read {
		return
	}
	if zero && (s == "off" || s == "0") {
		*to = 0
		return
	}
	number, unit := s, int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(s, u.name); ok {
			number, unit = rest, u.n
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	switch {
	case err != nil || strconv.FormatInt(n, 10) != number:
		v.fail(allowed, "%s is no size", v.quote())
	case n > high/unit || n*unit < low:
		v.fail(allowed, "%s is out of bounds", v.quote())
	default:
		*to = n * unit
	}
}

// inBytes is a size in the largest unit that fits.
func inBytes(n int64) string {
	for _, u := range units {
		if n >= u.n && n%u.n == 0 {
			return strconv.FormatInt(n/u.n, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

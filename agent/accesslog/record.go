package accesslog

import (
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/lbagent/lbagent/agent/calls"
)

// appendRecord appends r as a line of JSON. By hand: it runs on an event loop, for each call that is written, and takes a fifth of encoding/json's time. A field without a
// value is left out, but for those that each call has. The man page documents them; fields may be added, none changes its meaning.
func appendRecord(b []byte, r *calls.Record) []byte {
	b = append(b, `{"time":"`...)
	b = r.Time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
	b = append(b, `","service":`...)
	b = appendString(b, r.Service)
	b = appendText(b, "protocol", r.Protocol)
	b = appendText(b, "client", r.Client)
	b = appendText(b, "method", r.Method)
	b = appendText(b, "path", r.Path)
	b = appendText(b, "host", r.Host)
	if r.Backend.IsValid() {
		b = append(b, `,"backend":"`...)
		b = r.Backend.AppendTo(b)
		b = append(b, '"')
	}
	b = appendInt(b, "attempts", int64(r.Attempts))
	if r.Status > 0 {
		b = appendInt(b, "status", int64(r.Status))
	}
	if r.GRPC >= 0 {
		b = appendInt(b, "grpc_status", int64(r.GRPC))
	}
	b = appendInt(b, "bytes_in", r.In)
	b = appendInt(b, "bytes_out", r.Out)
	if r.Attempts > 0 {
		b = appendMS(b, "wait_ms", r.Wait)
	}
	if r.FirstByte > 0 {
		b = appendMS(b, "first_byte_ms", r.FirstByte)
	}
	b = appendMS(b, "total_ms", r.Total)
	b = appendText(b, "flags", r.Flags())
	b = appendText(b, "ended_by", r.By.String())
	b = appendText(b, "phase", r.Phase.String())
	b = appendText(b, "cause", r.Cause)
	b = appendText(b, "trace_id", r.Trace)
	return append(b, '}', '\n')
}

func appendText(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return appendString(b, value)
}

func appendInt(b []byte, key string, n int64) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return strconv.AppendInt(b, n, 10)
}

// appendMS appends a duration in milliseconds, to the microsecond.
func appendMS(b []byte, key string, d time.Duration) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return strconv.AppendFloat(b, float64(d.Microseconds())/1000, 'f', -1, 64)
}

// appendString appends s as JSON has it. Peers say what they like: whatever isn't UTF-8 becomes U+FFFD, and nothing in it can end the string or the line.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
			i++
		case c < ' ' || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			i++
		case c < utf8.RuneSelf:
			b = append(b, c)
			i++
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == '\u2028' || r == '\u2029' { // line ends to some readers
				b = append(b, '\\', 'u', '2', '0', '2', hex[r&15])
			} else {
				b = utf8.AppendRune(b, r)
			}
			i += n
		}
	}
	return append(b, '"')
}

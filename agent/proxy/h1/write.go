package h1

import "strconv"

// AppendRequest appends the head of the request as a backend gets it, with one that is the host's. at is where its line belongs, for AppendHost.
func (h *Head) AppendRequest(dst []byte) (out []byte, at int) {
	dst = append(dst, h.Method...)
	dst = append(dst, ' ')
	if len(h.Target) == 0 || h.Target[0] == '?' {
		dst = append(dst, '/')
	}
	dst = append(dst, h.Target...)
	dst = append(dst, " HTTP/1.1\r\n"...)
	at = len(dst)
	for i := range h.Fields {
		switch f := &h.Fields[i]; f.kind {
		case host:
			at = len(dst)
		case endToEnd, contentLength, trailer:
			dst = appendField(dst, f.Name, f.Value)
		case expect:
			if h.Continue {
				dst = appendField(dst, f.Name, f.Value)
			}
		case upgrade:
			if h.Upgrade {
				dst = appendField(dst, f.Name, f.Value)
			}
		}
	}
	if h.Chunked {
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
	}
	switch {
	case h.Trailers && h.Upgrade:
		dst = append(dst, "TE: trailers\r\nConnection: TE, Upgrade\r\n"...)
	case h.Trailers:
		dst = append(dst, "TE: trailers\r\nConnection: TE\r\n"...)
	case h.Upgrade:
		dst = append(dst, "Connection: Upgrade\r\n"...)
	}
	return append(dst, "\r\n"...), at
}

// AppendHost appends the head that AppendRequest made, with its Host field.
func AppendHost(dst, head []byte, at int, host string) []byte {
	dst = append(dst, head[:at]...)
	dst = append(dst, "Host: "...)
	dst = append(dst, host...)
	dst = append(dst, "\r\n"...)
	return append(dst, head[at:]...)
}

// Framing is how a response's body is sent to the client.
type Framing uint8

// Every framing.
const (
	AsLength   Framing = iota // as Content-Length says; also if there is none, and no body
	AsChunks                  // chunked
	UntilClose                // to the connection's end
)

// AppendResponse appends the head of the response as the client gets it. option is what Connection says, empty for nothing.
func (h *Head) AppendResponse(dst []byte, framing Framing, option string) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(h.Status), 10)
	dst = append(dst, ' ')
	dst = append(dst, h.Reason...)
	dst = append(dst, "\r\n"...)
	for i := range h.Fields {
		f := &h.Fields[i]
		switch f.kind {
		case endToEnd:
		case contentLength:
			if framing != AsLength || h.Status < 200 || h.Status == 204 { // RFC 9110, 8.6
				continue
			}
		case trailer:
			if framing != AsChunks {
				continue
			}
		case upgrade:
			if option != OptionUpgrade {
				continue
			}
		default:
			continue
		}
		dst = appendField(dst, f.Name, f.Value)
	}
	if framing == AsChunks {
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
	}
	if option != "" {
		dst = append(dst, "Connection: "...)
		dst = append(dst, option...)
		dst = append(dst, "\r\n"...)
	}
	return append(dst, "\r\n"...)
}

// What Connection says in a response.
const (
	OptionClose   = "close"
	OptionAlive   = "keep-alive"
	OptionUpgrade = "Upgrade"
)

// appendField appends a field line.
func appendField(dst, name, value []byte) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, "\r\n"...)
}

// AppendLast appends the last chunk with trailers.
func AppendLast(dst []byte, trailers []Field) []byte {
	dst = append(dst, "0\r\n"...)
	for _, f := range trailers {
		dst = appendField(dst, f.Name, f.Value)
	}
	return append(dst, "\r\n"...)
}

// Package h1 reads and writes HTTP/1 message heads and chunked bodies (RFC 9112): bytes in, their meaning out. It knows no socket and no clock.
//
// It is strict. A relay whose reading of a message differs from its neighbour's by one byte can be made to carry a request that nobody checked, so what is
// ambiguous is refused, also where a lenient reading exists: bare LF, folded lines, both Content-Length and Transfer-Encoding, either of them twice. What
// it accepts is written anew in one form, field order and case as they came (SEMANTICS 4.6).
package h1

import "bytes"

// Field is one field line; its slices are parts of the head that it was read from.
type Field struct {
	Name, Value []byte

	kind kind
}

// kind says what a field is to a relay.
type kind uint8

const (
	endToEnd kind = iota
	hop           // of this connection: never passed on
	host
	contentLength
	transferEncoding
	connection
	upgrade
	expect
	te
	trailer
)

// kindOf knows the fields that a relay has to understand.
func kindOf(name []byte) kind {
	switch len(name) {
	case 2:
		if is(name, "te") {
			return te
		}
	case 4:
		if is(name, "host") {
			return host
		}
	case 6:
		if is(name, "expect") {
			return expect
		}
	case 7:
		if is(name, "upgrade") {
			return upgrade
		}
		if is(name, "trailer") {
			return trailer
		}
	case 10:
		if is(name, "connection") {
			return connection
		}
		if is(name, "keep-alive") {
			return hop
		}
	case 14:
		if is(name, "content-length") {
			return contentLength
		}
		if is(name, "http2-settings") { // of an upgrade to h2c, which is never made (RFC 9113, 3.1)
			return hop
		}
	case 16:
		if is(name, "proxy-connection") {
			return hop
		}
	case 17:
		if is(name, "transfer-encoding") {
			return transferEncoding
		}
	}
	return endToEnd
}

// Is compares without regard to the case of ASCII letters; lower has none in upper case.
// Is reports whether a field's name is that one, which is in lower case.
func Is(name []byte, lower string) bool { return is(name, lower) }

func is(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// tokens calls f for each element of a comma-separated list of tokens (RFC 9110, 5.6.1); it reports whether it is one.
func tokens(list []byte, f func(token []byte)) bool {
	for len(list) > 0 {
		var one []byte
		one, list, _ = bytes.Cut(list, []byte{','})
		if one = trim(one); len(one) == 0 {
			continue
		}
		if !isToken(one) {
			return false
		}
		f(one)
	}
	return true
}

func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

func isToken(b []byte) bool {
	for _, c := range b {
		if !isTokenByte(c) {
			return false
		}
	}
	return len(b) > 0
}

// isTokenByte is tchar of RFC 9110, 5.6.2.
func isTokenByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	switch c {
	case '!', '#', '$', '%', '&', '\'', '*', '+', '-', '.', '^', '_', '`', '|', '~':
		return true
	}
	return false
}

// isValue reports whether b may be a field's value or a reason phrase: no control character but the tabulator (RFC 9110, 5.5).
func isValue(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// isHost reports whether b may be the host and port of a request (RFC 9112, 3.2): no userinfo, no list, no path. Empty is allowed.
func isHost(b []byte) bool {
	name, port := b, []byte(nil)
	if len(b) > 0 && b[0] == '[' {
		end := bytes.IndexByte(b, ']')
		if end < 2 {
			return false
		}
		for _, c := range b[1:end] {
			if !isHex(c) && c != ':' && c != '.' && c != '%' { // % begins a zone, which some clients send
				if i := bytes.IndexByte(b[:end], '%'); i < 0 || !isNameByte(c) {
					return false
				}
			}
		}
		name, port = nil, b[end+1:]
	} else if i := bytes.IndexByte(b, ':'); i >= 0 {
		name, port = b[:i], b[i:]
		if i == 0 {
			return false
		}
	}
	for _, c := range name {
		if !isNameByte(c) {
			return false
		}
	}
	if len(port) > 0 && (port[0] != ':' || len(port) > 6) {
		return false
	}
	for _, c := range port[min(1, len(port)):] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// isNameByte is what reg-name allows (RFC 3986, 3.2.2) without the comma, which some take for a list, and with bytes above ASCII, which many send unescaped.
func isNameByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c >= 0x80:
		return true
	}
	switch c {
	case '-', '.', '_', '~', '%', '!', '$', '&', '\'', '(', ')', '*', '+', ';', '=':
		return true
	}
	return false
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

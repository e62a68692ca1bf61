package h2

import "strings"

// What a character may be part of.
const (
	inName  = 1 << iota // field name: token without upper case (RFC 9113 8.2.1)
	inValue             // field value: anything but NUL, CR and LF (RFC 9113 8.2.1)
	inToken             // method: token
	inURI               // authority and path: visible, no space
)

// classes of every byte; TestClasses says the same in words.
var classes = [256]byte{
	0, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 2, 2, 0, 2, 2,
	2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,
	2, 15, 10, 15, 15, 15, 15, 15, 10, 10, 15, 15, 10, 15, 15, 10,
	15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 10, 10, 10, 10, 10, 10,
	10, 14, 14, 14, 14, 14, 14, 14, 14, 14, 14, 14, 14, 14, 14, 14,
	14, 14, 14, 14, 14, 14, 14, 14, 14, 14, 14, 10, 10, 10, 15, 15,
	15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15,
	15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 10, 15, 10, 15, 2,
	10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10,
	10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10,
	10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10,
	10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10,
	10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10,
	10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10,
	10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10,
	10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10,
}

func all(s string, class byte) bool {
	for i := range len(s) {
		if classes[s[i]]&class == 0 {
			return false
		}
	}
	return true
}

// field checks a regular field and notes what the relay looks at. It trims white space around the value, which must not be sent on
// (RFC 9113 8.2.1) but which gRPC says may be stripped.
func (c *Conn) field(f *Field, length *int64) bool {
	if f.bad || f.code <= codeStatus+6 {
		return false // of the latter, a pseudo field out of place
	}
	if f.blank {
		f.Value = strings.Trim(f.Value, " \t")
	}
	switch f.code {
	case codeConnection, codeProxyConnection, codeKeepAlive, codeTransferEncoding, codeUpgrade:
		return false // RFC 9113 8.2.2
	case codeTe:
		return strings.EqualFold(f.Value, "trailers")
	case codeContentLength:
		n, ok := parseLength(f.Value)
		if !ok || *length >= 0 && *length != n {
			return false
		}
		*length = n
		c.head.HasLength = true
	case codeHost:
		if !validAuthority(f.Value) || c.head.Authority != "" && !strings.EqualFold(c.head.Authority, f.Value) {
			return false // RFC 9113 8.3.1
		}
		c.head.Authority = f.Value
	case codeContentType:
		c.head.ContentType = f.Value
	case codeGrpcTimeout:
		c.head.GRPCTimeout = f.Value
	case codeGrpcStatus:
		c.head.GRPCStatus = f.Value
	case codeGrpcMessage:
		c.head.GRPCMessage = f.Value
	}
	return true
}

// checkRequest checks the decoded list as a request (RFC 9113 8.2, 8.3). length is -1 without content-length.
func (c *Conn) checkRequest() (length int64, ok bool) {
	const method, scheme, path, authority = 1, 2, 4, 8
	c.head = Head{Size: c.size}
	length = -1
	seen, fields := 0, c.fields
	var schemeValue string
	for i := range fields {
		f := &fields[i]
		var bit int
		switch f.code {
		case codeMethod:
			bit, c.head.Method = method, f.Value
		case codeScheme:
			bit, schemeValue = scheme, f.Value
		case codePath:
			bit, c.head.Path = path, f.Value
		case codeAuthority:
			bit, c.head.Authority = authority, f.Value
			if !validAuthority(f.Value) {
				return 0, false
			}
		default:
			if !c.requestEnd(seen&^authority, schemeValue) {
				return 0, false
			}
			return c.regular(fields[i:], length)
		}
		if seen&bit != 0 {
			return 0, false
		}
		seen |= bit
	}
	return length, c.requestEnd(seen&^authority, schemeValue)
}

// requestEnd checks the pseudo fields, all of which have been seen; bits as in checkRequest.
func (c *Conn) requestEnd(seen int, scheme string) bool {
	h := &c.head
	if h.Method == "" || !all(h.Method, inToken) {
		return false
	}
	if h.Method == "CONNECT" {
		return seen == 1 && h.Authority != "" // RFC 9113 8.5
	}
	if seen != 7 || !validScheme(scheme) || !all(h.Path, inURI) {
		return false
	}
	return strings.HasPrefix(h.Path, "/") || h.Path == "*" && h.Method == "OPTIONS"
}

func validScheme(s string) bool {
	if s == "http" || s == "https" {
		return true
	}
	return s != "" && all(s, inName) && s[0] >= 'a'
}

// validAuthority: userinfo is forbidden (RFC 9113 8.3.1), and a comma means two fields that were joined.
func validAuthority(s string) bool {
	return all(s, inURI) && !strings.ContainsAny(s, "@,/\\")
}

// regular checks fields after the pseudo fields.
func (c *Conn) regular(fields []Field, length int64) (int64, bool) {
	for i := range fields {
		if !c.field(&fields[i], &length) { // a pseudo field here has no valid name
			return 0, false
		}
	}
	return length, true
}

// checkResponse checks the decoded list as a response.
func (c *Conn) checkResponse() (length int64, ok bool) {
	c.head = Head{Size: c.size}
	fields := c.fields
	if len(fields) == 0 || fields[0].code != codeStatus || !c.parseStatus(fields[0].Value) {
		return 0, false
	}
	return c.regular(fields[1:], -1)
}

func (c *Conn) parseStatus(v string) bool {
	if len(v) != 3 || v[0] < '1' || v[0] > '9' || v[1] < '0' || v[1] > '9' || v[2] < '0' || v[2] > '9' {
		return false
	}
	c.head.Status = int(v[0]-'0')*100 + int(v[1]-'0')*10 + int(v[2]-'0')
	return c.head.Status != 101 // RFC 9113 8.6
}

// checkTrailers checks the decoded list as trailers, which have no pseudo fields.
func (c *Conn) checkTrailers() bool {
	c.head = Head{Size: c.size}
	_, ok := c.regular(c.fields, -1)
	return ok
}

func parseLength(v string) (int64, bool) {
	if v == "" || len(v) > 18 {
		return 0, false
	}
	n := int64(0)
	for i := range len(v) {
		if v[i] < '0' || v[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(v[i]-'0')
	}
	return n, true
}

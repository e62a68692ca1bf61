package h1

import "bytes"

// Head is a request's or a response's head. Its slices are parts of the bytes that it was read from. It may be used again; Fields keeps its memory.
type Head struct {
	Method []byte
	Target []byte // in origin form, or "*"; empty for the root of an absolute form
	Host   []byte // of the target, or the Host field
	Status int
	Reason []byte

	Minor    int // of the version, HTTP/1.x: 0 or 1
	Fields   []Field
	Length   int64 // Content-Length; -1 = none
	Chunked  bool
	Close    bool // Connection: close
	Alive    bool // Connection: keep-alive, which 1.0 needs
	Upgrade  bool // wants to leave HTTP/1.1, or does
	Continue bool // Expect: 100-continue
	Trailers bool // TE: trailers

	hostAt   int // index in Fields, -1 = none
	response bool
	options  bool // Connection has upgrade
	offered  bool // an Upgrade field is there
}

// maxOptions bounds what Connection may say: each option is compared with each field.
const maxOptions = 50

// End finds the end of a head, or of trailers: the length of what b begins with, its empty line included; 0 if that isn't all there. The bytes before from have been
// searched already.
func End(b []byte, from int) (int, error) {
	for {
		i := bytes.IndexByte(b[from:], '\n')
		if i < 0 {
			return 0, nil
		}
		i += from
		if i == 0 || b[i-1] != '\r' {
			return 0, ErrBareLF
		}
		if i == 1 || b[i-2] == '\n' {
			return i + 1, nil
		}
		from = i + 1
	}
}

func (h *Head) reset() { *h = Head{Fields: h.Fields[:0], Length: -1, hostAt: -1} }

// Request reads the whole head b of a request, with at most max fields.
func (h *Head) Request(b []byte, max int) error {
	h.reset()
	line, rest := cutLine(b)
	if err := h.requestLine(line); err != nil {
		return err
	}
	if err := h.fields(rest, max); err != nil {
		return err
	}
	if err := h.framing(); err != nil {
		return err
	}
	if err := h.absolute(); err != nil {
		return err
	}
	switch {
	case h.hostAt < 0 && h.Minor > 0:
		return ErrNoHost
	case !isHost(h.Host):
		return ErrHost
	case h.Minor == 0:
		h.Continue, h.options = false, false // RFC 9110, 10.1.1 and 7.8: both are 1.1's
	}
	// An upgrade of a request with a body would make two things of one stream of bytes at once; it is ignored, as any server may (RFC 9110, 7.8).
	h.Upgrade = h.options && h.offered && !h.Chunked && h.Length <= 0
	return nil
}

// requestLine reads `METHOD target HTTP/1.x`, with one space between.
func (h *Head) requestLine(line []byte) error {
	first, last := bytes.IndexByte(line, ' '), bytes.LastIndexByte(line, ' ')
	if first < 0 || first == last {
		return ErrLine
	}
	h.Method, h.Target = line[:first], line[first+1:last]
	if !isToken(h.Method) {
		return ErrLine
	}
	for _, c := range h.Target {
		if c <= ' ' || c == 0x7f || c == '#' { // a fragment is never sent (RFC 9112, 3.2), and not everybody takes it for a part of the path
			return ErrTarget
		}
	}
	switch version := line[last+1:]; {
	case string(version) == "HTTP/1.1":
		h.Minor = 1
	case string(version) == "HTTP/1.0":
	case len(version) == 8 && bytes.HasPrefix(version, []byte("HTTP/")) && version[6] == '.' && isDigit(version[5]) && isDigit(version[7]):
		return ErrVersion
	default:
		return ErrLine
	}
	switch {
	case string(h.Method) == "CONNECT":
		return ErrConnect
	case len(h.Target) == 0:
		return ErrTarget
	}
	return nil
}

// absolute makes the origin form of an absolute one, whose host counts for more than the field's (RFC 9112, 3.2.2), and refuses what is neither.
func (h *Head) absolute() error {
	t := h.Target
	switch {
	case t[0] == '/', string(t) == "*" && string(h.Method) == "OPTIONS":
		return nil
	case len(t) > 7 && is(t[:7], "http://"):
		t = t[7:]
	case len(t) > 8 && is(t[:8], "https://"):
		t = t[8:]
	default:
		return ErrTarget
	}
	end := bytes.IndexAny(t, "/?")
	if end < 0 {
		end = len(t)
	}
	if end == 0 {
		return ErrHost
	}
	if !isHost(h.Host) {
		return ErrHost // the field is ignored, but not what is wrong with it
	}
	h.Host, h.Target = t[:end], t[end:]
	if len(h.Target) == 0 && string(h.Method) == "OPTIONS" {
		h.Target = []byte("*") // RFC 9112, 3.2.4
	}
	return nil
}

// Response reads the whole head b of a response, with at most max fields.
func (h *Head) Response(b []byte, max int) error {
	h.reset()
	h.response = true
	line, rest := cutLine(b)
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return ErrStatus
	}
	switch line[7] {
	case '0':
	case '1':
		h.Minor = 1
	default:
		return ErrStatus
	}
	for _, c := range line[9:12] {
		if !isDigit(c) {
			return ErrStatus
		}
		h.Status = h.Status*10 + int(c-'0')
	}
	if len(line) > 12 {
		h.Reason = line[13:]
	}
	if h.Status < 100 || !isValue(h.Reason) {
		return ErrStatus
	}
	if err := h.fields(rest, max); err != nil {
		return err
	}
	if err := h.framing(); err != nil {
		return err
	}
	if h.Status < 200 && (h.Chunked || h.Length > 0) {
		return ErrInterim
	}
	h.Upgrade = h.Status == 101
	return nil
}

// framing checks what says where the body ends.
func (h *Head) framing() error {
	switch {
	case h.Chunked && h.Minor == 0:
		return ErrOldCoded // RFC 9112, 6.1
	case h.Chunked && h.Length >= 0:
		return ErrBoth
	}
	return nil
}

// HasBody reports whether a body follows a response, to a HEAD request or another (RFC 9112, 6.3).
func (h *Head) HasBody(head bool) bool {
	return !head && h.Status >= 200 && h.Status != 204 && h.Status != 304
}

// fields reads field lines up to the empty one.
func (h *Head) fields(b []byte, max int) error {
	for {
		line, rest := cutLine(b)
		if len(line) == 0 {
			break
		}
		b = rest
		f, err := parseField(line)
		if err != nil {
			return err
		}
		if len(h.Fields) == max {
			return ErrFields
		}
		if err := h.note(&f); err != nil {
			return err
		}
		h.Fields = append(h.Fields, f)
	}
	for i := range h.Fields {
		if h.Fields[i].kind == connection {
			if err := h.nominate(h.Fields[i].Value); err != nil {
				return err
			}
		}
	}
	return nil
}

// cutLine takes a line from what End has found to be a head: every line ends in CRLF.
func cutLine(b []byte) (line, rest []byte) {
	i := bytes.IndexByte(b, '\n')
	return b[:i-1], b[i+1:]
}

func parseField(line []byte) (f Field, err error) {
	if line[0] == ' ' || line[0] == '\t' {
		return f, ErrFolded
	}
	i := bytes.IndexByte(line, ':')
	if i < 0 {
		return f, ErrName
	}
	f.Name, f.Value = line[:i], trim(line[i+1:])
	if !isToken(f.Name) {
		return f, ErrName
	}
	if !isValue(f.Value) {
		return f, ErrValue
	}
	f.kind = kindOf(f.Name)
	return f, nil
}

// note takes in what a field says to a relay.
func (h *Head) note(f *Field) error {
	switch f.kind {
	case host:
		if h.response {
			f.kind = endToEnd
			return nil
		}
		if h.hostAt >= 0 {
			return ErrTwoHosts
		}
		h.hostAt, h.Host = len(h.Fields), f.Value
	case contentLength:
		if h.Length >= 0 {
			return ErrTwo
		}
		n, ok := parseLength(f.Value)
		if !ok {
			return ErrLength
		}
		h.Length = n
	case transferEncoding:
		if h.Chunked {
			return ErrTwo
		}
		if !is(f.Value, "chunked") {
			return ErrCoding
		}
		h.Chunked = true
	case upgrade:
		h.offered = true
		if !h.response {
			return h.offer(f)
		}
	case expect:
		if h.response {
			f.kind = endToEnd
			return nil
		}
		if !is(f.Value, "100-continue") {
			return ErrExpect
		}
		h.Continue = true
	case te:
		if !h.response && bytes.Contains(bytes.ToLower(f.Value), []byte("trailers")) {
			h.Trailers = true
		}
	}
	return nil
}

// offer looks at a request's Upgrade field. One to h2c is not made: behind it the backend's requests would be nobody's to check (RFC 9113 has dropped it).
func (h *Head) offer(f *Field) error {
	for list := f.Value; len(list) > 0; {
		var one []byte
		one, list, _ = bytes.Cut(list, []byte{','})
		name, _, _ := bytes.Cut(trim(one), []byte{'/'})
		if is(name, "h2c") || is(name, "h2") || is(name, "http") {
			h.offered, f.kind = false, hop
		}
	}
	return nil
}

// nominate reads a Connection field, whose options may name further fields of this connection (RFC 9110, 7.6.1).
func (h *Head) nominate(value []byte) error {
	var err error
	n := 0
	ok := tokens(value, func(option []byte) {
		if n++; n > maxOptions {
			err = ErrOption
			return
		}
		switch {
		case is(option, "close"):
			h.Close = true
			return
		case is(option, "keep-alive"):
			h.Alive = true
			return
		case is(option, "upgrade"):
			h.options = true
			return
		}
		switch kindOf(option) {
		case host, contentLength, transferEncoding:
			// What every hop has to see is no field of the connection. Dropping it would change what the message means.
			if !h.response {
				err = ErrOption
			}
			return
		}
		for i := range h.Fields {
			if f := &h.Fields[i]; f.kind == endToEnd && len(f.Name) == len(option) && bytes.EqualFold(f.Name, option) {
				f.kind = hop
			}
		}
	})
	if !ok {
		return ErrOption
	}
	return err
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// parseLength reads a Content-Length: digits only, below 2^63.
func parseLength(b []byte) (int64, bool) {
	var n int64
	if len(b) == 0 || len(b) > 19 {
		return 0, false
	}
	for _, c := range b {
		if !isDigit(c) {
			return 0, false
		}
		d := int64(c - '0')
		if n > (1<<63-1-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}

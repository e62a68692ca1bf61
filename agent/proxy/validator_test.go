package proxy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// validator reads what the relay sends on one connection as a peer would that trusts nobody: every frame has to be one that RFC 9113 allows there. It's a
// second implementation, which shares nothing with package h2.
type validator struct {
	requests bool // the relay is the client of this connection

	have    []byte // not a whole frame yet
	preface int    // bytes of it that are still to come
	begun   bool   // SETTINGS came
	streams map[uint32]*seenStream
	last    uint32 // highest stream that was opened
	open    int    // of these, by what we know
	block   []byte
	blockOf *http2.FrameHeader // HEADERS whose block goes on
	dec     *hpack.Decoder
	fields  []hpack.HeaderField
	resize  bool // the next block has to begin with a table size update

	// What we told the relay: in force from its ACK on.
	said       []saidSettings
	initial    int64 // SETTINGS_INITIAL_WINDOW_SIZE
	maxStreams int
	tableSize  uint32
	window     int64 // of the connection, for the relay's DATA
	pings      [][8]byte

	// What the relay allows us.
	theirInitial, theirWindow int64
	theirStreams              int

	goaway   bool
	lastGood uint32
	code     http2.ErrCode // of the latest GOAWAY
	reason   string

	frames, bytes int

	// Events for a script.
	onHead func(id uint32, fields []hpack.HeaderField, end bool)
	onData func(id uint32, b []byte, end bool)
	onPing func(p [8]byte)
	onRST  func(id uint32, code http2.ErrCode)
}

// saidSettings is a SETTINGS frame of ours without its ACK; -1: not said. lowest is the smallest table size, if it says more than one.
type saidSettings struct{ initial, maxStreams, tableSize, lowest int64 }

// seenStream is a stream as this side sees it.
type seenStream struct {
	window  int64 // for the relay's DATA
	theirs  int64 // for ours
	ended   bool  // by the relay
	reset   bool  // by the relay
	weEnded bool
	weReset bool
	final   bool // the final header list came
	noBody  bool
	length  int64 // what content-length leaves; -1: not said
	tunnel  bool  // CONNECT
	got     int64
}

func newValidator(requests bool) *validator {
	v := &validator{
		requests: requests, streams: map[uint32]*seenStream{}, dec: hpack.NewDecoder(4096, nil),
		initial: 65535, maxStreams: 1 << 31, tableSize: 4096, window: 65535, theirInitial: 65535, theirWindow: 65535, theirStreams: 1 << 31,
	}
	if requests {
		v.preface = len(http2.ClientPreface)
	}
	v.dec.SetEmitFunc(func(f hpack.HeaderField) { v.fields = append(v.fields, f) })
	return v
}

// feed takes bytes of the relay.
func (v *validator) feed(b []byte) error {
	v.bytes += len(b)
	v.have = append(v.have, b...)
	b = v.have
	if v.preface > 0 {
		n := min(v.preface, len(b))
		if at := len(http2.ClientPreface) - v.preface; string(b[:n]) != http2.ClientPreface[at:at+n] {
			return fmt.Errorf("preface %q", b[:n])
		}
		v.preface -= n
		b = b[n:]
	}
	for len(b) >= 9 {
		h := http2.FrameHeader{Length: uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]), Type: http2.FrameType(b[3]), Flags: http2.Flags(b[4]), StreamID: binary.BigEndian.Uint32(b[5:])}
		if h.Length > 16384 {
			return fmt.Errorf("%v: longer than SETTINGS_MAX_FRAME_SIZE", h)
		}
		if len(b) < 9+int(h.Length) {
			break
		}
		v.frames++
		if err := v.frame(h, b[9:9+h.Length]); err != nil {
			return fmt.Errorf("%v: %w", h, err)
		}
		b = b[9+h.Length:]
	}
	v.have = v.have[:copy(v.have, b)]
	return nil
}

func (v *validator) frame(h http2.FrameHeader, p []byte) error {
	var flags http2.Flags
	switch h.Type {
	case http2.FrameData:
		flags = http2.FlagDataEndStream
	case http2.FrameHeaders:
		flags = http2.FlagHeadersEndStream | http2.FlagHeadersEndHeaders
	case http2.FrameSettings, http2.FramePing:
		flags = http2.FlagSettingsAck
	case http2.FrameContinuation:
		flags = http2.FlagContinuationEndHeaders
	case http2.FrameRSTStream, http2.FrameGoAway, http2.FrameWindowUpdate:
	default:
		return fmt.Errorf("a type that the relay has no use for")
	}
	switch {
	case h.Flags&^flags != 0:
		return fmt.Errorf("undefined flags") // RFC 9113 4.1: unset when sending
	case h.StreamID>>31 != 0:
		return fmt.Errorf("reserved bit")
	case !v.begun && (h.Type != http2.FrameSettings || h.Flags != 0):
		return fmt.Errorf("before SETTINGS")
	case (v.blockOf != nil) != (h.Type == http2.FrameContinuation) || v.blockOf != nil && v.blockOf.StreamID != h.StreamID:
		return fmt.Errorf("header block interrupted, or not begun")
	}
	switch h.Type {
	case http2.FrameSettings:
		return v.settings(h, p)
	case http2.FramePing:
		return v.ping(h, p)
	case http2.FrameGoAway:
		return v.goAway(h, p)
	case http2.FrameWindowUpdate:
		return v.windowUpdate(h, p)
	}
	if h.StreamID == 0 {
		return fmt.Errorf("on stream 0")
	}
	switch h.Type {
	case http2.FrameHeaders:
		if h.Flags&http2.FlagHeadersEndHeaders != 0 {
			return v.headers(h, p)
		}
		v.blockOf, v.block = &h, append(v.block[:0], p...)
		return nil
	case http2.FrameContinuation:
		v.block = append(v.block, p...)
		if h.Flags&http2.FlagContinuationEndHeaders == 0 {
			return nil
		}
		first := *v.blockOf
		v.blockOf = nil
		return v.headers(first, v.block)
	case http2.FrameData:
		return v.data(h, p)
	}
	return v.rst(h, p)
}

func (v *validator) settings(h http2.FrameHeader, p []byte) error {
	switch {
	case h.StreamID != 0 || len(p)%6 != 0:
		return fmt.Errorf("on a stream, or of wrong size")
	case h.Flags&http2.FlagSettingsAck != 0 && (len(p) > 0 || len(v.said) == 0):
		return fmt.Errorf("ACK with a payload, or of nothing")
	case h.Flags&http2.FlagSettingsAck != 0:
		s := v.said[0]
		v.said = v.said[1:]
		v.inForce(s)
		return nil
	}
	v.begun = true
	for ; len(p) > 0; p = p[6:] {
		value := int64(binary.BigEndian.Uint32(p[2:]))
		switch id := http2.SettingID(binary.BigEndian.Uint16(p)); {
		case id == http2.SettingEnablePush && value > 0 && !v.requests:
			return fmt.Errorf("a server that pushes")
		case id == http2.SettingInitialWindowSize && value > 1<<31-1:
			return fmt.Errorf("initial window %d", value)
		case id == http2.SettingInitialWindowSize:
			for _, s := range v.streams {
				s.theirs += value - v.theirInitial
			}
			v.theirInitial = value
		case id == http2.SettingMaxFrameSize && (value < 16384 || value > 1<<24-1):
			return fmt.Errorf("frame size %d", value)
		case id == http2.SettingMaxConcurrentStreams:
			v.theirStreams = int(value)
		}
	}
	return nil
}

// inForce applies what the relay has acknowledged.
func (v *validator) inForce(s saidSettings) {
	if s.initial >= 0 {
		for _, st := range v.streams {
			st.window += s.initial - v.initial
		}
		v.initial = s.initial
	}
	if s.maxStreams >= 0 {
		v.maxStreams = int(s.maxStreams)
	}
	if s.tableSize >= 0 {
		v.resize = v.resize || s.lowest < int64(min(v.tableSize, 4096)) // RFC 7541 4.2
		v.tableSize = uint32(s.tableSize)
		v.dec.SetAllowedMaxDynamicTableSize(v.tableSize)
	}
}

func (v *validator) ping(h http2.FrameHeader, p []byte) error {
	if h.StreamID != 0 || len(p) != 8 {
		return fmt.Errorf("on a stream, or of wrong size")
	}
	if h.Flags&http2.FlagPingAck == 0 {
		if v.onPing != nil {
			v.onPing([8]byte(p))
		}
		return nil
	}
	if len(v.pings) == 0 || v.pings[0] != [8]byte(p) {
		return fmt.Errorf("ACK %x, want the first of %x", p, v.pings)
	}
	v.pings = v.pings[1:]
	return nil
}

func (v *validator) goAway(h http2.FrameHeader, p []byte) error {
	if h.StreamID != 0 || len(p) < 8 {
		return fmt.Errorf("on a stream, or of wrong size")
	}
	last := binary.BigEndian.Uint32(p)
	if last>>31 != 0 || v.goaway && last > v.lastGood {
		return fmt.Errorf("last stream %d after %d", last, v.lastGood) // RFC 9113 6.8
	}
	v.goaway, v.lastGood, v.code, v.reason = true, last, http2.ErrCode(binary.BigEndian.Uint32(p[4:])), string(p[8:])
	return nil
}

func (v *validator) windowUpdate(h http2.FrameHeader, p []byte) error {
	if len(p) != 4 {
		return fmt.Errorf("of wrong size")
	}
	n := int64(binary.BigEndian.Uint32(p))
	if n <= 0 || n > 1<<31-1 {
		return fmt.Errorf("increment %d", n)
	}
	if h.StreamID == 0 {
		if v.theirWindow += n; v.theirWindow > connWindow {
			return fmt.Errorf("connection window %d", v.theirWindow) // more than was ever promised
		}
		return nil
	}
	s := v.streams[h.StreamID]
	if s == nil {
		return fmt.Errorf("on an idle stream")
	}
	if s.reset {
		return fmt.Errorf("on a stream that it has reset")
	}
	if s.theirs += n; s.theirs > streamWindow {
		return fmt.Errorf("stream window %d", s.theirs)
	}
	return nil
}

func (v *validator) rst(h http2.FrameHeader, p []byte) error {
	s := v.streams[h.StreamID]
	switch {
	case len(p) != 4:
		return fmt.Errorf("of wrong size")
	case s == nil && !v.requests && h.StreamID%2 == 1 && h.StreamID < v.last:
		return nil // a number that was left out is closed, not idle (RFC 9113 5.1.1)
	case s == nil:
		return fmt.Errorf("on an idle stream")
	case s.reset:
		return fmt.Errorf("twice")
	}
	v.close(s, func() { s.reset = true })
	if v.onRST != nil {
		v.onRST(h.StreamID, http2.ErrCode(binary.BigEndian.Uint32(p)))
	}
	return nil
}

// over reports whether the stream is closed, as far as we know.
func (s *seenStream) over() bool { return s.reset || s.weReset || s.ended && s.weEnded }

// close changes a stream and counts those that are open.
func (v *validator) close(s *seenStream, change func()) {
	was := s.over()
	change()
	if !was && s.over() {
		v.open--
	}
}

func (v *validator) data(h http2.FrameHeader, p []byte) error {
	s := v.streams[h.StreamID]
	if v.window -= int64(len(p)); v.window < 0 {
		return fmt.Errorf("%d bytes above the connection window", -v.window)
	}
	switch {
	case s == nil, s.ended, s.reset, !s.final:
		return fmt.Errorf("on a stream that isn't open for it")
	case s.noBody && len(p) > 0:
		return fmt.Errorf("with an answer that has no content")
	}
	if s.window -= int64(len(p)); len(p) > 0 && s.window < 0 {
		return fmt.Errorf("%d bytes above the stream window", -s.window)
	}
	if s.length >= 0 {
		if s.length -= int64(len(p)); s.length < 0 {
			return fmt.Errorf("more than content-length")
		}
	}
	s.got += int64(len(p))
	return v.finish(h, s, func(end bool) {
		if v.onData != nil {
			v.onData(h.StreamID, p, end)
		}
	})
}

// finish handles END_STREAM, then the event.
func (v *validator) finish(h http2.FrameHeader, s *seenStream, event func(end bool)) error {
	end := h.Flags&http2.FlagDataEndStream != 0
	if end {
		if s.length > 0 && !s.noBody {
			return fmt.Errorf("ended %d bytes before content-length", s.length)
		}
		v.close(s, func() { s.ended = true })
	}
	event(end)
	return nil
}

func (v *validator) headers(h http2.FrameHeader, block []byte) error {
	if v.resize && (len(block) == 0 || block[0]&0xe0 != 0x20) {
		return fmt.Errorf("no table size update after SETTINGS_HEADER_TABLE_SIZE fell")
	}
	v.resize = false
	v.fields = v.fields[:0]
	if _, err := v.dec.Write(block); err != nil {
		return err
	}
	if err := v.dec.Close(); err != nil {
		return err
	}
	s := v.streams[h.StreamID]
	if s == nil {
		switch {
		case !v.requests:
			return fmt.Errorf("answer on an idle stream")
		case h.StreamID%2 == 0 || h.StreamID <= v.last:
			return fmt.Errorf("new stream after %d", v.last)
		}
		s = v.opened(h.StreamID)
		if v.open > v.maxStreams {
			return fmt.Errorf("%d streams, SETTINGS_MAX_CONCURRENT_STREAMS is %d", v.open, v.maxStreams)
		}
	}
	end := h.Flags&http2.FlagHeadersEndStream != 0
	if s.ended || s.reset {
		return fmt.Errorf("on a stream that it has ended")
	}
	if err := v.list(s, end); err != nil {
		return fmt.Errorf("%w: %v", err, v.fields)
	}
	return v.finish(h, s, func(end bool) {
		if v.onHead != nil {
			v.onHead(h.StreamID, v.fields, end)
		}
	})
}

// opened makes a stream known: one that the relay opened, or we did.
func (v *validator) opened(id uint32) *seenStream {
	s := &seenStream{window: v.initial, theirs: v.theirInitial, length: -1}
	v.streams[id] = s
	v.last = max(v.last, id)
	v.open++
	return s
}

// list checks a header list by what has to come on the stream (RFC 9113 8).
func (v *validator) list(s *seenStream, end bool) error {
	pseudo := map[string]string{}
	regular := false
	length := int64(-1)
	host := ""
	for _, f := range v.fields {
		if strings.HasPrefix(f.Name, ":") {
			if _, twice := pseudo[f.Name]; twice || regular {
				return fmt.Errorf("pseudo field %s twice, or too late", f.Name)
			}
			pseudo[f.Name] = f.Value
		} else {
			regular = true
		}
		switch {
		case f.Name == "" || strings.Trim(strings.TrimPrefix(f.Name, ":"), "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz") != "":
			return fmt.Errorf("name %q", f.Name)
		case strings.ContainsAny(f.Value, "\x00\r\n"), strings.Trim(f.Value, " \t") != f.Value:
			return fmt.Errorf("value %q", f.Value)
		case strings.Contains(" connection proxy-connection keep-alive transfer-encoding upgrade ", " "+f.Name+" "):
			return fmt.Errorf("field %s", f.Name)
		case f.Name == "te" && !strings.EqualFold(f.Value, "trailers"):
			return fmt.Errorf("te: %s", f.Value)
		case f.Name == "host":
			host = f.Value
		case f.Name == "content-length":
			n, err := strconv.ParseUint(f.Value, 10, 62)
			if err != nil || length >= 0 && length != int64(n) || f.Value[0] == '+' {
				return fmt.Errorf("content-length %q", f.Value)
			}
			length = int64(n)
		}
	}
	switch {
	case s.final:
		if !end || len(pseudo) > 0 {
			return fmt.Errorf("trailers with pseudo fields, or without an end")
		}
	case v.requests:
		s.final, s.length = true, length
		return checkRequestLine(pseudo, host, s)
	default:
		status, err := strconv.Atoi(pseudo[":status"])
		if len(pseudo) != 1 || err != nil || len(pseudo[":status"]) != 3 || status < 100 || status == 101 {
			return fmt.Errorf("pseudo fields of a response")
		}
		if status < 200 {
			if end {
				return fmt.Errorf("an informational response as the last")
			}
			return nil
		}
		s.final = true
		s.noBody = s.noBody || status == 204 || status == 304
		if !s.noBody {
			s.length = length
		}
	}
	return nil
}

func checkRequestLine(p map[string]string, host string, s *seenStream) error {
	method, path, authority := p[":method"], p[":path"], p[":authority"]
	_, hasAuthority := p[":authority"]
	known := 0
	for _, name := range []string{":method", ":scheme", ":path", ":authority"} {
		if _, ok := p[name]; ok {
			known++
		}
	}
	uri := func(s string) bool {
		return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) < 0
	}
	switch {
	case known != len(p):
		return fmt.Errorf("unknown pseudo field")
	case method == "" || strings.ContainsAny(method, " \t:/"):
		return fmt.Errorf("method %q", method)
	case !uri(path) || !uri(authority):
		return fmt.Errorf("path %q, authority %q", path, authority)
	case strings.ContainsAny(authority, "@,/"):
		return fmt.Errorf("authority %q", authority)
	case hasAuthority && host != "" && !strings.EqualFold(host, authority):
		return fmt.Errorf("authority %q, host %q", authority, host)
	case method == "CONNECT":
		s.tunnel = true
		if known != 2 || authority == "" {
			return fmt.Errorf("CONNECT with %v", p)
		}
		return nil
	case p[":scheme"] == "" || path == "":
		return fmt.Errorf("without scheme or path")
	case path[0] != '/' && (path != "*" || method != "OPTIONS"):
		return fmt.Errorf("path %q", path)
	}
	return nil
}

// writer makes the frames of a peer and tells the validator what follows from them.
type writer struct {
	v    *validator
	out  []byte
	enc  *hpack.Encoder
	encb bytes.Buffer
}

func newWriter(v *validator) *writer {
	w := &writer{v: v}
	w.enc = hpack.NewEncoder(&w.encb)
	if !v.requests {
		w.out = append(w.out, http2.ClientPreface...)
	}
	return w
}

func (w *writer) frame(t http2.FrameType, flags http2.Flags, id uint32, parts ...[]byte) {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	w.out = append(w.out, byte(n>>16), byte(n>>8), byte(n), byte(t), byte(flags))
	w.out = binary.BigEndian.AppendUint32(w.out, id)
	for _, p := range parts {
		w.out = append(w.out, p...)
	}
}

func (w *writer) settings(s ...http2.Setting) {
	say := saidSettings{-1, -1, -1, -1}
	var p []byte
	for _, s := range s {
		p = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(p, uint16(s.ID)), s.Val)
		switch s.ID {
		case http2.SettingInitialWindowSize:
			say.initial = int64(s.Val)
		case http2.SettingMaxConcurrentStreams:
			say.maxStreams = int64(s.Val)
		case http2.SettingHeaderTableSize:
			say.tableSize, say.lowest = int64(s.Val), int64(s.Val)
		}
	}
	w.v.said = append(w.v.said, say)
	w.frame(http2.FrameSettings, 0, 0, p)
}

func (w *writer) ack() { w.frame(http2.FrameSettings, http2.FlagSettingsAck, 0) }

func (w *writer) ping(p [8]byte) {
	w.v.pings = append(w.v.pings, p)
	w.frame(http2.FramePing, 0, 0, p[:])
}

func (w *writer) pong(p [8]byte) { w.frame(http2.FramePing, http2.FlagPingAck, 0, p[:]) }

func (w *writer) windowUpdate(id uint32, n uint32) {
	if id == 0 {
		w.v.window += int64(n)
	} else if s := w.v.streams[id]; s != nil {
		s.window += int64(n)
	}
	w.frame(http2.FrameWindowUpdate, 0, id, binary.BigEndian.AppendUint32(nil, n))
}

func (w *writer) rst(id uint32, code http2.ErrCode) {
	if s := w.v.streams[id]; s != nil {
		w.v.close(s, func() { s.weReset = true })
	}
	w.frame(http2.FrameRSTStream, 0, id, binary.BigEndian.AppendUint32(nil, uint32(code)))
}

func (w *writer) goaway(last uint32, code http2.ErrCode) {
	w.frame(http2.FrameGoAway, 0, 0, binary.BigEndian.AppendUint32(nil, last), binary.BigEndian.AppendUint32(nil, uint32(code)))
}

func (w *writer) ended(id uint32, end bool) http2.Flags {
	if !end {
		return 0
	}
	if s := w.v.streams[id]; s != nil {
		w.v.close(s, func() { s.weEnded = true })
	}
	return http2.FlagDataEndStream
}

// headers writes a list; a client's opens the stream.
func (w *writer) headers(id uint32, end bool, nv ...string) {
	if w.v.streams[id] == nil && !w.v.requests {
		w.v.opened(id).noBody = len(nv) > 1 && nv[1] == "HEAD"
	}
	w.encb.Reset()
	for i := 0; i < len(nv); i += 2 {
		w.enc.WriteField(hpack.HeaderField{Name: nv[i], Value: nv[i+1]})
	}
	t, flags, block := http2.FrameHeaders, w.ended(id, end), w.encb.Bytes()
	for ; len(block) > 16384; t, flags, block = http2.FrameContinuation, 0, block[16384:] {
		w.frame(t, flags, id, block[:16384])
	}
	w.frame(t, flags|http2.FlagHeadersEndHeaders, id, block)
}

func (w *writer) data(id uint32, end bool, b []byte) {
	w.v.theirWindow -= int64(len(b))
	if s := w.v.streams[id]; s != nil {
		s.theirs -= int64(len(b))
	}
	w.frame(http2.FrameData, w.ended(id, end), id, b)
}

// room is how much DATA the relay allows on a stream now.
func (w *writer) room(id uint32) int {
	s := w.v.streams[id]
	if s == nil {
		return 0
	}
	return int(max(0, min(w.v.theirWindow, s.theirs, 16384)))
}

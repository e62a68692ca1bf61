package h2

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// peer drives a Conn with frames from another implementation, and reads what it sends with the same: the reference beside which it's tested.
type peer struct {
	t    *testing.T
	conn *Conn
	now  time.Time
	out  []byte // what conn sends
	log  []string
	// refused are the faults of requests that never came to be streams.
	refused []Fault

	in    bytes.Buffer // frames for conn
	write *http2.Framer
	enc   *hpack.Encoder
	encb  bytes.Buffer
	dec   *hpack.Decoder
	raw   bytes.Buffer // conn's bytes for the reader
	read  *http2.Framer

	streams map[uint32]*Stream
	onHead  func(s *Stream, end bool)
	hold    bool // don't write from Writable
	pending map[*Stream]int
}

func testConfig(server bool) Config {
	return Config{Server: server, MaxStreams: 4, StreamWindow: 65536, ConnWindow: 1 << 20, HeaderBytes: 64 << 10, HeaderFields: 200, HeldBytes: 256 << 10}
}

func newPeer(t *testing.T, cfg Config) *peer {
	p := &peer{t: t, now: time.Unix(1e9, 0), streams: map[uint32]*Stream{}, pending: map[*Stream]int{}}
	p.conn = New(cfg, &p.out, p)
	p.write = http2.NewFramer(&p.in, nil)
	p.write.AllowIllegalWrites = true
	p.read = http2.NewFramer(io.Discard, &p.raw)
	p.read.SetMaxReadFrameSize(16384)
	p.enc = hpack.NewEncoder(&p.encb)
	p.dec = hpack.NewDecoder(4096, nil)
	return p
}

// greeted is a peer whose SETTINGS have been exchanged.
func greeted(t *testing.T, cfg Config, settings ...http2.Setting) *peer {
	p := newPeer(t, cfg)
	if cfg.Server {
		p.in.WriteString(Preface)
	}
	p.write.WriteSettings(settings...)
	p.feed()
	p.frames()
	p.log = nil
	return p
}

// Handler.

func (p *peer) Open() *Stream { return &Stream{} }
func (p *peer) Headers(s *Stream, fields []Field, head *Head, end bool) {
	p.streams[s.ID()] = s
	var b strings.Builder
	for _, f := range fields {
		fmt.Fprintf(&b, " %s=%s", f.Name, f.Value)
	}
	if head.TooLarge {
		fmt.Fprintf(&b, " too large, %s", head.Method)
	}
	p.event("headers %d%s end=%v", s.ID(), b.String(), end)
	if p.onHead != nil {
		p.onHead(s, end)
	}
}
func (p *peer) Data(s *Stream, b []byte, end bool) {
	p.event("data %d %d end=%v", s.ID(), len(b), end)
}
func (p *peer) Trailers(s *Stream, fields []Field, head *Head) {
	p.event("trailers %d %d", s.ID(), len(fields))
}
func (p *peer) Reset(s *Stream, code Code, local bool) {
	p.event("reset %d %v local=%v", s.ID(), code, local)
}
func (p *peer) Refused(f Fault) { p.refused = append(p.refused, f) }
func (p *peer) Writable(s *Stream) {
	p.event("writable %d", s.ID())
	if !p.hold {
		p.pending[s] -= p.conn.WriteData(s, make([]byte, p.pending[s]), true)
	}
}
func (p *peer) Settings() { p.event("settings") }
func (p *peer) Goaway(last uint32, code Code, debug []byte) {
	p.event("goaway %d %v %s", last, code, debug)
}
func (p *peer) Pong(n uint64) { p.event("pong %d", n) }
func (p *peer) Drained()      { p.event("drained") }

func (p *peer) event(format string, args ...any) { p.log = append(p.log, fmt.Sprintf(format, args...)) }

// block encodes name, value, name, value.
func (p *peer) block(nv ...string) []byte {
	p.encb.Reset()
	for i := 0; i < len(nv); i += 2 {
		p.enc.WriteField(hpack.HeaderField{Name: nv[i], Value: nv[i+1]})
	}
	return bytes.Clone(p.encb.Bytes())
}

func (p *peer) headers(id uint32, end bool, nv ...string) {
	p.write.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block(nv...), EndStream: end, EndHeaders: true})
}

var get = []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"}

func post(more ...string) []string {
	return append([]string{":method", "POST", ":scheme", "http", ":path", "/s/m", ":authority", "a"}, more...)
}

// feed hands over what was written, byte counts checked, and returns the connection's error.
func (p *peer) feed() error {
	p.t.Helper()
	n, err := p.conn.Feed(p.now, p.in.Bytes())
	for err == nil && p.conn.More() {
		var k int
		k, err = p.conn.Feed(p.now, p.in.Bytes()[n:])
		n += k
	}
	if err == nil && n != p.in.Len() && !p.conn.Dead() {
		p.t.Errorf("consumed %d of %d bytes", n, p.in.Len())
	}
	p.in.Reset()
	if cerr := p.conn.Check(); cerr != nil {
		p.t.Errorf("after %q: %v", p.log, cerr)
	}
	return err
}

// frames reads what conn has sent, one line per frame.
func (p *peer) frames() (lines []string) {
	p.t.Helper()
	p.raw.Write(p.out)
	p.out = p.out[:0]
	if !p.conn.cfg.Server && bytes.HasPrefix(p.raw.Bytes(), []byte(Preface)) {
		p.raw.Next(len(Preface))
	}
	for {
		f, err := p.read.ReadFrame()
		if err == io.EOF {
			return lines
		}
		if err != nil {
			p.t.Fatalf("conn sent a bad frame: %v", err)
		}
		switch f := f.(type) {
		case *http2.DataFrame:
			lines = append(lines, fmt.Sprintf("DATA %d %d end=%v", f.StreamID, len(f.Data()), f.StreamEnded()))
		case *http2.HeadersFrame:
			block := bytes.Clone(f.HeaderBlockFragment())
			for done := f.HeadersEnded(); !done; {
				g, err := p.read.ReadFrame()
				c, ok := g.(*http2.ContinuationFrame)
				if err != nil || !ok {
					p.t.Fatalf("after HEADERS: %v %v", g, err)
				}
				block = append(block, c.HeaderBlockFragment()...)
				done = c.HeadersEnded()
			}
			fields, err := p.dec.DecodeFull(block)
			if err != nil {
				p.t.Fatalf("conn sent a bad header block: %v", err)
			}
			lines = append(lines, fmt.Sprintf("HEADERS %d %d end=%v", f.StreamID, len(fields), f.StreamEnded()))
		case *http2.RSTStreamFrame:
			lines = append(lines, fmt.Sprintf("RST %d %v", f.StreamID, Code(f.ErrCode)))
		case *http2.WindowUpdateFrame:
			lines = append(lines, fmt.Sprintf("WINDOW %d %d", f.StreamID, f.Increment))
		case *http2.SettingsFrame:
			lines = append(lines, fmt.Sprintf("SETTINGS ack=%v", f.IsAck()))
		case *http2.PingFrame:
			lines = append(lines, fmt.Sprintf("PING ack=%v", f.IsAck()))
		case *http2.GoAwayFrame:
			lines = append(lines, fmt.Sprintf("GOAWAY %d %v", f.LastStreamID, Code(f.ErrCode)))
		default:
			p.t.Fatalf("unexpected frame %v", f)
		}
	}
}

// want compares lines of events or frames.
func want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%s:\n  %s\nwant:\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// quiet hands over what was written and forgets the events.
func (p *peer) quiet() {
	p.t.Helper()
	if err := p.feed(); err != nil {
		p.t.Fatal(err)
	}
	p.log = nil
}

package h2

import (
	"encoding/binary"
	"iter"
	"math"
	"time"
)

// Config of a Conn; every value is the owner's promise to its peer.
type Config struct {
	Server       bool
	MaxStreams   int // server: SETTINGS_MAX_CONCURRENT_STREAMS; a stream counts until Release
	StreamWindow int // SETTINGS_INITIAL_WINDOW_SIZE: bounds what one stream can have parked here
	ConnWindow   int // of the whole connection; its credit is given back when bytes are read, so it bounds only what is under way
	HeaderBytes  int // decoded header list, and encoded block
	HeaderFields int
	Wary         bool // the peer begins with a small budget (budget.go)
	NoRefill     bool // time gives nothing of the budget back: for tests, whose floods may be slow
	HeldBytes    int  // server: header lists and trailers that the owner holds (Drop), together
}

// Head is what an event's header list says to a relay; fields that are absent are "" or 0.
type Head struct {
	Method, Authority, Path string // requests
	Status                  int    // responses: :status
	Size                    int    // of the header list, as RFC 9113 6.5.2 counts
	ContentType             string
	GRPCTimeout             string
	GRPCStatus              string
	GRPCMessage             string
	HasLength               bool // content-length was said
	TooLarge                bool // requests: the list is over a limit and isn't given; the others are set as far as they came within it
}

// Handler takes the events of a Conn. A handler may call any method of this or another Conn. A stream of which both directions have ended, or
// that was reset, is closed before the event is given, and the handler may use it again at once.
type Handler interface {
	// Open returns the Stream for a request that begins (server only); Headers follows.
	Open() *Stream
	// Headers is a request, a final response, or an informational one (Status 1xx). fields and head are valid until it returns; the strings stay.
	Headers(s *Stream, fields []Field, head *Head, end bool)
	// Data is valid until it returns. Its credit is given back by Grant.
	Data(s *Stream, p []byte, end bool)
	// Trailers end the peer's direction. fields and head are valid until it returns; the strings stay.
	Trailers(s *Stream, fields []Field, head *Head)
	// Reset says that s was reset: by the peer, or by us because of what the peer sent (local).
	Reset(s *Stream, code Code, local bool)
	// Refused says that a stream that the peer began was reset before Open (server only).
	Refused(f Fault)
	// Writable says that a stream for which WriteData took less than it was given can go on.
	Writable(s *Stream)
	// Settings says that the peer's SETTINGS came; MaxStreams may have changed.
	Settings()
	// Goaway says that the peer takes no streams above last.
	Goaway(last uint32, code Code, debug []byte)
	// Pong is the answer to a Ping.
	Pong(n uint64)
	// Drained says that after Shutdown no new stream can come.
	Drained()
}

// Conn is one side of one HTTP/2 connection.
type Conn struct {
	cfg Config
	h   Handler
	out *[]byte

	enc    encoder
	dec    decoder
	fields []Field // of the block being looked at
	head   Head
	size   int  // of the header list, as RFC 9113 6.5.2 counts
	excess bool // it's over HeaderBytes or HeaderFields
	held   int  // bytes of header lists and trailers that the owner of a server has

	streams table
	open    *Stream // list of open streams, newest first
	slots   int     // server: streams not released; client: open streams
	history history
	lastID  uint32 // highest stream number: server: of the peer, client: ours

	block      []byte // header block whose end has not come
	blockID    uint32 // 0: none
	blockEnd   bool   // its END_STREAM
	blockParts int

	sendWindow, recvWindow, owed int64
	initialWindow                int64 // the peer's SETTINGS_INITIAL_WINDOW_SIZE
	maxStreams                   int   // the peer's SETTINGS_MAX_CONCURRENT_STREAMS
	maxHeader                    int   // the peer's SETTINGS_MAX_HEADER_LIST_SIZE
	full                         bool  // SetFull
	blocked                      queue // streams that wait for the connection's window, or for SetFull

	preface  int  // bytes of the client's preface still to come
	settings bool // the peer's SETTINGS came
	acked    bool // the peer acknowledged ours
	dead     bool
	more     bool          // Feed left whole frames
	began    time.Time     // when the first bytes came
	clock    time.Duration // since then
	budget   int           // see budget.go
	filled   time.Duration // when budget was last given for the time
	control  int           // answers not yet taken by the socket
	shutdown drainPhase    // of our own GOAWAY
	goneAt   uint32        // the last stream of our final GOAWAY
	peerGone bool          // the peer sent GOAWAY
	peerLast uint32
	pinging  bool // our PING is out
}

type drainPhase uint8

const (
	serving   drainPhase = iota
	announced            // GOAWAY 2^31-1 and PING are out
	drained              // GOAWAY with the real last stream is out
)

// New returns a Conn that appends what it sends to *out, beginning with its preface and SETTINGS.
func New(cfg Config, out *[]byte, h Handler) *Conn {
	c := &Conn{
		cfg: cfg, h: h, out: out,
		sendWindow: defaultWindow, recvWindow: defaultWindow, initialWindow: defaultWindow,
		maxStreams: maxStreamID, maxHeader: math.MaxInt, budget: budgetFull,
	}
	if cfg.Wary {
		c.budget = budgetWary
	}
	c.enc = newEncoder()
	c.dec = decoder{max: tableSize, maxString: cfg.HeaderBytes}
	if cfg.Server {
		c.preface = len(Preface)
	} else {
		*out = append(*out, Preface...)
	}
	c.greet()
	return c
}

// greet sends SETTINGS and opens the connection's window.
func (c *Conn) greet() {
	start := c.begin(frameSettings, 0, 0)
	if c.cfg.Server {
		c.setting(settingMaxStreams, uint32(c.cfg.MaxStreams))
	} else {
		c.setting(settingPush, 0)
	}
	c.setting(settingInitialWindow, uint32(c.cfg.StreamWindow))
	c.setting(settingMaxHeaderBytes, uint32(c.cfg.HeaderBytes))
	c.finish(start)
	if grow := int64(c.cfg.ConnWindow) - c.recvWindow; grow > 0 {
		c.windowUpdate(0, grow)
		c.recvWindow += grow
	}
}

func (c *Conn) setting(id uint16, v uint32) {
	*c.out = binary.BigEndian.AppendUint16(*c.out, id)
	*c.out = binary.BigEndian.AppendUint32(*c.out, v)
}

// Feed takes received bytes and returns how many were consumed: whole frames, and not too many of them at once: see More. An error ends the connection; GOAWAY
// has been appended.
func (c *Conn) Feed(now time.Time, b []byte) (int, error) {
	c.more = false
	c.tick(now)
	n, err := c.feedPreface(b)
	if err != nil || c.preface > 0 {
		return n, c.fail(err)
	}
	for frames := 0; !c.dead && len(b)-n >= headerLen; frames++ {
		f := b[n:]
		length := int(f[0])<<16 | int(f[1])<<8 | int(f[2])
		if length > maxFrame {
			return n, c.fail(connError(FrameSizeError, "frame above SETTINGS_MAX_FRAME_SIZE"))
		}
		if len(f) < headerLen+length {
			break
		}
		if frames == framesPerFeed {
			c.more = true
			break
		}
		id := binary.BigEndian.Uint32(f[5:]) & maxStreamID
		n += headerLen + length
		if err := c.frame(frameType(f[3]), f[4], id, f[headerLen:headerLen+length:headerLen+length]); err != nil {
			return n, c.fail(err)
		}
	}
	return n, nil
}

// More reports whether the last Feed left whole frames, so that others get their turn before them.
func (c *Conn) More() bool { return c.more }

func (c *Conn) feedPreface(b []byte) (int, error) {
	if c.preface == 0 {
		return 0, nil
	}
	n := min(c.preface, len(b))
	if at := len(Preface) - c.preface; string(b[:n]) != Preface[at:at+n] {
		return 0, connError(ProtocolError, "not an HTTP/2 preface")
	}
	c.preface -= n
	return n, nil
}

// frame acts on one whole frame. Which frame may come next is checked here, the rest where the frame is handled.
func (c *Conn) frame(t frameType, flags byte, id uint32, p []byte) error {
	if !c.settings && (t != frameSettings || flags&flagAck != 0) {
		return connError(ProtocolError, "first frame is not SETTINGS") // RFC 9113 3.4
	}
	if c.blockID != 0 && (t != frameContinuation || id != c.blockID) {
		return connError(ProtocolError, "header block interrupted") // RFC 9113 6.2
	}
	switch t {
	case frameData:
		return c.onData(flags, id, p)
	case frameHeaders:
		return c.onHeaders(flags, id, p)
	case framePriority:
		return c.onPriority(id, p)
	case frameReset:
		return c.onReset(id, p)
	case frameSettings:
		return c.onSettings(flags, id, p)
	case framePushPromise:
		return connError(ProtocolError, "PUSH_PROMISE") // a client may not, a server was told not to
	case framePing:
		return c.onPing(flags, id, p)
	case frameGoaway:
		return c.onGoaway(id, p)
	case frameWindowUpdate:
		return c.onWindowUpdate(id, p)
	case frameContinuation:
		return c.onContinuation(flags, id, p)
	}
	return c.spend(costLook, FaultFrames) // RFC 9113 5.5: unknown types are ignored
}

// fail ends the connection because of err.
func (c *Conn) fail(err error) error {
	if err == nil {
		return nil
	}
	e := err.(*Error)
	if !c.dead {
		c.goaway(e.Code, e.Reason)
	}
	return err
}

// Fail sends GOAWAY with code and takes no more frames.
func (c *Conn) Fail(code Code, reason string) {
	if !c.dead {
		c.goaway(code, reason)
	}
}

func (c *Conn) goaway(code Code, reason string) {
	last := uint32(0)
	if c.cfg.Server {
		last = c.lastID
		if c.shutdown == drained {
			last = c.goneAt
		}
	}
	c.appendGoaway(last, code, reason)
	c.dead = true
}

// Dead reports whether the connection has failed.
func (c *Conn) Dead() bool { return c.dead }

// Ready reports whether the peer's SETTINGS have come.
func (c *Conn) Ready() bool { return c.settings }

// Slots is the number of streams that count against MaxStreams: the peer's limit for a client, ours for a server.
func (c *Conn) Slots() int { return c.slots }

// Release gives back the slot of a stream of a server Conn. The owner calls it once the call is over on the other side too, so that a client can't
// have more calls running behind the relay than streams here (CVE-2023-44487).
func (c *Conn) Release() { c.slots-- }

// Drop says that the owner no longer holds n bytes of header lists, Head.Size of a request or of its trailers.
func (c *Conn) Drop(n int) { c.held -= n }

// MidBlock is the number of the stream whose header block has begun and not ended, 0 if there is none.
func (c *Conn) MidBlock() uint32 { return c.blockID }

// HalfBlock is how many bytes are kept of it.
func (c *Conn) HalfBlock() int { return len(c.block) }

// HeaderLimit is the peer's SETTINGS_MAX_HEADER_LIST_SIZE.
func (c *Conn) HeaderLimit() int { return c.maxHeader }

// Acked reports whether the peer has acknowledged our SETTINGS.
func (c *Conn) Acked() bool { return c.acked }

// Streams is the number of open streams.
func (c *Conn) Streams() int { return c.streams.n }

// All walks over the open streams; none may be opened or closed meanwhile.
func (c *Conn) All() iter.Seq[*Stream] {
	return func(yield func(*Stream) bool) {
		for s := c.open; s != nil && yield(s); s = s.next {
		}
	}
}

// Any returns an open stream, nil if there is none.
func (c *Conn) Any() *Stream { return c.open }

// Free is the number of streams that can be opened now (client).
func (c *Conn) Free() int {
	if c.dead || c.peerGone || !c.settings || c.lastID >= maxStreamID-2 {
		return 0
	}
	return max(0, c.maxStreams-c.slots)
}

// Spent reports whether no stream can ever be opened again (client).
func (c *Conn) Spent() bool { return c.dead || c.peerGone || c.lastID >= maxStreamID-2 }

// Flushed says that the socket took nearly all that was appended so far.
func (c *Conn) Flushed() { c.control = 0 }

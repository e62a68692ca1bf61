package health

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/net/http2/hpack"
)

// What an HTTP/2 client of one call needs of RFC 9113, and no more.
const (
	h2Preface   = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" // 3.4
	h2FrameMost = 16384                              // 4.2: SETTINGS_MAX_FRAME_SIZE, which is not raised
	h2ReadMost  = 64 << 10                           // bytes of one whole answer
	h2Stream    = 1                                  // the only stream

	frameData         = 0x0
	frameHeaders      = 0x1
	frameRSTStream    = 0x3
	frameSettings     = 0x4
	framePushPromise  = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameContinuation = 0x9

	flagAck        = 0x1
	flagEndStream  = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20

	codeRefusedStream = 0x7
	settingEnablePush = 0x2
)

var errNotHTTP2 = errAnswer{"not an HTTP/2 answer"}

// h2Client is one connection of a probe.
type h2Client struct {
	conn    io.ReadWriter
	limited io.LimitedReader
	r       *bufio.Reader
	payload []byte
	greeted bool // the peer's SETTINGS came
}

type h2Frame struct {
	kind, flags byte
	stream      uint32
	payload     []byte // valid until the next one
}

func newH2Client(conn io.ReadWriter) *h2Client {
	c := &h2Client{conn: conn, limited: io.LimitedReader{R: conn, N: h2ReadMost}}
	c.r = bufio.NewReader(&c.limited)
	return c
}

// appendFrame appends one frame to b.
func appendFrame(b []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, payload...)
}

// hello is the preface and SETTINGS without push.
func hello() []byte {
	return appendFrame([]byte(h2Preface), frameSettings, 0, 0, []byte{0, settingEnablePush, 0, 0, 0, 0})
}

// reply acknowledges. If that fails, reading goes on: the answer may lie in front of the end.
func (c *h2Client) reply(kind byte, payload []byte) {
	_, _ = c.conn.Write(appendFrame(nil, kind, flagAck, 0, payload))
}

// bye ends the connection in good order, as far as that still works.
func (c *h2Client) bye() {
	_, _ = c.conn.Write(appendFrame(nil, frameGoAway, 0, 0, make([]byte, 8)))
}

// read returns the next frame that isn't the connection's own business, which it does: SETTINGS and PING are answered.
func (c *h2Client) read() (h2Frame, error) {
	for {
		f, err := c.readFrame()
		if err != nil {
			return f, err
		}
		if !c.greeted && f.kind != frameSettings && f.kind != frameGoAway {
			return f, errNotHTTP2 // 3.4: SETTINGS come first
		}
		switch f.kind {
		case frameSettings:
			if f.flags&flagAck != 0 {
				continue
			}
			if len(f.payload)%6 != 0 || f.stream != 0 {
				return f, errNotHTTP2
			}
			first := !c.greeted
			c.greeted = true
			c.reply(frameSettings, nil)
			if first {
				return f, nil
			}
		case framePing:
			if f.flags&flagAck == 0 && len(f.payload) == 8 {
				c.reply(framePing, f.payload)
			}
		case frameGoAway:
			if len(f.payload) < 8 {
				return f, errNotHTTP2
			}
			if !c.greeted || binary.BigEndian.Uint32(f.payload)&(1<<31-1) < h2Stream {
				return f, errClosed{"GOAWAY"}
			}
		default:
			return f, nil
		}
	}
}

func (c *h2Client) readFrame() (h2Frame, error) {
	var head [9]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return h2Frame{}, readError(err, c.limited.N <= 0, errNotHTTP2.cause)
	}
	n := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
	if n > h2FrameMost {
		return h2Frame{}, errNotHTTP2
	}
	if cap(c.payload) < n {
		c.payload = make([]byte, n)
	}
	f := h2Frame{kind: head[3], flags: head[4], stream: binary.BigEndian.Uint32(head[5:]) & (1<<31 - 1), payload: c.payload[:n]}
	if _, err := io.ReadFull(c.r, f.payload); err != nil {
		return f, readError(err, c.limited.N <= 0, errNotHTTP2.cause)
	}
	return f, nil
}

// settingsProbe waits for the peer's SETTINGS: a process that hangs still accepts connections, in the kernel, but says nothing (2.1).
func settingsProbe(conn net.Conn) error {
	if _, err := conn.Write(hello()); err != nil {
		return ended(err)
	}
	c := newH2Client(conn)
	if _, err := c.read(); err != nil {
		return err
	}
	c.bye()
	return nil
}

// grpcProbe asks the health service of gRPC (grpc.health.v1.Health/Check) about o.HealthName.
func grpcProbe(conn net.Conn, addr netip.AddrPort, o Options) error {
	request := appendFrame(hello(), frameHeaders, flagEndHeaders, h2Stream, healthHeaders("Check", addr.String(), o.Timeout))
	request = appendFrame(request, frameData, flagEndStream, h2Stream, checkMessage(o.HealthName))
	if _, err := conn.Write(request); err != nil {
		return ended(err)
	}
	c := newH2Client(conn)
	answer, err := c.readAnswer()
	if err != nil {
		return err
	}
	c.bye()
	return answer.check()
}

// healthHeaders are the request headers of one method of the health service; timeout 0 = none.
func healthHeaders(method, authority string, timeout time.Duration) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	write := func(name, value string) {
		_ = e.WriteField(hpack.HeaderField{Name: name, Value: value}) // into memory: it can't fail
	}
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", "/grpc.health.v1.Health/" + method}, {":authority", authority},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"user-agent", userAgent},
	} {
		write(f[0], f[1])
	}
	if timeout > 0 {
		write("grpc-timeout", strconv.FormatInt(max(1, timeout.Milliseconds()), 10)+"m")
	}
	return b.Bytes()
}

// checkMessage is a HealthCheckRequest{service: name} as a gRPC message.
func checkMessage(name string) []byte {
	var m []byte
	if name != "" {
		m = append(m, 1<<3|2)
		m = binary.AppendUvarint(m, uint64(len(name)))
		m = append(m, name...)
	}
	b := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m)))
	return append(b, m...)
}

// h2Answer is the answer to the one call.
type h2Answer struct {
	status, grpcStatus, grpcMessage string
	body                            []byte
}

// readAnswer reads frames until the stream has ended. It is bounded by h2ReadMost and the connection's deadline.
func (c *h2Client) readAnswer() (*h2Answer, error) {
	a := &h2Answer{}
	decoder := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		switch f.Name {
		case ":status":
			a.status = f.Value
		case "grpc-status":
			a.grpcStatus = f.Value
		case "grpc-message":
			a.grpcMessage = f.Value
		}
	})
	ends := false // END_STREAM came with HEADERS whose block goes on in CONTINUATION
	for {
		f, err := c.read()
		if err != nil {
			return nil, err
		}
		if f.kind == framePushPromise || f.stream > h2Stream {
			return nil, errNotHTTP2
		}
		if f.stream != h2Stream {
			continue
		}
		block := false
		switch f.kind {
		case frameRSTStream:
			if len(f.payload) == 4 && binary.BigEndian.Uint32(f.payload) == codeRefusedStream {
				return nil, errClosed{"stream refused"}
			}
			return nil, errAnswer{"stream reset"}
		case frameHeaders, frameData:
			payload, ok := unpad(f)
			if !ok {
				return nil, errNotHTTP2
			}
			ends = f.flags&flagEndStream != 0
			if f.kind == frameData {
				a.body = append(a.body, payload...)
			} else {
				block, f.payload = true, payload
			}
		case frameContinuation:
			block = true
		}
		whole := f.kind == frameData
		if block {
			if _, err := decoder.Write(f.payload); err != nil {
				return nil, errNotHTTP2
			}
			if whole = f.flags&flagEndHeaders != 0; whole {
				if err := decoder.Close(); err != nil {
					return nil, errNotHTTP2
				}
			}
		}
		if ends && whole {
			return a, nil
		}
	}
}

// unpad is the payload without padding and priority (6.1, 6.2).
func unpad(f h2Frame) ([]byte, bool) {
	p := f.payload
	padding := 0
	if f.flags&flagPadded != 0 {
		if len(p) == 0 {
			return nil, false
		}
		padding, p = int(p[0]), p[1:]
	}
	if f.kind == frameHeaders && f.flags&flagPriority != 0 {
		if len(p) < 5 {
			return nil, false
		}
		p = p[5:]
	}
	if padding > len(p) {
		return nil, false
	}
	return p[:len(p)-padding], true
}

// check says what the answer means: nil only for SERVING.
func (a *h2Answer) check() error {
	switch {
	case a.status != "200":
		return errAnswer{"HTTP " + a.status}
	case a.grpcStatus == "12":
		return errAnswer{"gRPC status 12: it has no health service"}
	case a.grpcStatus == "5":
		return errAnswer{"gRPC status 5: its health service doesn't know that name"}
	case a.grpcStatus != "0":
		return errAnswer{fmt.Sprintf("gRPC status %s %s", a.grpcStatus, short(a.grpcMessage))}
	}
	status, err := servingStatus(a.body)
	if err != nil {
		return errAnswer{err.Error()}
	}
	return serving(status)
}

// serving says what a status of the health service means: nil only for SERVING.
func serving(status uint64) error {
	switch status {
	case 1:
		return nil
	case 2:
		return errAnswer{"NOT_SERVING"}
	case 3:
		return errAnswer{"SERVICE_UNKNOWN"}
	}
	return errAnswer{fmt.Sprintf("serving status %d", status)}
}

// servingStatus reads a gRPC message that holds a HealthCheckResponse: field 1 is the status.
func servingStatus(b []byte) (uint64, error) {
	bad := errors.New("not a health answer")
	if len(b) < 5 || b[0] != 0 || uint64(binary.BigEndian.Uint32(b[1:])) != uint64(len(b)-5) {
		return 0, bad
	}
	status := uint64(0)
	for b = b[5:]; len(b) > 0; {
		tag, n := binary.Uvarint(b)
		if n <= 0 || tag&7 != 0 { // the message has no other fields; what later versions add may be skipped if it is a varint
			return 0, bad
		}
		value, m := binary.Uvarint(b[n:])
		if m <= 0 {
			return 0, bad
		}
		if tag>>3 == 1 {
			status = value
		}
		b = b[n+m:]
	}
	return status, nil
}

// short bounds a text from outside.
func short(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

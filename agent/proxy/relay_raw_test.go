package proxy

import (
	"bytes"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawConn speaks HTTP/2 frame by frame, by another implementation: a client of the proxy, or a backend.
type rawConn struct {
	net.Conn
	t    testing.TB
	fr   *http2.Framer
	enc  *hpack.Encoder
	encb bytes.Buffer
}

// frame is one that was read; headers are decoded.
type frame struct {
	http2.Frame
	id     uint32
	fields map[string]string
	data   []byte
	end    bool
}

func newRawConn(t testing.TB, c net.Conn) *rawConn {
	c.SetDeadline(time.Now().Add(patience))
	r := &rawConn{Conn: c, t: t, fr: http2.NewFramer(c, c)}
	r.enc = hpack.NewEncoder(&r.encb)
	r.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	r.fr.AllowIllegalWrites = true
	return r
}

func newRawClient(t testing.TB, addr string, settings ...http2.Setting) *rawConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	r := newRawConn(t, c)
	c.Write([]byte(http2.ClientPreface))
	r.fr.WriteSettings(settings...)
	return r
}

func (r *rawConn) headers(id uint32, end bool, nv ...string) {
	r.encb.Reset()
	for i := 0; i < len(nv); i += 2 {
		r.enc.WriteField(hpack.HeaderField{Name: nv[i], Value: nv[i+1]})
	}
	r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.encb.Bytes(), EndStream: end, EndHeaders: true})
}

// call sends a gRPC request.
func (r *rawConn) call(id uint32, end bool, path string, body []byte) {
	r.headers(id, false, ":method", "POST", ":scheme", "http", ":path", path, ":authority", "a", "content-type", "application/grpc", "te", "trailers")
	r.fr.WriteData(id, end, append([]byte{0, 0, 0, 0, 0}, body...))
}

func (r *rawConn) get(id uint32, path string) {
	r.headers(id, true, ":method", "GET", ":scheme", "http", ":path", path, ":authority", "a")
}

// read returns the next frame.
func (r *rawConn) read() (frame, error) {
	f, err := r.fr.ReadFrame()
	if err != nil {
		return frame{}, err
	}
	out := frame{Frame: f, id: f.Header().StreamID}
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		out.fields, out.end = map[string]string{}, f.StreamEnded()
		for _, h := range f.Fields {
			out.fields[h.Name] = h.Value
		}
	case *http2.DataFrame:
		out.data, out.end = bytes.Clone(f.Data()), f.StreamEnded()
	case *http2.SettingsFrame:
		if !f.IsAck() {
			r.fr.WriteSettingsAck()
		}
	}
	return out, nil
}

// until reads up to the frame that ok holds for.
func (r *rawConn) until(ok func(f frame) bool) frame {
	r.t.Helper()
	for {
		f, err := r.read()
		if err != nil {
			r.t.Fatalf("awaited frame: %v", err)
		}
		if ok(f) {
			return f
		}
	}
}

// request reads the next request's header list.
func (r *rawConn) request() frame {
	r.t.Helper()
	return r.until(func(f frame) bool { return f.fields != nil })
}

// answerOf reads all of the answer on stream id: the header list, body, trailers, or the code of the reset.
func (r *rawConn) answerOf(id uint32) string {
	r.t.Helper()
	out := ""
	for {
		f := r.until(func(f frame) bool { return f.id == id })
		switch g := f.Frame.(type) {
		case *http2.MetaHeadersFrame:
			out += fmt.Sprintf("[%s%s]", f.fields[":status"], f.fields["grpc-status"])
		case *http2.DataFrame:
			out += string(f.data)
		case *http2.RSTStreamFrame:
			return out + g.ErrCode.String()
		}
		if f.end {
			return out
		}
	}
}

// rawBackend accepts connections to be scripted.
type rawBackend struct {
	t    testing.TB
	l    net.Listener
	addr string
}

func newRawBackend(t testing.TB) *rawBackend {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &rawBackend{t, l, l.Addr().String()}
}

// accept takes the next connection, with its preface read and SETTINGS sent.
func (b *rawBackend) accept(settings ...http2.Setting) *rawConn {
	b.t.Helper()
	b.l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	c, err := b.l.Accept()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	r := newRawConn(b.t, c)
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := readFull(c, preface); err != nil || string(preface) != http2.ClientPreface {
		b.t.Fatalf("preface %q, %v", preface, err)
	}
	r.fr.WriteSettings(settings...)
	return r
}

func readFull(c net.Conn, b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m, err := c.Read(b[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// hpackWriter writes header lists to a framer.
type hpackWriter struct {
	enc *hpack.Encoder
	buf []byte
}

func (h *hpackWriter) Write(p []byte) (int, error) { h.buf = append(h.buf, p...); return len(p), nil }

func (h *hpackWriter) write(fr *http2.Framer, id uint32, end bool, nv ...string) {
	if h.enc == nil {
		h.enc = hpack.NewEncoder(h)
	}
	h.buf = h.buf[:0]
	for i := 0; i < len(nv); i += 2 {
		h.enc.WriteField(hpack.HeaderField{Name: nv[i], Value: nv[i+1]})
	}
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.buf, EndStream: end, EndHeaders: true})
}

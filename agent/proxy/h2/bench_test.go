package h2

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// echo answers each request at its end, and does nothing else: what remains is the Conn's own cost.
type echo struct {
	conn *Conn
	free []*Stream
	held int
}

func (e *echo) Open() *Stream {
	if n := len(e.free); n > 0 {
		s := e.free[n-1]
		e.free = e.free[:n-1]
		return s
	}
	return &Stream{}
}

func (e *echo) Headers(s *Stream, _ []Field, head *Head, end bool) { e.held += head.Size }
func (e *echo) Data(s *Stream, p []byte, end bool) {
	if end {
		e.conn.WriteHeaders(s, []Field{{Name: ":status", Value: "200"}, {Name: "content-type", Value: "application/grpc"}}, false)
		e.conn.WriteData(s, p, false)
		e.conn.WriteHeaders(s, []Field{{Name: "grpc-status", Value: "0"}}, true)
		e.conn.Release()
		e.conn.Drop(e.held)
		e.held = 0
		e.free = append(e.free, s)
	}
}
func (e *echo) Trailers(*Stream, []Field, *Head) {}
func (e *echo) Reset(*Stream, Code, bool)        {}
func (e *echo) Refused(Fault)                    {}
func (e *echo) Writable(*Stream)                 {}
func (e *echo) Settings()                        {}
func (e *echo) Pong(uint64)                      {}
func (e *echo) Goaway(uint32, Code, []byte)      {}
func (e *echo) Drained()                         {}

// BenchmarkServe is a gRPC call as a server's Conn sees it, 100 at a time: HEADERS and DATA in, HEADERS, DATA and HEADERS out.
func BenchmarkServe(b *testing.B) {
	const calls = 100
	var out []byte
	e := &echo{}
	e.conn = New(Config{Server: true, MaxStreams: 250, StreamWindow: 1 << 18, ConnWindow: 1 << 24, HeaderBytes: 64 << 10, HeaderFields: 200, HeldBytes: 1 << 21}, &out, e)
	var in, block bytes.Buffer
	fr := http2.NewFramer(&in, nil)
	in.WriteString(Preface)
	fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	enc := hpack.NewEncoder(&block)
	now := time.Now()
	id := uint32(1)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for range calls {
			block.Reset()
			for _, f := range []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/a.Service/Method"}, {Name: ":authority", Value: "a"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}} {
				enc.WriteField(f)
			}
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
			fr.WriteData(id, true, make([]byte, 32))
			id += 2
		}
		fr.WriteWindowUpdate(0, 32*calls)
		b.StartTimer()
		if _, err := e.conn.Feed(now, in.Bytes()); err != nil {
			b.Fatal(err)
		}
		in.Reset()
		out = out[:0]
		e.conn.Flushed()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*calls), "ns/call")
}

package h2

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// Each case sends frames to a server whose SETTINGS are exchanged, and says what must come of it.
func TestServerFrames(t *testing.T) {
	cases := []struct {
		name   string
		send   func(p *peer)
		events []string
		frames []string
		err    Code // of the connection; 0 = it lives
	}{
		{"request without body", func(p *peer) { p.headers(1, true, get...) },
			[]string{"headers 1 :method=GET :scheme=http :path=/ :authority=a end=true"}, nil, 0},
		{"body, padding, trailers", func(p *peer) {
			p.headers(1, false, post("te", "trailers")...)
			p.write.WriteDataPadded(1, false, make([]byte, 100), make([]byte, 20))
			p.headers(1, true, "x-sum", "1")
		}, []string{"headers 1 :method=POST :scheme=http :path=/s/m :authority=a te=trailers end=false", "data 1 100 end=false", "trailers 1 1"}, nil, 0},
		{"block in three frames", func(p *peer) {
			b := p.block(get...)
			p.write.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:2], EndStream: true})
			p.write.WriteContinuation(1, false, b[2:3])
			p.write.WriteContinuation(1, true, b[3:])
		}, []string{"headers 1 :method=GET :scheme=http :path=/ :authority=a end=true"}, nil, 0},
		{"white space around a value is cut", func(p *peer) { p.headers(1, true, append(get, "x", " v\t")...) },
			[]string{"headers 1 :method=GET :scheme=http :path=/ :authority=a x=v end=true"}, nil, 0},
		{"reset by the client", func(p *peer) { p.headers(1, false, post()...); p.write.WriteRSTStream(1, http2.ErrCodeCancel) },
			[]string{"headers 1 :method=POST :scheme=http :path=/s/m :authority=a end=false", "reset 1 CANCEL local=false"}, nil, 0},
		{"ping", func(p *peer) { p.write.WritePing(false, [8]byte{1}) }, nil, []string{"PING ack=true"}, 0},
		{"settings", func(p *peer) { p.write.WriteSettings(http2.Setting{ID: 99, Val: 1}) }, []string{"settings"}, []string{"SETTINGS ack=true"}, 0},
		{"goaway", func(p *peer) { p.write.WriteGoAway(0, http2.ErrCodeNo, []byte("bye")) }, []string{"goaway 0 NO_ERROR bye"}, nil, 0},
		{"unknown frame", func(p *peer) { p.write.WriteRawFrame(77, 255, 3, []byte("x")) }, nil, nil, 0},
		{"priority", func(p *peer) { p.write.WritePriority(5, http2.PriorityParam{StreamDep: 3}) }, nil, nil, 0},

		{"above MAX_CONCURRENT_STREAMS", func(p *peer) {
			for id := uint32(1); id <= 9; id += 2 {
				p.headers(id, true, get...)
			}
			p.quiet()
		}, nil, []string{"RST 9 REFUSED_STREAM"}, 0},
		{"DATA after END_STREAM", func(p *peer) { p.headers(1, true, get...); p.quiet(); p.write.WriteData(1, true, []byte("x")) },
			[]string{"reset 1 STREAM_CLOSED local=true"}, []string{"RST 1 STREAM_CLOSED"}, 0},
		{"HEADERS after END_STREAM", func(p *peer) { p.headers(1, true, get...); p.quiet(); p.headers(1, true, get...) },
			[]string{"reset 1 STREAM_CLOSED local=true"}, []string{"RST 1 STREAM_CLOSED"}, 0},
		{"late DATA after our reset", func(p *peer) {
			p.headers(1, true, "x", "y")
			p.write.WriteData(1, true, []byte("x"))
			p.headers(1, true, "x", "y")
		}, nil, []string{"RST 1 PROTOCOL_ERROR"}, 0},
		{"DATA after the client's reset", func(p *peer) {
			p.headers(1, false, post()...)
			p.write.WriteRSTStream(1, http2.ErrCodeCancel)
			p.feed()
			p.quiet()
			p.write.WriteData(1, true, []byte("x"))
		}, nil, []string{"RST 1 STREAM_CLOSED"}, 0},
		{"trailers without END_STREAM", func(p *peer) { p.headers(1, false, post()...); p.quiet(); p.headers(1, false, "x", "y") },
			[]string{"reset 1 PROTOCOL_ERROR local=true"}, []string{"RST 1 PROTOCOL_ERROR"}, 0},
		{"pseudo field in trailers", func(p *peer) { p.headers(1, false, post()...); p.quiet(); p.headers(1, true, ":path", "/") },
			[]string{"reset 1 PROTOCOL_ERROR local=true"}, []string{"RST 1 PROTOCOL_ERROR"}, 0},
		{"body above content-length", func(p *peer) {
			p.headers(1, false, post("content-length", "3")...)
			p.quiet()
			p.write.WriteData(1, false, []byte("four"))
		}, []string{"reset 1 PROTOCOL_ERROR local=true"}, []string{"RST 1 PROTOCOL_ERROR"}, 0},
		{"body below content-length", func(p *peer) {
			p.headers(1, false, post("content-length", "3")...)
			p.quiet()
			p.write.WriteData(1, true, []byte("ab"))
		}, []string{"reset 1 PROTOCOL_ERROR local=true"}, []string{"RST 1 PROTOCOL_ERROR"}, 0},
		{"trailers below content-length", func(p *peer) {
			p.headers(1, false, post("content-length", "3")...)
			p.quiet()
			p.headers(1, true, "x", "y")
		}, []string{"reset 1 PROTOCOL_ERROR local=true"}, []string{"RST 1 PROTOCOL_ERROR"}, 0},
		{"too many fields", func(p *peer) {
			p.headers(1, true, append(get, strings.Fields(strings.Repeat("a b ", 200))...)...)
			p.headers(3, true, get...) // the compression table is still in step
		}, []string{"headers 1 too large, GET end=true", "headers 3 :method=GET :scheme=http :path=/ :authority=a end=true"}, nil, 0},
		{"WINDOW_UPDATE of 0 on a stream", func(p *peer) {
			p.headers(1, true, get...)
			p.quiet()
			p.write.WriteWindowUpdate(1, 0)
		}, []string{"reset 1 PROTOCOL_ERROR local=true"}, []string{"RST 1 PROTOCOL_ERROR"}, 0},
		{"stream window above 2^31-1", func(p *peer) {
			p.headers(1, true, get...)
			p.quiet()
			p.write.WriteWindowUpdate(1, 1<<31-1)
		}, []string{"reset 1 FLOW_CONTROL_ERROR local=true"}, []string{"RST 1 FLOW_CONTROL_ERROR"}, 0},
		{"stream window exceeded", func(p *peer) {
			p.headers(1, false, post()...)
			p.quiet()
			for range 4 {
				p.write.WriteData(1, false, make([]byte, 16384))
			}
			p.write.WriteData(1, false, []byte("x"))
		}, []string{"data 1 16384 end=false", "data 1 16384 end=false", "data 1 16384 end=false", "data 1 16384 end=false", "reset 1 FLOW_CONTROL_ERROR local=true"},
			[]string{"RST 1 FLOW_CONTROL_ERROR"}, 0},

		{"DATA on stream 0", func(p *peer) { p.write.WriteData(0, true, nil) }, nil, nil, ProtocolError},
		{"DATA on an idle stream", func(p *peer) { p.write.WriteData(1, true, nil) }, nil, nil, ProtocolError},
		{"HEADERS on stream 0", func(p *peer) { p.headers(0, true, get...) }, nil, nil, ProtocolError},
		{"HEADERS on an even stream", func(p *peer) { p.headers(2, true, get...) }, nil, nil, ProtocolError},
		{"stream number below", func(p *peer) { p.headers(5, true, get...); p.quiet(); p.headers(3, true, get...) }, nil, nil, ProtocolError},
		{"HEADERS on a closed stream", func(p *peer) {
			p.onHead = func(s *Stream, end bool) { p.conn.WriteHeaders(s, []Field{{Name: ":status", Value: "200"}}, true) }
			p.headers(1, true, get...)
			p.feed()
			p.frames()
			p.quiet()
			p.headers(1, true, get...)
		}, nil, nil, StreamClosed},
		{"interrupted block", func(p *peer) {
			p.write.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get...), EndStream: true})
			p.write.WritePing(false, [8]byte{})
		}, nil, nil, ProtocolError},
		{"CONTINUATION alone", func(p *peer) { p.write.WriteContinuation(1, true, nil) }, nil, nil, ProtocolError},
		{"CONTINUATION flood", func(p *peer) {
			p.write.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(get...), EndStream: true})
			for range maxContinuations {
				p.write.WriteContinuation(1, false, nil)
			}
		}, nil, nil, EnhanceYourCalm},
		{"bad compression", func(p *peer) {
			p.write.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0x7f}, EndStream: true, EndHeaders: true})
		}, nil, nil, CompressionError},
		{"padding too long", func(p *peer) { p.write.WriteRawFrame(http2.FrameData, flagPadded, 1, []byte{1}) }, nil, nil, ProtocolError},
		{"padding without length", func(p *peer) { p.write.WriteRawFrame(http2.FrameHeaders, flagPadded, 1, nil) }, nil, nil, FrameSizeError},
		{"priority without room", func(p *peer) { p.write.WriteRawFrame(http2.FrameHeaders, flagPriority, 1, []byte{1, 2}) }, nil, nil, FrameSizeError},
		{"frame too large", func(p *peer) { p.write.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 16385)) }, nil, nil, FrameSizeError},
		{"RST_STREAM of wrong size", func(p *peer) { p.write.WriteRawFrame(http2.FrameRSTStream, 0, 1, []byte{1}) }, nil, nil, FrameSizeError},
		{"RST_STREAM on an idle stream", func(p *peer) { p.write.WriteRSTStream(1, 0) }, nil, nil, ProtocolError},
		{"SETTINGS on a stream", func(p *peer) { p.write.WriteRawFrame(http2.FrameSettings, 0, 1, nil) }, nil, nil, ProtocolError},
		{"SETTINGS of wrong size", func(p *peer) { p.write.WriteRawFrame(http2.FrameSettings, 0, 0, []byte{1}) }, nil, nil, FrameSizeError},
		{"SETTINGS ack with payload", func(p *peer) { p.write.WriteRawFrame(http2.FrameSettings, 1, 0, make([]byte, 6)) }, nil, nil, FrameSizeError},
		{"ENABLE_PUSH 2", func(p *peer) { p.write.WriteSettings(http2.Setting{ID: 2, Val: 2}) }, nil, nil, ProtocolError},
		{"INITIAL_WINDOW_SIZE 2^31", func(p *peer) { p.write.WriteSettings(http2.Setting{ID: 4, Val: 1 << 31}) }, nil, nil, FlowControlError},
		{"MAX_FRAME_SIZE 1", func(p *peer) { p.write.WriteSettings(http2.Setting{ID: 5, Val: 1}) }, nil, nil, ProtocolError},
		{"PING on a stream", func(p *peer) { p.write.WriteRawFrame(http2.FramePing, 0, 1, make([]byte, 8)) }, nil, nil, ProtocolError},
		{"PING of wrong size", func(p *peer) { p.write.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7)) }, nil, nil, FrameSizeError},
		{"PUSH_PROMISE", func(p *peer) { p.write.WriteRawFrame(http2.FramePushPromise, 4, 1, make([]byte, 8)) }, nil, nil, ProtocolError},
		{"connection window above 2^31-1", func(p *peer) { p.write.WriteWindowUpdate(0, 1<<31-1) }, nil, nil, FlowControlError},
		{"WINDOW_UPDATE of 0", func(p *peer) { p.write.WriteWindowUpdate(0, 0) }, nil, nil, ProtocolError},
		{"WINDOW_UPDATE on an idle stream", func(p *peer) { p.write.WriteWindowUpdate(1, 1) }, nil, nil, ProtocolError},
		{"GOAWAY too short", func(p *peer) { p.write.WriteRawFrame(http2.FrameGoAway, 0, 0, make([]byte, 7)) }, nil, nil, FrameSizeError},
		{"PING flood unread", func(p *peer) {
			for range maxControl + 1 {
				p.write.WritePing(false, [8]byte{})
			}
		}, nil, nil, EnhanceYourCalm},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := greeted(t, testConfig(true))
			c.send(p)
			err := p.feed()
			if c.err != 0 {
				e, ok := err.(*Error)
				if !ok || e.Code != c.err {
					t.Fatalf("error %v, want %v", err, c.err)
				}
				frames := p.frames()
				if last := frames[len(frames)-1]; !strings.HasPrefix(last, "GOAWAY ") || !strings.HasSuffix(last, c.err.String()) {
					t.Fatalf("sent %q, want GOAWAY %v", last, c.err)
				}
				want(t, "events", p.log, c.events...)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want(t, "events", p.log, c.events...)
			want(t, "frames", p.frames(), c.frames...)
		})
	}
}

func TestMalformedRequests(t *testing.T) {
	cases := [][]string{
		{":method", "GET", ":scheme", "http"},                                      // no path
		{":method", "GET", ":path", "/"},                                           // no scheme
		{":scheme", "http", ":path", "/"},                                          // no method
		{":method", "GET", ":scheme", "http", ":path", ""},                         // empty path
		{":method", "GET", ":scheme", "http", ":path", "x"},                        // no absolute path
		{":method", "GET", ":scheme", "http", ":path", "*"},                        // only for OPTIONS
		{":method", "GET", ":scheme", "http", ":path", "/a b"},                     // space
		{":method", "G T", ":scheme", "http", ":path", "/"},                        // no token
		append([]string{":method", "GET"}, get...),                                 // twice
		append([]string{":status", "200"}, get...),                                 // of a response
		append([]string{":x", "1"}, get...),                                        // unknown
		append([]string{"a", "b"}, get...),                                         // pseudo after regular
		append(get[:6:6], ":authority", "u@h"),                                     // userinfo
		append(get[:6:6], ":authority", "a,b"),                                     // two in one
		append(get[:8:8], "host", "other"),                                         // contradicts :authority
		append(get[:8:8], "X-Upper", "1"),                                          // upper case
		append(get[:8:8], "", "1"),                                                 // empty name
		append(get[:8:8], "a b", "1"),                                              // no token
		append(get[:8:8], "x", "a\r\nb"),                                           // splits the header
		append(get[:8:8], "x", "a\x00"),                                            // NUL
		append(get[:8:8], "connection", "close"),                                   // connection-specific
		append(get[:8:8], "transfer-encoding", "chunked"),                          //
		append(get[:8:8], "upgrade", "h2c"),                                        //
		append(get[:8:8], "keep-alive", "1"),                                       //
		append(get[:8:8], "proxy-connection", "1"),                                 //
		append(get[:8:8], "te", "gzip"),                                            //
		append(get[:8:8], "content-length", "x"),                                   //
		append(get[:8:8], "content-length", "-1"),                                  //
		append(get[:8:8], "content-length", "1", "content-length", "2"),            // two answers
		append(get[:8:8], "content-length", "1"),                                   // and no body
		{":method", "CONNECT", ":scheme", "http", ":path", "/", ":authority", "a"}, // RFC 9113 8.5
		{":method", "CONNECT"},
	}
	for _, nv := range cases {
		p := greeted(t, testConfig(true))
		p.headers(1, true, nv...)
		p.headers(3, true, get...)
		if err := p.feed(); err != nil {
			t.Fatal(err)
		}
		want(t, strings.Join(nv, " "), p.frames(), "RST 1 PROTOCOL_ERROR")
		want(t, strings.Join(nv, " "), p.log, "headers 3 :method=GET :scheme=http :path=/ :authority=a end=true")
	}
}

func TestPreface(t *testing.T) {
	p := newPeer(t, testConfig(true))
	p.in.WriteString(Preface)
	p.write.WriteSettings()
	p.headers(1, true, get...)
	all := bytes.Clone(p.in.Bytes())
	have := []byte(nil)
	for _, b := range all { // byte by byte, as slow as it gets
		have = append(have, b)
		n, err := p.conn.Feed(p.now, have)
		if err != nil {
			t.Fatal(err)
		}
		have = have[n:]
	}
	want(t, "frames", p.frames(), "SETTINGS ack=false", "WINDOW 0 983041", "SETTINGS ack=true")
	want(t, "events", p.log, "settings", "headers 1 :method=GET :scheme=http :path=/ :authority=a end=true")

	for _, bad := range []string{"GET / HTTP/1.1\r\n", Preface[:20] + "XX\r\n", Preface + "\x00\x00\x00\x01\x05\x00\x00\x00\x01"} {
		p := newPeer(t, testConfig(true))
		if _, err := p.conn.Feed(p.now, []byte(bad)); err == nil {
			t.Errorf("%q was taken for HTTP/2", bad)
		}
	}
}

// The client side: what a backend may answer.
func TestClientFrames(t *testing.T) {
	ok := []string{":status", "200"}
	cases := []struct {
		name   string
		send   func(p *peer)
		events []string
		frames []string
		err    Code
	}{
		{"trailers only", func(p *peer) { p.headers(1, true, ":status", "200", "grpc-status", "14") },
			[]string{"headers 1 :status=200 grpc-status=14 end=true"}, nil, 0},
		{"informational, body, trailers", func(p *peer) {
			p.headers(1, false, ":status", "103")
			p.headers(1, false, ok...)
			p.write.WriteData(1, false, []byte("abc"))
			p.headers(1, true, "grpc-status", "0")
		}, []string{"headers 1 :status=103 end=false", "headers 1 :status=200 end=false", "data 1 3 end=false", "trailers 1 1"}, nil, 0},
		{"goaway", func(p *peer) { p.write.WriteGoAway(1, http2.ErrCodeNo, nil) }, []string{"goaway 1 NO_ERROR "}, nil, 0},
		{"late frames after our cancel", func(p *peer) {
			p.conn.Reset(p.streams[1], Cancel)
			p.headers(1, false, ok...)
			p.write.WriteData(1, true, []byte("abc"))
		}, nil, []string{"RST 1 CANCEL"}, 0},
		{"informational with END_STREAM", func(p *peer) { p.headers(1, true, ":status", "100") },
			[]string{"reset 1 PROTOCOL_ERROR local=true"}, []string{"RST 1 PROTOCOL_ERROR"}, 0},
		{"status 101", func(p *peer) { p.headers(1, false, ":status", "101") },
			[]string{"reset 1 PROTOCOL_ERROR local=true"}, []string{"RST 1 PROTOCOL_ERROR"}, 0},
		{"no status", func(p *peer) { p.headers(1, false, "a", "b") },
			[]string{"reset 1 PROTOCOL_ERROR local=true"}, []string{"RST 1 PROTOCOL_ERROR"}, 0},
		{"status of four digits", func(p *peer) { p.headers(1, false, ":status", "2000") },
			[]string{"reset 1 PROTOCOL_ERROR local=true"}, []string{"RST 1 PROTOCOL_ERROR"}, 0},
		{"request field in a response", func(p *peer) { p.headers(1, false, ":status", "200", ":path", "/") },
			[]string{"reset 1 PROTOCOL_ERROR local=true"}, []string{"RST 1 PROTOCOL_ERROR"}, 0},
		{"DATA before the response", func(p *peer) { p.write.WriteData(1, false, []byte("x")) },
			[]string{"reset 1 PROTOCOL_ERROR local=true"}, []string{"RST 1 PROTOCOL_ERROR"}, 0},
		{"content-length of a body that is not", func(p *peer) { p.headers(1, true, ":status", "200", "content-length", "5") },
			[]string{"reset 1 PROTOCOL_ERROR local=true"}, []string{"RST 1 PROTOCOL_ERROR"}, 0},
		{"content-length of 304", func(p *peer) { p.headers(1, true, ":status", "304", "content-length", "5") },
			[]string{"headers 1 :status=304 content-length=5 end=true"}, nil, 0},
		{"content-length of HEAD", func(p *peer) { p.headers(3, true, ":status", "200", "content-length", "5") },
			[]string{"headers 3 :status=200 content-length=5 end=true"}, nil, 0},
		{"body of HEAD", func(p *peer) { p.headers(3, false, ":status", "200"); p.write.WriteData(3, true, []byte("x")) },
			[]string{"headers 3 :status=200 end=false", "reset 3 PROTOCOL_ERROR local=true"}, []string{"RST 3 PROTOCOL_ERROR"}, 0},
		{"pushed", func(p *peer) { p.write.WriteRawFrame(http2.FramePushPromise, 4, 1, make([]byte, 8)) }, nil, nil, ProtocolError},
		{"response on an idle stream", func(p *peer) { p.headers(9, true, ok...) }, nil, nil, ProtocolError},
		{"response on an even stream", func(p *peer) { p.headers(2, true, ok...) }, nil, nil, ProtocolError},
		{"ENABLE_PUSH 1", func(p *peer) { p.write.WriteSettings(http2.Setting{ID: 2, Val: 1}) }, nil, nil, ProtocolError},
		{"GOAWAY that rises", func(p *peer) {
			p.write.WriteGoAway(1, http2.ErrCodeNo, nil)
			p.write.WriteGoAway(3, http2.ErrCodeNo, nil)
		}, []string{"goaway 1 NO_ERROR "}, nil, ProtocolError},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := greeted(t, testConfig(false))
			for i, method := range []string{"GET", "HEAD"} {
				s := &Stream{}
				p.conn.OpenStream(s, method == "HEAD")
				p.conn.WriteHeaders(s, []Field{{Name: ":method", Value: method}}, true)
				p.streams[uint32(2*i+1)] = s
			}
			p.frames()
			c.send(p)
			err := p.feed()
			if e, _ := err.(*Error); c.err != 0 && (e == nil || e.Code != c.err) || c.err == 0 && err != nil {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			want(t, "events", p.log, c.events...)
			if c.err == 0 {
				want(t, "frames", p.frames(), c.frames...)
			}
		})
	}
}

func TestSendWindows(t *testing.T) {
	p := greeted(t, testConfig(true), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	p.headers(1, true, get...)
	p.headers(3, true, get...)
	p.feed()
	p.frames()
	p.quiet()
	for _, id := range []uint32{1, 3} {
		s := p.streams[id]
		p.conn.WriteHeaders(s, []Field{{Name: ":status", Value: "200"}}, false)
		p.pending[s] = 40000 - p.conn.WriteData(s, make([]byte, 40000), true)
	}
	want(t, "10 each", p.frames(), "HEADERS 1 1 end=false", "DATA 1 10 end=false", "HEADERS 3 1 end=false", "DATA 3 10 end=false")
	p.write.WriteWindowUpdate(1, 20000)
	p.feed()
	want(t, "stream 1 opened", p.frames(), "DATA 1 16384 end=false", "DATA 1 3616 end=false")
	p.write.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 5})
	p.feed()
	want(t, "smaller window", p.frames(), "SETTINGS ack=true")
	p.write.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 60000})
	p.feed() // stream 3 (the newest is asked first) ends; the connection's 65,535 are used up in stream 1
	want(t, "larger window", p.frames(), "SETTINGS ack=true",
		"DATA 3 16384 end=false", "DATA 3 16384 end=false", "DATA 3 7222 end=true", "DATA 1 5525 end=false")
	p.write.WriteWindowUpdate(0, 100000)
	p.feed()
	want(t, "connection opened", p.frames(), "DATA 1 14465 end=true")
	if p.conn.Streams() != 0 {
		t.Errorf("%d streams left", p.conn.Streams())
	}
}

// While the socket is full, no DATA goes, and streams get their turns in order.
func TestSetFull(t *testing.T) {
	p := greeted(t, testConfig(true))
	for id := uint32(1); id <= 5; id += 2 {
		p.headers(id, true, get...)
	}
	p.feed()
	p.conn.SetFull(true)
	for id := uint32(1); id <= 5; id += 2 {
		s := p.streams[id]
		p.pending[s] = 5
		if n := p.conn.WriteData(s, make([]byte, 5), true); n != 0 {
			t.Fatalf("%d bytes went to a full socket", n)
		}
	}
	p.conn.Reset(p.streams[3], Cancel)
	p.conn.SetFull(false)
	want(t, "frames", p.frames(), "RST 3 CANCEL", "DATA 1 5 end=true", "DATA 5 5 end=true")
}

func TestCredit(t *testing.T) {
	p := greeted(t, testConfig(true))
	p.headers(1, false, post()...)
	for range 4 {
		p.write.WriteDataPadded(1, false, make([]byte, 10000), make([]byte, 200))
	}
	p.feed()
	want(t, "nothing before Grant", p.frames())
	p.conn.Grant(p.streams[1], 40000)
	want(t, "padding goes back too", p.frames(), "WINDOW 1 40804")
	p.write.WriteData(1, true, nil)
	p.feed()
	p.conn.Grant(p.streams[1], 1)
	want(t, "nothing after END_STREAM", p.frames())
}

// Large header lists go out in CONTINUATION frames, and come in that way.
func TestLargeHeaders(t *testing.T) {
	big := strings.Repeat("\x00", 0) + strings.Repeat("~", 50000)
	p := greeted(t, testConfig(true))
	b := p.block(append(get, "x-big", big[:40000])...)
	p.write.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:16384], EndStream: true})
	for b = b[16384:]; len(b) > 16384; b = b[16384:] {
		p.write.WriteContinuation(1, false, b[:16384])
	}
	p.write.WriteContinuation(1, true, b)
	if err := p.feed(); err != nil {
		t.Fatal(err)
	}
	p.conn.WriteHeaders(p.streams[1], []Field{{Name: ":status", Value: "200"}, {Name: "x-big", Value: big, Sensitive: true}}, true)
	want(t, "frames", p.frames(), "HEADERS 1 2 end=true")
}

func TestShutdown(t *testing.T) {
	p := greeted(t, testConfig(true))
	p.headers(1, true, get...)
	p.feed()
	p.conn.Shutdown()
	want(t, "first phase", p.frames(), "GOAWAY 2147483647 NO_ERROR", "PING ack=false")
	p.headers(3, true, get...) // was under way: still served
	var ack [8]byte
	copy(ack[:], "lbag-bye")
	p.write.WritePing(true, ack)
	p.headers(5, true, get...) // came after GOAWAY was known: ignored
	p.write.WriteData(5, true, nil)
	p.log = nil
	p.feed()
	want(t, "second phase", p.frames(), "GOAWAY 3 NO_ERROR")
	want(t, "events", p.log, "headers 3 :method=GET :scheme=http :path=/ :authority=a end=true", "drained")
}

// A client takes no slot that the peer doesn't offer.
func TestClientSlots(t *testing.T) {
	p := newPeer(t, testConfig(false))
	if p.conn.Free() != 0 {
		t.Error("streams offered before SETTINGS")
	}
	p.write.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	p.feed()
	s := &Stream{}
	p.conn.OpenStream(s, false)
	p.conn.WriteHeaders(s, []Field{{Name: ":method", Value: "GET"}}, true)
	if p.conn.Free() != 0 {
		t.Error("a second stream offered")
	}
	p.headers(1, true, ":status", "200")
	p.feed()
	if p.conn.Free() != 1 || s.Open() {
		t.Error("the slot did not come back")
	}
	p.write.WriteGoAway(1, http2.ErrCodeNo, nil)
	p.feed()
	if p.conn.Free() != 0 || !p.conn.Spent() {
		t.Error("streams offered after GOAWAY")
	}
}

// The stream table against a map.
func TestTable(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var tab table
	ref := map[uint32]*Stream{}
	next := uint32(1)
	for range 200000 {
		if r.IntN(2) == 0 && len(ref) < 300 {
			next += 2 * (1 + uint32(r.IntN(3)))
			s := &Stream{id: next}
			tab.put(s)
			ref[next] = s
		} else {
			for _, s := range ref {
				tab.remove(s)
				delete(ref, s.id)
				break
			}
		}
		probe := next - 2*uint32(r.IntN(400))
		if tab.get(probe) != ref[probe] {
			t.Fatalf("stream %d: %v, want %v", probe, tab.get(probe), ref[probe])
		}
	}
	if tab.n != len(ref) {
		t.Fatalf("%d entries, want %d", tab.n, len(ref))
	}
}

func TestClasses(t *testing.T) {
	for i := range 256 {
		b := byte(i)
		var c byte
		if 'a' <= b && b <= 'z' || '0' <= b && b <= '9' || b != 0 && strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0 {
			c |= inName | inToken
		}
		if 'A' <= b && b <= 'Z' {
			c |= inToken
		}
		if b != 0 && b != '\r' && b != '\n' {
			c |= inValue
		}
		if b > ' ' && b != 0x7f {
			c |= inURI
		}
		if classes[b] != c {
			t.Errorf("%q: %d, want %d", b, classes[b], c)
		}
	}
}

// After the last stream number there is none: a client asks for another connection, a server takes none below it again (RFC 9113 5.1.1).
func TestStreamNumbersEnd(t *testing.T) {
	p := greeted(t, testConfig(false))
	p.conn.lastID = maxStreamID - 4
	if p.conn.Free() == 0 || p.conn.Spent() {
		t.Fatal("ended too early")
	}
	s := &Stream{}
	p.conn.OpenStream(s, false)
	if s.ID() != maxStreamID-2 || p.conn.Free() != 0 || !p.conn.Spent() {
		t.Errorf("stream %d, then %d free, spent %v", s.ID(), p.conn.Free(), p.conn.Spent())
	}
	p = greeted(t, testConfig(true))
	p.headers(maxStreamID, true, get...)
	p.headers(maxStreamID-2, true, get...)
	if err := p.feed(); err == nil {
		t.Error("a stream began below the last one")
	}
	want(t, "events", p.log, "headers 2147483647 :method=GET :scheme=http :path=/ :authority=a end=true")
}

package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// FuzzRelay plays a script of frames at the client's side and another at a backend's side, over real sockets. Whatever comes: both see valid HTTP/2
// (judged by another implementation), the relay's books stay right, and in the end nothing is left.
func FuzzRelay(f *testing.F) {
	f.Add([]byte("\x00\x00\x04\x03\x02\x01"), []byte("\x00\x00\x05\x03\x06\x01"))
	f.Add([]byte("\x00\x10\x00\x20\x07\x00\x03\x10"), []byte("\x08\x00\x05\x00\x05\x10\x09\x00"))
	f.Add([]byte("\x01\x00\x02\x00\x02\x10\x0b\x00\x0c\x00"), []byte("\x0a\x00\x05\x20\x03\x11"))
	r := newRig(f, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close() })
	r.backends(l.Addr().String())
	var script atomic.Pointer[[]byte]
	var complaint atomic.Pointer[error]
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				preface := make([]byte, len(http2.ClientPreface))
				if _, err := io.ReadFull(c, preface); err != nil {
					return
				}
				go play(c, *script.Load(), false)
				if err := judge(c, true); err != nil {
					complaint.Store(&err)
				}
			}()
		}
	}()
	f.Fuzz(func(t *testing.T, client, backend []byte) {
		r.t = t
		client, backend = client[:min(len(client), 300)], backend[:min(len(backend), 300)]
		script.Store(&backend)
		r.onLoop(func(k *relay) { // each script begins with a fresh connection, and no back-off of the one before
			for _, p := range k.pools {
				for _, be := range p.backends {
					be.again.reset()
					for len(be.conns) > 0 {
						be.conns[0].end(closedIdle)
					}
				}
			}
		})
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte(http2.ClientPreface))
		judged := make(chan error, 1)
		go func() { judged <- judge(c, false) }()
		play(c, client, true)
		c.(*net.TCPConn).CloseWrite()
		if err := <-judged; err != nil {
			t.Error(err)
		}
		c.Close()
		r.await("the client is gone", func(k *relay) bool { return len(k.clients) == 0 })
		r.quiet()
		if err := complaint.Load(); err != nil {
			t.Error(*err)
		}
	})
}

// play writes frames: two bytes of script are one.
func play(c net.Conn, script []byte, client bool) {
	fr := http2.NewFramer(c, nil)
	fr.AllowIllegalWrites = true
	fr.WriteSettings()
	h := &hpackWriter{}
	for ; len(script) >= 2; script = script[2:] {
		op, arg := script[0], script[1]
		id := uint32(arg&7)*2 + 1
		end := arg&8 != 0
		switch op % 16 {
		case 0:
			h.headers(fr, client, id, end)
		case 1:
			h.headers(fr, client, id, true, "content-length", fmt.Sprint(arg>>4))
		case 2, 3:
			fr.WriteData(id, end, make([]byte, int(arg>>4)*1000))
		case 4:
			fr.WriteDataPadded(id, end, make([]byte, arg>>4), make([]byte, arg))
		case 5:
			h.write(fr, id, true, "grpc-status", fmt.Sprint(arg>>4))
		case 6:
			fr.WriteRSTStream(id, http2.ErrCode(arg>>4))
		case 7:
			fr.WriteWindowUpdate(id-1+uint32(arg>>7), uint32(arg)<<8)
		case 8:
			fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(arg) << 4})
		case 9:
			fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(arg >> 4)}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: uint32(arg)})
		case 10:
			fr.WriteGoAway(id, http2.ErrCode(arg>>4), nil)
		case 11:
			fr.WritePing(end, [8]byte{arg})
		case 12:
			fr.WriteRawFrame(http2.FrameType(arg>>4), http2.Flags(arg), id, make([]byte, arg))
		case 13:
			if !client {
				h.write(fr, id, false, ":status", "103")
			}
		case 14:
			h.headers(fr, client, id, false, "content-type", "application/grpc")
		case 15:
			if arg == 0xff {
				c.Close()
				return
			}
		}
	}
}

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

func (h *hpackWriter) headers(fr *http2.Framer, client bool, id uint32, end bool, more ...string) {
	if client {
		h.write(fr, id, end, append([]string{":method", "POST", ":scheme", "http", ":path", "/a/b", ":authority", "a"}, more...)...)
	} else {
		h.write(fr, id, end, append([]string{":status", "200"}, more...)...)
	}
}

// judge reads what the relay sends as a peer would that trusts nobody: frames, header blocks, stream states, content-length. It gives up, without
// complaint, when the connection ends.
func judge(c net.Conn, requests bool) error {
	fr := http2.NewFramer(io.Discard, c)
	fr.SetMaxReadFrameSize(16384)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	type stream struct {
		final, ended bool
		length       int
	}
	streams := map[uint32]*stream{}
	last := uint32(0)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			// Only what the reader found wrong counts.
			if _, ok := errors.AsType[http2.ConnectionError](err); ok {
				return fmt.Errorf("bad frame: %w", err)
			}
			if _, ok := errors.AsType[http2.StreamError](err); ok {
				return fmt.Errorf("bad frame: %w", err)
			}
			return nil
		}
		id := f.Header().StreamID
		s := streams[id]
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if s == nil {
				if requests && (id <= last || id%2 == 0) {
					return fmt.Errorf("stream %d after %d", id, last)
				}
				last = max(last, id)
				s = &stream{length: -1}
				streams[id] = s
				if requests != (f.PseudoValue("method") != "") {
					return fmt.Errorf("stream %d begins with %v", id, f.Fields)
				}
			} else if s.ended {
				return fmt.Errorf("HEADERS on ended stream %d", id)
			} else if s.final && !f.StreamEnded() {
				return fmt.Errorf("trailers without end on stream %d", id)
			}
			if !s.final {
				s.final = requests || f.PseudoValue("status")[0] != '1'
				for _, h := range f.Fields {
					if h.Name == "content-length" {
						fmt.Sscan(h.Value, &s.length)
					}
				}
			} else if len(f.PseudoFields()) > 0 {
				return fmt.Errorf("pseudo fields in trailers of stream %d", id)
			}
			s.ended = f.StreamEnded()
		case *http2.DataFrame:
			if s == nil || s.ended || !s.final {
				return fmt.Errorf("DATA on stream %d, which is not open", id)
			}
			if s.ended = f.StreamEnded(); s.length >= 0 {
				s.length -= len(f.Data())
				if s.length < 0 {
					return fmt.Errorf("more DATA on stream %d than content-length says", id)
				}
			}
		case *http2.RSTStreamFrame:
			if requests && s == nil {
				return fmt.Errorf("RST_STREAM on idle stream %d", id)
			}
			if s != nil {
				s.ended = true
				s.length = 0
			}
		case *http2.WindowUpdateFrame:
			if id != 0 && requests && s == nil {
				return fmt.Errorf("WINDOW_UPDATE on idle stream %d", id)
			}
		}
		if s != nil && s.ended && s.length > 0 {
			return fmt.Errorf("stream %d ended %d bytes before its content-length", id, s.length)
		}
	}
}

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// wire is a protocol as the open-loop client speaks it, on one connection. Requests are counted from 0.
type wire interface {
	// hello is what a connection begins with.
	hello() []byte
	// ask is the n-th request; its bytes are good until the next.
	ask(n int) []byte
	// limit is how many requests may wait for an answer.
	limit() int
	// read takes whole pieces from the front of what came and returns how many bytes they had. answered is called for each answer, reply for what the
	// protocol wants to be sent.
	read(b []byte, answered func(n int, good bool), reply func([]byte)) (int, error)
}

// http1Wire sends one request at a time.
type http1Wire struct {
	request []byte
	n       int // answers seen
}

func newHTTP1Wire(addr string) wire {
	return &http1Wire{request: fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", smallPath, addr)}
}

func (w *http1Wire) hello() []byte  { return nil }
func (w *http1Wire) ask(int) []byte { return w.request }
func (w *http1Wire) limit() int     { return 1 }

func (w *http1Wire) read(b []byte, answered func(int, bool), _ func([]byte)) (int, error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, nil
	}
	whole := end + 4 + contentLength(b[:end+2])
	if len(b) < whole {
		return 0, nil
	}
	answered(w.n, bytes.HasPrefix(b, []byte("HTTP/1.1 200 ")) && whole == end+4+smallBytes)
	w.n++
	return whole, nil
}

// What of RFC 9113 the client needs.
const (
	frameHead                                          = 9
	frameData, frameHeaders, frameReset, frameSettings = 0x0, 0x1, 0x3, 0x4
	framePing, frameGoAway, frameWindow                = 0x6, 0x7, 0x8
	flagEndStream, flagAck, flagPadded, flagPriority   = 0x1, 0x1, 0x8, 0x20
	flagEndHeaders                                     = 0x4
	settingMaxStreams, settingWindow                   = 0x3, 0x4
	largestWindow                                      = 1<<31 - 1
	initialWindow                                      = 1<<16 - 1
)

// h2Wire asks with the same HEADERS frame again and again: no entry of it goes into the dynamic table (RFC 7541, 6.2.2).
type h2Wire struct {
	request []byte
	streams int
	bad     map[int]bool // requests whose answer began with another status than 200
}

func newH2Wire(addr string) wire {
	block := []byte{0x82, 0x86, 0x04, byte(len(smallPath))} // GET, http, :path
	block = append(block, smallPath...)
	block = append(block, 0x01, byte(len(addr))) // :authority
	block = append(block, addr...)
	return &h2Wire{request: frame(frameHeaders, flagEndHeaders|flagEndStream, 1, block), streams: 1000, bad: map[int]bool{}}
}

func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	out := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return append(binary.BigEndian.AppendUint32(out, stream), payload...)
}

// hello opens the windows so far that a run needs no more of them.
func (w *h2Wire) hello() []byte {
	out := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	out = append(out, frame(frameSettings, 0, 0, binary.BigEndian.AppendUint32([]byte{0, settingWindow}, largestWindow))...)
	return append(out, frame(frameWindow, 0, 0, binary.BigEndian.AppendUint32(nil, largestWindow-initialWindow))...)
}

func (w *h2Wire) ask(n int) []byte {
	binary.BigEndian.PutUint32(w.request[5:], uint32(2*n+1))
	return w.request
}

func (w *h2Wire) limit() int { return w.streams }

func (w *h2Wire) read(b []byte, answered func(int, bool), reply func([]byte)) (int, error) {
	used := 0
	for len(b)-used >= frameHead {
		head := b[used:]
		size := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
		if len(head) < frameHead+size {
			break
		}
		used += frameHead + size
		stream := binary.BigEndian.Uint32(head[5:]) & largestWindow
		if err := w.frame(head[3], head[4], int(stream-1)/2, head[frameHead:frameHead+size], answered, reply); err != nil {
			return used, err
		}
	}
	return used, nil
}

func (w *h2Wire) frame(kind, flags byte, n int, payload []byte, answered func(int, bool), reply func([]byte)) error {
	switch kind {
	case frameSettings:
		if flags&flagAck == 0 {
			for s := payload; len(s) >= 6; s = s[6:] {
				if binary.BigEndian.Uint16(s) == settingMaxStreams {
					w.streams = int(min(binary.BigEndian.Uint32(s[2:]), 1000))
				}
			}
			reply(frame(frameSettings, flagAck, 0, nil))
		}
	case framePing:
		if flags&flagAck == 0 {
			reply(frame(framePing, flagAck, 0, payload))
		}
	case frameGoAway:
		return fmt.Errorf("got GOAWAY %x", payload)
	case frameReset:
		delete(w.bad, n)
		answered(n, false)
	case frameHeaders:
		if flags&(flagPadded|flagPriority) != 0 {
			return errors.New("got HEADERS with padding or priority, which this client doesn't read")
		}
		// A block may begin with changes of the table's size (RFC 7541, 6.3); :status 200 is entry 8 of the static table.
		for len(payload) > 0 && payload[0]&0xe0 == 0x20 {
			payload = afterInteger(payload, 5)
		}
		good := flags&flagEndHeaders != 0 && len(payload) > 0 && payload[0] == 0x88
		w.end(n, flags, good, answered)
	case frameData:
		w.end(n, flags, true, answered)
	}
	return nil
}

// end notes what an answer's frame says, and the answer's end.
func (w *h2Wire) end(n int, flags byte, good bool, answered func(int, bool)) {
	if !good {
		w.bad[n] = true
	}
	if flags&flagEndStream != 0 {
		answered(n, !w.bad[n])
		delete(w.bad, n)
	}
}

// afterInteger is what follows an integer with a prefix of so many bits (RFC 7541, 5.1).
func afterInteger(b []byte, prefix int) []byte {
	most := byte(1<<prefix - 1)
	first := b[0] & most
	b = b[1:]
	if first < most {
		return b
	}
	for len(b) > 0 && b[0]&0x80 != 0 {
		b = b[1:]
	}
	return b[min(1, len(b)):]
}

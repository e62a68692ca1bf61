package health

import (
	"encoding/binary"
	"errors"

	"golang.org/x/net/http2/hpack"
)

// errNoWatch says that this backend can't be watched: it has no such method, or what it answers is nothing that a watch can go on with. A unary Check
// finds out what that means.
var errNoWatch = errors.New("no watch")

// settingHeaderTableSize of RFC 9113 6.5.2. Watches set it to 0: header blocks don't depend on each other then, and none of a thousand connections keeps a table.
const settingHeaderTableSize = 0x1

// watchStream is one connection with one call of grpc.health.v1.Health/Watch on it, without the connection: bytes come in, what is to be written goes to out, and status is what the
// backend said last. It is bounded by h2ReadMost bytes in all, after which it ends like one that the backend has closed: no window has to be updated, and no
// backend can make it work for nothing for long.
type watchStream struct {
	rest    []byte // of a frame that hasn't come whole
	block   []byte // of a header block
	message []byte // of a gRPC message
	out     []byte
	read    int
	unacked int  // SETTINGS that the backend has not acknowledged
	greeted bool // its SETTINGS came
	begun   bool // its response headers came
	ends    bool // END_STREAM came with HEADERS whose block goes on in CONTINUATION
	said    bool // status holds
	status  uint64
}

// begin asks for the status of a service; authority is the backend's address.
func (w *watchStream) begin(authority, service string) {
	w.out = append(w.out, h2Preface...)
	w.out = appendFrame(w.out, frameSettings, 0, 0, []byte{0, settingEnablePush, 0, 0, 0, 0, 0, settingHeaderTableSize, 0, 0, 0, 0})
	w.out = appendFrame(w.out, frameHeaders, flagEndHeaders, h2Stream, healthHeaders("Watch", authority, 0))
	w.out = appendFrame(w.out, frameData, flagEndStream, h2Stream, checkMessage(service))
	w.unacked++
}

// ping asks for a sign of life. It is SETTINGS, which have to be acknowledged (6.5.3), and not PING: gRPC servers take more than two of those in 5 min for an
// attack while they have nothing to say (2.11).
func (w *watchStream) ping() {
	w.out = appendFrame(w.out, frameSettings, 0, 0, nil)
	w.unacked++
}

// feed takes bytes from the backend. After an error the watch is over.
func (w *watchStream) feed(b []byte) error {
	if w.read += len(b); w.read > h2ReadMost {
		return w.over("the watch was replaced")
	}
	w.rest = append(w.rest, b...)
	for b = w.rest; ; {
		f, n, ok := cutFrame(b)
		if !ok {
			return w.over(errNotHTTP2.cause)
		}
		if n == 0 {
			break
		}
		if err := w.frame(f); err != nil {
			return err
		}
		b = b[n:]
	}
	if len(b) == 0 {
		w.rest = nil // nothing is kept for a watch that is quiet
	} else if len(b) < len(w.rest) {
		w.rest = append([]byte(nil), b...)
	}
	return nil
}

// cutFrame is the first frame in b and its length; 0 if it hasn't come whole, not ok if it is too long.
func cutFrame(b []byte) (f h2Frame, n int, ok bool) {
	if len(b) < 9 {
		return f, 0, true
	}
	n = int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	if n > h2FrameMost {
		return f, 0, false
	}
	if n += 9; len(b) < n {
		return f, 0, true
	}
	return h2Frame{kind: b[3], flags: b[4], stream: binary.BigEndian.Uint32(b[5:]) & (1<<31 - 1), payload: b[9:n]}, n, true
}

// over is the error of a watch that can't go on: Check is asked if it never said anything.
func (w *watchStream) over(why string) error {
	if !w.said {
		return errNoWatch
	}
	return errClosed{why}
}

func (w *watchStream) frame(f h2Frame) error {
	switch {
	case f.kind == frameGoAway:
		return errClosed{"GOAWAY"} // whatever it allows: a server that stops gracefully waits for the end of this stream
	case !w.greeted && f.kind != frameSettings:
		return errNoWatch // 3.4: SETTINGS come first
	case f.kind == framePushPromise || f.stream > h2Stream:
		return w.over(errNotHTTP2.cause)
	}
	switch f.kind {
	case frameSettings:
		if f.flags&flagAck != 0 {
			w.unacked = max(0, w.unacked-1)
			return nil
		}
		w.greeted = true
		w.out = appendFrame(w.out, frameSettings, flagAck, 0, nil)
		return nil
	case framePing:
		if f.flags&flagAck == 0 && len(f.payload) == 8 {
			w.out = appendFrame(w.out, framePing, flagAck, 0, f.payload)
		}
		return nil
	}
	if f.stream != h2Stream {
		return nil
	}
	return w.streamFrame(f)
}

func (w *watchStream) streamFrame(f h2Frame) error {
	switch f.kind {
	case frameRSTStream:
		if len(f.payload) == 4 && binary.BigEndian.Uint32(f.payload) == codeRefusedStream {
			return errClosed{"stream refused"}
		}
		return w.over("stream reset")
	case frameData, frameHeaders:
		payload, ok := unpad(f)
		if !ok {
			return w.over(errNotHTTP2.cause)
		}
		if w.ends = f.flags&flagEndStream != 0; f.kind == frameData {
			return w.data(payload)
		}
		return w.header(payload, f.flags&flagEndHeaders != 0)
	case frameContinuation:
		return w.header(f.payload, f.flags&flagEndHeaders != 0)
	}
	return nil
}

// header takes a part of a header block: the first block has to be an answer that goes on, a second one is the end of the stream.
func (w *watchStream) header(part []byte, whole bool) error {
	w.block = append(w.block, part...)
	if !whole {
		return nil
	}
	block := w.block
	w.block = nil
	if w.ends || w.begun {
		return w.over("the stream of the watch ended")
	}
	status := ""
	d := hpack.NewDecoder(0, func(f hpack.HeaderField) {
		if f.Name == ":status" {
			status = f.Value
		}
	})
	if _, err := d.Write(block); err != nil || d.Close() != nil || status != "200" {
		return errNoWatch
	}
	w.begun = true
	return nil
}

// data takes a part of the gRPC messages, each of which is a status.
func (w *watchStream) data(part []byte) error {
	if !w.begun {
		return w.over(errNotHTTP2.cause)
	}
	w.message = append(w.message, part...)
	for len(w.message) >= 5 {
		n := int(min(binary.BigEndian.Uint32(w.message[1:]), h2ReadMost)) + 5
		if len(w.message) < n {
			break
		}
		status, err := servingStatus(w.message[:n])
		if err != nil {
			return w.over(err.Error())
		}
		w.status, w.said = status, true
		w.message = w.message[n:]
	}
	if len(w.message) == 0 {
		w.message = nil
	}
	if w.ends {
		return w.over("the stream of the watch ended")
	}
	return nil
}

package localapi

import (
	"encoding/binary"
	"errors"
	"sync"
)

// errUnfinished ends a connection whose caller has begun too much that it doesn't end.
var errUnfinished = errors.New("too many bytes of requests that don't end")

// meter counts what one HTTP/2 connection makes grpc hold: the DATA of requests that have not ended. grpc keeps it for each stream apart, up to the stream's window, until a handler
// reads it, and a handler reads one message; so 4,096 streams could hold 256 MiB. What ends at once, as nearly every request does, is never counted.
type meter struct {
	who   caller
	quota *quota

	in, out frames

	mu sync.Mutex

	open   map[uint32]int // by stream that has not ended: the bytes that are counted
	last   uint32         // the newest stream
	closed bool           // nobody would give back what is taken from now on
}

// mostOfStream is what grpc holds of one stream at most: its window, and a message that is being put together.
const mostOfStream = streamWindow + 64<<10

func newMeter(who caller, q *quota) *meter {
	return &meter{who: who, quota: q, open: map[uint32]int{}, in: frames{skip: len(preface)}}
}

// read takes note of what the caller sent.
func (m *meter) read(p []byte) (err error) {
	m.in.feed(p, func(f frameHead) {
		m.mu.Lock()
		defer m.mu.Unlock()
		counted, known := m.open[f.stream]
		switch {
		case m.closed:
		case f.kind == frameHeaders && f.stream > m.last:
			m.last = f.stream
			if !f.ends() {
				m.open[f.stream] = 0
			}
		case !known:
		case f.ends():
			m.endLocked(f.stream)
		case f.kind == frameData:
			n := min(f.length, mostOfStream-counted)
			if m.quota.take(m.who, n) != within {
				err = errUnfinished
				return
			}
			m.open[f.stream] = counted + n
		}
	})
	return err
}

// written takes note of what grpc answered: a call that it has ended holds nothing.
func (m *meter) written(p []byte) {
	m.out.feed(p, func(f frameHead) {
		if f.ends() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.endLocked(f.stream)
		}
	})
}

func (m *meter) endLocked(stream uint32) {
	if n := m.open[stream]; n > 0 {
		m.quota.give(m.who, n)
	}
	delete(m.open, stream)
}

// close gives back what is left.
func (m *meter) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for stream := range m.open {
		m.endLocked(stream)
	}
}

// frameHead is what a frame says of itself.
type frameHead struct {
	length      int
	kind, flags byte
	stream      uint32
}

// ends reports whether its sender says no more on the stream.
func (f frameHead) ends() bool {
	return f.kind == frameReset || (f.kind == frameData || f.kind == frameHeaders) && f.flags&flagEndStream != 0
}

// frames finds the heads of HTTP/2's frames (RFC 9113 4.1) in a flow of bytes, wherever that is cut.
type frames struct {
	skip int // bytes until the next head
	head [9]byte
	have int // bytes of head
}

func (f *frames) feed(p []byte, found func(frameHead)) {
	for {
		n := min(f.skip, len(p))
		f.skip -= n
		if p = p[n:]; len(p) == 0 {
			return
		}
		n = copy(f.head[f.have:], p)
		f.have += n
		p = p[n:]
		if f.have < len(f.head) {
			return
		}
		f.have = 0
		h := f.head
		f.skip = int(h[0])<<16 | int(h[1])<<8 | int(h[2])
		found(frameHead{f.skip, h[3], h[4], binary.BigEndian.Uint32(h[5:]) &^ (1 << 31)})
	}
}

package proxy

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// replayMost is how much of a request's body is kept until the response's head, so that the request can be sent again (4.3).
const replayMost = 64 << 10

var errBodySent = errors.New("the request can't be sent again: its body was longer than 64 KiB, or too many are kept")

// replay is a request's body that may be sent more than once, one reader after the other.
type replay struct {
	h   *http1
	src io.Reader

	mu sync.Mutex

	kept   []byte
	gen    int   // of the latest reader
	busy   bool  // a reader waits for src: what comes will be its, so that nobody else can read on
	failed bool  // more was read than is kept
	end    error // of src: io.EOF, or why reading it broke
}

func newReplay(h *http1, src io.Reader) *replay { return &replay{h: h, src: src} }

// reader begins at the start of the body.
func (b *replay) reader() io.ReadCloser {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gen++
	gen := b.gen
	if b.busy {
		gen = 0 // of nobody
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(b.kept), &tee{b, gen}))
}

// again is http.Request.GetBody.
func (b *replay) again() (io.ReadCloser, error) {
	if !b.rewind() {
		return nil, errBodySent
	}
	return b.reader(), nil
}

// rewind reports whether the body can be sent once more.
func (b *replay) rewind() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.failed && !b.busy
}

// ended reports whether the client has sent all of it.
func (b *replay) ended() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.end == io.EOF
}

// broken reports whether it could not be read from the client.
func (b *replay) broken() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.end != nil && b.end != io.EOF
}

// release keeps nothing any more.
func (b *replay) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropLocked()
}

func (b *replay) dropLocked() {
	b.h.buffered.Add(-int64(len(b.kept)))
	b.kept, b.failed = nil, true
}

// tee reads on behind what is kept. One of an earlier reader doesn't: net/http may go on reading a body after its attempt has failed.
type tee struct {
	b   *replay
	gen int
}

func (t *tee) Read(p []byte) (int, error) {
	b := t.b
	if !b.begin(t.gen) {
		return 0, errBodySent
	}
	n, err := b.src.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.busy = false
	if err != nil {
		b.end = err
	}
	switch {
	case n == 0 || b.failed:
	case len(b.kept)+n > replayMost || b.h.buffered.Add(int64(n)) > replayBudget:
		if len(b.kept)+n <= replayMost {
			b.h.buffered.Add(-int64(n))
		}
		b.dropLocked()
	default:
		b.kept = append(b.kept, p[:n]...)
	}
	return n, err
}

// begin lets the reader gen wait for src.
func (b *replay) begin(gen int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.busy || gen != b.gen {
		return false
	}
	b.busy = true
	return true
}

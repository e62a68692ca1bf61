package proxy

import (
	"errors"
	"io"
	"sync/atomic"

	"github.com/lbagent/lbagent/agent/proxy/h1"
)

// wireBody is the body of a message that is read from a wire.
type wireBody struct {
	w        *wire
	limits   *Limits
	extend   func() error // called before a read that may have to wait; nil = none
	hasty    bool         // rather give nothing than wait: something else is to be sent before
	chunked  bool
	close    bool // it ends with the connection
	left     int64
	got      int64 // what was read of it
	chunks   h1.Chunks
	trailers []h1.Field
}

// read gives what is there, and waits only if that is nothing; the end comes as io.EOF, possibly with bytes. What comes earlier than that is io.ErrUnexpectedEOF.
func (b *wireBody) read(p []byte) (n int, err error) {
	for n < len(p) {
		if b.chunked && b.chunks.Left() == 0 {
			switch done, err := b.frame(n > 0 || b.hasty); {
			case err != nil:
				return n, err
			case done:
				return n, io.EOF
			case b.chunks.Left() == 0:
				return n, nil // the rest isn't there yet
			}
		}
		if !b.chunked && !b.close && b.left == 0 {
			return n, io.EOF
		}
		to := p[n:]
		switch left := b.left; {
		case b.chunked:
			to = to[:min(int64(len(to)), b.chunks.Left())]
		case !b.close:
			to = to[:min(int64(len(to)), left)]
		}
		if len(b.w.buffered()) == 0 {
			if n > 0 || b.hasty {
				return n, nil
			}
			if err := b.wait(); err != nil {
				return n, err
			}
		}
		k, err := b.w.Read(to)
		n += k
		b.got += int64(k)
		switch {
		case b.chunked:
			if k > 0 {
				b.chunks.Took(k)
			}
		case !b.close:
			b.left -= int64(k)
		}
		if err == io.EOF && b.close {
			if b.w.wasReset() {
				return n, io.ErrUnexpectedEOF
			}
			return n, io.EOF
		}
		if err != nil {
			return n, unexpected(err)
		}
	}
	return n, nil
}

func (b *wireBody) wait() error {
	if b.extend == nil {
		return nil
	}
	return b.extend()
}

// frame reads up to a chunk's data, or the end of the body with its trailers. If have is true, it doesn't wait.
func (b *wireBody) frame(have bool) (done bool, err error) {
	for {
		if in := b.w.buffered(); len(in) > 0 {
			n, err := b.chunks.Frame(in)
			b.w.skip(n)
			if err != nil {
				return false, err
			}
		}
		switch {
		case b.chunks.Left() > 0:
			return false, nil
		case b.chunks.Ended() && !(have && b.trailersMissing()):
			return true, b.readTrailers()
		case have:
			return false, nil
		}
		if err := b.more(); err != nil {
			return false, err
		}
	}
}

// trailersMissing reports whether reading them would have to wait.
func (b *wireBody) trailersMissing() bool {
	end, err := h1.End(b.w.buffered(), 0)
	return end == 0 && err == nil
}

func (b *wireBody) more() error {
	if err := b.wait(); err != nil {
		return err
	}
	return unexpected(b.w.fill(b.limits.HeaderBytes))
}

func (b *wireBody) readTrailers() error {
	seen := 0
	for {
		in := b.w.buffered()
		end, err := h1.End(in, seen)
		switch {
		case err != nil:
			return err
		case end > b.limits.HeaderBytes, end == 0 && len(in) > b.limits.HeaderBytes:
			return h1.ErrTooLong
		case end > 0:
			trailers, err := h1.Trailers(in[:end], b.limits.HeaderFields)
			for _, f := range trailers { // the buffer goes to somebody else
				b.trailers = append(b.trailers, h1.Field{Name: append([]byte(nil), f.Name...), Value: append([]byte(nil), f.Value...)})
			}
			b.w.skip(end)
			return err
		}
		seen = len(in)
		if err := b.more(); err != nil {
			return err
		}
	}
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// appendBody appends a piece of the body to out, framed for the other side, and reports whether it was the last. What is appended fits into out's capacity, of which
// some has to be free.
func (b *wireBody) appendBody(out []byte, chunked bool) ([]byte, bool, error) {
	if !chunked {
		n, err := b.read(out[len(out):cap(out)])
		return out[:len(out)+n], err == io.EOF, notEOF(err)
	}
	at := len(out)
	n, err := b.read(out[at+chunkHead : cap(out)-chunkTail])
	if n > 0 {
		out = appendHex4(out, n)
		out = append(out[:at+chunkHead+n], "\r\n"...)
	}
	if err == io.EOF {
		return h1.AppendLast(out, b.trailers), true, nil
	}
	return out, false, err
}

const (
	chunkHead = 6 // four digits and CRLF
	chunkTail = 2
)

// appendHex4 appends a chunk's size, up to 64 KiB, in a fixed number of digits: the data stands already behind them.
func appendHex4(out []byte, n int) []byte {
	const digits = "0123456789abcdef"
	return append(out, digits[n>>12&15], digits[n>>8&15], digits[n>>4&15], digits[n&15], '\r', '\n')
}

func notEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

var errBodySent = errors.New("the request can't be sent again: its body was longer than 64 KiB, or too many are kept")

// replayMost is how much of a request's body is kept until the response's head, so that the request can be sent again (4.3).
const replayMost = 64 << 10

// replay keeps what was sent of a request's body, as it was sent. Whoever uploads owns it.
type replay struct {
	h      *http1
	on     bool // what is sent is kept
	kept   []byte
	failed bool        // more was sent than is kept
	vain   atomic.Bool // an answer has begun: keep nothing any more; set by anybody
}

// sent notes bytes that are about to be sent.
func (r *replay) sent(b []byte) {
	switch {
	case r.failed:
	case !r.on, r.vain.Load():
		r.drop()
	case len(r.kept)+len(b) > replayMost:
		r.drop()
	case r.h.buffered.Add(int64(len(b))) > replayBudget:
		r.h.buffered.Add(-int64(len(b)))
		r.drop()
	default:
		r.kept = append(r.kept, b...)
	}
}

// drop keeps nothing any more.
func (r *replay) drop() {
	r.h.buffered.Add(-int64(len(r.kept)))
	r.kept, r.failed = nil, true
}

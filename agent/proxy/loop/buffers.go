package loop

import "math/bits"

const (
	smallestBuffer = 10      // 1 KiB
	bufferClasses  = 7       // up to 64 KiB
	freePerClass   = 1 << 20 // bytes that one class keeps for later
)

// buffers is a free list per power of two, for bytes that a connection can't consume yet.
type buffers struct {
	free [bufferClasses][][]byte
	lent int // bytes
}

// get returns an empty buffer with room for n bytes, n <= readSize.
func (p *buffers) get(n int) []byte {
	class := max(0, bits.Len(uint(n-1))-smallestBuffer)
	if k := len(p.free[class]); k > 0 {
		b := p.free[class][k-1]
		p.free[class][k-1] = nil
		p.free[class] = p.free[class][:k-1]
		p.lent += cap(b)
		return b
	}
	p.lent += 1 << (class + smallestBuffer)
	return make([]byte, 0, 1<<(class+smallestBuffer))
}

// put takes back what get gave; nil is fine.
func (p *buffers) put(b []byte) {
	if b == nil {
		return
	}
	p.lent -= cap(b)
	class := bits.Len(uint(cap(b)-1)) - smallestBuffer
	if len(p.free[class])<<(class+smallestBuffer) < freePerClass {
		p.free[class] = append(p.free[class], b[:0])
	}
}

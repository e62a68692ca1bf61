package h1

// chunkLine is the most that a chunk's size may have with its extensions; these mean nothing to anybody, and cost whoever reads them (CVE-2023-39326).
const chunkLine = 256

// Chunks reads chunked framing (RFC 9112, 7.1). The zero value is at the beginning of a body.
type Chunks struct {
	left  int64 // bytes of the present chunk that are still to come
	state chunkState
	line  int // bytes of the present line
}

// chunkDigits is the most digits that a size may have: leading zeros beyond 64 bits are read in more than one way.
const chunkDigits = 16

type chunkState uint8

const (
	chunkSize  chunkState = iota // before or in the size
	chunkExt                     // behind it
	chunkSizeN                   // LF of that line
	chunkData
	chunkCR // behind the data
	chunkLF
	chunkEnd // trailers follow, if only their empty line
)

// Ended reports whether the last chunk has been read. Trailers follow: End and Trailers are theirs.
func (c *Chunks) Ended() bool { return c.state == chunkEnd }

// Left is how many bytes of the present chunk are still to come.
func (c *Chunks) Left() int64 {
	if c.state == chunkData {
		return c.left
	}
	return 0
}

// Took notes that n bytes of Left were read.
func (c *Chunks) Took(n int) {
	if c.left -= int64(n); c.left == 0 {
		c.state = chunkCR
	}
}

// Frame reads framing from b up to data, the last chunk, or b's end, and returns its length.
func (c *Chunks) Frame(b []byte) (int, error) {
	for i, x := range b {
		switch c.state {
		case chunkData, chunkEnd:
			return i, nil
		case chunkSize, chunkExt, chunkSizeN:
			if err := c.inLine(x); err != nil {
				return i, err
			}
		case chunkCR:
			if x != '\r' {
				return i, ErrChunk
			}
			c.state = chunkLF
		case chunkLF:
			if x != '\n' {
				return i, ErrChunk
			}
			c.state, c.line = chunkSize, 0
		}
	}
	return len(b), nil
}

// inLine reads one byte of a chunk's line.
func (c *Chunks) inLine(x byte) error {
	if c.line++; c.line > chunkLine {
		return ErrChunkLine
	}
	switch {
	case c.state == chunkSizeN:
		if x != '\n' {
			return ErrChunk
		}
		c.state = chunkData
		if c.left == 0 {
			c.state = chunkEnd
		}
	case x == '\r':
		if c.line == 1 {
			return ErrChunkSize
		}
		c.state = chunkSizeN
	case c.state == chunkExt:
		if x < ' ' && x != '\t' || x == 0x7f {
			return ErrChunk
		}
	case isHex(x):
		if c.left >= 1<<59 || c.line > chunkDigits {
			return ErrChunkSize
		}
		c.left = c.left<<4 | int64(hexValue(x))
	case x == ';' && c.line > 1:
		c.state = chunkExt
	default:
		return ErrChunkSize
	}
	return nil
}

func hexValue(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c >= 'a':
		return c - 'a' + 10
	default:
		return c - 'A' + 10
	}
}

// Trailers reads the trailers b behind a chunked body, their empty line included. What says where a message ends or goes has no place there (RFC 9110, 6.5.1).
func Trailers(b []byte, max int) ([]Field, error) {
	var all []Field
	for {
		line, rest := cutLine(b)
		if len(line) == 0 {
			return all, nil
		}
		b = rest
		f, err := parseField(line)
		if err != nil {
			return nil, err
		}
		if f.kind != endToEnd {
			return nil, ErrTrailer
		}
		if len(all) == max {
			return nil, ErrFields
		}
		all = append(all, f)
	}
}

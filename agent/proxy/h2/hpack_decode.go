package h2

import (
	"errors"
	"strings"

	"golang.org/x/net/http2/hpack"
)

var (
	errIndex    = errors.New("no such index")
	errInteger  = errors.New("integer too large")
	errShort    = errors.New("block ends within a field")
	errUpdate   = errors.New("table size update out of place")
	errTooLong  = errors.New("string too long")
	errTooLarge = errors.New("table size above SETTINGS_HEADER_TABLE_SIZE")
)

// decoder decompresses header blocks (RFC 7541). What it does beyond x/net's: a field knows the code of its name and whether it is valid, which is found
// out once, when it enters the table, and not per request; and an indexed field costs no function call.
type decoder struct {
	ring        []Field // entries by number & (len-1)
	first, next uint32  // numbers of the entries that live: [first, next)
	size, max   int     // as RFC 7541 4.1 counts
	maxString   int
}

// decode appends the fields of block to out. Over maxBytes or maxFields it goes on for the table's sake, and reports excess; size is that of the whole list.
func (d *decoder) decode(out []Field, block []byte, maxBytes, maxFields int) (fields []Field, size int, excess bool, err error) {
	for begun := false; len(block) > 0; {
		b := block[0]
		var f *Field
		var literal Field
		switch {
		case b&0x80 != 0: // indexed
			i := uint64(b & 0x7f)
			block = block[1:]
			if i == 0x7f {
				if i, block, err = readInt(i, block); err != nil {
					return out, size, excess, err
				}
			}
			if f = d.at(i); f == nil {
				return out, size, excess, errIndex
			}
		case b&0xe0 == 0x20: // table size
			if begun {
				return out, size, excess, errUpdate
			}
			if block, err = d.resize(block); err != nil {
				return out, size, excess, err
			}
			continue
		default:
			if block, err = d.literal(&literal, block); err != nil {
				return out, size, excess, err
			}
			f = &literal
			if b&0xc0 == 0x40 {
				d.add(literal)
			}
		}
		begun = true
		if size += len(f.Name) + len(f.Value) + 32; excess || size > maxBytes || len(out) >= maxFields {
			excess = true
			continue
		}
		out = append(out, *f)
	}
	return out, size, excess, nil
}

// at is the entry with index i.
func (d *decoder) at(i uint64) *Field {
	if i <= lastStatic {
		if i == 0 {
			return nil
		}
		return &staticTable[i]
	}
	if i -= lastStatic + 1; i >= uint64(d.next-d.first) {
		return nil
	}
	return &d.ring[(d.next-1-uint32(i))&uint32(len(d.ring)-1)]
}

// resize takes a table size update.
func (d *decoder) resize(block []byte) ([]byte, error) {
	n, rest, err := readPrefix(block, 0x1f)
	if err != nil {
		return nil, err
	}
	if n > tableSize {
		return nil, errTooLarge
	}
	d.max = int(n)
	d.evict()
	return rest, nil
}

// literal reads one of the literal representations, and judges it.
func (d *decoder) literal(f *Field, block []byte) (rest []byte, err error) {
	mask := byte(0x0f)
	if block[0]&0x40 != 0 {
		mask = 0x3f
	}
	f.Sensitive = block[0]&0xf0 == 0x10
	i, rest, err := readPrefix(block, mask)
	if err != nil {
		return nil, err
	}
	if i == 0 {
		if f.Name, rest, err = d.readString(rest, true); err != nil {
			return nil, err
		}
		f.code = nameCode(f.Name)
	} else {
		named := d.at(i)
		if named == nil {
			return nil, errIndex
		}
		f.Name, f.code = named.Name, named.code
	}
	if f.Value, rest, err = d.readString(rest, false); err != nil {
		return nil, err
	}
	f.judge()
	return rest, nil
}

// judge notes whether the field is valid in itself (RFC 9113 8.2.1); pseudo fields are judged where they are used.
func (f *Field) judge() {
	pseudo := f.code <= codeStatus+6 // the pseudo fields come first in the static table
	f.bad = f.Name == "" || !pseudo && !all(f.Name, inName) || !all(f.Value, inValue)
	if v := f.Value; v != "" && (v[0] <= ' ' || v[len(v)-1] <= ' ') {
		f.blank = strings.Trim(v, " \t") != v
	}
}

// readString reads a string literal. A well-known name costs no memory.
func (d *decoder) readString(b []byte, name bool) (s string, rest []byte, err error) {
	if len(b) == 0 {
		return "", nil, errShort
	}
	huffman := b[0]&0x80 != 0
	n, rest, err := readPrefix(b, 0x7f)
	if err != nil {
		return "", nil, err
	}
	if n > uint64(len(rest)) {
		return "", nil, errShort
	}
	if n > uint64(d.maxString) {
		return "", nil, errTooLong
	}
	raw, rest := rest[:n], rest[n:]
	if huffman {
		s, err = hpack.HuffmanDecodeToString(raw)
		if err == nil && len(s) > d.maxString {
			err = errTooLong
		}
		return s, rest, err
	}
	if name {
		if code := nameCode(string(raw)); code <= lastStatic {
			return staticTable[code].Name, rest, nil
		}
	}
	return string(raw), rest, nil
}

// readPrefix reads an integer whose prefix are the bits of mask in b[0].
func readPrefix(b []byte, mask byte) (n uint64, rest []byte, err error) {
	n = uint64(b[0] & mask)
	if n < uint64(mask) {
		return n, b[1:], nil
	}
	return readInt(n, b[1:])
}

// readInt reads the rest of an integer whose prefix is full. No number here is as large as 2^28.
func readInt(n uint64, b []byte) (uint64, []byte, error) {
	for i, shift := 0, 0; i < len(b); i, shift = i+1, shift+7 {
		if shift > 28 {
			return 0, nil, errInteger
		}
		n += uint64(b[i]&0x7f) << shift
		if b[i]&0x80 == 0 {
			return n, b[i+1:], nil
		}
	}
	return 0, nil, errShort
}

func entrySize(name, value string) int { return len(name) + len(value) + 32 }

// add enters f; what doesn't fit empties the table (RFC 7541 4.4).
func (d *decoder) add(f Field) {
	d.size += entrySize(f.Name, f.Value)
	if int(d.next-d.first) == len(d.ring) {
		d.grow()
	}
	d.ring[d.next&uint32(len(d.ring)-1)] = f
	d.next++
	d.evict()
}

func (d *decoder) evict() {
	for d.size > d.max {
		f := &d.ring[d.first&uint32(len(d.ring)-1)]
		d.size -= entrySize(f.Name, f.Value)
		*f = Field{}
		d.first++
	}
}

func (d *decoder) grow() {
	old := d.ring
	d.ring = make([]Field, max(8, 2*len(old)))
	for n := d.first; n != d.next; n++ {
		d.ring[n&uint32(len(d.ring)-1)] = old[n&uint32(len(old)-1)]
	}
}

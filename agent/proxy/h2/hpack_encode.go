package h2

import "hash/maphash"

// encoder compresses header lists (RFC 7541). Beyond x/net's: it hashes each field once and keeps no maps, and a field enters the table only when it
// comes a second time, so that ids, dates and the like, which never do, push nothing out. Literals go without Huffman code: on a host's own
// wires bytes are cheaper than the time to pack them.
type encoder struct {
	seed        maphash.Seed
	ring        []encoded // entries by number & (len-1)
	first, next uint64    // numbers of the entries that live: [first, next)
	size, max   int
	heads       [64]uint8     // by hash: of the newest entry's number + 1 the low byte, see newest
	seen        [32][4]uint16 // of the hashes of fields that came once 16 bits, the latest first

	update bool // the peer changed the table's size: tell it in the next block
	lowest int  // the smallest size since the last block
}

type encoded struct {
	name, value string
	hash        uint32
	prev        uint64 // the number + 1 of the next older one with this head
}

func newEncoder() encoder { return encoder{seed: maphash.MakeSeed(), max: tableSize} }

// resize follows the peer's SETTINGS_HEADER_TABLE_SIZE, up to tableSize.
func (e *encoder) resize(v uint32) {
	n := int(min(v, tableSize))
	if !e.update {
		e.lowest = e.max
	}
	e.update = true
	e.lowest = min(e.lowest, n)
	e.max = n
	e.evict()
}

// begin appends what has to stand first in a block.
func (e *encoder) begin(out []byte) []byte {
	if !e.update {
		return out
	}
	e.update = false
	if e.lowest < e.max {
		// The size fell and rose again: both have to be told (RFC 7541 4.2). Fallen to 0 is always true enough, and x/net takes a second update only for
		// an empty table.
		n := e.max
		e.max = 0
		e.evict()
		e.max = n
		out = append(out, 0x20)
	}
	return appendInt(out, 0x20, 0x1f, uint64(e.max))
}

// encode appends one field.
func (e *encoder) encode(out []byte, f *Field) []byte {
	code := f.code
	if code == codeUnknown {
		code = nameCode(f.Name)
	}
	kind, mask := byte(0), byte(0x0f)
	if f.Sensitive {
		kind = 0x10
	} else {
		if i := staticIndex(code, f.Value); i != 0 {
			return append(out, 0x80|i)
		}
		hash := e.hash(code, f)
		if n := e.find(hash, f); n != 0 {
			return appendInt(out, 0x80, 0x7f, lastStatic+1+e.next-n)
		}
		if e.worthwhile(hash, f) {
			e.add(hash, f)
			kind, mask = 0x40, 0x3f
		}
	}
	if code <= lastStatic {
		out = appendInt(out, kind, mask, uint64(code))
	} else {
		out = appendString(append(out, kind), f.Name)
	}
	return appendString(out, f.Value)
}

// staticIndex is the entry of the static table that is exactly this field, 0 if there is none; of a code, the entries are neighbours.
func staticIndex(code uint8, value string) uint8 {
	n := uint8(0)
	switch code {
	case codeMethod, codePath, codeScheme:
		n = 2
	case codeStatus:
		n = 7
	case codeAcceptEncoding:
		n = 1
	}
	for i := code; i < code+n; i++ {
		if staticTable[i].Value == value {
			return i
		}
	}
	return 0
}

func (e *encoder) hash(code uint8, f *Field) uint32 {
	h := maphash.String(e.seed, f.Value)
	if code <= codeLast {
		h ^= uint64(code) * 0x9e3779b97f4a7c15
	} else {
		h ^= maphash.String(e.seed, f.Name) * 0x9e3779b97f4a7c15
	}
	return uint32(h>>32) | 1 // never 0
}

// find is the number of the entry that is this field, + 1; 0 if there is none.
func (e *encoder) find(hash uint32, f *Field) uint64 {
	for n := e.newest(hash); n > e.first; {
		k := &e.ring[(n-1)&uint64(len(e.ring)-1)]
		if k.hash == hash && k.value == f.Value && k.name == f.Name {
			return n
		}
		n = k.prev
	}
	return 0
}

// newest is the number + 1 of the newest entry with this head, 0 if none lives. A byte of it is enough to tell, as at most 128 entries live (4096 / 32,
// RFC 7541 4.1). Where none with this head lives, it may be an entry with another: nothing there will match.
func (e *encoder) newest(hash uint32) uint64 {
	age := uint64(uint8(e.next) - e.heads[hash>>1&63])
	if age >= e.next-e.first {
		return 0
	}
	return e.next - age
}

// worthwhile reports whether the field should enter the table.
func (e *encoder) worthwhile(hash uint32, f *Field) bool {
	row, mark := &e.seen[hash>>7&31], uint16(hash>>16)
	if row[0] != mark && row[1] != mark && row[2] != mark && row[3] != mark {
		row[3], row[2], row[1], row[0] = row[2], row[1], row[0], mark
		return false
	}
	return entrySize(f.Name, f.Value) <= e.max/4
}

func (e *encoder) add(hash uint32, f *Field) {
	e.size += entrySize(f.Name, f.Value)
	if int(e.next-e.first) == len(e.ring) {
		e.grow()
	}
	e.ring[e.next&uint64(len(e.ring)-1)] = encoded{f.Name, f.Value, hash, e.newest(hash)}
	e.next++
	e.heads[hash>>1&63] = uint8(e.next)
	e.evict()
}

func (e *encoder) evict() {
	for e.size > e.max {
		k := &e.ring[e.first&uint64(len(e.ring)-1)]
		e.size -= entrySize(k.name, k.value)
		*k = encoded{}
		e.first++
	}
}

func (e *encoder) grow() {
	old := e.ring
	e.ring = make([]encoded, max(8, 2*len(old)))
	for n := e.first; n != e.next; n++ {
		e.ring[n&uint64(len(e.ring)-1)] = old[n&uint64(len(old)-1)]
	}
}

// appendInt appends an integer behind the bits of kind.
func appendInt(out []byte, kind, mask byte, n uint64) []byte {
	if n < uint64(mask) {
		return append(out, kind|byte(n))
	}
	out = append(out, kind|mask)
	for n -= uint64(mask); n >= 0x80; n >>= 7 {
		out = append(out, 0x80|byte(n))
	}
	return append(out, byte(n))
}

func appendString(out []byte, s string) []byte {
	return append(appendInt(out, 0, 0x7f, uint64(len(s))), s...)
}

package discovery

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/lbagent/lbagent/agent/service"
	"google.golang.org/protobuf/encoding/protowire"
)

// decode reads a file that should hold f's list, which keeps nothing of data.
func (d *spoolDecoder) decode(data []byte, f Follow) (*service.List, error) {
	l, from, err := d.any(data)
	switch {
	case err != nil:
		return nil, err
	case l.Service != f.Name:
		return nil, fmt.Errorf("%w: the list of service %.80q", errUnreadable, l.Service)
	case from.keys != f.keys() || from.format != f.Format:
		return nil, errOtherList
	}
	return l, nil
}

// spoolSource is what a spooled list was made of.
type spoolSource struct{ keys, format string }

// any reads a file, whatever list it holds.
func (d *spoolDecoder) any(data []byte) (*service.List, spoolSource, error) {
	if len(data) < spoolHeader || string(data[:8]) != spoolMagic {
		return nil, spoolSource{}, fmt.Errorf("%w: no such header", errUnreadable)
	}
	if v := binary.BigEndian.Uint32(data[8:]); v != spoolVersion {
		return nil, spoolSource{}, fmt.Errorf("%w: version %d, this program reads %d", errUnreadable, v, spoolVersion)
	}
	body := data[spoolHeader:]
	if n := binary.BigEndian.Uint64(data[12:]); n != uint64(len(body)) {
		return nil, spoolSource{}, fmt.Errorf("%w: %d bytes of %d", errUnreadable, len(body), n)
	}
	if binary.BigEndian.Uint64(data[20:]) != xxhash.Sum64(body) {
		return nil, spoolSource{}, fmt.Errorf("%w: wrong checksum", errUnreadable)
	}
	return d.body(body)
}

func (d *spoolDecoder) body(body []byte) (*service.List, spoolSource, error) {
	l := &service.List{Source: service.FromSpool}
	var from spoolSource
	d.keys, d.ends = d.keys[:0], d.ends[:0]
	c := cursor{all: body, end: len(body)}
	n := 0
	for all := c; all.next(); {
		if all.field == fieldBackend {
			n++
		}
	}
	l.Backends = make([]*service.Backend, 0, n)
	for c.next() {
		switch c.field {
		case fieldService:
			l.Service = c.str()
		case fieldPrefix:
			from.keys = c.str()
		case fieldFormat:
			from.format = c.str()
		case fieldEpoch:
			l.Epoch = c.number
		case fieldRevision:
			l.Revision = int64(c.number)
		case fieldConfirmed:
			l.Confirmed = time.Unix(0, int64(c.number))
		case fieldBackend:
			b, err := d.backend(c.message())
			if err != nil {
				return nil, from, err
			}
			l.Backends = append(l.Backends, &b)
		case fieldBad:
			l.Bad = append(l.Bad, decodeBad(c.message()))
		case fieldBadCount:
			l.BadCount = int(c.number)
		case fieldLeftOut:
			l.LeftOut = int(c.number)
		}
	}
	d.giveKeys(l.Backends)
	switch {
	case c.broken:
		return nil, from, fmt.Errorf("%w: broken body", errUnreadable)
	case len(l.Bad) > service.MaxBadRecords || l.BadCount < len(l.Bad):
		return nil, from, fmt.Errorf("%w: %d bad records of %d", errUnreadable, len(l.Bad), l.BadCount)
	}
	for i := 1; i < len(l.Backends); i++ {
		if l.Backends[i-1].Addr.Compare(l.Backends[i].Addr) >= 0 {
			return nil, from, fmt.Errorf("%w: not sorted", errUnreadable)
		}
	}
	return l, from, nil
}

// spoolDecoder shares the maps of equal metadata and equal words, of which there are few, and keeps all keys of a list in one string. It is for one file after another.
type spoolDecoder struct {
	seen  map[string]map[string]string
	words map[string]string
	keys  []byte
	ends  []int // in keys
}

// shared bounds what a spoolDecoder looks for an equal of.
const shared = 32

// word is the field as a string that other backends have, too.
func (d *spoolDecoder) word(c *cursor) string {
	if w, ok := d.words[string(c.bytes())]; ok {
		return w
	}
	w := c.str()
	if d.words == nil || len(d.words) >= shared {
		d.words = make(map[string]string)
	}
	d.words[w] = w
	return w
}

// giveKeys gives backends, of which each was decoded, their keys.
func (d *spoolDecoder) giveKeys(backends []*service.Backend) {
	all, from := string(d.keys), 0
	for i, end := range d.ends[:len(backends)] {
		backends[i].Key, from = all[from:end], end
	}
}

func (d *spoolDecoder) backend(c cursor) (service.Backend, error) {
	var b service.Backend
	var ip netip.Addr
	var port uint64
	var key []byte
	for c.next() {
		switch c.field {
		case backendAddr:
			ip, _ = netip.AddrFromSlice(c.all[c.from:c.to])
		case backendPort:
			port = c.number
		case backendHost:
			b.Host = d.word(&c)
		case backendWeight:
			b.Weight = uint32(min(c.number, 1<<32-1))
		case backendDraining:
			b.Draining = protowire.DecodeBool(c.number)
		case backendPriority:
			b.Priority = uint16(min(c.number, 1<<16-1))
		case backendZone:
			b.Zone = d.word(&c)
		case backendRegion:
			b.Region = d.word(&c)
		case backendMetadata:
			b.Metadata = d.metadata(&c)
		case backendKey:
			key = c.bytes()
		case backendCreated:
			b.Created = int64(c.number)
		case backendModified:
			b.Modified = int64(c.number)
		case backendLease:
			b.Lease = int64(c.number)
		case backendOrphaned:
			b.Orphaned = time.Unix(0, int64(c.number))
		}
	}
	if c.broken || !ip.IsValid() || ip.Is4In6() || port == 0 || port > 65535 || b.Weight == 0 {
		return b, fmt.Errorf("%w: broken backend", errUnreadable)
	}
	b.Addr = netip.AddrPortFrom(ip, uint16(port))
	d.keys = append(d.keys, key...)
	d.ends = append(d.ends, len(d.keys))
	return b, nil
}

func (d *spoolDecoder) metadata(c *cursor) map[string]string {
	if m, ok := d.seen[string(c.bytes())]; ok {
		return m
	}
	m := make(map[string]string)
	key := ""
	for in := c.message(); in.next(); {
		switch in.field {
		case 1:
			key = in.str()
		case 2:
			m[key] = in.str()
		}
	}
	if d.seen == nil || len(d.seen) >= shared {
		d.seen = make(map[string]map[string]string)
	}
	d.seen[c.str()] = m
	return m
}

func decodeBad(c cursor) (b service.BadRecord) {
	for c.next() {
		switch c.field {
		case 1:
			b.Key = c.str()
		case 2:
			b.Reason = c.str()
		}
	}
	return b
}

// cursor walks over the fields of a message. Positions are numbers, not slices, so that moving costs the garbage collector nothing.
type cursor struct {
	all      []byte
	pos, end int

	field    protowire.Number
	number   uint64 // of a field with a number, else 0
	from, to int    // of a field of bytes, else equal
	broken   bool
}

// bytes is the field, a part of what the cursor walks over.
func (c *cursor) bytes() []byte { return c.all[c.from:c.to] }

// str is the field as a string of its own.
func (c *cursor) str() string { return string(c.bytes()) }

// message is a cursor over the field's own fields.
func (c *cursor) message() cursor { return cursor{all: c.all, pos: c.from, end: c.to} }

// next goes to the next field; a field of another type than bytes and varint counts as unknown.
func (c *cursor) next() bool {
	c.field, c.number, c.from, c.to = 0, 0, 0, 0
	if c.pos >= c.end || c.broken {
		return false
	}
	field, kind, n := protowire.ConsumeTag(c.all[c.pos:c.end])
	if n < 0 {
		c.broken = true
		return false
	}
	c.pos += n
	switch rest := c.all[c.pos:c.end]; kind {
	case protowire.VarintType:
		c.field = field
		c.number, n = protowire.ConsumeVarint(rest)
	case protowire.BytesType:
		var v []byte
		c.field = field
		if v, n = protowire.ConsumeBytes(rest); n >= 0 {
			c.from, c.to = c.pos+n-len(v), c.pos+n
		}
	default:
		n = protowire.ConsumeFieldValue(field, kind, rest)
	}
	if n < 0 {
		c.broken = true
		return false
	}
	c.pos += n
	return true
}

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

// decodeSpool reads a file that should hold f's list.
func decodeSpool(data []byte, f Follow) (*service.List, error) {
	if len(data) < spoolHeader || string(data[:8]) != spoolMagic {
		return nil, fmt.Errorf("%w: no such header", errUnreadable)
	}
	if v := binary.BigEndian.Uint32(data[8:]); v != spoolVersion {
		return nil, fmt.Errorf("%w: version %d, this program reads %d", errUnreadable, v, spoolVersion)
	}
	body := data[spoolHeader:]
	if n := binary.BigEndian.Uint64(data[12:]); n != uint64(len(body)) {
		return nil, fmt.Errorf("%w: %d bytes of %d", errUnreadable, len(body), n)
	}
	if binary.BigEndian.Uint64(data[20:]) != xxhash.Sum64(body) {
		return nil, fmt.Errorf("%w: wrong checksum", errUnreadable)
	}
	return decodeBody(body, f)
}

func decodeBody(body []byte, f Follow) (*service.List, error) {
	l := &service.List{Source: service.FromSpool}
	var prefix, format string
	var dec backendDecoder
	c := newCursor(body)
	n := 0
	for all := c; all.next(); {
		if all.field == fieldBackend {
			n++
		}
	}
	l.Backends = make([]service.Backend, 0, n)
	for c.next() {
		switch c.field {
		case fieldService:
			l.Service = c.str()
		case fieldPrefix:
			prefix = c.str()
		case fieldFormat:
			format = c.str()
		case fieldEpoch:
			l.Epoch = c.number
		case fieldRevision:
			l.Revision = int64(c.number)
		case fieldConfirmed:
			l.Confirmed = time.Unix(0, int64(c.number))
		case fieldBackend:
			b, err := dec.decode(c.message())
			if err != nil {
				return nil, err
			}
			l.Backends = append(l.Backends, b)
		case fieldBad:
			l.Bad = append(l.Bad, decodeBad(c.message()))
		case fieldBadCount:
			l.BadCount = int(c.number)
		case fieldLeftOut:
			l.LeftOut = int(c.number)
		}
	}
	switch {
	case c.broken:
		return nil, fmt.Errorf("%w: broken body", errUnreadable)
	case l.Service != f.Name:
		return nil, fmt.Errorf("%w: the list of service %.80q", errUnreadable, l.Service)
	case prefix != f.keys() || format != f.Format:
		return nil, errOtherList
	case len(l.Bad) > service.MaxBadRecords || l.BadCount < len(l.Bad):
		return nil, fmt.Errorf("%w: %d bad records of %d", errUnreadable, len(l.Bad), l.BadCount)
	}
	for i := 1; i < len(l.Backends); i++ {
		if l.Backends[i-1].Addr.Compare(l.Backends[i].Addr) >= 0 {
			return nil, fmt.Errorf("%w: not sorted", errUnreadable)
		}
	}
	return l, nil
}

// backendDecoder shares the maps of equal metadata, of which a service has few.
type backendDecoder struct{ seen map[string]map[string]string }

func (d *backendDecoder) decode(c cursor) (service.Backend, error) {
	var b service.Backend
	var ip netip.Addr
	var port uint64
	for c.next() {
		switch c.field {
		case backendAddr:
			ip, _ = netip.AddrFromSlice(c.all[c.from:c.to])
		case backendPort:
			port = c.number
		case backendHost:
			b.Host = c.str()
		case backendWeight:
			b.Weight = uint32(min(c.number, 1<<32-1))
		case backendDraining:
			b.Draining = protowire.DecodeBool(c.number)
		case backendPriority:
			b.Priority = uint16(min(c.number, 1<<16-1))
		case backendZone:
			b.Zone = c.str()
		case backendRegion:
			b.Region = c.str()
		case backendMetadata:
			b.Metadata = d.metadata(&c)
		case backendKey:
			b.Key = c.str()
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
	return b, nil
}

func (d *backendDecoder) metadata(c *cursor) map[string]string {
	const most = 32
	if m, ok := d.seen[c.str()]; ok {
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
	if d.seen == nil || len(d.seen) >= most {
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

// cursor walks over the fields of a message. Strings are parts of one copy of the whole file, so that a list takes a few allocations; positions are numbers, not
// slices, so that moving costs the garbage collector nothing.
type cursor struct {
	all      []byte
	text     string // the same bytes
	pos, end int

	field    protowire.Number
	number   uint64 // of a field with a number, else 0
	from, to int    // of a field of bytes, else equal
	broken   bool
}

func newCursor(b []byte) cursor { return cursor{all: b, text: string(b), end: len(b)} }

// str is the field as a string.
func (c *cursor) str() string { return c.text[c.from:c.to] }

// message is a cursor over the field's own fields.
func (c *cursor) message() cursor { return cursor{all: c.all, text: c.text, pos: c.from, end: c.to} }

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

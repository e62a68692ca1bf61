package discovery

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/lbagent/lbagent/agent/service"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// A spool file is a header and a body. The header has fixed fields, big endian: magic (8 bytes), version (4), length of the body (8), xxhash64 of the body (8).
// The body has protobuf's wire format, so that a reader skips fields that it does not know: new fields need no new version, and a version is only for what an
// older reader would get wrong. A number of a field is never used again.
const (
	spoolMagic   = "lbspool\n"
	spoolVersion = 1
	spoolHeader  = 8 + 4 + 8 + 8
	maxSpoolFile = 256 << 20
)

// Fields of the body.
const (
	fieldService   = 1
	fieldPrefix    = 2
	fieldFormat    = 3
	fieldEpoch     = 4
	fieldRevision  = 5
	fieldConfirmed = 6 // Unix time in nanoseconds
	fieldBackend   = 7
	fieldBad       = 8
	fieldBadCount  = 9
	fieldLeftOut   = 10
)

// Fields of a backend.
const (
	backendAddr     = 1 // 4 or 16 bytes
	backendPort     = 2
	backendHost     = 3
	backendWeight   = 4
	backendDraining = 5
	backendZone     = 6
	backendRegion   = 7
	backendMetadata = 8 // a message: 1 key and 2 value, in turn
	backendKey      = 9
	backendCreated  = 10
	backendModified = 11
	backendPriority = 12
	backendLease    = 13
	backendOrphaned = 14 // Unix time in nanoseconds
)

var (
	errUnreadable = errors.New("not a list that can be read")
	errOtherList  = errors.New("the list of another prefix or format")
)

// readSpoolFile reads a file of bounded size, and when it was modified. It uses room if that is large enough.
func readSpoolFile(path string, room []byte) ([]byte, time.Time, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // to open a pipe would wait for a writer
	if err != nil {
		return nil, time.Time{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSpoolFile {
		return nil, time.Time{}, fmt.Errorf("%w: not a file of at most %d bytes", errUnreadable, maxSpoolFile)
	}
	data := slices.Grow(room[:0], int(info.Size()))[:info.Size()]
	if _, err := io.ReadFull(file, data); err != nil {
		return nil, time.Time{}, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return data, info.ModTime(), nil
}

// encodeSpool is the file of a list.
func encodeSpool(f Follow, l *service.List) []byte {
	b := make([]byte, spoolHeader, spoolHeader+256+len(l.Backends)*128)
	b = appendString(b, fieldService, f.Name)
	b = appendString(b, fieldPrefix, f.keys())
	b = appendString(b, fieldFormat, f.Format)
	b = appendUint(b, fieldEpoch, l.Epoch)
	b = appendUint(b, fieldRevision, uint64(l.Revision))
	b = appendUint(b, fieldConfirmed, uint64(l.Confirmed.UnixNano()))
	var one []byte
	for _, backend := range l.Backends {
		one = appendBackend(one[:0], backend)
		b = protowire.AppendTag(b, fieldBackend, protowire.BytesType)
		b = protowire.AppendBytes(b, one)
	}
	for _, bad := range l.Bad {
		one = appendString(appendString(one[:0], 1, bad.Key), 2, bad.Reason)
		b = protowire.AppendTag(b, fieldBad, protowire.BytesType)
		b = protowire.AppendBytes(b, one)
	}
	b = appendUint(b, fieldBadCount, uint64(l.BadCount))
	b = appendUint(b, fieldLeftOut, uint64(l.LeftOut))

	copy(b, spoolMagic)
	binary.BigEndian.PutUint32(b[8:], spoolVersion)
	binary.BigEndian.PutUint64(b[12:], uint64(len(b)-spoolHeader))
	binary.BigEndian.PutUint64(b[20:], xxhash.Sum64(b[spoolHeader:]))
	return b
}

func appendBackend(b []byte, e *service.Backend) []byte {
	b = protowire.AppendTag(b, backendAddr, protowire.BytesType)
	b = protowire.AppendBytes(b, e.Addr.Addr().AsSlice())
	b = appendUint(b, backendPort, uint64(e.Addr.Port()))
	b = appendString(b, backendHost, e.Host)
	b = appendUint(b, backendWeight, uint64(e.Weight))
	b = appendUint(b, backendDraining, protowire.EncodeBool(e.Draining))
	b = appendString(b, backendZone, e.Zone)
	b = appendString(b, backendRegion, e.Region)
	if len(e.Metadata) > 0 {
		var m []byte
		for _, k := range slices.Sorted(maps.Keys(e.Metadata)) { // sorted: equal metadata has equal bytes
			m = protowire.AppendString(protowire.AppendTag(m, 1, protowire.BytesType), k)
			m = protowire.AppendString(protowire.AppendTag(m, 2, protowire.BytesType), e.Metadata[k])
		}
		b = protowire.AppendTag(b, backendMetadata, protowire.BytesType)
		b = protowire.AppendBytes(b, m)
	}
	b = appendString(b, backendKey, e.Key)
	b = appendUint(b, backendCreated, uint64(e.Created))
	b = appendUint(b, backendModified, uint64(e.Modified))
	b = appendUint(b, backendPriority, uint64(e.Priority))
	b = appendUint(b, backendLease, uint64(e.Lease))
	if e.Orphaned.IsZero() {
		return b
	}
	return appendUint(b, backendOrphaned, uint64(e.Orphaned.UnixNano()))
}

// appendString and appendUint leave out what is empty or 0.
func appendString(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func appendUint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

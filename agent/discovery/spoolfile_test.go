package discovery

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/lbagent/lbagent/agent/service"
	"google.golang.org/protobuf/encoding/protowire"
)

// sampleFollow and sampleList use every field.
func sampleFollow() Follow {
	return Follow{Name: "user", Prefix: "prod/services/user/", Format: "grpc-naming"}
}

func sampleList() *service.List {
	return &service.List{
		Service: "user", Source: service.FromSpool, Epoch: 1<<63 + 5, Revision: 42, Confirmed: time.Unix(1700000000, 123),
		Backends: []*service.Backend{
			{Addr: mustAddr("10.0.0.1:80"), Weight: 100, Key: "prod/services/user/a", Created: 3, Modified: 7},
			{Addr: mustAddr("10.0.0.2:8080"), Host: "db-1", Weight: 1, Draining: true, Zone: "eu-1a", Region: "eu", Metadata: map[string]string{"v": "1", "": "x"}, Key: "prod/services/user/b"},
			{Addr: mustAddr("[2001:db8::1]:65535"), Weight: 1<<32 - 1, Metadata: map[string]string{"v": "1", "": "x"}},
		},
		Bad: []service.BadRecord{{Key: "prod/services/user/c", Reason: "the value is empty"}}, BadCount: 7,
	}
}

func TestSpoolFileRoundTrip(t *testing.T) {
	tiers := sampleList() // what came later than version 1's first file
	tiers.Backends[1].Priority, tiers.Backends[2].Priority = 1<<16-1, 7
	for _, l := range []*service.List{sampleList(), tiers, {Service: "user", Source: service.FromSpool, Confirmed: time.Unix(1, 0), Backends: []*service.Backend{}}} {
		got, err := (&spoolDecoder{}).decode(encodeSpool(sampleFollow(), l), sampleFollow())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, l) {
			t.Errorf("got  %+v\nwant %+v", got, l)
		}
	}
}

// The file that the first release wrote is read by every later one.
func TestSpoolFileOfVersion1(t *testing.T) {
	data, err := os.ReadFile("testdata/user.list")
	if errors.Is(err, os.ErrNotExist) && os.Getenv("UPDATE") != "" {
		data, err = encodeSpool(sampleFollow(), sampleList()), os.MkdirAll("testdata", 0o755)
		err = errors.Join(err, os.WriteFile("testdata/user.list", data, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	got, err := (&spoolDecoder{}).decode(data, sampleFollow())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, sampleList()) {
		t.Errorf("got  %+v\nwant %+v", got, sampleList())
	}
}

// seal puts a right header before body.
func seal(body []byte, version uint32) []byte {
	b := append([]byte(spoolMagic), make([]byte, spoolHeader-8)...)
	binary.BigEndian.PutUint32(b[8:], version)
	binary.BigEndian.PutUint64(b[12:], uint64(len(body)))
	binary.BigEndian.PutUint64(b[20:], xxhash.Sum64(body))
	return append(b, body...)
}

// A later release may add fields of any type, to the list and to a backend.
func TestSpoolFileUnknownFields(t *testing.T) {
	body := encodeSpool(sampleFollow(), sampleList())[spoolHeader:]
	unknown := func(b []byte) []byte {
		b = protowire.AppendVarint(protowire.AppendTag(b, 100, protowire.VarintType), 7)
		b = protowire.AppendFixed64(protowire.AppendTag(b, 101, protowire.Fixed64Type), 7)
		b = protowire.AppendFixed32(protowire.AppendTag(b, 1, protowire.Fixed32Type), 7)
		return protowire.AppendString(protowire.AppendTag(b, 102, protowire.BytesType), "new")
	}
	body = unknown(body)
	last := &service.Backend{Addr: mustAddr("[2001:db8::2]:80"), Weight: 5}
	body = protowire.AppendTag(body, fieldBackend, protowire.BytesType)
	body = protowire.AppendBytes(body, unknown(appendBackend(nil, last)))
	got, err := (&spoolDecoder{}).decode(seal(body, spoolVersion), sampleFollow())
	if err != nil {
		t.Fatal(err)
	}
	want := sampleList()
	want.Backends = append(want.Backends, last)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Every cut and every flipped byte is found out.
func TestSpoolFileTorn(t *testing.T) {
	data := encodeSpool(sampleFollow(), sampleList())
	for n := range data {
		if _, err := (&spoolDecoder{}).decode(data[:n], sampleFollow()); !errors.Is(err, errUnreadable) {
			t.Fatalf("cut at %d: %v", n, err)
		}
		broken := bytes.Clone(data)
		broken[n] ^= 0x40
		if _, err := (&spoolDecoder{}).decode(broken, sampleFollow()); !errors.Is(err, errUnreadable) {
			t.Fatalf("flipped at %d: %v", n, err)
		}
	}
}

func FuzzSpoolBody(f *testing.F) {
	f.Add(encodeSpool(sampleFollow(), sampleList())[spoolHeader:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		l, _, err := (&spoolDecoder{}).body(body)
		if err != nil {
			return
		}
		l.Service = sampleFollow().Name // decode is who looks at that
		for i, b := range l.Backends {
			if !b.Addr.IsValid() || b.Addr.Port() == 0 || b.Weight == 0 || i > 0 && l.Backends[i-1].Addr.Compare(b.Addr) >= 0 {
				t.Errorf("backend %+v", b)
			}
		}
		if l.Confirmed.IsZero() { // a body without it; then the time of the file counts
			l.Confirmed = time.Unix(1, 0)
		}
		again, err := (&spoolDecoder{}).decode(encodeSpool(sampleFollow(), l), sampleFollow())
		if err != nil || !reflect.DeepEqual(l, again) && !strings.Contains(fmt.Sprint(l), "map[]") {
			t.Errorf("written again: %v\n%+v\n%+v", err, l, again)
		}
	})
}

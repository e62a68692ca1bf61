package h2

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

func TestStaticTable(t *testing.T) {
	d := hpack.NewDecoder(4096, nil)
	for i := 1; i <= lastStatic; i++ {
		f, err := d.DecodeFull([]byte{0x80 | byte(i)})
		if err != nil {
			t.Fatal(err)
		}
		if got := staticTable[i]; got.Name != f[0].Name || got.Value != f[0].Value || got.code != nameCode(got.Name) || staticTable[got.code].Name != got.Name {
			t.Errorf("%d: %v, want %v", i, got, f[0])
		}
	}
	for i := uint8(lastStatic + 1); i <= codeLast; i++ {
		found := slices.ContainsFunc([]string{"te", "connection", "proxy-connection", "keep-alive", "upgrade", "grpc-timeout", "grpc-status", "grpc-message"},
			func(n string) bool { return nameCode(n) == i })
		if !found {
			t.Errorf("no name has code %d", i)
		}
	}
}

// randomFields is a list like those of requests: some fields always come, some change, some are new each time.
func randomFields(r *rand.Rand) []Field {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	f := []Field{
		{Name: ":method", Value: pick("GET", "POST", "PUT")}, {Name: ":scheme", Value: pick("http", "https", "x")},
		{Name: ":path", Value: pick("/", "/index.html", "/a/b", fmt.Sprint("/", r.IntN(1000)))}, {Name: ":status", Value: pick("200", "404", "418")},
	}
	for range r.IntN(12) {
		f = append(f, Field{
			Name:  pick("te", "x-a", "user-agent", "content-length", "grpc-timeout", "accept-encoding", "cookie", fmt.Sprint("x-", r.IntN(100))),
			Value: pick("", "trailers", "gzip, deflate", "v", strings.Repeat("long", r.IntN(400)), fmt.Sprint(r.IntN(1<<30))), Sensitive: r.IntN(20) == 0,
		})
	}
	return f
}

func same(a []Field, b []hpack.HeaderField) bool {
	return slices.EqualFunc(a, b, func(a Field, b hpack.HeaderField) bool {
		return a.Name == b.Name && a.Value == b.Value && a.Sensitive == b.Sensitive
	})
}

// What the encoder writes, another implementation reads, whatever table sizes the peer sets; and what that implementation writes, the decoder reads.
func TestHPACKBothWays(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		enc, theirs := newEncoder(), hpack.NewDecoder(4096, nil)
		dec := decoder{max: tableSize, maxString: 64 << 10}
		var buf strings.Builder
		their := hpack.NewEncoder(&buf)
		for range 500 {
			fields := randomFields(r)
			for range r.IntN(3) {
				if r.IntN(10) == 0 {
					n := uint32(r.IntN(5000))
					enc.resize(n)
					their.SetMaxDynamicTableSize(min(n, 4096))
				}
			}
			block := enc.begin(nil)
			buf.Reset()
			for i := range fields {
				block = enc.encode(block, &fields[i])
				their.WriteField(hpack.HeaderField{Name: fields[i].Name, Value: fields[i].Value, Sensitive: fields[i].Sensitive})
			}
			got, err := theirs.DecodeFull(block)
			if err != nil || !same(fields, got) {
				t.Fatalf("they read %v, %v\nwant %v", got, err, fields)
			}
			ours, _, excess, err := dec.decode(nil, []byte(buf.String()), 64<<10, 200)
			if err != nil || excess || !same(ours, got) {
				t.Fatalf("we read %v, %v\nwant %v", ours, err, fields)
			}
			if enc.size > enc.max || enc.size < 0 || dec.size > dec.max || dec.size < 0 {
				t.Fatalf("table sizes %d, %d", enc.size, dec.size)
			}
		}
	}
}

// A field enters the table when it comes a second time; then it's one byte.
func TestEncoderIndexing(t *testing.T) {
	enc := newEncoder()
	f := Field{Name: "user-agent", Value: "me"}
	for i, want := range []int{5, 4, 1} { // two bytes of index without the table, one with it
		if got := len(enc.encode(nil, &f)); got != want {
			t.Errorf("%d bytes the time %d, want %d", got, i+1, want)
		}
	}
	f = Field{Name: "authorization", Value: "me", Sensitive: true}
	for range 3 {
		if b := enc.encode(nil, &f); b[0]&0xf0 != 0x10 {
			t.Errorf("a sensitive field as %x", b)
		}
	}
}

func TestHeadersDontAllocate(t *testing.T) {
	fields := []Field{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/service/method"}, {Name: ":authority", Value: "127.0.0.1:7001"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "user-agent", Value: "grpc-go/1.84.0"}, {Name: "te", Value: "trailers"},
	}
	enc, dec := newEncoder(), decoder{max: tableSize, maxString: 64 << 10}
	block, out := make([]byte, 0, 1000), make([]Field, 0, 20)
	if n := testing.AllocsPerRun(100, func() {
		block = enc.begin(block[:0])
		for i := range fields {
			block = enc.encode(block, &fields[i])
		}
		out, _, _, _ = dec.decode(out[:0], block, 64<<10, 200)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzHPACK: the decoder and x/net's agree on every sequence of blocks, but where ours is stricter by intention.
func FuzzHPACK(f *testing.F) {
	enc := newEncoder()
	for range 3 {
		var blocks []byte
		for i := range 4 {
			fields := randomFields(rand.New(rand.NewPCG(uint64(i), 1)))
			block := enc.begin(nil)
			for i := range fields {
				block = enc.encode(block, &fields[i])
			}
			blocks = append(append(blocks, byte(len(block)>>8), byte(len(block))), block...)
		}
		f.Add(blocks)
		enc.resize(100)
	}
	f.Add([]byte{0, 10, 0x82, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b})
	f.Fuzz(func(t *testing.T, data []byte) {
		d, ref := decoder{max: tableSize, maxString: 64 << 10}, hpack.NewDecoder(tableSize, nil)
		for len(data) >= 2 {
			n := min(int(data[0])<<8|int(data[1]), len(data)-2)
			block := data[2 : 2+n]
			data = data[2+n:]
			got, _, excess, err := d.decode(nil, block, 1<<30, 1<<30)
			want, refErr := ref.DecodeFull(block)
			if err == errInteger || err == errUpdate || err == errTooLong {
				return
			}
			if (err == nil) != (refErr == nil) {
				t.Fatalf("%x: %v, want %v", block, err, refErr)
			}
			if err != nil {
				return
			}
			if excess || !same(got, want) {
				t.Fatalf("%x: %v, want %v", block, got, want)
			}
		}
	})
}

func BenchmarkHeaders(b *testing.B) {
	fields := []Field{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/service/method"}, {Name: ":authority", Value: "127.0.0.1:7001"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "user-agent", Value: "grpc-go/1.84.0"}, {Name: "te", Value: "trailers"},
	}
	enc, dec := newEncoder(), decoder{max: tableSize, maxString: 64 << 10}
	var block []byte
	var out []Field
	b.ReportAllocs()
	for b.Loop() {
		block = enc.begin(block[:0])
		for i := range fields {
			block = enc.encode(block, &fields[i])
		}
		out, _, _, _ = dec.decode(out[:0], block, 64<<10, 200)
	}
	_ = out
}

// FuzzHPACKEncode: whatever lists are sent, and whatever table sizes the peer sets between them, x/net's decoder and ours read the same.
func FuzzHPACKEncode(f *testing.F) {
	f.Add([]byte("\x04name\x05value\x04name\x05value\x00\x00\x04name\x05value"))
	f.Add([]byte("\xff\x10\x01a\x01b\x01a\x01b\xff\xff\x01a\x01b\x00\x00\x01a\x01b"))
	f.Add([]byte("\x07:method\x03GET\x07:method\x03PUT\x82\x0acookie-xyz\x00\xff\x00\x82\x02xx\x02yy"))
	f.Fuzz(func(t *testing.T, data []byte) {
		enc, theirs, ours := newEncoder(), hpack.NewDecoder(tableSize, nil), decoder{max: tableSize, maxString: 1 << 20}
		var fields []Field
		next := func() (b byte) {
			if len(data) > 0 {
				b, data = data[0], data[1:]
			}
			return b
		}
		text := func(n byte) string {
			k := min(int(n), len(data))
			s := string(data[:k])
			data = data[k:]
			if n >= 0x70 { // longer than a fuzzer likes to write
				s = strings.Repeat(s, 20)
			}
			return s
		}
		for len(data) > 0 {
			switch n := next(); n {
			case 0: // the list ends
			case 0xff:
				size := uint32(next()) << 5
				enc.resize(size)
				theirs.SetAllowedMaxDynamicTableSize(max(size, uint32(enc.lowest)))
				continue
			default:
				fields = append(fields, Field{Name: text(n & 0x7f), Value: text(next() & 0x7f), Sensitive: n&0x80 != 0})
				continue
			}
			block := enc.begin(nil)
			for i := range fields {
				block = enc.encode(block, &fields[i])
			}
			want, err := theirs.DecodeFull(block)
			if err != nil || !same(fields, want) {
				t.Fatalf("%x: they read %v, %v\nwant %v", block, want, err, fields)
			}
			got, _, excess, err := ours.decode(nil, block, 1<<30, 1<<30)
			if err != nil || excess || !same(got, want) {
				t.Fatalf("%x: we read %v, %v\nwant %v", block, got, err, want)
			}
			if enc.size > enc.max || enc.size < 0 || enc.max > tableSize || ours.size != enc.size {
				t.Fatalf("tables of %d and %d bytes, at most %d", enc.size, ours.size, enc.max)
			}
			fields = fields[:0]
		}
	})
}

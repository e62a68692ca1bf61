package h2

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/net/http2"
)

// FuzzFeed: whatever comes, in whatever pieces, a Conn sends valid frames, keeps its books, and hands on no more than was sent.
func FuzzFeed(f *testing.F) {
	for _, server := range []bool{true, false} {
		p := newPeer(&testing.T{}, testConfig(server))
		if server {
			p.in.WriteString(Preface)
		}
		p.write.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100})
		if server {
			p.headers(1, false, post("content-length", "8")...)
		} else {
			p.headers(1, false, ":status", "200")
		}
		p.write.WriteDataPadded(1, false, []byte("body"), make([]byte, 3))
		p.write.WriteData(1, false, []byte("more"))
		p.headers(1, true, "grpc-status", "0")
		p.write.WriteWindowUpdate(0, 10)
		p.write.WritePing(false, [8]byte{})
		p.write.WriteRSTStream(1, http2.ErrCodeCancel)
		p.write.WriteGoAway(1, http2.ErrCodeNo, nil)
		f.Add(server, p.in.Bytes(), uint16(7))
	}
	for server, folder := range map[bool]string{true: "testdata/corpus", false: "testdata/corpus/server"} {
		for _, b := range recorded(f, folder) {
			f.Add(server, b, uint16(4000))
		}
	}
	f.Fuzz(func(t *testing.T, server bool, data []byte, cut uint16) {
		p := newPeer(t, testConfig(server))
		p.onHead = func(s *Stream, end bool) {
			if server && s.Sending() {
				p.conn.WriteHeaders(s, []Field{{Name: ":status", Value: "200"}}, false)
				p.pending[s] = 1000 - p.conn.WriteData(s, make([]byte, 1000), true)
			}
		}
		if !server {
			for range 2 {
				s := &Stream{}
				p.conn.OpenStream(s, false)
				p.conn.WriteHeaders(s, []Field{{Name: ":method", Value: "GET"}}, false)
				p.pending[s] = 70000 - p.conn.WriteData(s, make([]byte, 70000), true)
			}
		}
		have := []byte(nil)
		for len(data) > 0 {
			n := min(len(data), int(cut)%4096+1)
			have = append(have, data[:n]...)
			data = data[n:]
			used, err := p.conn.Feed(p.now, have)
			have = have[used:]
			if cerr := p.conn.Check(); cerr != nil {
				t.Fatal(cerr)
			}
			if err != nil {
				break
			}
			if len(have) >= maxFrame+headerLen && !p.conn.More() {
				t.Fatal("a whole frame was not consumed")
			}
		}
		p.frames() // fails on what is no frame
	})
}

// recorded are the first bytes of connections of real programs.
func recorded(f *testing.F, folder string) (all [][]byte) {
	files, err := filepath.Glob(filepath.Join(folder, "*.bin"))
	if err != nil || len(files) == 0 {
		f.Fatalf("nothing recorded in %s: %v", folder, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

package proxy

import (
	"fmt"
	"reflect"
	"testing"
	"unsafe"

	"golang.org/x/net/http2"
)

// SETTINGS_INITIAL_WINDOW_SIZE moves the windows of open streams, below 0 as well (RFC 9113 6.9.2).
func TestBackendMovesWindows(t *testing.T) {
	s := newScript(t, nil)
	s.client.call(1, false, "/a/b", nil)
	c := s.b.accept(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10000})
	for range 3 {
		s.client.fr.WriteData(1, false, make([]byte, 10000))
	}
	total := 0
	take := func(n int) {
		t.Helper()
		for total < n {
			total += len(c.until(func(f frame) bool { return f.data != nil }).data)
		}
		if total != n {
			t.Fatalf("%d bytes, want %d", total, n)
		}
		c.sync()
	}
	take(10000)
	c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000}) // now -9000
	c.sync()
	c.fr.WriteWindowUpdate(1, 9000) // 0
	c.sync()
	c.fr.WriteWindowUpdate(1, 500)
	take(10500)
	c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 6000}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20})
	take(15500)
	c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}) // -6000
	c.sync()
	c.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	c.until(func(f frame) bool { // the rest, in frames of 16 KiB at most
		total += len(f.data)
		if len(f.data) > 16384 {
			t.Errorf("a frame of %d bytes", len(f.data))
		}
		return total == 30005
	})
	c.headers(1, true, ":status", "200", "grpc-status", "0")
	if got := s.client.answerOf(1); got != "[2000]" {
		t.Errorf("the client got %q", got)
	}
	s.client.fr.WriteData(1, true, nil)
	s.quiet()
}

// A backend that allows no stream yet is waited for, and one that allows fewer than it did gets no more (4.4).
func TestBackendMovesMaxStreams(t *testing.T) {
	s := newScript(t, nil)
	one := DefaultLimits()
	one.BackendConnections = 1
	s.proxy.SetLimits(one)
	s.client.get(1, "/1")
	most := func(n uint32) http2.Setting { return http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: n} }
	c := s.b.accept(most(0))
	c.sync()
	s.await("the call waits", func(k *relay) bool {
		for _, be := range k.pools[s.svc].backends {
			return be.waiting.n == 1 && len(be.conns) == 1 && be.conns[0].up
		}
		return false
	})
	c.fr.WriteSettings(most(2))
	if f := c.request(); f.fields[":path"] != "/1" {
		t.Errorf("%v", f.fields)
	}
	s.client.get(3, "/3")
	c.request()
	c.fr.WriteSettings(most(1)) // one too many run
	c.sync()
	s.client.get(5, "/5")
	s.await("the call waits", func(k *relay) bool { return k.calls == 3 })
	c.headers(1, true, ":status", "200")
	if got := s.client.answerOf(1); got != "[200]" {
		t.Errorf("%q", got)
	}
	c.fr.WritePing(false, [8]byte{})
	c.until(func(f frame) bool {
		if f.fields != nil {
			t.Errorf("stream %d over the limit", f.id)
		}
		_, ok := f.Frame.(*http2.PingFrame)
		return ok
	})
	c.headers(3, true, ":status", "200")
	f := c.request()
	c.headers(f.id, true, ":status", "204")
	if got := s.client.answerOf(5); got != "[204]" {
		t.Errorf("%q", got)
	}
	s.quiet()
}

// A backend that keeps no HPACK table gets blocks that need none, also when it says so in mid-connection (RFC 7541 4.2).
func TestBackendWithoutTable(t *testing.T) {
	s := newScript(t, nil)
	s.client.call(1, true, "/a/b", nil)
	c := s.b.accept()
	c.request()
	none := http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0}
	c.fr.WriteSettings(none)
	c.until(func(f frame) bool { g, ok := f.Frame.(*http2.SettingsFrame); return ok && g.IsAck() })
	c.fr.WritePing(false, [8]byte{})
	c.until(func(f frame) bool { _, ok := f.Frame.(*http2.PingFrame); return ok })
	c.fr.ReadMetaHeaders.SetAllowedMaxDynamicTableSize(0)
	for id := uint32(3); id < 9; id += 2 {
		s.client.call(id, true, "/a/b", nil)
		if f := c.request(); f.fields[":path"] != "/a/b" || f.fields["content-type"] != "application/grpc" {
			t.Errorf("the backend got %v", f.fields)
		}
	}
	for id := uint32(1); id < 9; id += 2 {
		c.headers(id, true, ":status", "200", "grpc-status", "0")
		if got := s.client.answerOf(id); got != "[2000]" {
			t.Errorf("the client got %q", got)
		}
	}
	s.quiet()
}

// Bodies larger than every window, both ways at once.
func TestBodiesAboveWindows(t *testing.T) {
	s := newScript(t, nil)
	const size = 3*streamWindow + 12345
	s.client.headers(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a")
	c := s.b.accept()
	c.request()
	c.headers(1, false, ":status", "200")
	// Each end sends within its windows, and gives back what it got.
	move := func(r *rawConn, window, conn int) {
		sent, got := 0, 0
		ended := false
		send := func() {
			for sent < size && min(window, conn) > 0 {
				n := min(window, conn, 16384, size-sent)
				b := make([]byte, n)
				for i := range b {
					b[i] = byte((sent + i) % 251)
				}
				sent += n
				window, conn = window-n, conn-n
				r.fr.WriteData(1, sent == size, b)
			}
		}
		for got < size || !ended || sent < size {
			f, err := r.read()
			if err != nil {
				t.Errorf("after %d sent, %d received: %v", sent, got, err)
				return
			}
			switch g := f.Frame.(type) {
			case *http2.SettingsFrame:
				if v, ok := g.Value(http2.SettingInitialWindowSize); ok {
					window += int(v) - 65535
				}
			case *http2.WindowUpdateFrame:
				if f.id == 0 {
					conn += int(g.Increment)
				} else {
					window += int(g.Increment)
				}
			case *http2.DataFrame:
				for i, x := range f.data {
					if x != byte((got+i)%251) {
						t.Errorf("byte %d is wrong", got+i)
						return
					}
				}
				got += len(f.data)
				ended = f.end
				if n := uint32(len(f.data)); n > 0 {
					r.fr.WriteWindowUpdate(0, n)
					if !ended {
						r.fr.WriteWindowUpdate(1, n)
					}
				}
			}
			send()
		}
	}
	done := make(chan struct{})
	go func() { defer close(done); move(c, streamWindow, connWindow) }() // its SETTINGS were read before the request
	move(s.client, 65535, 65535)
	<-done
	s.quiet()
}

// Stream numbers end at 2^31-1: the connection is replaced in time, and what runs on it goes on.
func TestStreamNumbersEnd(t *testing.T) {
	s := newScript(t, nil)
	s.client.get(1, "/1")
	c := s.b.accept()
	c.request()
	s.onBackendConn(func(conn *backendConn) {
		id := reflect.ValueOf(conn.h2).Elem().FieldByName("lastID")
		*(*uint32)(unsafe.Pointer(id.UnsafeAddr())) = 1<<31 - 5
	})
	s.client.get(3, "/3")
	if f := c.request(); f.id != 1<<31-3 {
		t.Errorf("stream %d", f.id)
	}
	s.client.get(5, "/5")
	d := s.b.accept()
	f := d.request()
	if f.id != 1 || f.fields[":path"] != "/5" {
		t.Errorf("stream %d, %v", f.id, f.fields)
	}
	d.headers(f.id, true, ":status", "205")
	c.headers(1<<31-3, true, ":status", "203")
	c.headers(1, true, ":status", "201")
	got := map[uint32]string{}
	for range 3 {
		f := s.client.request()
		got[f.id] = f.fields[":status"]
	}
	if fmt.Sprint(got) != "map[1:201 3:203 5:205]" {
		t.Errorf("the client got %v", got)
	}
	s.quiet()
	await(t, "the old connection is closed", func() bool { return s.proxy.Stats().Services[0].Backends.Closed["replaced"] == 1 })
}

package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// limitBuffered puts limits.buffered in force.
func (r *rig) limitBuffered(n int64) {
	l := DefaultLimits()
	l.Buffered = n
	r.proxy.SetLimits(l)
}

// parked waits until so much is parked on the loop, at least.
func (r *rig) awaitParked(n int64) {
	r.t.Helper()
	r.await(fmt.Sprint(n, " bytes parked"), func(k *relay) bool { return k.parked >= n })
}

// The streams with most parked are reset, as many as it takes; the others go on.
func TestBufferedResetsTheLargest(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	sizes := []int{50_000, 200_000, 4000, 100_000} // of the streams 1, 3, 5, 7
	var c *rawConn
	for i, n := range sizes {
		id := uint32(2*i + 1)
		if i == 3 { // trailers and all are parked
			client.call(id, true, "/a/b", nil)
		} else {
			client.get(id, "/")
		}
		if c == nil {
			c = b.accept()
		}
		c.request()
		c.headers(id, false, ":status", "200")
		for sent := 0; sent < n; sent += 10_000 {
			c.fr.WriteData(id, false, make([]byte, min(10_000, n-sent)))
		}
		client.until(func(f frame) bool { return f.id == id && f.fields != nil })
	}
	r.awaitParked(355_000)
	r.limitBuffered(330_000)
	r.onLoop(func(k *relay) { k.report() })
	if got := client.answerOf(3); got != "ENHANCE_YOUR_CALM" {
		t.Errorf("the largest got %s", got)
	}
	if f := c.until(func(f frame) bool { return f.id == 3 }); f.Frame.(*http2.RSTStreamFrame).ErrCode != http2.ErrCodeCancel {
		t.Errorf("the backend got %v", f)
	}
	c.fr.WriteData(7, false, []byte("end"))
	c.headers(7, true, "grpc-status", "0")
	for i, n := range sizes {
		id := uint32(2*i + 1)
		if id == 3 {
			continue
		}
		if id != 7 {
			c.fr.WriteData(id, true, []byte("end"))
		}
		client.fr.WriteWindowUpdate(id, 1<<20)
		client.fr.WriteWindowUpdate(0, 1<<20)
		got := client.answerOf(id)
		want := string(make([]byte, n)) + "end"
		if id == 7 {
			want += "[0]"
		}
		if got != want {
			t.Errorf("stream %d: %d bytes, want %d", id, len(got), len(want))
		}
	}
	r.quiet()
	if n := r.protected(protectBuffered); n != 1 {
		t.Errorf("%d reset", n)
	}
	want := "client " + client.LocalAddr().String() + ": more is parked than limits.buffered allows: a stream with most of it was reset (limit 330000)"
	if events := r.told(); len(events) != 1 || events[0].Detail != want {
		t.Errorf("told %+v", events)
	}
}

// A request that a backend doesn't take, and that isn't answered, is answered in words; the backend isn't blamed.
func TestBufferedRequest(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.call(1, false, "/a/b", make([]byte, 10_000))
	c := b.accept(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	c.request()
	client.fr.WriteData(1, false, make([]byte, 16_000))
	client.fr.WriteData(1, false, make([]byte, 16_000))
	r.awaitParked(42_000)
	r.limitBuffered(20_000)
	r.onLoop(func(k *relay) { k.report() })
	f := client.until(func(f frame) bool { return f.id == 1 && f.fields != nil })
	if want := "lbagent: user: " + b.addr + " more is parked in the agent than limits.buffered allows, and this call has most of it"; f.fields["grpc-status"] != "8" || f.fields["grpc-message"] != want {
		t.Errorf("the client got %v", f.fields)
	}
	if s := r.state(b.addr).Snapshot(time.Now()); s.Failures != 0 {
		t.Errorf("the backend has %d failures", s.Failures)
	}
	r.quiet()
	r.onLoop(func(k *relay) {
		if k.parked != 0 {
			t.Errorf("%d bytes are still parked", k.parked)
		}
	})
}

// The rest of a request that was answered already is parked for no client's stream any more; it can be shed all the same.
func TestBufferedRestOfRequest(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.headers(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a")
	c := b.accept(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	c.request()
	for i := range 3 {
		client.fr.WriteData(1, i == 2, make([]byte, 16_000))
	}
	r.awaitParked(48_000)
	c.headers(1, true, ":status", "200")
	if got := client.answerOf(1); got != "[200]" {
		t.Errorf("the client got %q", got)
	}
	r.limitBuffered(20_000)
	r.onLoop(func(k *relay) { k.report() })
	r.await("the rest to be shed", func(k *relay) bool { return k.parked == 0 && k.calls == 0 })
	r.onLoop(func(k *relay) {
		for _, s := range k.w.stats {
			if s.guards[protectBuffered].count != 1 {
				t.Errorf("counted %d times", s.guards[protectBuffered].count)
			}
		}
	})
	if s := r.state(b.addr).Snapshot(time.Now()); s.Failures != 0 {
		t.Errorf("the backend has %d failures", s.Failures)
	}
	r.quiet()
}

// A connection whose client reads nothing at all holds output that no reset can take back: it's closed.
func TestBufferedOutput(t *testing.T) {
	r := newRig(t, nil)
	addr := newHTTP2(t, func(w http.ResponseWriter, _ *http.Request) { endless(w) })
	r.backends(addr)
	client := newRawClient(t, r.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	client.fr.WriteWindowUpdate(0, 1<<31-1-65535)
	for i := range 4 {
		client.get(uint32(2*i+1), "/")
	}
	r.awaitParked(fullAt + 3*streamWindow/2) // output, and chunks behind it
	r.limitBuffered(100_000)
	r.onLoop(func(k *relay) { k.report() })
	if _, err := io.Copy(io.Discard, client); err == nil {
		t.Log("closed by FIN")
	}
	r.await("the client is gone", func(k *relay) bool { return len(k.clients) == 0 })
	r.quiet()
	r.onLoop(func(k *relay) {
		if k.parked != 0 {
			t.Errorf("%d bytes are still parked", k.parked)
		}
	})
	if n := r.protected(protectBuffered); n == 0 {
		t.Error("nothing was counted")
	}
}

// The connection to a backend, which many clients share, isn't closed for its output while it takes some of it.
func TestBufferedBackendOutput(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.get(1, "/")
	b.accept().request()
	r.limitBuffered(100_000)
	var conn *backendConn
	r.onBackendConn(func(c *backendConn) { conn = c })
	r.onLoop(func(k *relay) {
		k.output(&conn.noted, 1<<20)
		conn.took = k.loop.Now().Add(1 - stuckFor)
		k.shed()
		if conn.gone {
			t.Error("closed")
		}
		k.output(&conn.noted, 1<<20) // the call that was reset has corrected it
		conn.took = k.loop.Now().Add(-stuckFor)
		k.shed()
		if !conn.gone || k.parked != 0 {
			t.Errorf("closed %v, %d bytes are still parked", conn.gone, k.parked)
		}
	})
	client.answerOf(1)
	if n := r.protected(protectBuffered); n != 2 {
		t.Errorf("counted %d times", n)
	}
	r.quiet()
}

// Who has little parked in each of many streams is shed before who has more in one.
func TestBufferedSum(t *testing.T) {
	r := newRig(t, nil)
	r.sink()
	many, one := newRawClient(t, r.addr), newRawClient(t, r.addr)
	for i := range 20 {
		many.headers(uint32(2*i+1), true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", "x", strings.Repeat("x", 5_000))
	}
	one.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a", "x", strings.Repeat("x", 15_000))
	r.awaitParked(20*5_000 + 15_000)
	r.limitBuffered(80_000)
	r.onLoop(func(k *relay) { k.report() })
	await(t, "resets", func() bool { return r.protected(protectBuffered) >= 7 })
	r.onLoop(func(k *relay) {
		left := map[int]bool{}
		for c := range k.clients {
			left[c.h2.Streams()] = true
		}
		if n := int(k.w.stats["user"].guards[protectBuffered].count); !left[1] || !left[20-n] {
			t.Errorf("streams left: %v after %d resets", left, n)
		}
	})
}

// Without the limit, only the windows bound what is parked.
func TestBufferedOff(t *testing.T) {
	r := newRig(t, nil)
	r.limitBuffered(0)
	r.backends(newHTTP2(t, func(w http.ResponseWriter, _ *http.Request) { endless(w) }))
	client := newRawClient(t, r.addr)
	for i := range 8 {
		client.get(uint32(2*i+1), "/")
	}
	r.awaitParked(7 * streamWindow)
	r.onLoop(func(k *relay) { k.report() })
	r.onLoop(func(k *relay) {})
	if n := r.protected(protectBuffered); n != 0 {
		t.Errorf("%d reset", n)
	}
	client.Close()
	r.await("the client is gone", func(k *relay) bool { return len(k.clients) == 0 })
	r.quiet()
}

func endless(w http.ResponseWriter) {
	piece := make([]byte, 32<<10)
	for {
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}

// 300 readers that stop reading large responses, and ask again when they are reset: the memory of the process stays near the limit, and another client is served in full.
func TestBufferedManySlowReaders(t *testing.T) {
	const limit, readers = 8 << 20, 300 // who would park 75 MiB in chunks
	r := newRig(t, nil)
	r.limitBuffered(limit)
	payload := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
	r.backends(newHTTP2(t, func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/endless" {
			endless(w)
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(payload)))
		w.Write(payload)
	}))
	before := heap()
	var slow []*rawConn
	var wg sync.WaitGroup
	for range readers {
		c := newRawClient(t, r.addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
		slow = append(slow, c) // it gives 64 KiB of its connection's window, and that's all
		wg.Go(func() {
			c.get(1, "/endless")
			for id := uint32(3); ; {
				f, err := c.read()
				if err != nil {
					return
				}
				if _, reset := f.Frame.(*http2.RSTStreamFrame); reset && id < 8 { // it comes again
					c.get(id, "/endless")
					id += 2
				}
			}
		})
	}
	var only http.Protocols
	only.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &only}
	good := &http.Client{Transport: tr, Timeout: patience}
	most, mostHeap := int64(0), uint64(0)
	for i := range 30 {
		resp, err := good.Get("http://" + r.addr + "/")
		if err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Equal(got, payload) {
			t.Fatalf("call %d: %d bytes, %v", i, len(got), err)
		}
		r.onLoop(func(k *relay) { most = max(most, k.parked) })
		if i%10 == 9 {
			mostHeap = max(mostHeap, heap())
		}
	}
	n := r.protected(protectBuffered)
	t.Logf("at most %d KiB parked, heap %d KiB above the start, %d streams reset", most>>10, (int64(mostHeap)-int64(before))>>10, n)
	if n == 0 {
		t.Error("nothing was reset")
	}
	if most > limit+limit/2 {
		t.Errorf("%d bytes were parked", most)
	}
	if mostHeap > before+6*limit { // chunks that are free for the next, Go's own clients and servers, what a GC has not seen yet
		t.Errorf("the heap grew by %d KiB", (mostHeap-before)>>10)
	}
	tr.CloseIdleConnections()
	for _, c := range slow {
		c.Close()
	}
	wg.Wait()
	r.await("the clients are gone", func(k *relay) bool { return len(k.clients) == 0 })
	r.quiet()
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Header blocks that never end count as well: who holds most of them is closed, and whoever sends whole ones is served.
func TestBufferedHalfHeaders(t *testing.T) {
	r := newRig(t, nil)
	r.backends(newHTTP2(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "served") }))
	const each = 60 << 10
	var clients []*rawConn
	for range 4 {
		c := newRawClient(t, r.addr)
		c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, each/4)})
		for range 3 {
			c.fr.WriteContinuation(1, false, make([]byte, each/4))
		}
		clients = append(clients, c)
	}
	r.awaitParked(4 * each)
	r.limitBuffered(100_000)
	r.onLoop(func(k *relay) { k.report() })
	r.await("no more than the limit", func(k *relay) bool { return k.parked <= 100_000 && len(k.clients) < 4 })
	if n := r.protected(protectBuffered); n < 3 {
		t.Errorf("counted %d times", n)
	}
	good := newRawClient(t, r.addr)
	good.get(1, "/")
	good.answerOf(1)
	for _, c := range clients {
		c.Close()
	}
	good.Close()
	r.quiet()
	r.onLoop(func(k *relay) {
		if k.parked != 0 {
			t.Errorf("%d bytes are still parked", k.parked)
		}
	})
}

package h2

import (
	"runtime"
	"testing"

	"golang.org/x/net/http2"
)

// A client whose connection window stays closed opens calls, and cancels each once its response has begun, at no cost to its budget: nothing of them may
// stay in the queue for the connection, to be held or to be walked over.
func TestCancelledStreamsLeaveTheQueue(t *testing.T) {
	p := greeted(t, testConfig(true))
	p.headers(1, true, get...)
	p.feed()
	hog := p.streams[1]
	p.conn.WriteHeaders(hog, []Field{{Name: ":status", Value: "200"}}, false)
	p.conn.WriteData(hog, make([]byte, 65536), false) // one more than the connection's window
	p.quiet()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var before uint64
	for i := range 100_000 {
		if i == 1000 {
			before = heap()
		}
		id := uint32(2*i + 3)
		p.headers(id, true, get...)
		p.conn.Feed(p.now, p.in.Bytes())
		p.in.Reset()
		s := p.streams[id]
		delete(p.streams, id)
		p.conn.WriteHeaders(s, []Field{{Name: ":status", Value: "200"}}, false)
		if n := p.conn.WriteData(s, []byte("waits"), true); n != 0 {
			t.Fatalf("%d bytes went through a closed window", n)
		}
		p.write.WriteRSTStream(id, http2.ErrCodeCancel)
		if _, err := p.conn.Feed(p.now, p.in.Bytes()); err != nil {
			t.Fatalf("%v after %d", err, i)
		}
		p.in.Reset()
		p.out, p.log = p.out[:0], p.log[:0]
		p.conn.Release()
		p.conn.Drop(p.conn.held)
		p.conn.Flushed()
	}
	if after := heap(); after > before+200<<10 {
		t.Errorf("%d bytes more are held after 99,000 cancelled calls", after-before)
	}
	if err := p.conn.Check(); err != nil {
		t.Error(err)
	}
}

package proxy

import (
	"runtime"
	"testing"

	"golang.org/x/net/http2"
)

// A call in steady state allocates nothing in the relay (HTTP2.md 2). Both peers are frames written beforehand; what they and the waiting allocate
// is per batch of 100 calls, so one allocation per call would show.
func TestCallsDontAllocate(t *testing.T) {
	r := newRig(t, nil)
	b := newRawBackend(t)
	r.backends(b.addr)
	client := newRawClient(t, r.addr)
	client.call(1, true, "/a/b", []byte("warm"))
	c := b.accept()
	client.fr.WriteWindowUpdate(0, 1<<20)
	c.fr.WriteWindowUpdate(0, 1<<20)
	answers := func(first, n int) []byte {
		var out frames
		fr := http2.NewFramer(&out, nil)
		h := &hpackWriter{}
		for id := first; id < first+2*n; id += 2 {
			h.write(fr, uint32(id), false, ":status", "200", "content-type", "application/grpc")
			fr.WriteData(uint32(id), false, []byte("answer"))
			h.write(fr, uint32(id), true, "grpc-status", "0")
		}
		return out
	}
	requests := func(first, n int) []byte {
		var out frames
		fr := http2.NewFramer(&out, nil)
		h := &hpackWriter{}
		for id := first; id < first+2*n; id += 2 {
			h.write(fr, uint32(id), false, ":method", "POST", ":scheme", "http", ":path", "/a/b", ":authority", "a", "content-type", "application/grpc", "te", "trailers")
			fr.WriteData(uint32(id), true, []byte("question"))
		}
		return out
	}
	c.request()
	c.Write(answers(1, 1))
	client.answerOf(1)

	const batch, rounds = 100, 100
	buf := make([]byte, 1<<20)
	var in, back [][]byte
	for i := range rounds {
		in = append(in, requests(3+2*batch*i, batch))
		back = append(back, answers(3+2*batch*i, batch))
	}
	sink := make(chan struct{})
	go func() { // the client reads on
		defer close(sink)
		b := make([]byte, 1<<16)
		for {
			if _, err := client.Read(b); err != nil {
				return
			}
		}
	}()
	play := func(i int) {
		if _, err := client.Write(in[i]); err != nil {
			t.Error(err)
		}
		ended := 0
		for have := 0; ended < batch; { // frames may be cut anywhere
			n, err := c.Read(buf[have:])
			if err != nil {
				t.Error(err)
				return
			}
			have += n
			at := 0
			for have-at >= 9 {
				size := 9 + int(buf[at])<<16 + int(buf[at+1])<<8 + int(buf[at+2])
				if have-at < size {
					break
				}
				if buf[at+3] == 0 && buf[at+4]&1 != 0 {
					ended++
				}
				at += size
			}
			have = copy(buf, buf[at:have])
		}
		if _, err := c.Write(back[i]); err != nil {
			t.Error(err)
		}
		r.quietly()
	}
	for i := range rounds / 2 {
		play(i)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := rounds / 2; i < rounds; i++ {
		play(i)
	}
	runtime.ReadMemStats(&after)
	const calls = batch * rounds / 2
	if n := after.Mallocs - before.Mallocs; n > calls/2 {
		t.Errorf("%d allocations for %d calls", n, calls)
	}
	client.Close()
	<-sink
	r.quiet()
}

// frames collects what a Framer writes.
type frames []byte

func (f *frames) Write(p []byte) (int, error) { *f = append(*f, p...); return len(p), nil }

// quietly waits until no call runs.
func (r *rig) quietly() {
	r.await("no call runs", func(k *relay) bool { return k.calls == 0 })
}

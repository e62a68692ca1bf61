package proxy

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// perTurn is how many frames of one connection a loop handles in one wake-up (h2's framesPerFeed).
const perTurn = 512

// 64 KiB of frames with a byte each don't hold up another client for longer than a few of them take: they come in turns, and all of them come.
func TestTinyFramesTakeTurns(t *testing.T) {
	const tiny = 6000
	b := new(beds).get(t, 1)
	var backend *peerEnd
	calls, frames := 0, 0
	hello := func(e *peerEnd) func() {
		e.v.onPing = e.w.pong
		e.w.settings()
		acked := false
		return func() {
			if e.v.begun && !acked {
				acked = true
				e.w.ack()
			}
		}
	}
	b.accept = func(e *peerEnd) {
		backend = e
		e.step = hello(e)
		e.v.onHead = func(uint32, []hpack.HeaderField, bool) { calls++ }
		e.v.onData = func(_ uint32, p []byte, _ bool) { frames += len(p) }
	}
	a, other := b.client("attacker"), b.client("other client")
	a.step, other.step = hello(a), hello(other)
	a.w.headers(1, false, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a")
	b.steps(5)
	if calls != 1 {
		t.Fatalf("%d calls at the backend", calls)
	}
	for range tiny {
		a.w.data(1, false, []byte("x"))
	}
	if n := a.write(a.w.out); n != len(a.w.out) {
		t.Fatalf("%d of %d bytes written", n, len(a.w.out))
	}
	a.w.out = a.w.out[:0]
	other.w.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a")
	other.write(other.w.out)
	other.w.out = other.w.out[:0]
	turns := 0
	for before := 0; frames < tiny && turns < 50; turns++ {
		b.turn()
		backend.read()
		if calls != 2 {
			t.Fatal("the other client's call isn't at the backend after one turn")
		}
		if n := frames - before; n > perTurn {
			t.Fatalf("%d frames in one turn", n)
		}
		before = frames
	}
	if frames != tiny || turns > tiny/perTurn+3 {
		t.Errorf("%d frames of %d after %d turns", frames, tiny, turns)
	}
}

// tiny floods the rig's service, whose backend takes all, with DATA of a byte each, as fast as it goes, until stop is closed.
func (r *rig) tiny(stop <-chan struct{}) (over <-chan struct{}) {
	const streams = 200 // whose windows, of 256 KiB each, last for longer than any test
	a := newAttacker(r.t, r.addr)
	for range streams {
		a.open()
	}
	a.flush()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer a.Close()
		for id := uint32(1); a.flush(); {
			select {
			case <-stop:
				return
			default:
			}
			for range 5000 {
				a.fr.WriteData(id, false, []byte("x"))
				id = (id + 2) % (2 * streams)
			}
		}
	}()
	return done
}

// DATA of one byte is no flood by itself: its windows bound it. While it comes as fast as it can over four connections, each gets its turns and no more, and
// another client goes on being served.
func TestAttackTinyFrames(t *testing.T) {
	const attackers, calls = 4, 50
	r := newRig(t, nil)
	r.sink()
	b := newGRPC(t)
	w := r.witness("DATA of one byte", r.other(b.addr))
	w.goroutines += 10 // connections to the sink
	w.growth = 128 << 20
	stop := make(chan struct{})
	var over []<-chan struct{}
	for range attackers {
		over = append(over, r.tiny(stop))
	}
	// What is posted runs once in each wake-up.
	seen, most, all := map[*clientConn]int64{}, int64(0), int64(0)
	enough := make(chan struct{})
	var look func()
	look = func() {
		k := r.proxy.workers[0].relay
		for c := range k.clients {
			if c.rt.name != "user" {
				continue
			}
			n := int64(0)
			for s := range c.h2.All() {
				n += s.Owner.(*call).req.got
			}
			if before, ok := seen[c]; ok {
				most, all = max(most, n-before), all+n-before
			}
			seen[c] = n
		}
		select {
		case <-stop:
			close(enough)
		default:
			k.loop.Post(look)
		}
	}
	start := w.calls.Load()
	r.onLoop(func(k *relay) { look() })
	await(t, "calls of another client", func() bool { return w.calls.Load() >= start+calls || isClosed(w.done) })
	close(stop)
	<-enough
	if most > perTurn || all < 10*perTurn {
		t.Errorf("%d frames of one connection in one wake-up, %d in all", most, all)
	}
	for _, o := range over {
		<-o
	}
	w.end()
	if told := r.told(); len(told) != 0 {
		t.Errorf("told: %+v", told)
	}
	r.quiet()
}

// BenchmarkBesideTinyFrames is how long a call takes while others send DATA of one byte as fast as they can.
func BenchmarkBesideTinyFrames(b *testing.B) {
	for _, attackers := range []int{0, 1, 4} {
		b.Run(fmt.Sprintf("%d attackers", attackers), func(b *testing.B) {
			r := newRig(b, nil)
			r.backends(newSink(b))
			client := r.other(newGRPC(b).addr)
			stop := make(chan struct{})
			var over []<-chan struct{}
			for range attackers {
				over = append(over, r.tiny(stop))
			}
			var took []time.Duration
			for b.Loop() {
				start := time.Now()
				if _, err := client.UnaryCall(b.Context(), &testpb.SimpleRequest{}); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			close(stop)
			for _, o := range over {
				<-o
			}
			slices.Sort(took)
			for _, p := range []int{50, 99} {
				b.ReportMetric(float64(took[(len(took)-1)*p/100].Microseconds()), fmt.Sprintf("µs/p%d", p))
			}
		})
	}
}

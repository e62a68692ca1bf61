package tcp

import "testing"

// FuzzMachine plays two peers that send, take and end in any order, and carries out what the machine says: what waits is bounded, a sender that is held back
// is let go again, each direction ends once and after its last byte, and when both have ended so has the relay.
func FuzzMachine(f *testing.F) {
	f.Add([]byte{0, 0x10, 0x51, 0x20, 0x30, 0x61, 0x71})
	f.Add([]byte{0, 0x1f, 0x1f, 0x1f, 0x1f, 0x5f, 0x5f, 0x5f, 0x2f, 0x3f})
	f.Add([]byte{0, 0x1f, 0x80, 0x5f, 0x90})
	f.Add([]byte{0, 0x18, 0x28, 0x70, 0x60, 0x51, 0x61})
	f.Fuzz(func(t *testing.T, script []byte) {
		w := &world{t: t}
		w.paused[Client] = true // until the backend is there
		for _, b := range script {
			if w.over {
				break
			}
			w.play(b>>4, int(b&15)<<12+1)
		}
		// Whatever was said: once both end and read, it is over.
		if !w.open && !w.over {
			w.do(w.m.NoBackend())
		}
		for range 2 {
			for s := Client; s <= Backend && !w.over; s++ {
				w.take(s, 1<<30)
			}
			for s := Client; s <= Backend && !w.over; s++ {
				w.end(s)
			}
		}
		if !w.over {
			t.Fatal("both have ended and taken all, and the relay goes on")
		}
	})
}

// world is what the machine is told of.
type world struct {
	t       *testing.T
	m       Machine
	open    bool
	over    bool
	paused  [2]bool
	spliced [2]bool
	ended   [2]bool // by the peer
	fin     [2]bool // towards it
	left    [2]int  // that waits for it
}

func (w *world) play(op byte, n int) {
	switch {
	case !w.open && op == 15:
		w.do(w.m.NoBackend())
	case !w.open:
		w.open = true
		w.do(w.m.Connected())
	case op < 4:
		w.send(Side(op&1), n)
	case op < 8:
		w.take(Side(op&1), n)
	case op < 10:
		w.end(Side(op & 1))
	case op == 10:
		w.do(w.m.Lost(Client))
	case op == 11:
		w.do(w.m.Lost(Backend))
	case op == 12:
		w.do(w.m.Drained())
	case op == 13 && w.m.Draining():
		w.do(w.m.Expired())
	}
}

// send delivers what a peer sent, unless it isn't read.
func (w *world) send(s Side, n int) {
	if w.paused[s] || w.ended[s] || w.m.Draining() || w.spliced[s] && w.left[s.Other()] > 0 {
		return
	}
	w.left[s.Other()] += n
	if w.left[s.Other()] > high+64<<10 {
		w.t.Fatalf("%d bytes wait", w.left[s.Other()])
	}
	w.do(w.m.Received(s, n, w.left[s.Other()]))
}

func (w *world) take(s Side, n int) {
	if w.left[s] == 0 {
		return
	}
	w.left[s] -= min(n, w.left[s])
	w.do(w.m.Written(s, w.left[s]))
	if !w.over && w.left[s] == 0 && w.paused[s.Other()] {
		w.t.Fatal("all is taken, and the sender is still held back")
	}
}

func (w *world) end(s Side) {
	if w.ended[s] || w.paused[s] {
		return
	}
	w.ended[s] = true
	w.do(w.m.EOF(s, w.left[s.Other()]))
}

func (w *world) do(do Do) {
	if w.over && do != 0 {
		w.t.Fatalf("%b after the end", do)
	}
	for s := Client; s <= Backend; s++ {
		if pause, resume := do&PauseClient.on(s) != 0, do&ResumeClient.on(s) != 0; pause || resume {
			if pause == resume || w.paused[s] == pause {
				w.t.Fatalf("side %d: paused %v, then %b", s, w.paused[s], do)
			}
			w.paused[s] = pause
		}
		if do&SpliceClient.on(s) != 0 {
			if w.spliced[s] {
				w.t.Fatalf("side %d is spliced twice", s)
			}
			w.spliced[s] = true
		}
		if do&FinClient.on(s) != 0 {
			if !w.m.Draining() && (w.fin[s] || !w.ended[s.Other()]) { // a drain ends what may have ended
				w.t.Fatalf("side %d gets an end that nobody sent, or a second one", s)
			}
			w.fin[s] = true
		}
	}
	if do&(Close|Reset) == Close|Reset {
		w.t.Fatal("closed and reset")
	}
	if do&Close != 0 && !w.m.Draining() && (w.left[Client]+w.left[Backend] > 0 || !w.ended[Client] || !w.ended[Backend]) {
		w.t.Fatalf("closed with %v waiting, ended %v", w.left, w.ended)
	}
	w.over = w.over || do&(Close|Reset) != 0
}

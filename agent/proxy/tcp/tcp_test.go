package tcp

import (
	"math/rand/v2"
	"testing"
)

// step is one event and what it is answered with.
type step struct {
	name string
	do   func(m *Machine) Do
	want Do
}

func connected(m *Machine) Do { return m.Connected() }

func received(s Side, n, left int) func(*Machine) Do {
	return func(m *Machine) Do { return m.Received(s, n, left) }
}

func written(s Side, left int) func(*Machine) Do {
	return func(m *Machine) Do { return m.Written(s, left) }
}

func eof(s Side, left int) func(*Machine) Do {
	return func(m *Machine) Do { return m.EOF(s, left) }
}

func TestStories(t *testing.T) {
	for name, story := range map[string][]step{
		"a small exchange": {
			{"connected", connected, ResumeClient},
			{"request", received(Client, 100, 100), 0},
			{"taken", written(Backend, 0), 0},
			{"client ends", eof(Client, 0), FinBackend},
			{"answer", received(Backend, 200, 200), 0},
			{"backend ends before the client took it", eof(Backend, 200), FinClient},
			{"taken in part", written(Client, 50), 0},
			{"taken", written(Client, 0), Close},
			{"nothing more", written(Client, 0), 0},
		},
		"backend ends first, client's bytes wait": {
			{"connected", connected, ResumeClient},
			{"backend ends", eof(Backend, 0), FinClient},
			{"client sends on", received(Client, 10, 10), 0},
			{"client ends", eof(Client, 10), FinBackend},
			{"taken", written(Backend, 0), Close},
		},
		"splice after 16 KiB, once, per direction": {
			{"connected", connected, ResumeClient},
			{"a little", received(Client, SpliceAfter-1, 0), 0},
			{"more", received(Client, 1, 0), SpliceClient},
			{"and more", received(Client, 1000, 0), 0},
			{"the other way", received(Backend, SpliceAfter, 0), SpliceBackend},
		},
		"a slow reader": {
			{"connected", connected, ResumeClient},
			{"up to the mark", received(Backend, 10, high), 0},
			{"over it", received(Backend, 10, high+1), PauseBackend},
			{"still over", received(Backend, 10, high+11), 0},
			{"taken, not enough", written(Client, low), 0},
			{"enough", written(Client, low-1), ResumeBackend},
			{"once", written(Client, 0), 0},
			{"over it again", received(Backend, 10, high+1), PauseBackend},
		},
		"a lost side": {
			{"connected", connected, ResumeClient},
			{"lost", func(m *Machine) Do { return m.Lost(Backend) }, Reset},
			{"told once", func(m *Machine) Do { return m.Lost(Client) }, 0},
			{"no drain after that", (*Machine).Drained, 0},
		},
		"nobody there": {
			{"none", (*Machine).NoBackend, Reset},
		},
		"drained": {
			{"connected", connected, ResumeClient},
			{"the time is over", (*Machine).Drained, FinClient | FinBackend | LingerTime},
			{"once", (*Machine).Drained, 0},
			{"the client ends", eof(Client, 0), 0},
			{"the backend as well", eof(Backend, 0), Close},
			{"too late", (*Machine).Expired, 0},
		},
		"drained, and a peer doesn't end": {
			{"connected", connected, ResumeClient},
			{"the time is over", (*Machine).Drained, FinClient | FinBackend | LingerTime},
			{"the client ends", eof(Client, 0), 0},
			{"patience is over", (*Machine).Expired, Close},
		},
		"drained before it was connected": {
			{"the time is over", (*Machine).Drained, Reset},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var m Machine
			for _, s := range story {
				if got := s.do(&m); got != s.want {
					t.Fatalf("%s: %b, want %b", s.name, got, s.want)
				}
			}
		})
	}
}

// Random events against what must hold whatever comes: nothing is done after the end, a paused side is resumed, FIN goes out once per side, and a
// connection whose both sides ended and took everything is closed.
func TestRandomEvents(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 5000 {
		var m Machine
		m.Connected()
		var left [2]int // waiting for the other side, by sender
		var ended, paused [2]bool
		var fins [2]int
		over := false
		note := func(do Do) {
			if over && do != 0 {
				t.Fatalf("%b after the end", do)
			}
			for i := range 2 {
				s := Side(i)
				if do&PauseClient.on(s) != 0 {
					paused[s] = true
				}
				if do&ResumeClient.on(s) != 0 {
					paused[s] = false
				}
				if do&FinClient.on(s) != 0 {
					fins[s]++
				}
			}
			over = over || do&(Close|Reset) != 0
		}
		for range 200 {
			s := Side(rng.IntN(2))
			switch rng.IntN(3) {
			case 0:
				if !ended[s] && !paused[s] && !over {
					n := 1 + rng.IntN(64<<10)
					left[s] += n
					note(m.Received(s, n, left[s]))
				}
			case 1:
				if o := s.Other(); left[o] > 0 && !over {
					left[o] -= 1 + rng.IntN(left[o])
					note(m.Written(s, left[o]))
				}
			case 2:
				if !ended[s] && !paused[s] && !over && rng.IntN(20) == 0 {
					ended[s] = true
					note(m.EOF(s, left[s]))
				}
			}
			if paused[s] && left[s] < low {
				t.Fatal("a sender is paused with little waiting")
			}
			if left[s] > high+64<<10 {
				t.Fatalf("%d bytes wait", left[s])
			}
		}
		if done := ended == [2]bool{true, true} && left == [2]int{}; over != done {
			t.Fatalf("over %v: ended %v, left %v", over, ended, left)
		}
		for s, n := range fins {
			want := 0
			if ended[1-s] {
				want = 1
			}
			if n != want {
				t.Fatalf("%d FIN to side %d, want %d", n, s, want)
			}
		}
	}
}

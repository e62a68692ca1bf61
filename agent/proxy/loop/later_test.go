package loop

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// later is a Handler that takes a few bytes at a time and wants the rest in a later wake-up.
type later struct {
	conn  *Conn
	most  int
	turns []int // bytes per wake-up
	eof   bool
}

func (h *later) Readable(b []byte) int {
	n := min(h.most, len(b))
	if n < len(b) {
		h.conn.Later()
	}
	h.turns[len(h.turns)-1] += n
	return n
}
func (h *later) EOF()           { h.eof = true }
func (h *later) Connected()     {}
func (h *later) Written(uint64) {}
func (h *later) Closed(error)   {}

// What a handler puts off comes in the next wake-ups, a helping in each, without anything new, and before the end; others have their turn between.
func TestLater(t *testing.T) {
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.end()
	ends := func(h *later) int {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if h.conn, err = l.Add(fds[0], h, nil); err != nil {
			t.Fatal(err)
		}
		return fds[1]
	}
	slow, other := &later{most: 30}, &later{most: 1000}
	slowEnd, otherEnd := ends(slow), ends(other)
	defer unix.Close(otherEnd)
	unix.Write(slowEnd, make([]byte, 100))
	unix.Close(slowEnd)
	for i := range 6 {
		unix.Write(otherEnd, []byte("x"))
		slow.turns, other.turns = append(slow.turns, 0), append(other.turns, 0)
		if err := l.Turn(time.Now()); err != nil {
			t.Fatal(err)
		}
		if other.turns[i] != 1 {
			t.Errorf("turn %d: the other one was given %d bytes", i, other.turns[i])
		}
		if i == 2 { // a pause takes the turn away, and gives it back
			slow.conn.Pause()
			slow.turns, other.turns = append(slow.turns, 0), append(other.turns, 0)
			l.Turn(time.Now())
			if n := slow.turns[len(slow.turns)-1]; n != 0 {
				t.Errorf("%d bytes while paused", n)
			}
			slow.turns, other.turns = slow.turns[:i+1], other.turns[:i+1]
			slow.conn.Resume()
		}
	}
	if got := slow.turns; got[0] != 30 || got[1] != 30 || got[2] != 30 || got[3] != 10 || got[4]+got[5] != 0 || !slow.eof {
		t.Errorf("bytes in each turn: %v, end %v", got, slow.eof)
	}
	if l.buffers.lent != 0 {
		t.Errorf("%d bytes are lent", l.buffers.lent)
	}
}

// While much is kept, no more than a frame's worth is read for anybody.
func TestCrowded(t *testing.T) {
	l, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.end()
	const peers = 200
	var all []*later
	for range peers {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fds[1])
		h := &later{most: 100, turns: []int{0}}
		if h.conn, err = l.Add(fds[0], h, nil); err != nil {
			t.Fatal(err)
		}
		all = append(all, h)
		for sent := 0; sent < readSize; {
			n, err := unix.Write(fds[1], make([]byte, 8<<10))
			if err != nil {
				t.Fatal(err)
			}
			sent += n
		}
	}
	most := 0
	for range 30 {
		if err := l.Turn(time.Now()); err != nil {
			t.Fatal(err)
		}
		most = max(most, l.buffers.lent)
	}
	if limit := crowded + readSize + peers*2*crowdedRead; most > limit || most < crowded {
		t.Errorf("%d bytes were kept, limit %d", most, limit)
	}
	for _, h := range all {
		h.most = readSize
	}
	for range 30 {
		if err := l.Turn(time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range all {
		if h.turns[0] != readSize {
			t.Fatalf("%d bytes came of %d", h.turns[0], readSize)
		}
	}
}

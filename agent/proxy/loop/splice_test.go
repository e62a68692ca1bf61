package loop

import (
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// joint relays what one connection receives to another, as the proxy's TCP sessions do.
type joint struct {
	from, to *Conn
	copied   int // bytes that came through Readable
	splice   bool
	onClosed func(error)
}

func (j *joint) Connected() {}
func (j *joint) Readable(b []byte) int {
	j.copied += len(b)
	j.to.Out = append(j.to.Out, b...)
	j.to.Flush()
	if j.to.Unwritten() > 256<<10 {
		j.from.Pause()
	}
	if j.splice && j.from.Received() >= 16<<10 {
		j.from.Splice(j.to)
	}
	return len(b)
}
func (j *joint) EOF() { j.to.CloseWrite() }
func (j *joint) Written(uint64) {
	if j.from.Unwritten() == 0 { // what came from the other side
		j.to.Resume()
	}
}
func (j *joint) Closed(err error) {
	if j.onClosed != nil {
		j.onClosed(err)
	}
}

// bridge joins two connections both ways.
func bridge(t *testing.T, l *Loop, splice bool) (a, b *joint, pa, pb *net.TCPConn) {
	a, b = &joint{splice: splice}, &joint{splice: splice}
	ca, pa := tcpPair(t, l, a)
	cb, pb := tcpPair(t, l, b)
	do(t, l, func() { a.from, a.to, b.from, b.to = ca, cb, cb, ca })
	return a, b, pa, pb
}

func sumOf(r io.Reader) (sum [32]byte, err error) {
	h := sha256.New()
	_, err = io.Copy(h, r)
	copy(sum[:], h.Sum(nil))
	return sum, err
}

func TestSpliceBothWays(t *testing.T) {
	l := startLoop(t)
	a, b, pa, pb := bridge(t, l, true)
	const size = 24 << 20
	send := func(c *net.TCPConn, seed byte) {
		io.Copy(c, io.LimitReader(rand.NewChaCha8([32]byte{seed}), size))
		c.CloseWrite()
	}
	go send(pa, 1)
	go send(pb, 2)
	back := make(chan [32]byte, 1)
	go func() {
		sum, err := sumOf(pa)
		if err != nil {
			t.Error(err)
		}
		back <- sum
	}()
	forth, err := sumOf(pb)
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range [][32]byte{forth, receive(t, back)} {
		want, _ := sumOf(io.LimitReader(rand.NewChaCha8([32]byte{byte(i + 1)}), size))
		if got != want {
			t.Errorf("direction %d: bytes arrived changed", i)
		}
	}
	settled(t, l)
	do(t, l, func() {
		for _, j := range []*joint{a, b} {
			if j.from.Received() != size || j.to.Queued() != size {
				t.Errorf("received %d, queued %d, want %d", j.from.Received(), j.to.Queued(), size)
			}
			if j.copied > size/10 {
				t.Errorf("%d of %d bytes were copied through the process", j.copied, size)
			}
		}
		if n := l.Stats().Pipes; n != 0 {
			t.Errorf("%d pipes in use with nothing on its way", n)
		}
	})
}

// A reader that stops: the bytes in flight are bounded by socket buffers and one pipe, and everything comes once it reads again.
func TestSpliceBackpressure(t *testing.T) {
	l := startLoop(t)
	a, _, pa, pb := bridge(t, l, true)
	const size = 64 << 20
	go func() {
		io.Copy(pa, io.LimitReader(rand.NewChaCha8([32]byte{3}), size))
		pa.CloseWrite()
	}()
	until(t, "a full pipe", func() bool {
		var full bool
		do(t, l, func() { full = a.to.full && a.to.pipe != nil })
		return full
	})
	do(t, l, func() {
		if n := a.to.Unwritten(); n > spliceSize*2 || n == 0 {
			t.Errorf("%d bytes unwritten", n)
		}
	})
	got, err := sumOf(pb)
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := sumOf(io.LimitReader(rand.NewChaCha8([32]byte{3}), size)); got != want {
		t.Error("bytes arrived changed")
	}
}

// The sender goes away by reset while its bytes are in a pipe, and the receiver as well: no pipe and no descriptor is left.
func TestSplicePipesAreReturned(t *testing.T) {
	l := startLoop(t)
	settled(t, l)
	for range 20 {
		a, b, pa, pb := bridge(t, l, true)
		closed := make(chan struct{}, 2)
		do(t, l, func() {
			a.onClosed = func(error) { closed <- struct{}{}; b.from.Reset() }
			b.onClosed = func(error) { closed <- struct{}{}; a.from.Reset() }
		})
		go io.Copy(pa, io.LimitReader(rand.NewChaCha8([32]byte{3}), 64<<20))
		until(t, "a full pipe", func() bool {
			var full bool
			do(t, l, func() { full = a.to.full && a.to.pipe != nil })
			return full
		})
		pb.SetLinger(0)
		pb.Close()
		receive(t, closed)
		settled(t, l)
		do(t, l, func() {
			if s := l.Stats(); s.Pipes != 0 || l.pipes.open != len(l.pipes.free) || s.Conns != 0 {
				t.Errorf("%+v, %d pipes open, %d free", s, l.pipes.open, len(l.pipes.free))
			}
		})
		pa.Close()
	}
}

// With no pipe left, bytes take the way through the process.
func TestSpliceWithoutPipes(t *testing.T) {
	l := startLoop(t)
	do(t, l, func() { l.pipes.open = maxPipes })
	a, _, pa, pb := bridge(t, l, true)
	const size = 4 << 20
	go func() {
		io.Copy(pa, io.LimitReader(rand.NewChaCha8([32]byte{4}), size))
		pa.CloseWrite()
	}()
	got, err := sumOf(pb)
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := sumOf(io.LimitReader(rand.NewChaCha8([32]byte{4}), size)); got != want {
		t.Error("bytes arrived changed")
	}
	do(t, l, func() {
		if a.copied != size {
			t.Errorf("%d of %d bytes were copied", a.copied, size)
		}
	})
}

// The first pipes are large, and those that are used again become so when others are gone. All of them together stay within a loop's part of what a user may have.
func TestPipeSizes(t *testing.T) {
	var p pipes
	defer func() {
		p.close()
		if p.open != 0 || p.large != 0 {
			t.Errorf("%d pipes open, %d large, after all are closed", p.open, p.large)
		}
	}()
	sizeOf := func(b *pipe) int {
		n, err := unix.FcntlInt(uintptr(b.r), unix.F_GETPIPE_SZ, 0)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	var all []*pipe
	held := 0
	for b := p.get(); b != nil; b = p.get() {
		all = append(all, b)
		held += sizeOf(b)
		if large := len(all) <= maxLarge; b.large != large || large && sizeOf(b) != spliceSize {
			t.Fatalf("pipe %d of %d bytes, large %v", len(all), sizeOf(b), b.large)
		}
	}
	if len(all) != maxPipes || held > 16<<20 {
		t.Errorf("%d pipes of %d bytes", len(all), held)
	}
	for i := range all { // the large ones last: there is no room left for them
		p.put(all[len(all)-1-i])
	}
	if b := p.get(); !b.large || sizeOf(b) != spliceSize {
		t.Errorf("a pipe that is used again has %d bytes", sizeOf(b))
	} else {
		p.put(b)
	}
}

// A kernel that makes no pipe larger is asked once per new pipe.
func TestPipeStaysSmall(t *testing.T) {
	var p pipes
	defer p.close()
	b := p.make()
	p.used++
	p.enlarge(b, -1)
	if b.large || p.large != 0 || !p.refused {
		t.Fatalf("%+v, %+v", b, p)
	}
	p.put(b)
	if b = p.get(); b.large {
		t.Error("asked again for the same pipe")
	}
	if c := p.get(); !c.large {
		t.Error("a new pipe stays small")
	} else {
		p.put(c)
	}
	p.put(b)
}

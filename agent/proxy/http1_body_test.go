package proxy

import (
	"errors"
	"io"
	"testing"
)

// entered is a body that tells when it is read from.
type entered struct {
	io.Reader
	in chan struct{}
}

func (e entered) Read(b []byte) (int, error) {
	select {
	case e.in <- struct{}{}:
	default:
	}
	return e.Reader.Read(b)
}

// A failed attempt that still waits for the client's next bytes takes them away: the body can't be sent again, and must never be sent without them.
func TestBodyHasOneReader(t *testing.T) {
	out, in := io.Pipe()
	src := entered{out, make(chan struct{}, 1)}
	b := newReplay(&http1{}, src)
	first := b.reader()
	done := make(chan struct{})
	go func() {
		defer close(done)
		first.Read(make([]byte, 100))
	}()
	<-src.in
	if _, err := b.again(); !errors.Is(err, errBodySent) {
		t.Errorf("a second reader beside one that waits: %v", err)
	}
	go in.Write([]byte("first "))
	<-done
	next, err := b.again() // now they are kept
	if err != nil {
		t.Fatal(err)
	}
	if n, err := first.Read(make([]byte, 100)); n != 0 || !errors.Is(err, errBodySent) {
		t.Errorf("the first reader goes on: %d, %v", n, err)
	}
	go func() {
		in.Write([]byte("second"))
		in.Close()
	}()
	if got, err := io.ReadAll(next); string(got) != "first second" || err != nil {
		t.Errorf("the second reader got %q, %v", got, err)
	}
}

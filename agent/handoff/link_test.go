package handoff

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// linked is a link, and the raw descriptor of its other end, which blocks.
func linked(t testing.TB) (l *link, other int) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(pair[0], true); err != nil {
		t.Fatal(err)
	}
	if l, err = newLink(os.NewFile(uintptr(pair[0]), "link")); err != nil {
		t.Fatal(err)
	}
	l.deadline(time.Now().Add(time.Minute))
	return l, pair[1]
}

// framed is a message's body behind its length.
func framed(body string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// FuzzReceive: whatever the other process sends, and with however many descriptors, reading it ends with a message that is whole or an error, and leaves no descriptor behind.
func FuzzReceive(f *testing.F) {
	f.Add(framed(`{"version":1,"step":"ready","release":"v1"}`), uint8(0), uint8(4))
	f.Add(framed(`{"version":2,"step":"listeners","names":["tcp:127.0.0.1:1","api"],"later":[{}]}`), uint8(2), uint8(4))
	f.Add(framed(`{"step":"listeners","names":["a","b"]}`), uint8(3), uint8(1)) // more than names
	f.Add(framed(`{"step":"offer","offer":{"ready":["a"]}}`)[:20], uint8(1), uint8(20))
	f.Add([]byte{255, 255, 255, 255, '{'}, uint8(0), uint8(2)) // more than is read
	f.Add([]byte{0, 0, 16, 0, '{'}, uint8(0), uint8(3))        // a message that ends early
	f.Add([]byte{0, 0}, uint8(1), uint8(1))
	f.Add(framed(`null`), uint8(0), uint8(5))
	f.Fuzz(func(t *testing.T, sent []byte, fds, first uint8) {
		if len(sent) > 64<<10 { // more than the queue takes at once
			return
		}
		l, other := linked(t)
		defer l.close()
		var pipe [2]int // what is sent along is its end
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pipe[0])
		var given []int
		for range fds % 8 {
			given = append(given, pipe[1])
		}
		var rights []byte
		if len(given) > 0 {
			rights = unix.UnixRights(given...)
		}
		if cut := min(len(sent), int(first)+1); cut > 0 { // the descriptors come with the first bytes
			if err := unix.Sendmsg(other, sent[:cut], rights, nil, unix.MSG_NOSIGNAL); err != nil {
				t.Fatal(err)
			}
			if err := unix.Send(other, sent[cut:], unix.MSG_NOSIGNAL); err != nil {
				t.Fatal(err)
			}
		}
		unix.Close(pipe[1])
		unix.Close(other)
		m, got, err := l.receive()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("it waits for what can't come")
		}
		if err == nil && (len(m.Names) != len(got) || len(got) != len(given)) {
			t.Errorf("%d descriptors of %d with %d names", len(got), len(given), len(m.Names))
		}
		if err != nil && got != nil {
			t.Errorf("%d descriptors with %v", len(got), err)
		}
		for _, fd := range got {
			unix.Close(fd)
		}
		if n, err := unix.Read(pipe[0], make([]byte, 1)); n != 0 || err != nil {
			t.Errorf("a descriptor was left open: %d, %v", n, err)
		}
	})
}

// The end of the other process, at any byte, is an end and not a message.
func TestReceiveEnds(t *testing.T) {
	whole := framed(`{"version":1,"step":"ready"}`)
	for n := range len(whole) + 1 {
		l, other := linked(t)
		if n > 0 {
			if _, err := unix.Write(other, whole[:n]); err != nil {
				t.Fatal(err)
			}
		}
		unix.Close(other)
		m, _, err := l.receive()
		switch {
		case n == len(whole):
			if err != nil || m.Step != stepReady {
				t.Errorf("all of it: %+v, %v", m, err)
			}
		case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			t.Errorf("%d bytes: %v", n, err)
		}
		l.close()
	}
}

// What a failed successor said is the error; so is a step that isn't its turn.
func TestWant(t *testing.T) {
	for _, c := range []struct {
		said message
		want string // of the error
	}{
		{message{Step: stepReady}, ""},
		{message{Step: stepFailed, Error: "no list of user"}, "no list of user"},
		{message{Step: stepMain}, `"main", not "ready"`},
	} {
		l, other := linked(t)
		if err := unix.SetNonblock(other, true); err != nil {
			t.Fatal(err)
		}
		from, err := newLink(os.NewFile(uintptr(other), "link"))
		if err != nil {
			t.Fatal(err)
		}
		if err := from.send(c.said); err != nil {
			t.Fatal(err)
		}
		_, err = l.want(stepReady)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v", c.said.Step, err)
		}
		l.close()
		from.close()
	}
}

package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzBody: however a body comes in pieces, and however little room there is for what is sent on, all of it is, framed so that another reader gets the same and
// finds the same end; and what comes behind it stays.
func FuzzBody(f *testing.F) {
	for _, s := range []string{"0\r\n\r\nnext", "5\r\nhello\r\n0\r\n\r\n", "a;b=c\r\n0123456789\r\n00\r\nX: y\r\nZ:\r\n\r\nGET", "ffffffff\r\n", "3\r\nabcX", "0\r\nHost: x\r\n\r\n"} {
		for framing := range byte(3) {
			f.Add(s, framing, uint16(3), uint16(2))
		}
	}
	h := newHTTP1(nil)
	f.Fuzz(func(t *testing.T, in string, framing byte, early, room uint16) {
		if len(in) > 100_000 { // more than a socket takes at once
			return
		}
		one := relayedBody(t, h, in, framing, int(early), 16+int(room)%2000)
		whole := relayedBody(t, h, in, framing, len(in), 64<<10)
		if one.data != whole.data || one.trailers != whole.trailers || one.rest != whole.rest || (one.err == nil) != (whole.err == nil) {
			t.Fatalf("%q: in pieces %+v, at once %+v", in, one, whole)
		}
		if one.err != nil {
			return
		}
		want, rest := in, ""
		switch framing % 3 {
		case 0:
			b := bufio.NewReader(strings.NewReader(in))
			data, err := io.ReadAll(httputil.NewChunkedReader(b))
			if err != nil && strings.Contains(err.Error(), "excess") {
				return // it bounds the sum of the extensions
			}
			left, _ := io.ReadAll(b)
			if err != nil || !strings.HasSuffix(string(left), one.rest) {
				t.Fatalf("%q: %+v; net/http leaves %q, %v", in, one, left, err)
			}
			want, rest = string(data), one.rest
		case 1:
			want, rest = in[:len(in)/2], in[len(in)/2:]
		}
		if one.data != want || one.rest != rest {
			t.Fatalf("%q: %+v; want %q and %q", in, one, want, rest)
		}
	})
}

type relayed struct {
	data, trailers, rest string
	err                  error
}

// relayedBody sends in through a wire, of which so many bytes came with the head, and reads what the relay makes of it.
func relayedBody(t *testing.T, h *http1, in string, framing byte, early, room int) (r relayed) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fds[0]), "wire")
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	early = min(early, len(in))
	if n, err := unix.Write(fds[1], []byte(in[early:])); n != len(in)-early && early < len(in) {
		t.Fatal(err)
	}
	unix.Close(fds[1])
	limits := DefaultLimits()
	w := &wire{}
	if err := w.init(h, conn); err != nil {
		t.Fatal(err)
	}
	w.buf, w.w = []byte(in[:early]), early
	b := wireBody{w: w, limits: &limits}
	switch framing % 3 {
	case 0:
		b.chunked = true
	case 1:
		b.left = int64(len(in) / 2)
	case 2:
		b.close = true
	}
	var out []byte
	for last := false; !last && r.err == nil; {
		var piece []byte
		piece, last, r.err = b.appendBody(make([]byte, 0, room), true)
		out = append(out, piece...)
	}
	left, _ := io.ReadAll(w)
	r.rest = string(left)
	sent := bufio.NewReader(bytes.NewReader(out))
	data, err := io.ReadAll(httputil.NewChunkedReader(sent))
	if r.data = string(data); (err == nil) != (r.err == nil) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("%q was sent on as %q: %v, %v", in, out, r.err, err)
	}
	if r.err == nil {
		end, _ := io.ReadAll(sent)
		for _, f := range b.trailers {
			r.trailers += fmt.Sprintf("%s: %s\r\n", f.Name, f.Value)
		}
		if err != nil || string(end) != r.trailers+"\r\n" {
			t.Fatalf("%q was sent on as %q, with %q behind it, %v", in, out, end, err)
		}
		return r
	}
	r.rest = "" // how much of it was looked at before the error doesn't matter
	return r
}

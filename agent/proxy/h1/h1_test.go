package h1

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// decode reads a chunked body that comes in pieces of n bytes, and returns it with what follows it.
func decode(body string, n int) (data, rest string, err error) {
	var c Chunks
	var in, out []byte
	for len(body) > 0 || len(in) > 0 {
		k := min(n, len(body))
		in, body = append(in, body[:k]...), body[k:]
		for len(in) > 0 {
			used, err := c.Frame(in)
			in = in[used:]
			if err != nil {
				return string(out), "", err
			}
			if c.Ended() {
				return string(out), string(in) + body, nil
			}
			if left := int(min(c.Left(), int64(len(in)))); left > 0 {
				out = append(out, in[:left]...)
				in = in[left:]
				c.Took(left)
			}
		}
	}
	return string(out), "", io.ErrUnexpectedEOF
}

func TestChunks(t *testing.T) {
	for body, want := range map[string]struct {
		data string
		err  error
	}{
		"0\r\n":               {"", nil},
		"5\r\nhello\r\n0\r\n": {"hello", nil},
		"00A;x=\"y\"\r\n0123456789\r\n1\r\na\r\n0000;x\r\n": {"0123456789a", nil},
		"5\r\nhel":                       {"hel", io.ErrUnexpectedEOF},
		"":                               {"", io.ErrUnexpectedEOF},
		"\r\n":                           {"", ErrChunkSize},
		";a\r\n":                         {"", ErrChunkSize},
		"g\r\n":                          {"", ErrChunkSize},
		"5\n":                            {"", ErrChunkSize},
		"5\rx":                           {"", ErrChunk},
		"5\r\nhelloX\n":                  {"hello", ErrChunk},
		"5\r\nhello\rX":                  {"hello", ErrChunk},
		"7fffffffffffffff\r\n":           {"", io.ErrUnexpectedEOF},
		"8000000000000000\r\n":           {"", ErrChunkSize},
		"5;\x7f":                         {"", ErrChunk},
		"0;" + strings.Repeat("0", 300):  {"", ErrChunkLine},
		strings.Repeat("0", 16) + "\r\n": {"", nil},
		strings.Repeat("0", 17) + "\r\n": {"", ErrChunkSize},
	} {
		for n := 1; n < 40; n++ {
			data, _, err := decode(body, n)
			if data != want.data || !errors.Is(err, want.err) {
				t.Errorf("%q in pieces of %d: %q, %v; want %q, %v", body, n, data, err, want.data, want.err)
			}
		}
	}
}

func TestEnd(t *testing.T) {
	for head, want := range map[string]int{
		"": 0, "a": 0, "a\r\n": 0, "a\r\n\r": 0, "a\r\n\r\n": 5, "a\r\n\r\nb": 5, "\r\nb": 2, "a\r\nb\r\n\r\n": 8,
		"\n": -1, "a\n": -1, "a\r\n\n": -1, "a\r\nb\n": -1, "a\r\r\n\r\n": 6,
	} {
		for cut := range len(head) + 1 { // however it comes
			end, err := End([]byte(head[:cut]), 0)
			if err == nil && end == 0 {
				end, err = End([]byte(head), cut)
			}
			if want < 0 && !errors.Is(err, ErrBareLF) || want >= 0 && (err != nil || end != want) {
				t.Errorf("%q, cut at %d: %d, %v; want %d", head, cut, end, err, want)
			}
		}
	}
}

func TestRequestMeaning(t *testing.T) {
	read := func(head string) Head {
		t.Helper()
		var h Head
		if err := h.Request([]byte(head), 100); err != nil {
			t.Fatalf("%q: %v", head, err)
		}
		return h
	}
	h := read("POST http://h:1/p?q HTTP/1.1\r\nHost: x\r\nConnection: close, TE\r\nTE: trailers\r\nTransfer-Encoding: Chunked\r\nExpect: 100-Continue\r\n\r\n")
	if string(h.Method) != "POST" || string(h.Target) != "/p?q" || string(h.Host) != "h:1" || !h.Close || !h.Trailers || !h.Chunked || !h.Continue || h.Length != -1 || h.Minor != 1 || h.Upgrade {
		t.Errorf("%+v", h)
	}
	h = read("GET / HTTP/1.0\r\nConnection: Keep-Alive, Upgrade\r\nUpgrade: x\r\nExpect: 100-continue\r\nContent-Length: 9223372036854775807\r\n\r\n")
	if !h.Alive || h.Upgrade || h.Continue || h.Length != 1<<63-1 || h.Minor != 0 {
		t.Errorf("%+v", h)
	}
	if h = read("GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"); !h.Upgrade {
		t.Errorf("%+v", h)
	}
}

func TestResponseMeaning(t *testing.T) {
	var h Head
	if err := h.Response([]byte("HTTP/1.0 404 Not  there\r\nConnection: close\r\nContent-Length: 7\r\n\r\n"), 100); err != nil {
		t.Fatal(err)
	}
	if h.Status != 404 || string(h.Reason) != "Not  there" || !h.Close || h.Length != 7 || h.Minor != 0 || !h.HasBody(false) || h.HasBody(true) {
		t.Errorf("%+v", h)
	}
	got := string(h.AppendResponse(nil, AsLength, OptionClose))
	if got != "HTTP/1.1 404 Not  there\r\nContent-Length: 7\r\nConnection: close\r\n\r\n" {
		t.Errorf("%q", got)
	}
	if err := h.Response([]byte("HTTP/1.1 200\r\n\r\n"), 100); err != nil || h.Length != -1 || h.Status != 200 { // without a reason, and without the space before it
		t.Errorf("%v %+v", err, h)
	}
}

// Every reason is told, and to a client as a client's error.
func TestErrorsHaveWords(t *testing.T) {
	seen := map[string]bool{}
	for e := ErrBareLF; e <= ErrTrailer; e++ {
		if seen[e.Error()] || e.Error() == "malformed" || e.Status() < 400 {
			t.Errorf("%d: %d %q", e, e.Status(), e)
		}
		seen[e.Error()] = true
	}
}

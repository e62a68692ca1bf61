package h1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"
)

// FuzzRequest compares with net/http: what is accepted here, written anew, has to mean the same to a reader that has nothing in common with this one, body and all.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: X, close\r\nX: y\r\n\r\nhello",
		"POST http://u:80/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n",
		"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: [::1]:8\r\nConnection: upgrade\r\nUpgrade: websocket\r\nExpect: 100-continue\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		end, err := End(b, 0)
		if err != nil || end == 0 {
			return
		}
		var h Head
		if h.Request(b[:end], 100) != nil {
			return
		}
		head, at := h.AppendRequest(nil)
		out := AppendHost(nil, head, at, string(h.Host))
		var again Head
		if n, err := End(out, 0); err != nil || n != len(out) {
			t.Fatalf("%q became %q, which ends at %d, %v", b, out, n, err)
		}
		if err := again.Request(out, 200); err != nil {
			t.Fatalf("%q became %q: %v", b, out, err)
		}
		if again.Chunked != h.Chunked || again.Length != h.Length || again.Upgrade != h.Upgrade || string(again.Host) != string(h.Host) || string(again.Method) != string(h.Method) {
			t.Fatalf("%q became %q: %+v, %+v", b, out, h, again)
		}
		if head2, _ := again.AppendRequest(nil); string(head2) != string(head) {
			t.Fatalf("%q became %q, which became %q", b, head, head2)
		}
		if !goParses(&h) {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(out)))
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", out, err)
		}
		length := max(h.Length, 0)
		if h.Chunked {
			length = -1
		}
		if r.ContentLength != length || r.Method != string(h.Method) || r.RequestURI != target(&h) || len(r.TransferEncoding) > 1 {
			t.Fatalf("net/http reads %q as %+v", out, r)
		}
	})
}

func target(h *Head) string {
	if len(h.Target) == 0 || h.Target[0] == '?' {
		return "/" + string(h.Target)
	}
	return string(h.Target)
}

// goParses leaves out what net/http refuses and this package doesn't: percent escapes that are none, and Trailer fields that name others.
func goParses(h *Head) bool {
	if bytes.Contains(h.Target, []byte("%")) || bytes.HasPrefix(h.Target, []byte("//")) {
		return false
	}
	for _, f := range h.Fields {
		if f.kind == trailer {
			return false
		}
	}
	return true
}

// FuzzResponse is FuzzRequest for what a backend sends.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HTTP/1.0 404\r\n\r\n", "HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
		"HTTP/1.1 304 x\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n", "HTTP/1.1 204 x\r\nContent-Length: 0\r\nConnection: a\r\nA: b\r\n\r\n",
	} {
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, isHead bool) {
		end, err := End(b, 0)
		if err != nil || end == 0 {
			return
		}
		var h Head
		if h.Response(b[:end], 100) != nil {
			return
		}
		framing, body := AsLength, h.HasBody(isHead)
		if body && h.Length < 0 {
			framing = AsChunks
		}
		option := ""
		if h.Upgrade {
			option = OptionUpgrade
		}
		out := h.AppendResponse(nil, framing, option)
		var again Head
		if n, err := End(out, 0); err != nil || n != len(out) {
			t.Fatalf("%q became %q, which ends at %d, %v", b, out, n, err)
		}
		if err := again.Response(out, 200); err != nil {
			t.Fatalf("%q became %q: %v", b, out, err)
		}
		if again.Status != h.Status || string(again.Reason) != string(h.Reason) || body && again.Chunked != (framing == AsChunks) || body && !again.Chunked && again.Length != h.Length {
			t.Fatalf("%q became %q", b, out)
		}
		if again.Chunked && again.Length >= 0 {
			t.Fatalf("%q became %q: two framings", b, out)
		}
	})
}

// FuzzChunks compares with net/http's reader, which accepts more: what is accepted here is the same body there, and ends in the same place.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"0\r\n", "5\r\nhello\r\n0\r\n\r\n", "a;b=c\r\n0123456789\r\n00\r\nX: y\r\n\r\n", "fffffffffffffff\r\n"} {
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, body string, n int) {
		data, rest, err := decode(body, 1+max(0, n)%100)
		whole, restWhole, errWhole := decode(body, len(body)+1)
		if data != whole || rest != restWhole || (err == nil) != (errWhole == nil) {
			t.Fatalf("%q: in pieces %q %q %v, at once %q %q %v", body, data, rest, err, whole, restWhole, errWhole)
		}
		if err != nil {
			return
		}
		in := bufio.NewReader(strings.NewReader(body))
		want, err := io.ReadAll(httputil.NewChunkedReader(in))
		if err != nil && strings.Contains(err.Error(), "excess") {
			return // it bounds the sum of the extensions, this package each of them
		}
		left, _ := io.ReadAll(in)
		if err != nil || string(want) != data || string(left) != rest {
			t.Fatalf("%q: %q %q; net/http %q %q %v", body, data, rest, want, left, err)
		}
		end, err := End([]byte(rest), 0)
		if err != nil || end == 0 {
			return
		}
		if trailers, err := Trailers([]byte(rest)[:end], 10); err == nil {
			for _, f := range trailers {
				if f.kind != endToEnd || !isToken(f.Name) || !isValue(f.Value) {
					t.Fatalf("trailer %q: %q", f.Name, f.Value)
				}
			}
		}
	})
}

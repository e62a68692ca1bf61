package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// A backend that answers wrongly hurts nobody but who asked it, and who asks next gets his own answer.
func TestHTTP1MaliciousBackend(t *testing.T) {
	const more = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
	long := strings.Repeat("a", 70_000)
	bad := func(head string) string { return "HTTP/1.1 200 OK\r\n" + head + "\r\n\r\n" }
	for name, c := range map[string]struct {
		method, answer string
		want           string // the body, or "502"
	}{
		"CL twice":                  {"GET", bad("Content-Length: 2\r\nContent-Length: 40") + "ok" + more, "502"},
		"CL twice, the same":        {"GET", bad("Content-Length: 2\r\nContent-Length: 2") + "ok", "502"},
		"CL list":                   {"GET", bad("Content-Length: 2, 2") + "ok", "502"},
		"CL negative":               {"GET", bad("Content-Length: -2") + "ok", "502"},
		"CL and TE":                 {"GET", bad("Content-Length: 2\r\nTransfer-Encoding: chunked") + "0\r\n\r\n" + more, "502"},
		"TE gzip":                   {"GET", bad("Transfer-Encoding: gzip, chunked") + "0\r\n\r\n", "502"},
		"TE twice":                  {"GET", bad("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked") + "0\r\n\r\n", "502"},
		"TE of HTTP/1.0":            {"GET", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "502"},
		"no status":                 {"GET", "HTTP/1.1\r\n\r\n", "502"},
		"short status":              {"GET", "HTTP/1.1 20 OK\r\n\r\n", "502"},
		"long status":               {"GET", "HTTP/1.1 2000 OK\r\n\r\n", "502"},
		"status 099":                {"GET", "HTTP/1.1 099 OK\r\n\r\n", "502"},
		"HTTP/2":                    {"GET", "HTTP/2.0 200 OK\r\n\r\n", "502"},
		"HTTP/0.9":                  {"GET", "hello", "502"},
		"a request as answer":       {"GET", smuggled, "502"},
		"LF":                        {"GET", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "502"},
		"CR in the reason":          {"GET", "HTTP/1.1 200 O\rK\r\nContent-Length: 2\r\n\r\nok", "502"},
		"CR in a value":             {"GET", bad("X: a\rSet-Cookie: b\r\nContent-Length: 2") + "ok", "502"},
		"NUL in a value":            {"GET", bad("X: a\x00\r\nContent-Length: 2") + "ok", "502"},
		"folded":                    {"GET", bad("X: a\r\n b\r\nContent-Length: 2") + "ok", "502"},
		"space before the colon":    {"GET", bad("Content-Length : 2") + "ok", "502"},
		"no colon":                  {"GET", bad("X") + "ok", "502"},
		"huge head":                 {"GET", bad("X: "+long) + "ok", "502"},
		"many fields":               {"GET", bad(strings.Repeat("X: y\r\n", 300)+"Y: z") + "ok", "502"},
		"endless reason":            {"GET", "HTTP/1.1 200 " + long + long, "502"},
		"1xx flood":                 {"GET", strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 1000) + bad("Content-Length: 2") + "ok", "502"},
		"1xx with a body":           {"GET", "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nhello" + bad("Content-Length: 2") + "ok", "502"},
		"101 unasked":               {"GET", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n" + more, "502"},
		"more than the length":      {"GET", bad("Content-Length: 2") + "ok" + more, "ok"},
		"more behind chunks":        {"GET", bad("Transfer-Encoding: chunked") + "2\r\nok\r\n0\r\n\r\n" + more, "ok"},
		"204 with a body":           {"GET", "HTTP/1.1 204 No Content\r\nContent-Length: 42\r\n\r\n" + more, ""},
		"204 that owes a body":      {"GET", "HTTP/1.1 204 No Content\r\nContent-Length: 42\r\n\r\n", ""},
		"204 that owes chunks":      {"GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", ""},
		"204 with chunks":           {"GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n2a\r\n" + more + "\r\n0\r\n\r\n", ""},
		"304 with a body":           {"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 42\r\n\r\n" + more, ""},
		"HEAD with a body":          {"HEAD", bad("Content-Length: 42") + more, ""},
		"HEAD with chunks":          {"HEAD", bad("Transfer-Encoding: chunked") + "2a\r\n" + more + "\r\n0\r\n\r\n", ""},
		"two answers":               {"GET", bad("Content-Length: 0") + more, ""},
		"Connection names framing":  {"GET", bad("Connection: Content-Length\r\nContent-Length: 2") + "ok" + more, "ok"},
		"chunk size 2^64":           {"GET", bad("Transfer-Encoding: chunked") + "10000000000000002\r\nok\r\n0\r\n\r\n", "broken"},
		"chunk of LF":               {"GET", bad("Transfer-Encoding: chunked") + "2\nok\r\n0\r\n\r\n", "broken"},
		"framing in trailers":       {"GET", bad("Transfer-Encoding: chunked") + "2\r\nok\r\n0\r\nContent-Length: 9\r\n\r\n", "broken"},
		"short body, then nothing":  {"GET", bad("Content-Length: 200") + "ok", "broken"},
		"short chunk, then nothing": {"GET", bad("Transfer-Encoding: chunked") + "20\r\nok", "broken"},
	} {
		t.Run(name, func(t *testing.T) {
			var conns sync.Map
			addr := tcpBackend(t, "tcp4", func(tc *net.TCPConn) {
				in := bufio.NewReader(tc)
				for n := 0; ; n++ {
					req, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					io.Copy(io.Discard, req.Body)
					if req.URL.Path == "/evil" {
						io.WriteString(tc, c.answer)
						conns.Store(tc, true)
						if c.want == "broken" || c.want == "502" {
							tc.CloseWrite()
						}
						continue
					}
					if _, evil := conns.Load(tc); evil {
						io.WriteString(tc, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nreused")
						continue
					}
					io.WriteString(tc, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclean")
				}
			})
			r := newRig(t, asHTTP1)
			r.backends(addr)
			cl := r.client()
			in := bufio.NewReader(cl)
			fmt.Fprintf(cl, "%s /evil HTTP/1.1\r\nHost: x\r\n\r\n", c.method)
			resp, err := http.ReadResponse(in, &http.Request{Method: c.method})
			for err == nil && resp.StatusCode < 200 {
				resp, err = http.ReadResponse(in, &http.Request{Method: c.method})
			}
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			switch {
			case c.want == "broken":
				if err == nil {
					t.Errorf("a broken body ended well: %q", body)
				}
			case err != nil:
				t.Error(err)
			case c.want == "502":
				if resp.StatusCode != 502 || !strings.HasPrefix(string(body), "lbagent: user: "+addr+": ") {
					t.Errorf("%d %q", resp.StatusCode, body)
				}
			case string(body) != c.want || resp.StatusCode == 502:
				t.Errorf("%d %q, want %q", resp.StatusCode, body, c.want)
			}
			if len(resp.Header["Content-Length"]) > 1 || len(resp.TransferEncoding) > 1 || in.Buffered() > 0 {
				t.Errorf("ambiguous: %v, %d bytes behind it", resp.Header, in.Buffered())
			}
			if resp.StatusCode == 204 && (resp.Header["Content-Length"] != nil || resp.TransferEncoding != nil) {
				t.Errorf("204 with %v", resp.Header)
			}
			await(t, "the connection to be idle or closed", func() bool { return r.state(addr).Outstanding() == 0 })
			for range 3 {
				if code, who := r.get(browser(t), "/good"); code != 200 || who != "clean" {
					t.Errorf("the next caller got %d %q", code, who)
				}
			}
		})
	}
}

// Bytes that come on an idle connection answer nobody: it is closed rather than used.
func TestHTTP1UnsolicitedBytes(t *testing.T) {
	poisoned := make(chan struct{})
	poison := make(chan struct{}, 1)
	addr := tcpBackend(t, "tcp4", func(tc *net.TCPConn) {
		in := bufio.NewReader(tc)
		for {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.WriteString(tc, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclean")
			if req.URL.Path == "/evil" {
				<-poison
				io.WriteString(tc, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
				close(poisoned)
			}
		}
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	c := browser(t)
	r.get(c, "/evil")
	poison <- struct{}{}
	<-poisoned
	for range 5 {
		if code, who := r.get(c, "/"); code != 200 || who != "clean" {
			t.Errorf("%d %q", code, who)
		}
	}
	if h := r.state(addr).Snapshot(time.Now()); h.Failures != 0 {
		t.Errorf("%+v", h)
	}
}

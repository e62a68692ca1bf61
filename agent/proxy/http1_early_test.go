package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A hundred requests at once are answered in their order, over one connection to the backend.
func TestHTTP1Pipeline(t *testing.T) {
	var conns atomic.Int32
	addr := scripted(t, func(c *net.TCPConn, in *bufio.Reader, n int) {
		conns.Store(int32(n))
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			b, _ := io.ReadAll(r.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s%s", len(r.URL.Path)+len(b), r.URL.Path, b)
		}
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	var send, want strings.Builder
	for i := range 100 {
		switch i % 3 {
		case 0:
			fmt.Fprintf(&send, "GET /%d HTTP/1.1\r\nHost: x\r\n\r\n", i)
			fmt.Fprintf(&want, "/%d", i)
		case 1:
			body := strings.Repeat("b", i*100)
			fmt.Fprintf(&send, "POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", i, len(body), body)
			fmt.Fprintf(&want, "/%d%s", i, body)
		case 2:
			fmt.Fprintf(&send, "PUT /%d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", i)
			fmt.Fprintf(&want, "/%dabc", i)
		}
	}
	c := r.client()
	go io.WriteString(c, send.String())
	in := bufio.NewReader(c)
	var got strings.Builder
	for range 100 {
		got.WriteString(bodyOf(t, answer(t, in, "GET")))
	}
	if got.String() != want.String() {
		t.Error("answers differ, or their order does")
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections to the backend", n)
	}
}

// An answer that comes before the request was sent reaches the client, which goes on sending; no connection is used again.
func TestHTTP1EarlyAnswer(t *testing.T) {
	t.Parallel() // it waits
	addr := scripted(t, func(c *net.TCPConn, in *bufio.Reader, _ int) {
		if _, err := http.ReadRequest(in); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 413 Too much\r\nContent-Length: 7\r\n\r\nenough!")
		if n, err := in.ReadByte(); err == nil && n == 'z' {
			io.Copy(io.Discard, in)
		}
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	for _, first := range []string{"z", "y"} { // a backend that goes on reading, and one that resets
		c := r.client()
		go c.Write(append([]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"+first), make([]byte, 10<<20)...))
		in := bufio.NewReader(c)
		resp := answer(t, in, "POST")
		if b := bodyOf(t, resp); resp.StatusCode != 413 || b != "enough!" {
			t.Errorf("%s %q", resp.Status, b)
		}
		if _, err := in.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("not closed: %v", err)
		}
	}
	await(t, "the end", func() bool { return r.stats().Active["http1"] == 0 && r.state(addr).Outstanding() == 0 })
}

// Request and answer may run at once for as long as they like.
func TestHTTP1BothWaysAtOnce(t *testing.T) {
	addr := web(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		b := make([]byte, 4)
		for {
			if _, err := io.ReadFull(r.Body, b); err != nil {
				return
			}
			w.Write(b)
			w.(http.Flusher).Flush()
		}
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	c := r.client()
	in := bufio.NewReader(c)
	resp := ask(t, c, in, "POST", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	for range 20 {
		io.WriteString(c, "4\r\nping\r\n")
		b := make([]byte, 4)
		if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "ping" {
			t.Fatalf("%q %v", b, err)
		}
	}
	io.WriteString(c, "0\r\n\r\n")
	if b := bodyOf(t, resp); b != "" {
		t.Errorf("%q", b)
	}
	// Both connections go on.
	resp = ask(t, c, in, "POST", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nlast")
	if b := bodyOf(t, resp); b != "last" {
		t.Errorf("%q", b)
	}
}

// 4.1: a reused connection that closes before a byte of the answer: sent again if the method is idempotent and the body is kept (4.3), else the caller is told.
func TestHTTP1ClosedBeforeAnswer(t *testing.T) {
	small, large := strings.Repeat("s", 40<<10), strings.Repeat("l", 200<<10)
	for name, c := range map[string]struct {
		method, body string
		status       int
		says         string
	}{
		"GET":        {"GET", "", 200, ""},
		"PUT":        {"PUT", "p", 200, ""},
		"PUT, 40 KB": {"PUT", small, 200, ""},
		"PUT large":  {"PUT", large, 502, "can't be sent again"},
		"POST":       {"POST", "p", 502, "closed before an answer"},
		"POST, 40KB": {"POST", small, 502, ""},
		"PATCH":      {"PATCH", "", 502, "closed before an answer"},
	} {
		t.Run(name, func(t *testing.T) {
			var requests, sums atomic.Int32
			addr := scripted(t, func(tc *net.TCPConn, in *bufio.Reader, n int) {
				for i := 0; ; i++ {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					b, err := io.ReadAll(r.Body)
					if err != nil {
						return
					}
					if r.URL.Path == "/second" {
						requests.Add(1)
						if n == 1 {
							return // it got everything, and says nothing
						}
						sums.Store(int32(len(b)))
					}
					io.WriteString(tc, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			})
			r := newRig(t, asHTTP1)
			r.backends(addr)
			cl := browser(t)
			r.get(cl, "/first")
			req, _ := http.NewRequest(c.method, "http://"+r.addr+"/second", strings.NewReader(c.body))
			resp, err := cl.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != c.status || !strings.Contains(string(b), c.says) {
				t.Errorf("%d %q", resp.StatusCode, b)
			}
			want := int32(1)
			if c.status == 200 {
				want = 2
				if n := sums.Load(); int(n) != len(c.body) {
					t.Errorf("the second time %d bytes came, want %d", n, len(c.body))
				}
			}
			if n := requests.Load(); n != want {
				t.Errorf("the backend got it %d times, want %d", n, want)
			}
			await(t, "nothing kept", func() bool { return r.proxy.h1.buffered.Load() == 0 && r.state(addr).Outstanding() == 0 })
		})
	}
}

// A client that leaves is noticed at once, whatever it leaves.
func TestHTTP1ClientLeaves(t *testing.T) {
	for name, head := range map[string]string{
		"waiting":         "GET /wait HTTP/1.1\r\nHost: x\r\n\r\n",
		"waiting, posted": "POST /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi",
		"uploading":       "POST /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\nhi",
		"chunks":          "POST /wait HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
		"downloading":     "GET /endless HTTP/1.1\r\nHost: x\r\n\r\n",
		"upgraded":        "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			began, left := make(chan struct{}), make(chan struct{})
			addr := scripted(t, func(c *net.TCPConn, in *bufio.Reader, _ int) {
				r, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				close(began)
				switch r.URL.Path {
				case "/endless":
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
					for {
						if _, err := c.Write(make([]byte, 64<<10)); err != nil {
							break
						}
					}
				case "/upgrade":
					io.WriteString(c, "HTTP/1.1 101 OK\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
				}
				io.Copy(io.Discard, in)
				close(left)
			})
			r := newRig(t, asHTTP1)
			r.backends(addr)
			c := r.client()
			io.WriteString(c, head)
			<-began
			c.SetLinger(0)
			c.Close()
			select {
			case <-left:
			case <-time.After(patience):
				t.Fatal("the backend was not told")
			}
			await(t, "the accounts", func() bool { return r.stats().Active["http1"] == 0 && r.state(addr).Outstanding() == 0 })
			if h := r.state(addr).Snapshot(time.Now()); h.Failures != 0 {
				t.Errorf("the backend is blamed: %+v", h)
			}
		})
	}
}

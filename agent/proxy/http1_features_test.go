package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/testneed"
	"golang.org/x/sys/unix"
)

// scripted is a backend whose connections are served by hand: each request's head is read by net/http, the rest is the script's.
func scripted(t testing.TB, serve func(c *net.TCPConn, in *bufio.Reader, n int)) string {
	var conns atomic.Int32
	return tcpBackend(t, "tcp4", func(c *net.TCPConn) { serve(c, bufio.NewReader(c), int(conns.Add(1))) })
}

// ask writes a request's head and reads the final head of its answer.
func ask(t testing.TB, c io.Writer, in *bufio.Reader, method, head string) *http.Response {
	t.Helper()
	io.WriteString(c, head)
	return answer(t, in, method)
}

func answer(t testing.TB, in *bufio.Reader, method string) *http.Response {
	t.Helper()
	resp, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func bodyOf(t testing.TB, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%v behind %q", err, b)
	}
	return string(b)
}

// An upgraded connection carries bytes both ways at once, as many as they are, and each direction ends by itself.
func TestHTTP1UpgradeHalfClose(t *testing.T) {
	const size = 8 << 20
	backendRead := make(chan int64, 1)
	addr := scripted(t, func(c *net.TCPConn, in *bufio.Reader, _ int) {
		r, err := http.ReadRequest(in)
		if err != nil || r.Header.Get("Connection") != "Upgrade" || r.Header.Get("Upgrade") != "websocket" {
			t.Errorf("%v %v", r, err)
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst ")
		var up sync.WaitGroup
		up.Go(func() {
			n, _ := io.Copy(io.Discard, in)
			backendRead <- n
		})
		c.Write(make([]byte, size))
		c.CloseWrite()
		up.Wait()
	})
	r := newRig(t, func(s *Service) { s.Protocol = "http1"; s.Idle = 50 * time.Millisecond })
	r.backends(addr)
	c := r.client()
	in := bufio.NewReader(c)
	resp := ask(t, c, in, "GET", "GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nearly ")
	if resp.StatusCode != 101 {
		t.Fatal(resp.Status)
	}
	idle := time.After(200 * time.Millisecond) // timeout.idle is nothing to a tunnel
	if n, err := io.Copy(io.Discard, in); err != nil || n != size+6 {
		t.Fatalf("%d bytes, %v", n, err)
	}
	<-idle
	c.Write(make([]byte, size)) // the other direction is still open
	c.CloseWrite()
	if n := <-backendRead; n != size+6 {
		t.Errorf("the backend got %d bytes", n)
	}
	await(t, "the end", func() bool { return r.stats().Active["http1"] == 0 })
}

// A refused upgrade is an answer like another.
func TestHTTP1UpgradeRefused(t *testing.T) {
	addr := web(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			w.Header().Set("Upgrade", "TLS/1.0")
			w.WriteHeader(426)
			io.WriteString(w, "no, thank you")
			return
		}
		io.WriteString(w, "next")
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	c := r.client()
	in := bufio.NewReader(c)
	resp := ask(t, c, in, "GET", "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if b := bodyOf(t, resp); resp.StatusCode != 426 || b != "no, thank you" || resp.Header.Get("Upgrade") != "TLS/1.0" || resp.Header.Get("Connection") != "Upgrade" {
		t.Errorf("%v %q", resp, b)
	}
	if b := bodyOf(t, ask(t, c, in, "GET", "GET /2 HTTP/1.1\r\nHost: x\r\n\r\n")); b != "next" {
		t.Errorf("%q", b)
	}
}

// Whoever asks before he sends a body is told by the backend, whichever way it answers.
func TestHTTP1Continue(t *testing.T) {
	const head = "POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
	for name, c := range map[string]struct {
		backend   func(c *net.TCPConn, in *bufio.Reader)
		continues bool
		status    int
	}{
		"said": {func(c *net.TCPConn, in *bufio.Reader) {
			io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
			io.ReadFull(in, make([]byte, 5))
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}, true, 200},
		"never said": {func(c *net.TCPConn, in *bufio.Reader) {
			io.ReadFull(in, make([]byte, 5))
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}, true, 200},
		"refused": {func(c *net.TCPConn, in *bufio.Reader) {
			io.WriteString(c, "HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
		}, false, 417},
		"forbidden": {func(c *net.TCPConn, in *bufio.Reader) {
			io.WriteString(c, "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
		}, false, 401},
	} {
		t.Run(name, func(t *testing.T) {
			reused := make(chan string, 10)
			addr := scripted(t, func(tc *net.TCPConn, in *bufio.Reader, n int) {
				for {
					// Not http.ReadRequest's Body: that would read the body of a request whose sender was refused.
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					reused <- fmt.Sprint(n, " ", r.Method, " ", r.Header.Get("Expect"))
					if r.Method == "POST" {
						c.backend(tc, in)
					} else {
						io.WriteString(tc, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					}
				}
			})
			r := newRig(t, asHTTP1)
			r.backends(addr)
			cl := r.client()
			in := bufio.NewReader(cl)
			resp := ask(t, cl, in, "POST", head)
			if c.continues {
				if resp.StatusCode != 100 {
					t.Fatal(resp.Status)
				}
				io.WriteString(cl, "hello")
				resp = answer(t, in, "POST")
			}
			if resp.StatusCode != c.status || resp.Close == c.continues {
				t.Errorf("%s, close %v", resp.Status, resp.Close)
			}
			// A body that was never sent is not the next request's beginning: neither here, where the connection ends, nor at the backend.
			if !c.continues {
				if _, err := in.ReadByte(); err != io.EOF {
					t.Errorf("not closed: %v", err)
				}
			}
			await(t, "the connection to be idle", func() bool { return r.state(addr).Outstanding() == 0 })
			r.get(browser(t), "/")
			want := "1 GET "
			if !c.continues {
				want = "2 GET "
			}
			if first, next := <-reused, <-reused; first != "1 POST 100-continue" || next != want {
				t.Errorf("%q, then %q", first, next)
			}
		})
	}
}

// Interim responses pass; HTTP/1.0 clients don't know them.
func TestHTTP1Interim(t *testing.T) {
	addr := scripted(t, func(c *net.TCPConn, in *bufio.Reader, _ int) {
		for {
			if _, err := http.ReadRequest(in); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 Fine, thanks\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	for version, want := range map[string]string{
		"1": "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 Fine, thanks\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
		"0": "HTTP/1.1 200 Fine, thanks\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
	} {
		if got := r.say("GET / HTTP/1." + version + "\r\nHost: x\r\nConnection: close\r\n\r\n"); got != want {
			t.Errorf("HTTP/1.%s got %q", version, got)
		}
	}
}

// Trailers pass both ways, announced or not, to whom can take them.
func TestHTTP1Trailers(t *testing.T) {
	addr := scripted(t, func(c *net.TCPConn, in *bufio.Reader, _ int) {
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: %s\r\nUnannounced: %s\r\n\r\n",
				r.Trailer.Get("X-Req"), r.Trailer.Get("Other"))
		}
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	const body = "3\r\nabc\r\n0\r\nX-Req: 1\r\nOther: 2\r\n\r\n"
	got := r.say("POST / HTTP/1.1\r\nHost: x\r\nTrailer: X-Req\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + body)
	want := "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0002\r\nok\r\n0\r\nX-Sum: 1\r\nUnannounced: 2\r\n\r\n"
	if got != want {
		t.Errorf("got %q", got)
	}
	if got := r.say("GET / HTTP/1.0\r\n\r\n"); got != "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok" {
		t.Errorf("HTTP/1.0 got %q", got)
	}
}

// HEAD has a length and no body; the connection goes on behind it on both sides.
func TestHTTP1Head(t *testing.T) {
	addr := web(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		if r.Method != "HEAD" {
			w.Write(make([]byte, 1000))
		}
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	c := r.client()
	in := bufio.NewReader(c)
	for range 3 {
		if resp := ask(t, c, in, "HEAD", "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"); resp.ContentLength != 1000 || resp.Close {
			t.Fatalf("%+v", resp)
		}
	}
	if b := bodyOf(t, ask(t, c, in, "GET", "GET / HTTP/1.1\r\nHost: x\r\n\r\n")); len(b) != 1000 {
		t.Errorf("%d bytes", len(b))
	}
}

// Clients of HTTP/1.0: without Host, without chunks, without keep-alive unless they ask.
func TestHTTP1OldClients(t *testing.T) {
	hosts := make(chan string, 10)
	addr := web(t, func(w http.ResponseWriter, r *http.Request) {
		hosts <- fmt.Sprint(r.Host, r.ProtoMinor)
		if r.URL.Path == "/chunks" {
			io.WriteString(w, "one ")
			w.(http.Flusher).Flush()
			io.WriteString(w, "two")
			return
		}
		b, _ := io.ReadAll(r.Body)
		io.WriteString(w, "length "+string(b))
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	if got := r.say("GET /chunks HTTP/1.0\r\n\r\n"); !strings.HasSuffix(got, "\r\n\r\none two") || strings.Contains(got, "chunked") {
		t.Errorf("got %q", got)
	}
	if got := <-hosts; got != addr+"1" {
		t.Errorf("Host %q", got)
	}
	if got := r.say("POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi"); !strings.HasSuffix(got, "length hi") {
		t.Errorf("got %q", got)
	}
	<-hosts
	c := r.client()
	in := bufio.NewReader(c)
	for range 2 {
		resp := ask(t, c, in, "GET", "GET / HTTP/1.0\r\nHost: old\r\nConnection: keep-alive\r\n\r\n")
		if resp.Header.Get("Connection") != "keep-alive" || bodyOf(t, resp) != "length " {
			t.Errorf("%v", resp)
		}
		if got := <-hosts; got != "old1" {
			t.Errorf("Host %q", got)
		}
	}
	// What has no length ends with the connection, whatever the client asked for.
	if resp := ask(t, c, in, "GET", "GET /chunks HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"); bodyOf(t, resp) != "one two" {
		t.Errorf("%v", resp)
	}
}

// A backend of HTTP/1.0, whose body ends with its connection: chunked for who knows chunks, and a broken one doesn't look like a whole.
func TestHTTP1OldBackends(t *testing.T) {
	addr := scripted(t, func(c *net.TCPConn, in *bufio.Reader, _ int) {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\nbody")
		if r.URL.Path == "/broken" {
			c.SetLinger(0)
		}
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	c := r.client()
	in := bufio.NewReader(c)
	for range 2 {
		if resp := ask(t, c, in, "GET", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); bodyOf(t, resp) != "body" || resp.Close || len(resp.TransferEncoding) != 1 {
			t.Errorf("%+v", resp)
		}
	}
	for _, version := range []string{"1", "0"} {
		old := r.client()
		io.WriteString(old, "GET /broken HTTP/1."+version+"\r\nHost: x\r\n\r\n")
		in := bufio.NewReader(old)
		resp, err := http.ReadResponse(in, nil)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
		}
		if err == nil {
			t.Errorf("HTTP/1.%s: the broken body looks whole", version)
		}
	}
}

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

// timeout.request ends what has begun as well; the backend is charged with the time.
func TestHTTP1RequestTimeoutInBody(t *testing.T) {
	addr := web(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "part")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	r := newRig(t, func(s *Service) { s.Protocol = "http1"; s.Request = 100 * time.Millisecond })
	r.backends(addr)
	resp, err := browser(t).Get("http://" + r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil || string(b) != "part" {
		t.Errorf("%q %v", b, err)
	}
	await(t, "the end", func() bool { return r.state(addr).Outstanding() == 0 && r.stats().Active["http1"] == 0 })
}

// Clients that are slow with their head, their body, or taking the answer have their time, and then the connection ends.
func TestHTTP1SlowClients(t *testing.T) {
	for name, c := range map[string]struct {
		send   string
		status int
	}{
		"head":  {"GET / HTTP/1.1\r\nHost", 408},
		"body":  {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf", 408},
		"chunk": {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal", 408},
		"none":  {"", 0},
	} {
		t.Run(name, func(t *testing.T) {
			rec := newRecorder(t)
			r := newRig(t, func(s *Service) { s.Protocol = "http1"; s.Idle = 100 * time.Millisecond })
			r.proxy.h1.headers = 100 * time.Millisecond
			r.backends(rec.addr)
			got := r.say(c.send)
			if c.status == 0 && got != "" || c.status != 0 && !strings.HasPrefix(got, fmt.Sprintf("HTTP/1.1 %d ", c.status)) {
				t.Errorf("got %q", got)
			}
			await(t, "the end", func() bool { return r.stats().Active["http1"] == 0 && r.state(rec.addr).Outstanding() == 0 })
			if h := r.state(rec.addr).Snapshot(time.Now()); h.Failures != 0 {
				t.Errorf("the backend is blamed: %+v", h)
			}
		})
	}
	for _, head := range []string{"Content-Length: 1000000000", "Transfer-Encoding: chunked"} {
		t.Run("answer by "+head, func(t *testing.T) {
			ended := make(chan struct{})
			addr := scripted(t, func(c *net.TCPConn, in *bufio.Reader, _ int) {
				if _, err := http.ReadRequest(in); err != nil {
					return
				}
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%s\r\n\r\n", head)
				for {
					if _, err := c.Write([]byte("10000\r\n" + strings.Repeat("x", 65536) + "\r\n")); err != nil {
						close(ended)
						return
					}
				}
			})
			r := newRig(t, func(s *Service) { s.Protocol = "http1"; s.Idle = 100 * time.Millisecond })
			r.backends(addr)
			c := r.client()
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			select {
			case <-ended:
			case <-time.After(patience):
				t.Fatal("a client that doesn't read is kept for ever")
			}
			await(t, "the end", func() bool { return r.stats().Active["http1"] == 0 })
			if h := r.state(addr).Snapshot(time.Now()); h.Failures != 0 {
				t.Errorf("the backend is blamed: %+v", h)
			}
		})
	}
}

// 4.7: a call that was picked before a removal and begins after it has the time of the drain like the others.
func TestHTTP1BeginsAfterRemoval(t *testing.T) {
	addr := web(t, saying("x"))
	r := newRig(t, func(s *Service) { s.Protocol = "http1"; s.Drain = 20 * time.Millisecond })
	r.backends(addr)
	r.get(browser(t), "/")
	s := r.proxy.h1.all()[0]
	pools := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.pools)
	}
	await(t, "an idle connection", func() bool { return pools() == 1 })
	old := r.svc.View()
	b := old.Pick(time.Now(), nil)
	r.backends()
	await(t, "the removal to be seen", func() bool { return pools() == 0 })
	a := &attempt{x: &exchange{s: s}, b: b, view: old}
	b.State.Begin()
	if s.begin(a) != nil {
		t.Error("an idle connection was kept")
	}
	await(t, "the drain's end", func() bool { return a.x.why() == errBackendRemoved })
	if a.end(nil); b.State.Outstanding() != 0 {
		t.Errorf("%d outstanding", b.State.Outstanding())
	}
}

// 2.11: no TCP_USER_TIMEOUT ends an upload to a backend that takes its time.
func TestHTTP1BackendMayPause(t *testing.T) {
	addr := web(t, saying("x"))
	r := newRig(t, asHTTP1)
	r.backends(addr)
	r.get(browser(t), "/")
	s := r.proxy.h1.all()[0]
	var conn *http1Backend
	await(t, "the connection to be idle", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, p := range s.pools {
			conn = p.idle[0]
		}
		return conn != nil
	})
	err := conn.raw.Control(func(fd uintptr) {
		timeout, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		idle, err2 := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
		if timeout != 0 || idle != 5 || err != nil || err2 != nil {
			t.Errorf("user timeout %d, keepalive after %d s, %v, %v", timeout, idle, err, err2)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// Idle connections end after timeout.idle, on both sides.
func TestHTTP1IdleEnds(t *testing.T) {
	closed := make(chan struct{})
	addr := scripted(t, func(c *net.TCPConn, in *bufio.Reader, _ int) {
		for {
			if _, err := http.ReadRequest(in); err != nil {
				close(closed)
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	r := newRig(t, func(s *Service) { s.Protocol = "http1"; s.Idle = 50 * time.Millisecond })
	r.backends(addr)
	c := r.client()
	in := bufio.NewReader(c)
	bodyOf(t, ask(t, c, in, "GET", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("the client's: %v", err)
	}
	r.proxy.h1.all()[0].look() // it comes every 5 s
	select {
	case <-closed:
	case <-time.After(patience):
		t.Error("the backend's is still open")
	}
}

// Large bodies stream both ways, by length and in chunks, through memory that stays as it is: a gigabyte each where every test runs, which takes a while.
func TestHTTP1LargeBodiesTakeNoMemory(t *testing.T) {
	size := int64(100 << 20)
	if os.Getenv(testneed.AllVariable) == "1" {
		size = 1 << 30
	}
	addr := web(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil || r.Method == "POST" && n != size {
			w.WriteHeader(400)
			return
		}
		if r.Method == "GET" {
			if r.URL.Path == "/length" {
				w.Header().Set("Content-Length", fmt.Sprint(size))
			}
			io.Copy(w, io.LimitReader(zeros{}, size))
		}
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	c := browser(t)
	c.Timeout = 0
	r.get(c, "/small")
	var most atomic.Uint64
	stop, sampled := make(chan struct{}), make(chan struct{})
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	go func() {
		defer close(sampled)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			most.Store(max(most.Load(), now.HeapInuse))
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	for _, path := range []string{"/length", "/chunks"} {
		resp, err := c.Get("http://" + r.addr + path)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
			t.Errorf("%s: %d bytes, %v", path, n, err)
		}
		resp.Body.Close()
		req, _ := http.NewRequest("POST", "http://"+r.addr, io.LimitReader(zeros{}, size))
		if path == "/length" {
			req.ContentLength = size
		}
		resp, err = c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("upload %s: %s", path, resp.Status)
		}
	}
	close(stop)
	<-sampled
	if grown := int64(most.Load()) - int64(before.HeapInuse); grown > 24<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// Idle connections have a goroutine and no buffer.
func TestHTTP1IdleConnectionsAreSmall(t *testing.T) {
	const n = 500
	r := newRig(t, asHTTP1)
	r.backends(web(t, saying("x")))
	r.get(browser(t), "/")
	memory := func() int64 {
		runtime.GC()
		runtime.GC() // pools keep what they have over one
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	before, goroutines := memory(), runtime.NumGoroutine()
	for range n {
		c := r.client()
		in := bufio.NewReaderSize(c, 16)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		for line := ""; line != "\r\n"; {
			var err error
			if line, err = in.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		in.ReadByte()
	}
	await(t, "all to be idle", func() bool {
		s := r.proxy.h1.all()[0]
		s.mu.Lock()
		defer s.mu.Unlock()
		idle := 0
		for c := range s.clients {
			if c.idle {
				idle++
			}
		}
		return idle >= n
	})
	if got := runtime.NumGoroutine() - goroutines; got > n+10 {
		t.Errorf("%d goroutines for %d idle connections", got, n)
	}
	bytes := (memory() - before) / n
	t.Logf("%d bytes each, the client's side included", bytes)
	if bytes > 16<<10 {
		t.Errorf("%d bytes for an idle connection", bytes)
	}
}

package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
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
	t.Parallel() // it waits
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
	t.Parallel() // it waits
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

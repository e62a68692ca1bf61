package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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

// Large bodies stream both ways, by length and in chunks, through memory that stays as it is.
func TestHTTP1LargeBodiesTakeNoMemory(t *testing.T) {
	const size = int64(100 << 20)
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

package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A reused connection that the backend closed meanwhile is no error for anybody: also not for a request with a body (4.1).
func TestHTTP1StaleConnection(t *testing.T) {
	t.Parallel() // it waits
	var conns atomic.Int32
	addr := tcpBackend(t, "tcp4", func(c *net.TCPConn) { // one answer per connection, without saying so
		conns.Add(1)
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	c := browser(t)
	for i := range 200 {
		body := fmt.Sprint("body ", i)
		req, _ := http.NewRequest("PUT", "http://"+r.addr, strings.NewReader(body))
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(got) != body {
			t.Fatalf("request %d: %d %q", i, resp.StatusCode, got)
		}
	}
	if h := r.state(addr).Snapshot(time.Now()); h.Failures != 0 || conns.Load() < 200 {
		t.Errorf("%+v, %d connections", h, conns.Load())
	}
}

// 4.7: idle connections to a removed backend are closed now, running requests have the drain, and no new one goes there.
func TestHTTP1RemovedBackend(t *testing.T) {
	conns := make(chan net.Conn, 10)
	states := make(chan http.ConnState, 100)
	began := make(chan struct{}, 1)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			began <- struct{}{}
			<-r.Context().Done()
		}
	}))
	s.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns <- c
		}
		states <- state
	}
	s.Start()
	defer s.Close()
	addr := s.Listener.Addr().String()
	r := newRig(t, func(s *Service) { s.Protocol = "http1"; s.Drain = 50 * time.Millisecond })
	r.backends(addr)
	c := browser(t)
	r.get(c, "/")
	answer := make(chan string, 1)
	go func() {
		code, text := r.get(c, "/hang")
		answer <- fmt.Sprint(code, " ", text)
	}()
	<-began
	r.get(browser(t), "/") // a second connection, idle again
	r.backends(web(t, saying("other")))
	closed := 0
	for closed == 0 {
		select {
		case state := <-states:
			if state == http.StateClosed {
				closed++
			}
		case <-time.After(patience):
			t.Fatal("the idle connection was not closed")
		}
	}
	if got := <-answer; got != "503 lbagent: user: backend removed\n" {
		t.Errorf("the running request got %q", got)
	}
	if _, who := r.get(c, "/"); who != "other" {
		t.Errorf("answered by %q", who)
	}
}

// 6.2: a running request has its time when the proxy stops; then nothing is left.
func TestHTTP1StopIsGraceful(t *testing.T) {
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	t.Run("run", func(t *testing.T) {
		r := newTwo(t)
		began, end := make(chan struct{}), make(chan struct{})
		addr := web(t, func(w http.ResponseWriter, _ *http.Request) { close(began); <-end; io.WriteString(w, "done") })
		applyList(t, r.table, "a", addr)
		at := free(t)
		s := svc("a", at)
		s.Protocol, s.Idle = "http1", time.Minute
		r.apply(s)
		answer := make(chan string, 1)
		go func() {
			resp, err := browser(t).Get("http://" + at.String())
			if err != nil {
				answer <- err.Error()
				return
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			answer <- fmt.Sprint(string(b), resp.Close)
		}()
		<-began
		silent, err := net.Dial("tcp", at.String()) // one that has not asked anything yet holds up nobody
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		await(t, "it to be taken", func() bool { return r.p.clients.Load() == 2 })
		r.cancel()
		silent.SetDeadline(time.Now().Add(stopGrace))
		if _, err := silent.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the silent connection: %v", err)
		}
		await(t, "refusal of new ones", func() bool {
			c, err := net.Dial("tcp", at.String())
			if err != nil {
				return true
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			_, err = c.Read(make([]byte, 1))
			return err != nil
		})
		close(end)
		if got := <-answer; got != "donetrue" {
			t.Errorf("got %q", got)
		}
		r.stop()
	})
	await(t, "nothing left", func() bool { return openFiles(t) <= files && runtime.NumGoroutine() <= goroutines })
}

// What doesn't end in time is ended: Run returns about 5 s after its context, whatever peers do.
func TestStopIsBounded(t *testing.T) {
	t.Parallel() // it waits
	r := newTwo(t)
	hang := web(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	applyList(t, r.table, "b", hang)
	web1, raw := free(t), free(t)
	h := svc("b", web1)
	h.Protocol = "http1"
	r.apply(svc("a", raw), h)
	for _, a := range []Addr{web1, raw} {
		c, err := net.Dial("tcp", a.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	await(t, "both to run", func() bool {
		n := 0
		for _, s := range r.p.Stats().Services {
			n += int(s.Picks)
		}
		return n == 2
	})
	began := time.Now()
	r.stop()
	if took := time.Since(began); took < stopGrace || took > stopGrace+patience/4 {
		t.Errorf("stopped after %v", took)
	}
}

func TestHTTP1ThousandConnectionsLeaveNothing(t *testing.T) {
	r := newRig(t, asAuto)
	r.backends(web(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }), refusing(t))
	first := browser(t)
	r.get(first, "/")
	first.CloseIdleConnections()
	idle := func() { // what the proxy keeps on purpose
		r.proxy.h1.mu.Lock()
		defer r.proxy.h1.mu.Unlock()
		for _, s := range r.proxy.h1.servers {
			s.closeIdle()
		}
	}
	await(t, "the first to be gone", func() bool { idle(); return r.stats().Active["http1"] == 0 })
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			for i := range 100 {
				c, err := net.Dial("tcp", r.addr)
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(patience))
				switch i % 4 {
				case 0: // leaves in the middle of the head
					io.WriteString(c, "GET / HT")
				case 1: // in the middle of the body
					io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
				case 2: // before the answer
					io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				case 3:
					io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
					io.Copy(io.Discard, c)
				}
				c.Close()
			}
		})
	}
	all.Wait()
	await(t, "nothing left", func() bool {
		idle()
		return r.stats().Active["http1"] == 0 && r.proxy.clients.Load() == 0 && openFiles(t) <= files && runtime.NumGoroutine() <= goroutines
	})
	for _, b := range r.svc.View().Backends() {
		if n := b.State.Outstanding(); n != 0 {
			t.Errorf("%s: %d outstanding", b.Addr, n)
		}
	}
	if n := r.proxy.h1.buffered.Load(); n != 0 {
		t.Errorf("%d bytes of bodies are kept", n)
	}
}

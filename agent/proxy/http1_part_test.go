package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
)

// idling is a connection on which a request was answered, and another may follow.
func idling(t *testing.T, r *rig) (c *net.TCPConn, in *bufio.Reader) {
	t.Helper()
	c = r.client()
	in = bufio.NewReader(c)
	if resp := ask(t, c, in, "GET", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); resp.Close || bodyOf(t, resp) != "ok" {
		t.Fatalf("the first answer: %+v", resp)
	}
	return c, in
}

const post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"

// After an upgrade, a kept connection has time for one more request, which no client may repeat by itself; its answer says that it is the last (6.3).
func TestHTTP1HandOnServesOneMoreRequest(t *testing.T) {
	r := newRig(t, asHTTP1)
	r.backends(web(t, saying("ok")))
	c, in := idling(t, r)
	r.proxy.h1.retire()
	resp := ask(t, c, in, "POST", post)
	if got := bodyOf(t, resp); got != "ok" || !resp.Close {
		t.Errorf("%q, the last one: %v", got, resp.Close)
	}
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("behind the last answer: %v", err)
	}
}

// A request that meets the end of its idle connection has its answer, or nothing has become of it and the connection has ended cleanly; it is never reset.
func TestHTTP1EndOfIdleConnectionsLosesNothing(t *testing.T) {
	t.Parallel() // it waits
	const conns = 200
	r := newRig(t, asHTTP1)
	var asked atomic.Int64
	r.backends(web(t, func(w http.ResponseWriter, req *http.Request) {
		if req.Method == "POST" {
			asked.Add(1)
		}
		io.WriteString(w, "ok")
	}))
	var cs [conns]*net.TCPConn
	var ins [conns]*bufio.Reader
	for i := range conns {
		cs[i], ins[i] = idling(t, r)
	}
	var answered atomic.Int64
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i := range conns {
		all.Go(func() {
			<-begin
			if _, err := io.WriteString(cs[i], post); err != nil {
				t.Errorf("send: %v", err) // the kernel takes it, unless it has seen a reset
			}
			resp, err := http.ReadResponse(ins[i], nil)
			switch {
			case err == nil:
				if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "ok" || !resp.Close {
					t.Errorf("%q, %v, the last one: %v", b, err, resp.Close)
				}
				answered.Add(1)
			case !errors.Is(err, io.ErrUnexpectedEOF):
				t.Errorf("neither an answer nor an end: %v", err)
			}
			cs[i].Close()
		})
	}
	close(begin)
	r.proxy.h1.drain()
	all.Wait()
	await(t, "the end of the drain", func() bool { return r.proxy.clients.Load() == 0 })
	if asked.Load() != answered.Load() {
		t.Errorf("%d requests, %d answers", asked.Load(), answered.Load())
	}
	t.Logf("%d of %d were answered", answered.Load(), conns)
}

// What waits at its connection's end is answered, though the end was there first.
func TestHTTP1EndServesWhatIsThere(t *testing.T) {
	r := newRig(t, asHTTP1)
	r.backends(web(t, saying("ok")))
	c, in := idling(t, r)
	var client *http1Client
	await(t, "an idle connection", func() bool {
		for _, s := range r.proxy.h1.all() {
			s.mu.Lock()
			for one := range s.clients {
				if one.idle {
					client = one
				}
			}
			s.mu.Unlock()
		}
		return client != nil
	})
	s := client.s
	s.mu.Lock() // whoever waits for the request gets no further than to setIdle
	io.WriteString(c, post)
	await(t, "the request to be read", func() bool { return !client.waiting() })
	r.proxy.h1.retire()
	s.mu.Unlock()
	r.proxy.h1.drain()
	if resp := answer(t, in, "POST"); bodyOf(t, resp) != "ok" {
		t.Error(resp)
	}
}

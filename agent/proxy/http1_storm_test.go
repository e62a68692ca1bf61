package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// stormBackend does everything wrong that a backend can, in random order: it ends connections, regularly or by a reset, before, in and behind every part of an
// exchange. An answer that it gives completely ends in "E", and only such one.
func stormBackend(c *net.TCPConn, in *bufio.Reader) {
	for {
		switch rand.N(12) {
		case 0: // before a request
			return
		case 1:
			c.SetLinger(0)
			return
		}
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if rand.N(4) == 0 {
			c.SetLinger(0) // however it ends, it is by a reset
		}
		if rand.N(3) > 0 {
			io.CopyN(io.Discard, req.Body, int64(rand.N(100_000)))
		} else {
			io.Copy(io.Discard, req.Body)
		}
		if rand.N(3) == 0 {
			return
		}
		if rand.N(8) == 0 {
			io.WriteString(c, "HTTP/1.1 103 Early Hints\r\n\r\n")
		}
		answer := stormAnswer()
		if rand.N(4) == 0 {
			c.SetLinger(0) // without a length a regular end would be the end of the answer
			c.Write(answer[:rand.N(len(answer)-1)])
			return
		}
		if _, err := c.Write(answer); err != nil || strings.Contains(string(answer[:min(100, len(answer))]), "close\r\n") {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil { // an early answer
			return
		}
	}
}

// stormAnswer is a complete answer, whose last byte is sent only if all is.
func stormAnswer() []byte {
	size := []int{1, 10, 5000, 400_000}[rand.N(4)]
	body := strings.Repeat("x", size-1) + "E"
	switch rand.N(4) {
	case 0:
		return []byte("HTTP/1.1 200 OK\r\nX-Real: 1\r\nConnection: close\r\n\r\n" + body)
	case 1:
		return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nX-Real: 1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", size, body)
	case 2:
		return fmt.Appendf(nil, "HTTP/1.1 503 Not now\r\nX-Real: 1\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", size, body)
	default:
		return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nX-Real: 1\r\nContent-Length: %d\r\n\r\n%s", size, body)
	}
}

// stormCall makes one request on a connection of its own, or more if it is kept, and says what is wrong with the answer.
func stormCall(c *net.TCPConn) error {
	in := bufio.NewReader(c)
	for range 1 + rand.N(3) {
		method := []string{"GET", "POST", "PUT"}[rand.N(3)]
		head := method + " / HTTP/1.1\r\nHost: a\r\n"
		last := rand.N(2) == 0
		if last {
			head += "Connection: close\r\n"
		}
		body := ""
		if method != "GET" {
			body = strings.Repeat("b", []int{0, 10, 3000, 5000, 70_000, 600_000}[rand.N(6)])
			if rand.N(2) == 0 {
				head += "Transfer-Encoding: chunked\r\n"
				if len(body) > 0 {
					body = fmt.Sprintf("%x\r\n%s\r\n", len(body), body)
				}
				body += "0\r\n\r\n"
			} else {
				head += fmt.Sprintf("Content-Length: %d\r\n", len(body))
			}
		}
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			io.WriteString(c, head+"\r\n"+body)
		}()
		resp, err := finalResponse(in, method)
		if err != nil {
			return fmt.Errorf("%s, %d bytes, %q: no answer: %w", method, len(body), head, err)
		}
		got, err := io.ReadAll(resp.Body)
		if resp.Header.Get("X-Real") == "" {
			switch {
			case err != nil:
				return fmt.Errorf("the agent's own %d was cut: %w", resp.StatusCode, err)
			case resp.StatusCode != 502 && resp.StatusCode != 503:
				return fmt.Errorf("the agent says %d %s", resp.StatusCode, got)
			}
		} else if err == nil && !strings.HasSuffix(string(got), "E") {
			return fmt.Errorf("%d of a cut answer's bytes looked complete: %d %q %q %v", len(got), resp.StatusCode, resp.Header, resp.TransferEncoding, resp.ContentLength)
		}
		if err != nil || resp.Close || body != "" { // an answer to a body that wasn't read ends the connection as well
			if err != nil || resp.Close {
				if n, err := in.Read(make([]byte, 1)); n > 0 {
					return fmt.Errorf("bytes behind the last answer: %v", err)
				}
			}
			c.Close()
			<-sent
			return nil
		}
		if last {
			return errors.New("the connection goes on behind Connection: close")
		}
		<-sent
	}
	return nil
}

// finalResponse reads up to the final response.
func finalResponse(in *bufio.Reader, method string) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil || resp.StatusCode >= 200 {
			return resp, err
		}
	}
}

// Whatever becomes of backends, and at whatever moment: every client gets an answer, a cut one never looks complete, and nothing is left of any of it: no call in
// the accounts of a backend, no byte kept, no connection.
func TestHTTP1Storm(t *testing.T) {
	r := newRig(t, asHTTP1)
	addrs := make([]string, 4)
	for i := range addrs {
		addrs[i] = scripted(t, func(c *net.TCPConn, in *bufio.Reader, _ int) { stormBackend(c, in) })
	}
	r.backends(addrs...)
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for range 100 {
				c := r.client()
				if err := stormCall(c); err != nil {
					t.Error(err)
				}
				c.Close()
			}
		})
	}
	clients.Wait()
	await(t, "the last connection", func() bool { return r.stats().Active["http1"] == 0 })
	var outcomes uint64
	for _, b := range r.svc.View().Backends() {
		h := b.State.Snapshot(time.Now())
		if h.Outstanding != 0 {
			t.Errorf("%s: %d calls outstanding", b.Addr, h.Outstanding)
		}
		outcomes += h.Successes + h.Failures
	}
	if outcomes == 0 {
		t.Error("nobody noted an outcome")
	}
	h := r.proxy.h1
	if n := h.buffered.Load(); n != 0 {
		t.Errorf("%d bytes of requests are kept", n)
	}
	for _, s := range h.all() {
		s.closeIdle()
		s.mu.Lock()
		if len(s.running)+len(s.clients) != 0 {
			t.Errorf("%d attempts, %d clients", len(s.running), len(s.clients))
		}
		s.mu.Unlock()
	}
}

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func asHTTP1(s *Service) { s.Protocol = "http1" }

// web is an HTTP/1.1 backend.
func web(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func saying(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name) }
}

// browser is a client with its own connections.
func browser(t testing.TB) *http.Client {
	tr := &http.Transport{DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// get is one request and its answer.
func (r *rig) get(c *http.Client, path string) (int, string) {
	r.t.Helper()
	resp, err := c.Get("http://" + r.addr + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// One client connection, every request to a backend of its own.
func TestHTTP1BalancesRequests(t *testing.T) {
	r := newRig(t, asAuto)
	r.backends(web(t, saying("one")), web(t, saying("two")))
	c := browser(t)
	got := map[string]int{}
	for range 20 {
		code, who := r.get(c, "/")
		if code != 200 {
			t.Fatalf("%d %s", code, who)
		}
		got[who]++
	}
	if !maps.Equal(got, map[string]int{"one": 10, "two": 10}) {
		t.Errorf("spread %v", got)
	}
	await(t, "the accounts", func() bool { return r.stats().calls("http1", "2xx") == 20 }) // they are made after the answer
	s := r.stats()
	if s.Picks != 20 || s.Sniffed["http1"] != 1 || s.Active["http1"] != 1 {
		t.Errorf("stats %+v", s)
	}
	for _, b := range r.svc.View().Backends() {
		if h := b.State.Snapshot(time.Now()); h.Successes != 10 || h.Outstanding != 0 || !h.LatencyFresh {
			t.Errorf("%s: %+v", b.Addr, h)
		}
	}
}

// The bytes of a request's head, as the backend sees them, are those that the client sent (4.6).
func TestHTTP1HeadersPassAsTheyCame(t *testing.T) {
	heads := make(chan string, 1)
	addr := tcpBackend(t, "tcp4", func(c *net.TCPConn) {
		in := bufio.NewReader(c)
		var head []string
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			if line == "\r\n" {
				break
			}
			head = append(head, strings.TrimRight(line, "\r\n"))
		}
		heads <- strings.Join(head, "\n")
		io.WriteString(c, "HTTP/1.1 200 OK\r\nX-Answer: b\r\nX-Answer: a\r\nContent-Length: 2\r\n\r\nok")
	})
	for authority, host := range map[string]string{"keep": "shop.example", "host": addr, "fixed.example:99": "fixed.example:99"} {
		r := newRig(t, func(s *Service) { s.Protocol = "http1"; s.Authority = authority })
		r.backends(addr)
		c := r.client()
		io.WriteString(c, "GET /a%2Fb/%7e\"x?q=1;2&%zz HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		want := "GET /a%2Fb/%7e\"x?q=1;2&%zz HTTP/1.1\nHost: " + host + "\nX-Forwarded-For: 1.2.3.4\nForwarded: for=x"
		if got := <-heads; got != want {
			t.Errorf("authority %s: the backend got\n%s\nwant\n%s", authority, got, want)
		}
		// nothing is added, and nothing is missing
		if got := fmt.Sprint(resp.Header); got != "map[Content-Length:[2] X-Answer:[b a]]" {
			t.Errorf("the client got %s", got)
		}
	}
}

// 4.5 and 4.1: connect failures go on to the next candidate, body and all; with none left 503 says why.
func TestHTTP1GoesOnToTheNextBackend(t *testing.T) {
	good := web(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	})
	bad := []string{refusing(t), refusing(t)}
	r := newRig(t, asHTTP1)
	r.backends(good, bad[0], bad[1])
	c := browser(t)
	for i := range 12 {
		body := strings.Repeat("b", i*10_000)
		resp, err := c.Post("http://"+r.addr, "text/plain", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || string(got) != body {
			t.Fatalf("%d, %d bytes; want 200 and %d", resp.StatusCode, len(got), len(body))
		}
	}
	for _, addr := range bad {
		if h := r.state(addr).Snapshot(time.Now()); h.Failures == 0 || h.LastFailure != "connection refused" || h.Outstanding != 0 {
			t.Errorf("%s: %+v", addr, h)
		}
	}
	r.backends(bad...)
	code, text := r.get(c, "/")
	if code != 503 || !strings.HasPrefix(text, "lbagent: user: 2 backends, ") || !strings.Contains(text, "connection refused") {
		t.Errorf("%d %q", code, text)
	}
	r.backends()
	if code, text := r.get(c, "/"); code != 503 || text != "lbagent: user: 0 backends, 0 usable\n" {
		t.Errorf("%d %q", code, text)
	}
	await(t, "the accounts", func() bool { return r.stats().calls("http1", "5xx") == 2 })
	if s := r.stats(); s.NoBackend != 2 || s.Retried["connect"] == 0 {
		t.Errorf("stats %+v", s)
	}
}

// The table of outcomes of SEMANTICS 2.
func TestHTTP1Outcomes(t *testing.T) {
	for name, want := range map[string]struct {
		do                  func(w http.ResponseWriter, r *http.Request)
		code                int
		failures, successes uint64
		penalty             bool
		last                string
	}{
		"200": {func(w http.ResponseWriter, _ *http.Request) {}, 200, 0, 1, false, ""},
		"404": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, 404, 0, 1, false, ""},
		"500": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, 500, 0, 0, false, ""},
		"502": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }, 502, 1, 0, true, "HTTP 502"},
		"503": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, 503, 1, 0, true, "HTTP 503"},
		"504": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(504) }, 504, 1, 0, true, "HTTP 504"},
		"429": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) }, 429, 0, 0, true, ""},
		"reset before headers": {func(w http.ResponseWriter, _ *http.Request) {
			c, _, _ := w.(http.Hijacker).Hijack()
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}, 502, 1, 0, true, "connection reset by peer"},
		"closed before headers": {func(w http.ResponseWriter, _ *http.Request) {
			c, _, _ := w.(http.Hijacker).Hijack()
			c.Close()
		}, 502, 1, 0, true, "connection closed before an answer"},
	} {
		t.Run(name, func(t *testing.T) {
			addr := web(t, want.do)
			r := newRig(t, asHTTP1)
			r.backends(addr)
			if code, text := r.get(browser(t), "/"); code != want.code {
				t.Errorf("%d %s", code, text)
			}
			await(t, "the end", func() bool { return r.state(addr).Outstanding() == 0 && len(r.stats().Calls) == 1 })
			h := r.state(addr).Snapshot(time.Now())
			if h.Failures != want.failures || h.Successes != want.successes || (h.Penalty > 0) != want.penalty || h.LastFailure != want.last {
				t.Errorf("%+v", h)
			}
		})
	}
}

// A backend that breaks in the middle of a body: the client sees a broken body, not a short one; one hard failure.
func TestHTTP1BackendBreaksInBody(t *testing.T) {
	addr := web(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, "part")
		w.(http.Flusher).Flush()
		c, _, _ := w.(http.Hijacker).Hijack()
		c.Close()
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	resp, err := browser(t).Get("http://" + r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil || string(b) != "part" {
		t.Errorf("read %q, %v", b, err)
	}
	await(t, "a failure", func() bool {
		h := r.state(addr).Snapshot(time.Now())
		return h.Failures == 1 && h.Outstanding == 0 && h.Successes == 0
	})
}

// The caller's cancel reaches the backend at once and says nothing about it.
func TestHTTP1CancelReachesTheBackend(t *testing.T) {
	began, ended := make(chan struct{}), make(chan error, 1)
	addr := web(t, func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		ended <- r.Context().Err()
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+r.addr, nil)
	go func() { <-began; cancel() }()
	if _, err := browser(t).Do(req); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the backend was not told")
	}
	await(t, "the accounts", func() bool { return r.stats().calls("http1", "4xx") == 1 })
	if h := r.state(addr).Snapshot(time.Now()); h.Failures != 0 || h.Successes != 0 || h.Outstanding != 0 {
		t.Errorf("%+v", h)
	}
}

func TestHTTP1RequestTimeout(t *testing.T) {
	addr := web(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	r := newRig(t, func(s *Service) { s.Protocol = "http1"; s.Request = 50 * time.Millisecond })
	r.backends(addr)
	code, text := r.get(browser(t), "/")
	if code != 504 || text != "lbagent: user: timeout.request has passed\n" {
		t.Errorf("%d %q", code, text)
	}
	await(t, "the accounts", func() bool { return r.stats().calls("http1", "5xx") == 1 })
	if h := r.state(addr).Snapshot(time.Now()); h.Failures != 0 || h.Successes != 0 || h.Outstanding != 0 {
		t.Errorf("%+v", h)
	}
}

func TestHTTP1LargeBodiesStream(t *testing.T) {
	const size = 16 << 20
	addr := web(t, func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		io.Copy(h, r.Body)
		w.Header().Set("Trailer", "X-Sum")
		io.Copy(w, io.LimitReader(rand.NewChaCha8([32]byte{2}), size))
		w.Header().Set("X-Sum", fmt.Sprintf("%x %v", h.Sum(nil), r.Trailer["X-Client"]))
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	sent := sha256.New()
	req, _ := http.NewRequest("POST", "http://"+r.addr, io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sent))
	req.Trailer = http.Header{"X-Client": {"t"}}
	resp, err := browser(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, want := sha256.New(), sha256.New()
	io.Copy(want, io.LimitReader(rand.NewChaCha8([32]byte{2}), size))
	if _, err := io.Copy(got, resp.Body); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Error("the answer arrived changed")
	}
	if want := fmt.Sprintf("%x [t]", sent.Sum(nil)); resp.Trailer.Get("X-Sum") != want {
		t.Errorf("trailer %q, want %q", resp.Trailer.Get("X-Sum"), want)
	}
	if n := r.proxy.h1.buffered.Load(); n != 0 {
		t.Errorf("%d bytes of bodies are kept", n)
	}
}

// Answers pass as they are made, early hints and 100-continue with them.
func TestHTTP1NothingIsBuffered(t *testing.T) {
	next := make(chan struct{})
	addr := web(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(http.StatusEarlyHints)
		b, _ := io.ReadAll(r.Body) // says 100 Continue
		for _, part := range []string{"one ", "two ", string(b)} {
			io.WriteString(w, part)
			w.(http.Flusher).Flush()
			<-next
		}
	})
	r := newRig(t, asHTTP1)
	r.backends(addr)
	var hints, continued atomic.Int32
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			if code == http.StatusEarlyHints && h.Get("Link") != "" {
				hints.Add(1)
			}
			return nil
		},
		Got100Continue: func() { continued.Add(1) },
	})
	req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+r.addr, strings.NewReader("body"))
	req.Header.Set("Expect", "100-continue")
	c := browser(t)
	c.Transport.(*http.Transport).ExpectContinueTimeout = patience
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, want := range []string{"one ", "two ", "body"} {
		b := make([]byte, len(want))
		if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != want {
			t.Fatalf("read %q, %v, want %q", b, err, want)
		}
		next <- struct{}{} // the backend waits until this part has arrived
	}
	if hints.Load() != 1 || continued.Load() != 1 {
		t.Errorf("%d early hints, %d continues", hints.Load(), continued.Load())
	}
}

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/testneed"
)

// httpBackend answers every request with its name, the method, the path and the body's length.
func httpBackend(t *testing.T, name string) (addr string, srv *http.Server) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(freePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	srv = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return
		}
		w.Header().Set(nameHeader, name)
		fmt.Fprintf(w, "%s %s %s %s %d\n", name, r.Method, r.URL, r.Host, n)
	})}
	var served sync.WaitGroup
	served.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { srv.Close(); served.Wait() })
	return l.Addr().String(), srv
}

// An HTTP/1.1 service, the protocol found by the first bytes (4.9), as curl sees it.
func TestHTTP1WithCurl(t *testing.T) {
	t.Parallel()
	curl := testneed.Program(t, "curl", "curl")
	one, _ := httpBackend(t, "one")
	two, _ := httpBackend(t, "two")
	port := freePort(t)
	a := startAgent(t, fmt.Sprintf("- {name: web, backends: [%s], listen: [%d], policy: round_robin}", join([]string{one, two}), port))
	url := fmt.Sprintf("http://127.0.0.1:%d/a/b?c=d", port)

	seen := make(map[string]int)
	for range 4 {
		out := output(t, curl, "-sS", "--noproxy", "*", url)
		name, rest, _ := strings.Cut(out, " ")
		seen[name]++
		if want := fmt.Sprintf("GET /a/b?c=d 127.0.0.1:%d 0\n", port); rest != want {
			t.Errorf("the backend saw %q, want %q", rest, want)
		}
	}
	if seen["one"] != 2 || seen["two"] != 2 {
		t.Errorf("calls: %v, want two each", seen)
	}
	if out := output(t, curl, "-sS", "--noproxy", "*", "--data-binary", strings.Repeat("x", 100_000), url); !strings.HasSuffix(out, " 100000\n") {
		t.Errorf("a body of 100,000 bytes: %q", out)
	}
	// The same through gRPC's door of the local API.
	if out := output(t, curl, "-sS", "--unix-socket", a.socket, "http://lbagent/v1/services/web/pick"); !strings.Contains(out, one) && !strings.Contains(out, two) {
		t.Errorf("pick: %s", out)
	}
}

// An HTTP/1.1 request arrives as it was sent; nothing is added (4.6).
func TestHTTP1PassesAsItCame(t *testing.T) {
	t.Parallel()
	got := make(chan *http.Request, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", "Mon, 01 Jan 2024 00:00:00 GMT")
		w.Header().Set("X-Answer", "1")
		w.WriteHeader(http.StatusTeapot)
		got <- r
	}))
	t.Cleanup(srv.Close)
	port := freePort(t)
	startAgent(t, fmt.Sprintf("- {name: web, backends: [%q], listen: [%d]}", srv.Listener.Addr(), port))
	c := dialTCP(t, port)
	if _, err := io.WriteString(c, "GET /a%2Fb?x=%20;y HTTP/1.1\r\nHost: some.where\r\nX-Many: a\r\nx-many: b\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	r := receive(t, got)
	if want := (http.Header{"X-Many": {"a", "b"}}); !maps.EqualFunc(r.Header, want, slices.Equal[[]string]) || r.Host != "some.where" || r.RequestURI != "/a%2Fb?x=%20;y" {
		t.Errorf("arrived as %q %q %v", r.RequestURI, r.Host, r.Header)
	}
	if want := (http.Header{"X-Answer": {"1"}, "Content-Length": {"0"}, "Date": {"Mon, 01 Jan 2024 00:00:00 GMT"}}); resp.StatusCode != http.StatusTeapot || !maps.EqualFunc(resp.Header, want, slices.Equal[[]string]) {
		t.Errorf("answered %v %v", resp.Status, resp.Header)
	}
}

// Without a usable backend HTTP/1.1 callers get 503 and the reason (4.5).
func TestHTTP1WithoutBackend(t *testing.T) {
	t.Parallel()
	addr, srv := httpBackend(t, "one")
	port := freePort(t)
	startAgent(t, fmt.Sprintf("- {name: web, backends: [%q], listen: [%d]}", addr, port))
	client := &http.Client{Transport: &http.Transport{}, Timeout: patience}
	t.Cleanup(client.CloseIdleConnections)
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	get := func() (int, string) {
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if code, body := get(); code != http.StatusOK || !strings.HasPrefix(body, "one GET") {
		t.Fatalf("%d %q", code, body)
	}
	unforked(func() { srv.Close() })
	if code, body := get(); code != http.StatusServiceUnavailable || !strings.Contains(body, "lbagent: web: 1 backend, ") || !strings.Contains(body, "refused") {
		t.Errorf("%d %q", code, body)
	}
}

// tcpBackend echoes; with greeting it speaks first. It closes its direction when the client has.
func tcpBackend(t *testing.T, greeting string) (addr string, close func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(freePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				if _, err := io.WriteString(c, greeting); err != nil {
					return
				}
				_, _ = io.Copy(c, c)
			})
		}
	})
	stop := sync.OnceFunc(func() { l.Close() })
	t.Cleanup(func() { stop(); all.Wait() })
	return l.Addr().String(), stop
}

// TCP: megabytes both ways, half-close, a server that speaks first under auto, and the next backend after a refused connect (4.8, 4.9).
func TestTCP(t *testing.T) {
	t.Parallel()
	plain, _ := tcpBackend(t, "")
	greets, _ := tcpBackend(t, "220 hello\r\n")
	dead := "127.0.0.1:" + strconv.Itoa(freePort(t))
	p1, p2, p3 := freePort(t), freePort(t), freePort(t)
	startAgent(t, fmt.Sprintf(`
  - {name: plain, backends: [%q], listen: [%d], protocol: tcp}
  - {name: greets, backends: [%q], listen: [%d]}
  - {name: half, backends: [%q, %q], listen: [%d], protocol: tcp, probe: {type: none}}
`, plain, p1, greets, p2, plain, dead, p3))

	t.Run("megabytes and half-close", func(t *testing.T) {
		data := make([]byte, 8<<20)
		if _, err := rand.NewChaCha8([32]byte{2}).Read(data); err != nil {
			t.Fatal(err)
		}
		c := dialTCP(t, p1)
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(data)
			sent <- errors.Join(err, c.CloseWrite())
		}()
		got, err := io.ReadAll(c)
		if err := errors.Join(err, <-sent); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Errorf("%d bytes came back, want the %d that were sent", len(got), len(data))
		}
	})
	t.Run("the server speaks first", func(t *testing.T) {
		c := dialTCP(t, p2)
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || line != "220 hello\r\n" {
			t.Errorf("greeting %q, %v", line, err)
		}
	})
	t.Run("the next backend after a refused connect", func(t *testing.T) {
		for range 20 {
			c := dialTCP(t, p3)
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 1)
			if _, err := io.ReadFull(c, b); err != nil || b[0] != 'x' {
				t.Fatalf("answer %q, %v", b, err)
			}
			c.Close()
		}
	})
}

// A TCP caller without a usable backend gets a reset, at once (4.5).
func TestTCPWithoutBackend(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	startAgent(t, fmt.Sprintf("- {name: none, backends: [\"127.0.0.1:%d\"], listen: [%d], protocol: tcp}", freePort(t), port))
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err == nil { // the reset may even overtake the end of connect
		defer c.Close()
		err = c.SetDeadline(time.Now().Add(patience))
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

func dialTCP(t *testing.T, port int) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// output runs a program that has to succeed, and returns what it wrote to stdout.
func output(t *testing.T, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, errs.String())
	}
	return out.String()
}

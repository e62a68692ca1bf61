package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// After hundreds of connects and disconnects of a kind, the agent has as many goroutines and descriptors as before.
func TestNothingIsLeftOfConnections(t *testing.T) {
	t.Parallel()
	bs := backends(t, 2, 0)
	web, _ := httpBackend(t, "web")
	echo, _ := tcpBackend(t, "")
	user, pages, raw, auto := freePort(t), freePort(t), freePort(t), freePort(t)
	a := startAgent(t, fmt.Sprintf(`
  - {name: user, backends: [%s], listen: [%d]}
  - {name: pages, backends: [%q], listen: [%d]}
  - {name: raw, backends: [%q], listen: [%d], protocol: tcp}
  - {name: auto, backends: [%q], listen: [%d]}
`, join(addrs(bs)), user, web, pages, echo, raw, echo, auto))

	h2 := func(target string, use func(context.Context, *grpc.ClientConn) error) func(context.Context) error {
		return func(ctx context.Context) error {
			c, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(), grpc.WithNoProxy())
			if err != nil {
				return err
			}
			return errors.Join(use(ctx, c), c.Close())
		}
	}
	port := func(p int) string { return fmt.Sprintf("127.0.0.1:%d", p) }
	for _, kind := range []struct {
		name string
		once func(ctx context.Context) error
	}{
		{"h2, a call each", h2("passthrough:///"+port(user), func(ctx context.Context, c *grpc.ClientConn) error {
			return c.Invoke(ctx, echoMethod, wrapperspb.Bytes([]byte("x")), new(wrapperspb.BytesValue))
		})},
		{"h2, cut in mid-call", h2("passthrough:///"+port(user), func(ctx context.Context, c *grpc.ClientConn) error {
			s, err := c.NewStream(ctx, &echoDesc.Streams[0], streamMethod)
			if err != nil {
				return err
			}
			if err := s.SendMsg(wrapperspb.Bytes(make([]byte, 1000))); err != nil {
				return err
			}
			return s.RecvMsg(new(wrapperspb.BytesValue)) // the stream is open when the connection goes
		})},
		{"h2, cancelled", h2("passthrough:///"+port(user), func(ctx context.Context, c *grpc.ClientConn) error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
			defer cancel()
			err := c.Invoke(ctx, blockMethod, wrapperspb.Bytes(nil), new(wrapperspb.BytesValue))
			if status.Code(err) == codes.DeadlineExceeded {
				return nil
			}
			return err
		})},
		{"nothing sent", func(ctx context.Context) error { return connect(ctx, port(auto), "", 0) }},
		{"tcp", func(ctx context.Context) error { return connect(ctx, port(raw), "hello", 5) }},
		{"tcp, the server's answer unread", func(ctx context.Context) error { return connect(ctx, port(raw), "hello", 0) }},
		{"tcp by silence", func(ctx context.Context) error { return connect(ctx, port(auto), "\x16hello", 6) }},
		{"http1", func(ctx context.Context) error { return getOnce(ctx, "tcp", port(pages), "http://"+port(pages)+"/") }},
		{"half of an HTTP request", func(ctx context.Context) error { return connect(ctx, port(pages), "GET / HTTP/1.1\r\nHost: x\r\n", 0) }},
		{"half of an HTTP/2 preface", func(ctx context.Context) error { return connect(ctx, port(user), "PRI * HTTP/2.0\r\n", 0) }},
		{"api, gRPC", h2("unix:"+a.socket, func(ctx context.Context, c *grpc.ClientConn) error {
			_, err := lbagentv1.NewLookupServiceClient(c).Pick(ctx, &lbagentv1.PickRequest{Service: "user"})
			return err
		})},
		{"api, a watch cut", h2("unix:"+a.socket, func(ctx context.Context, c *grpc.ClientConn) error {
			s, err := lbagentv1.NewLookupServiceClient(c).Watch(ctx, &lbagentv1.WatchRequest{Service: "user"})
			if err != nil {
				return err
			}
			_, err = s.Recv()
			return err
		})},
		{"api, JSON", func(ctx context.Context) error {
			return getOnce(ctx, "unix", a.socket, "http://lbagent/v1/services/user/pick")
		}},
		{"metrics", func(ctx context.Context) error { return getOnce(ctx, "tcp", a.http, "http://"+a.http+"/healthz") }},
	} {
		t.Run(kind.name, func(t *testing.T) {
			repeat(t, 50, kind.once) // pools and caches fill
			fds, goroutines := a.atRest()
			began := time.Now()
			repeat(t, 300, kind.once)
			took := time.Since(began)
			const slack = 8 // idle connections to backends come and go
			var nowFDs, nowGoroutines int
			defer func() {
				t.Logf("300 in %v, %v to come to rest; descriptors %d, then %d; goroutines %d, then %d",
					took, time.Since(began)-took, fds, nowFDs, goroutines, nowGoroutines)
			}()
			poll(t, "nothing is left", func() bool {
				nowFDs, nowGoroutines = a.held()
				return nowFDs <= fds+slack && nowGoroutines <= goroutines+slack
			})
		})
	}
}

// repeat calls once n times, 8 at a time.
func repeat(t *testing.T, n int, once func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var left, failed atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := once(ctx); err != nil && failed.Add(1) == 1 {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 {
		t.Fatalf("%d of %d failed", failed.Load(), n)
	}
}

// connect sends text, reads n bytes of the answer, and closes.
func connect(ctx context.Context, addr, text string, n int) error {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, n))
	return err
}

// getOnce makes one HTTP/1.1 request on a connection of its own.
func getOnce(ctx context.Context, network, addr, url string) error {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

// held counts what the agent holds.
func (a *agent) held() (fds, goroutines int) {
	a.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.pid()))
	if err != nil {
		a.t.Fatal(err)
	}
	v, ok := a.metric("go_goroutines")
	if !ok {
		a.t.Fatal("no go_goroutines in /metrics")
	}
	return len(entries), int(v)
}

// atRest is the least that the agent is seen to hold within half a second: the page that tells it holds a connection itself.
func (a *agent) atRest() (fds, goroutines int) {
	a.t.Helper()
	fds, goroutines = a.held()
	n := 0
	poll(a.t, "a look at what the agent holds", func() bool {
		f, g := a.held()
		fds, goroutines = min(fds, f), min(goroutines, g)
		n++
		return n == 15
	})
	return fds, goroutines
}

package e2e

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// caller is one gRPC connection to a service's port, and what was called over it.
type caller struct {
	t     *testing.T
	conn  *grpc.ClientConn
	dials atomic.Int64

	mu sync.Mutex

	answers  []answer
	failures []callFailure
}

type answer struct {
	backend    string
	begun, got time.Time
}

type callFailure struct {
	begun, got time.Time
	err        error
}

// newCaller connects to addr. It waits for a connection instead of failing without one, and tries often: the agent restarts in some tests.
func newCaller(t *testing.T, addr string) *caller {
	t.Helper()
	c := &caller{t: t}
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(16<<20)),
		quickReconnects,
		grpc.WithDisableRetry(),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			if err == nil {
				c.dials.Add(1)
			}
			return nc, err
		}))
	if err != nil {
		t.Fatal(err)
	}
	c.conn = conn
	t.Cleanup(func() { conn.Close() })
	return c
}

// echo makes one call of n bytes and notes how it went.
func (c *caller) echo(ctx context.Context, n int) (backend string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	in, out := wrapperspb.Bytes(make([]byte, n)), new(wrapperspb.BytesValue)
	var header, trailer metadata.MD
	begun := time.Now()
	err = c.conn.Invoke(ctx, echoMethod, in, out, grpc.Header(&header), grpc.Trailer(&trailer))
	got := time.Now()
	if err == nil && (len(out.GetValue()) != n || len(header.Get(nameHeader)) != 1 || len(trailer.Get(echoedTrailer)) != 1 || trailer.Get(echoedTrailer)[0] != strconv.Itoa(n)) {
		err = fmt.Errorf("%d bytes were answered with %d, header %v, trailer %v", n, len(out.GetValue()), header, trailer)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.failures = append(c.failures, callFailure{begun, got, err})
		return "", err
	}
	backend = header.Get(nameHeader)[0]
	c.answers = append(c.answers, answer{backend, begun, got})
	return backend, nil
}

// burst makes n calls, parallel at a time.
func (c *caller) burst(n, parallel int) {
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				_, _ = c.echo(c.t.Context(), 10) // noted
			}
		})
	}
	wg.Wait()
}

// keepCalling calls with parallel calls at a time until the returned func is called.
func (c *caller) keepCalling(parallel int) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := c.echo(context.Background(), 10); err != nil {
					select { // a proxy that refuses at once must not make this a busy loop
					case <-time.After(10 * time.Millisecond):
					case <-done:
					}
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		close(done)
		wg.Wait()
	})
	c.t.Cleanup(stop)
	return stop
}

// since counts the answers that were begun at or after from, by backend.
func (c *caller) since(from time.Time) (counts map[string]int, total int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	counts = make(map[string]int)
	for _, a := range c.answers {
		if !a.begun.Before(from) {
			counts[a.backend]++
			total++
		}
	}
	return counts, total
}

// last is when the n-th last of the answered calls began; the zero time if there are fewer.
func (c *caller) last(n int) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.answers) < n {
		return time.Time{}
	}
	return c.answers[len(c.answers)-n].begun
}

// even reports whether each of names had its share of the calls since from, within part; and the worst one in words.
func (c *caller) even(from time.Time, names []string, part float64) (bool, string) {
	counts, total := c.since(from)
	want := float64(total) / float64(len(names))
	for _, n := range names {
		if got := float64(counts[n]); got < want*(1-part) || got > want*(1+part) {
			return false, fmt.Sprintf("%s had %.0f of %d calls, want %.0f: %v", n, got, total, want, counts)
		}
	}
	return total > 0, fmt.Sprint(counts)
}

// wantNoFailures fails the test for each failed call but those in flight on a killed backend: begun before the kill was over, ended after it began.
func (c *caller) wantNoFailures(kills ...span) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	bad := 0
next:
	for _, f := range c.failures {
		for _, k := range kills {
			if status.Code(f.err) == codes.Unavailable && !f.begun.After(k.to) && !f.got.Before(k.from) {
				continue next
			}
		}
		if bad++; bad <= 5 {
			c.t.Errorf("a call failed after %v: %v", f.got.Sub(f.begun), f.err)
		}
	}
	if bad > 5 {
		c.t.Errorf("%d calls failed in all", bad)
	}
}

type span struct{ from, to time.Time }

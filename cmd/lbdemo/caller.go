package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	callDeadline = 10 * time.Second
	keepAnswers  = 20 * time.Second // the longest time that anybody looks back
)

// answer is a call that succeeded.
type answer struct {
	backend    string
	begun, got time.Time
}

// failure is a call that did not.
type failure struct {
	id         uint64
	begun, got time.Time
	err        error
}

// caller calls the echo service through one gRPC connection at a steady rate, whatever happens to the calls before.
type caller struct {
	conn *grpc.ClientConn

	mu sync.Mutex

	dials    int // connections made to the loopback port
	next     uint64
	open     int // calls without answer
	answers  []answer
	answered uint64
	failures []failure
	wrong    []string // answers that are not the answer to what was asked
}

// newCaller connects to target, lazily.
//
// The agent may go away and come back while calls are made (a restart without systemd, which would keep the listening socket: 6.2). Two settings are all a gRPC
// client needs to not notice: WaitForReady, so that calls made while there is no connection wait for one until their deadline instead of failing at once; and a
// reconnect back-off that fits a port on the same host. gRPC's default, 1 s growing to 120 s, is made for servers far away.
func newCaller(target string) (*caller, error) {
	c := &caller{}
	conn, err := grpc.NewClient("passthrough:///"+target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 250 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithDisableRetry(), // what is retried here would hide what the agent does
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			if err == nil {
				c.mu.Lock()
				c.dials++
				c.mu.Unlock()
			}
			return nc, err
		}))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", target, err)
	}
	c.conn = conn
	return c, nil
}

// run makes rate calls a second until ctx ends, then waits for the open ones.
func (c *caller) run(ctx context.Context, rate int) {
	var calls sync.WaitGroup
	defer calls.Wait()
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	started, made := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			due := int(now.Sub(started).Seconds() * float64(rate))
			for ; made < due; made++ {
				calls.Go(func() { c.call(ctx) })
			}
		}
	}
}

func (c *caller) call(ctx context.Context) {
	c.mu.Lock()
	c.next++
	id := c.next
	c.open++
	c.mu.Unlock()

	begun := time.Now()
	out := new(wrapperspb.StringValue)
	callCtx, cancel := context.WithTimeout(ctx, callDeadline)
	err := c.conn.Invoke(callCtx, sayMethod, wrapperspb.String(strconv.FormatUint(id, 10)), out)
	cancel()
	got := time.Now()

	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if err != nil {
		if ctx.Err() == nil { // the end of the demo is no failure
			c.failures = append(c.failures, failure{id: id, begun: begun, got: got, err: err})
		}
		return
	}
	backend, text, _ := strings.Cut(out.GetValue(), " ")
	if text != strconv.FormatUint(id, 10) {
		c.wrong = append(c.wrong, fmt.Sprintf("call %d was answered %q", id, out.GetValue()))
	}
	c.answered++
	c.answers = append(c.answers, answer{backend: backend, begun: begun, got: got})
	if old := got.Add(-keepAnswers); len(c.answers)%1024 == 0 {
		i := 0
		for i < len(c.answers) && c.answers[i].got.Before(old) {
			i++
		}
		c.answers = append(c.answers[:0], c.answers[i:]...)
	}
}

// window is what was answered in a span of time.
type window struct {
	span    time.Duration
	counts  map[string]int // by backend
	total   int
	longest time.Duration // the longest that a caller waited
}

// since returns what was answered from from on.
func (c *caller) since(from time.Time) window {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := window{span: time.Since(from), counts: make(map[string]int)}
	for _, a := range c.answers {
		if a.got.Before(from) {
			continue
		}
		w.counts[a.backend]++
		w.total++
		w.longest = max(w.longest, a.got.Sub(a.begun))
	}
	return w
}

// last is since, d ago.
func (c *caller) last(d time.Duration) window { return c.since(time.Now().Add(-d)) }

// sums are the caller's totals.
type sums struct {
	answered uint64
	failed   int
	open     int
	dials    int
}

func (c *caller) sums() sums {
	c.mu.Lock()
	defer c.mu.Unlock()
	return sums{answered: c.answered, failed: len(c.failures), open: c.open, dials: c.dials}
}

// faults returns what went wrong since the n-th failure and the m-th wrong answer.
func (c *caller) faults(n, m int) ([]failure, []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]failure(nil), c.failures[n:]...), append([]string(nil), c.wrong[m:]...)
}

package packaging

import (
	"bytes"
	"context"
	"crypto/sha256"
	wire "encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// kind is one way to call.
type kind struct {
	name  string
	every time.Duration // a call begins so often, however long those before it take
	fresh bool          // by a connection of its own, and its wait is judged
}

// The kinds; "held" takes longHold, which is less than the drain limit of a restart (6.2), stream and transfer as long as the phase says.
const (
	control, stream, transfer = "control", "stream", "transfer"
	longHold                  = 2 * time.Second
)

func kinds() []kind {
	const often, seldom = 20 * time.Millisecond, 250 * time.Millisecond
	return []kind{
		{"grpc", often / 2, false}, {"grpc held", seldom, false}, {"http", often / 2, false}, {"http held", seldom, false}, {"tcp held", seldom, false}, {"api", often, false},
		{"grpc new", often, true}, {"http new", often, true}, {"tcp new", often, true}, {"unix new", often, true}, {"api new", often, true},
		{control, often, false}, // a new connection to a backend, past the agent: what the machine itself makes wait
		{stream, 0, false}, {transfer, 0, false},
	}
}

// patience ends a call that hangs; crowd bounds those of a kind that go on at a time.
const (
	callPatience = 30 * time.Second
	crowd        = 2000
)

// callers make the calls of all kinds, from newCallers on.
type callers struct {
	run  string // where the agent's sockets are
	grpc []*grpc.ClientConn
	api  *grpc.ClientConn
	web  *http.Transport

	mu sync.Mutex

	now *phase
}

func newCallers(run string) (*callers, error) {
	c := &callers{run: run, web: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}, now: &phase{report: report{}}}
	for range 2 {
		cc, err := dial("passthrough:///127.0.0.1:7001")
		if err != nil {
			return nil, err
		}
		c.grpc = append(c.grpc, cc)
	}
	var err error
	if c.api, err = dial("unix://" + run + "lbagent.sock"); err != nil {
		return nil, err
	}
	for _, k := range kinds() {
		if k.every > 0 {
			go c.keepCalling(k)
		}
	}
	return c, nil
}

func dial(target string) (*grpc.ClientConn, error) {
	return grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(), grpc.WithConnectParams(grpc.ConnectParams{
		// gRPC's default begins at 1 s, for ports that are far away.
		Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}, MinConnectTimeout: callPatience,
	}))
}

func (c *callers) keepCalling(k kind) {
	var running atomic.Int64
	var id atomic.Uint64
	for range time.Tick(k.every) {
		if running.Add(1) > crowd {
			running.Add(-1)
			continue
		}
		p := c.enter()
		go func() {
			defer p.running.Done()
			defer running.Add(-1)
			ctx, cancel := context.WithTimeout(context.Background(), callPatience)
			defer cancel()
			c.timed(p, k.name, func() (time.Time, error) { return c.call(ctx, k.name, id.Add(1)) })
		}()
	}
}

func (c *callers) timed(p *phase, kind string, call func() (first time.Time, err error)) {
	begun := time.Now()
	first, err := call()
	p.note(kind, first.Sub(begun), time.Since(begun), err)
}

// enter returns the current phase, to which the caller belongs until running.Done.
func (c *callers) enter() *phase {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.running.Add(1)
	return c.now
}

func (c *callers) swap() (before *phase) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, c.now = c.now, &phase{report: report{}}
	return before
}

// begin begins a phase, with a stream and a transfer that take long.
func (c *callers) begin(long time.Duration) {
	c.swap()
	if long == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), long+callPatience)
	var both sync.WaitGroup
	for kind, call := range map[string]func(context.Context, time.Duration) (time.Time, error){stream: c.stream, transfer: c.transfer} {
		p := c.enter()
		both.Go(func() {
			defer p.running.Done()
			c.timed(p, kind, func() (time.Time, error) { return call(ctx, long) })
		})
	}
	go func() {
		both.Wait()
		cancel()
	}()
}

func (c *callers) end() report { return c.swap().done() }

// call makes one call and says when its answer began.
func (c *callers) call(ctx context.Context, kind string, id uint64) (time.Time, error) {
	switch kind {
	case "grpc":
		return echo(ctx, c.grpc[id%2], id)
	case "grpc held":
		return echo(metadata.AppendToOutgoingContext(ctx, holdKey, longHold.String()), c.grpc[id%2], id)
	case "grpc new":
		cc, err := dial("passthrough:///127.0.0.1:7001")
		if err != nil {
			return time.Time{}, err
		}
		defer cc.Close()
		return echo(ctx, cc, id)
	case "http":
		return get(ctx, c.web, "127.0.0.1:7002", id, 0)
	case "http held":
		return get(ctx, c.web, "127.0.0.1:7002", id, longHold)
	case "http new":
		return get(ctx, &http.Transport{DisableKeepAlives: true}, "127.0.0.1:7002", id, 0)
	case "unix new":
		tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.run+"web.sock")
		}}
		return get(ctx, tr, "web", id, 0)
	case "tcp held":
		return talk(ctx, "127.0.0.1:7003", id, longHold)
	case "tcp new":
		return talk(ctx, "127.0.0.1:7003", id, 0)
	case "api":
		return pick(ctx, c.api)
	case "api new":
		cc, err := dial("unix://" + c.run + "lbagent.sock")
		if err != nil {
			return time.Time{}, err
		}
		defer cc.Close()
		return pick(ctx, cc)
	default:
		return talk(ctx, backendsOf("tcp")[0], id, 0)
	}
}

func pick(ctx context.Context, cc *grpc.ClientConn) (time.Time, error) {
	resp, err := lbagentv1.NewLookupServiceClient(cc).Pick(ctx, &lbagentv1.PickRequest{Service: "tcp"})
	if err == nil && len(resp.GetPicks()) == 0 {
		err = errWrong
	}
	return time.Now(), err
}

// echo is a call with one message, which comes back.
func echo(ctx context.Context, cc *grpc.ClientConn, id uint64) (time.Time, error) {
	in, out := wrapperspb.Bytes(wire.BigEndian.AppendUint64(nil, id)), new(wrapperspb.BytesValue)
	err := cc.Invoke(ctx, "/load.Echo/Once", in, out)
	if err == nil && !bytes.Equal(in.GetValue(), out.GetValue()) {
		err = errWrong
	}
	return time.Now(), err
}

// get is a GET as a client of HTTP makes it: a kept connection that ended before the answer began is tried anew.
func get(ctx context.Context, tr *http.Transport, host string, id uint64, hold time.Duration) (time.Time, error) {
	path := fmt.Sprintf("/%d", id)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		return time.Time{}, err
	}
	req.Header.Set(holdKey, hold.String())
	resp, err := tr.RoundTrip(req)
	first := time.Now()
	if err != nil {
		return first, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1000))
	switch {
	case err != nil:
		return first, err
	case resp.StatusCode != http.StatusOK:
		return first, fmt.Errorf("%s: %s", resp.Status, text)
	case string(text) != path:
		return first, errWrong
	}
	return first, nil
}

// talk is a TCP connection that has its bytes echoed twice, the second time after hold.
func talk(ctx context.Context, addr string, id uint64, hold time.Duration) (first time.Time, err error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return time.Time{}, err
	}
	defer c.Close()
	end, _ := ctx.Deadline()
	if err := c.SetDeadline(end); err != nil {
		return time.Time{}, err
	}
	for round := range 2 {
		sent := wire.BigEndian.AppendUint64([]byte("tcp "), id)
		got := make([]byte, len(sent))
		if _, err := c.Write(sent); err != nil {
			return first, err
		}
		if _, err := io.ReadFull(c, got); err != nil {
			return first, err
		}
		if !bytes.Equal(got, sent) {
			return first, errWrong
		}
		if round == 0 {
			first = time.Now()
			<-time.After(hold)
		}
	}
	return first, nil
}

// stream is one gRPC stream with ten messages a second, each of which comes back.
func (c *callers) stream(ctx context.Context, long time.Duration) (first time.Time, err error) {
	cc, err := dial("passthrough:///127.0.0.1:7001")
	if err != nil {
		return first, err
	}
	defer cc.Close()
	st, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/load.Echo/Stream")
	if err != nil {
		return first, err
	}
	end := time.Now().Add(long)
	for i := uint64(0); time.Now().Before(end); i++ {
		in, out := wrapperspb.Bytes(wire.BigEndian.AppendUint64(nil, i)), new(wrapperspb.BytesValue)
		serr := st.SendMsg(in)
		if err := st.RecvMsg(out); err != nil { // says why, if SendMsg has failed
			return first, fmt.Errorf("after %v: %w", long-time.Until(end), err)
		}
		if serr != nil || !bytes.Equal(in.GetValue(), out.GetValue()) {
			return first, errWrong
		}
		if first.IsZero() {
			first = time.Now()
		}
		<-time.After(100 * time.Millisecond)
	}
	if err := st.CloseSend(); err != nil {
		return first, err
	}
	if err := st.RecvMsg(new(wrapperspb.BytesValue)); err != io.EOF {
		return first, fmt.Errorf("at its end: %w", err)
	}
	return first, nil
}

// transfer is one TCP connection on which 3 MiB/s go there and back; in the end both sums are equal.
func (c *callers) transfer(ctx context.Context, long time.Duration) (first time.Time, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:7003")
	if err != nil {
		return first, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return first, err
	}
	begun, sent := time.Now(), sha256.New()
	wrote := make(chan error, 1)
	go func() {
		random, piece := rand.NewChaCha8([32]byte{'t'}), make([]byte, 32<<10)
		for time.Since(begun) < long {
			_, _ = random.Read(piece)
			_, _ = sent.Write(piece)
			if _, err := conn.Write(piece); err != nil {
				wrote <- err
				return
			}
			<-time.After(10 * time.Millisecond)
		}
		wrote <- conn.(*net.TCPConn).CloseWrite()
	}()
	got := sha256.New()
	if _, err := io.CopyN(got, conn, 1); err != nil {
		return first, fmt.Errorf("after %v: %w", time.Since(begun), err)
	}
	first = time.Now()
	if _, err := io.Copy(got, conn); err != nil {
		return first, fmt.Errorf("after %v: %w", time.Since(begun), err)
	}
	if err := <-wrote; err != nil {
		return first, fmt.Errorf("after %v: %w", time.Since(begun), err)
	}
	if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		return first, fmt.Errorf("after %v: %w", time.Since(begun), errWrong)
	}
	return first, nil
}

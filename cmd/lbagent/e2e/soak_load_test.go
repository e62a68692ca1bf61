package e2e

import (
	"bytes"
	"context"
	wire "encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// soakPatience ends a call that got stuck; nothing that is allowed to happen takes as long.
const soakPatience = 25 * time.Second

// soakCall is one call of the load.
type soakCall struct {
	id         uint64
	service    string
	shape      string // what kind of call
	idempotent bool
	begun, got time.Time
	backend    string // that answered; "" if no answer said so
	err        error
}

// load makes calls until it is stopped; failures are kept for the judge.
type load struct {
	ports  map[string]int // by service
	lastID atomic.Uint64
	calls  map[string]*atomic.Int64 // by shape
	stop   chan struct{}
	all    sync.WaitGroup

	mu sync.Mutex

	failed []soakCall
}

// shape is a kind of call, and how many of them go on at a time.
type shape struct {
	name, service string
	workers       int
	pause         time.Duration // at most, between two
	idempotent    bool
	worker        func(l *load) (call func(ctx context.Context, c *soakCall) error, done func())
}

func shapes() []shape {
	const ms = time.Millisecond
	return []shape{
		{"unary", "grpc", 6, 10 * ms, false, grpcWorker(grpcShape{mode: "unary", size: 200, reply: 300})},
		{"large unary", "grpc", 2, 50 * ms, false, grpcWorker(grpcShape{mode: "unary", size: 1 << 20, reply: 1 << 20})},
		{"server stream", "grpc", 2, 20 * ms, false, grpcWorker(grpcShape{mode: "pull", size: 10, reply: 600 << 10})},
		{"client stream", "grpc", 2, 20 * ms, false, grpcWorker(grpcShape{mode: "unary", size: 600 << 10, reply: 10, messages: 40})},
		{"bidi stream", "grpc", 3, 20 * ms, false, grpcWorker(grpcShape{mode: "chat", size: 50 << 10, reply: 50 << 10, messages: 50})},
		{"cancelled", "grpc", 2, 10 * ms, false, grpcWorker(grpcShape{mode: "chat", size: 200 << 10, reply: 200 << 10, messages: 50, cancel: true})},
		{"deadline", "grpc", 2, 10 * ms, false, grpcWorker(grpcShape{mode: "hang", size: 10, deadline: 100 * ms})},
		{"slow reader", "grpc", 3, 20 * ms, false, grpcWorker(grpcShape{mode: "pull", size: 10, reply: 1 << 20, slow: 30 * ms})},
		{"a connection each", "grpc", 1, 50 * ms, false, grpcWorker(grpcShape{mode: "unary", size: 100, reply: 100, fresh: true})},
		{"h2 GET", "web", 2, 10 * ms, true, httpWorker(httpShape{h2: true, reply: 5000})},
		{"h2 download", "web", 1, 40 * ms, true, httpWorker(httpShape{h2: true, reply: 2 << 20, chunked: true})},
		{"h2 POST", "web", 2, 20 * ms, false, httpWorker(httpShape{h2: true, size: 300 << 10, reply: 1000})},
		{"http1 GET", "web", 3, 10 * ms, true, httpWorker(httpShape{reply: 5000})},
		{"http1 upload", "web", 2, 30 * ms, false, httpWorker(httpShape{size: 700 << 10, reply: 300 << 10, chunked: true})},
		{"http1 a connection each", "web", 1, 40 * ms, false, httpWorker(httpShape{size: 100, reply: 100, fresh: true})},
		{"tcp small", "tcp", 3, 20 * ms, false, tcpWorker(tcpShape{size: 100, reply: 1000})},
		{"tcp bulk", "tcp", 2, 50 * ms, false, tcpWorker(tcpShape{size: 3 << 20, reply: 3 << 20})},
		{"tcp cut", "tcp", 1, 50 * ms, false, tcpWorker(tcpShape{size: 1 << 20, reply: 1 << 20, cut: true})},
	}
}

func newLoad(ports map[string]int) *load {
	l := &load{ports: ports, calls: map[string]*atomic.Int64{}, stop: make(chan struct{})}
	for _, s := range shapes() {
		l.calls[s.name] = new(atomic.Int64)
	}
	return l
}

func (l *load) start() {
	for _, s := range shapes() {
		for range s.workers {
			l.all.Go(func() { l.work(s) })
		}
	}
}

// end stops the load and waits for the calls that run.
func (l *load) end() {
	close(l.stop)
	l.all.Wait()
}

func (l *load) work(s shape) {
	call, done := s.worker(l)
	defer done()
	for {
		select {
		case <-l.stop:
			return
		case <-time.After(rand.N(s.pause)):
		}
		c := soakCall{id: l.lastID.Add(1), service: s.service, shape: s.name, idempotent: s.idempotent, begun: time.Now()}
		ctx, cancel := context.WithTimeout(context.Background(), soakPatience)
		c.err = call(ctx, &c)
		cancel()
		c.got = time.Now()
		l.calls[s.name].Add(1)
		if c.err == nil {
			continue
		}
		l.mu.Lock()
		l.failed = append(l.failed, c)
		l.mu.Unlock()
	}
}

func (l *load) addr(service string) string { return "127.0.0.1:" + strconv.Itoa(l.ports[service]) }

// about varies a size, so that frames and buffers are cut everywhere.
func about(n int64) int64 {
	if n == 0 {
		return 0
	}
	return n/2 + rand.Int64N(n)
}

type grpcShape struct {
	mode        string
	size, reply int64
	messages    int           // 0: one
	cancel      bool          // in the middle
	deadline    time.Duration // which has to pass
	slow        time.Duration // between messages read
	fresh       bool          // a connection each
}

func grpcWorker(s grpcShape) func(l *load) (func(context.Context, *soakCall) error, func()) {
	return func(l *load) (func(context.Context, *soakCall) error, func()) {
		dial := func() *grpc.ClientConn {
			opts := []grpc.DialOption{
				grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry(), grpc.WithNoProxy(), quickReconnects,
				grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16 << 20)),
			}
			if s.slow > 0 { // or the library reads on by itself
				opts = append(opts, grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
			}
			cc, err := grpc.NewClient("passthrough:///"+l.addr("grpc"), opts...)
			if err != nil {
				panic(err)
			}
			return cc
		}
		if s.fresh {
			return func(ctx context.Context, c *soakCall) error {
				cc := dial()
				defer cc.Close()
				return s.call(ctx, cc, c)
			}, func() {}
		}
		cc := dial()
		return func(ctx context.Context, c *soakCall) error { return s.call(ctx, cc, c) }, func() { cc.Close() }
	}
}

func (s *grpcShape) call(ctx context.Context, cc *grpc.ClientConn, c *soakCall) (err error) {
	size, reply := about(s.size), about(s.reply)
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, idHeader, fmt.Sprint(c.id), sizeHeader, fmt.Sprint(size), replyHeader, fmt.Sprint(reply), modeHeader, s.mode))
	defer cancel()
	if s.deadline > 0 {
		var end context.CancelFunc
		ctx, end = context.WithTimeout(ctx, about64(s.deadline))
		defer end()
	}
	var on atomic.Bool // cancelled on purpose
	if s.cancel {
		timer := time.AfterFunc(rand.N(15*time.Millisecond), func() { on.Store(true); cancel() })
		defer timer.Stop()
	}
	defer func() {
		switch code := status.Code(err); {
		case s.deadline > 0 && code == codes.DeadlineExceeded:
			err = nil
		case s.deadline > 0 && err == nil:
			err = errors.New("answered without an end of the wait")
		case on.Load() && code == codes.Canceled:
			err = nil
		}
	}()
	st, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, soakMethod)
	if err != nil {
		return err
	}
	// Header and trailers say who answered, whatever became of the call.
	defer func() {
		if md, herr := st.Header(); herr == nil && len(md.Get(nameHeader)) == 1 {
			c.backend = md.Get(nameHeader)[0]
		}
	}()
	go func() { // an error of it shows at the receiving side
		q, left := pattern(c.id, sent), size
		for i := max(1, s.messages); i > 0; i-- {
			n := left
			if i > 1 {
				n = min(left, about(size/int64(s.messages)))
			}
			b := make([]byte, n)
			_, _ = io.ReadFull(q, b)
			left -= n
			if st.SendMsg(wrapperspb.Bytes(b)) != nil {
				return
			}
		}
		_ = st.CloseSend()
	}()
	got := newChecker(c.id, answered)
	for {
		in := new(wrapperspb.BytesValue)
		err := st.RecvMsg(in)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if _, err := got.Write(in.GetValue()); err != nil {
			return err
		}
		if s.slow > 0 {
			<-time.After(rand.N(s.slow))
		}
	}
	return complete(got, reply)
}

func about64(d time.Duration) time.Duration { return time.Duration(about(int64(d))) }

// complete: an answer that ended in good order has all its bytes.
func complete(got *checker, reply int64) error {
	if got.n != reply {
		return fmt.Errorf("SHORT: %d of %d bytes, and a good end", got.n, reply)
	}
	return nil
}

type httpShape struct {
	h2          bool
	size, reply int64
	chunked     bool // lengths aren't said
	fresh       bool
}

func httpWorker(s httpShape) func(l *load) (func(context.Context, *soakCall) error, func()) {
	return func(l *load) (func(context.Context, *soakCall) error, func()) {
		var only http.Protocols
		only.SetHTTP1(!s.h2)
		only.SetUnencryptedHTTP2(s.h2)
		tr := &http.Transport{Protocols: &only, DisableCompression: true, DisableKeepAlives: s.fresh}
		url := "http://" + l.addr("web") + "/soak"
		return func(ctx context.Context, c *soakCall) error { return s.call(ctx, tr, url, c) }, tr.CloseIdleConnections
	}
}

func (s *httpShape) call(ctx context.Context, tr *http.Transport, url string, c *soakCall) error {
	size, reply := about(s.size), about(s.reply)
	method, body := http.MethodGet, io.Reader(nil)
	if size > 0 {
		method, body = http.MethodPost, io.LimitReader(pattern(c.id, sent), size)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	if size > 0 && !s.chunked {
		req.ContentLength = size
	}
	req.Header = http.Header{"X-Id": {fmt.Sprint(c.id)}, "X-Size": {fmt.Sprint(size)}, "X-Reply": {fmt.Sprint(reply)}}
	if s.chunked {
		req.Header.Set(modeHeader, "chunked")
	}
	resp, err := tr.RoundTrip(req) // http.Client would try again
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	c.backend = resp.Header.Get(nameHeader)
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text))
	}
	if id := resp.Header.Get(idHeader); id != fmt.Sprint(c.id) {
		return fmt.Errorf("CORRUPT: the answer to call %s", id)
	}
	got := newChecker(c.id, answered)
	if _, err := io.CopyBuffer(struct{ io.Writer }{got}, resp.Body, make([]byte, soakChunk)); err != nil {
		return err
	}
	return complete(got, reply)
}

type tcpShape struct {
	size, reply int64
	cut         bool // the caller goes away in the middle
}

func tcpWorker(s tcpShape) func(l *load) (func(context.Context, *soakCall) error, func()) {
	return func(l *load) (func(context.Context, *soakCall) error, func()) {
		return func(ctx context.Context, c *soakCall) error { return s.call(ctx, l.addr("tcp"), c) }, func() {}
	}
}

func (s *tcpShape) call(ctx context.Context, addr string, c *soakCall) error {
	h := tcpHead{c.id, about(s.size), about(s.reply), s.cut}
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	end, _ := ctx.Deadline()
	if err := nc.SetDeadline(end); err != nil {
		return err
	}
	if s.cut {
		defer time.AfterFunc(rand.N(15*time.Millisecond), func() { nc.Close() }).Stop()
	}
	wrote := make(chan error, 1)
	go func() {
		head, _ := wire.Append(nil, wire.BigEndian, &h)
		_, err := io.CopyBuffer(struct{ io.Writer }{nc}, io.MultiReader(bytes.NewReader(head), io.LimitReader(pattern(c.id, sent), h.Size)), make([]byte, soakChunk))
		if err == nil {
			err = nc.(*net.TCPConn).CloseWrite()
		}
		wrote <- err
	}()
	var name [tcpName]byte
	got := newChecker(c.id, answered)
	_, err = io.ReadFull(nc, name[:])
	if err == nil {
		c.backend = string(bytes.TrimRight(name[:], "\x00"))
		_, err = io.CopyBuffer(struct{ io.Writer }{got}, struct{ io.Reader }{nc}, make([]byte, soakChunk))
	}
	if err != nil {
		nc.Close()
	}
	if werr := <-wrote; err == nil {
		err = werr
	}
	switch _, corrupt := errors.AsType[corruptError](err); {
	case corrupt:
		return err
	case s.cut && (err != nil || got.n < h.Reply): // as it was meant
		return nil
	case err != nil:
		return err
	}
	return complete(got, h.Reply)
}

// total is the number of calls of each shape.
func (l *load) total() (sum int64, lines []string) {
	for name, n := range l.calls {
		sum += n.Load()
		lines = append(lines, fmt.Sprintf("%7d %s", n.Load(), name))
	}
	slices.Sort(lines)
	return sum, lines
}

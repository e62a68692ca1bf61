package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/testneed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// oneService is an agent with n static backends behind one port.
func oneService(t *testing.T, n int, keys string) (bs []*backend, a *agent, addr string) {
	t.Helper()
	bs = backends(t, n, 0)
	port := freePort(t)
	a = startAgent(t, fmt.Sprintf("- {name: user, backends: [%s], listen: [%d]%s}", join(addrs(bs)), port, keys))
	return bs, a, fmt.Sprintf("127.0.0.1:%d", port)
}

// 10,000 messages of mixed size go both ways through one stream, in order and whole; other streams share the connection.
func TestStreamOfManyMessages(t *testing.T) {
	t.Parallel()
	const messages = 10_000
	_, _, addr := oneService(t, 2, "")
	c := newCaller(t, addr)
	stop := c.keepCalling(2)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := c.conn.NewStream(ctx, &echoDesc.Streams[0], streamMethod)
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, 256<<10)
	random := rand.NewChaCha8([32]byte{1})
	if _, err := random.Read(content); err != nil {
		t.Fatal(err)
	}
	// The same sizes at both ends: most are small, some span many frames and more than the initial window.
	size := func(i int) int {
		switch r := uint64(i) * 0x9E3779B97F4A7C15 >> 32; {
		case i%1000 == 999:
			return 200_000
		case i%20 == 0:
			return int(r % 40_000)
		default:
			return int(r % 600)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range messages {
			if err := s.SendMsg(wrapperspb.Bytes(content[i%1000 : i%1000+size(i)])); err != nil {
				t.Errorf("send message %d: %v", i, err)
				return
			}
		}
		if err := s.CloseSend(); err != nil {
			t.Error(err)
		}
	})
	for i := range messages {
		m := new(wrapperspb.BytesValue)
		if err := s.RecvMsg(m); err != nil {
			t.Fatalf("receive message %d: %v", i, err)
		}
		if !bytes.Equal(m.GetValue(), content[i%1000:i%1000+size(i)]) {
			t.Fatalf("message %d differs: %d bytes, want %d", i, len(m.GetValue()), size(i))
		}
	}
	if err := s.RecvMsg(new(wrapperspb.BytesValue)); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
	wg.Wait()
	if len(s.Trailer().Get(nameHeader)) != 1 {
		t.Errorf("trailer %v", s.Trailer())
	}
	stop()
	c.wantNoFailures()
}

// Bodies far larger than any window pass, many at once, beside small calls.
func TestLargeBodies(t *testing.T) {
	t.Parallel()
	_, _, addr := oneService(t, 2, "")
	c := newCaller(t, addr)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 4 {
				_, _ = c.echo(t.Context(), 1<<20) // noted
				_, _ = c.echo(t.Context(), 0)
			}
		})
	}
	wg.Wait()
	c.wantNoFailures()
	if _, n := c.since(time.Time{}); n != 64 {
		t.Errorf("%d answers, want 64", n)
	}
}

// The caller's cancel and deadline reach the backend within 50 ms (4.6), and what two of them take that know no agent; a machine that is busy is given some tries.
func TestCancelAndDeadlineReachTheBackend(t *testing.T) {
	t.Parallel()
	bs, _, addr := oneService(t, 1, "")
	c, direct := newCaller(t, addr), newCaller(t, bs[0].addr)
	const within = 50 * time.Millisecond
	// hang makes a call that ends with ctx, and returns how much later the backend knew.
	hang := func(t *testing.T, c *caller, ctx context.Context, end func() time.Time, want codes.Code) (late time.Duration, arrived bool) {
		t.Helper()
		begun := time.Now()
		answered := make(chan error, 1)
		go func() {
			answered <- c.conn.Invoke(ctx, blockMethod, wrapperspb.Bytes(nil), new(wrapperspb.BytesValue))
		}()
		var call *blockedCall
		select {
		case call = <-bs[0].blocked:
		case err := <-answered: // its deadline was over before it arrived
			if status.Code(err) != want || want != codes.DeadlineExceeded {
				t.Errorf("the call ended with %v", err)
			}
			return 0, false
		case <-time.After(patience):
			t.Fatal("the call doesn't arrive")
		}
		// What goes over the wire is the time that is left, so that its way is added to it.
		deadline, ok := ctx.Deadline()
		if off := call.deadline.Sub(deadline); ok != call.hasDeadline || ok && (off < -within || off > call.arrived.Sub(begun)+within) {
			t.Errorf("deadline at the backend %v %v, want %v %v; the call arrived after %v", call.deadline, call.hasDeadline, deadline, ok, call.arrived.Sub(begun))
		}
		ended := end()
		late = receive(t, call.ended).Sub(ended)
		if err := receive(t, answered); status.Code(err) != want {
			t.Errorf("the call ended with %v, want %v", err, want)
		}
		return late, true
	}
	t.Run("cancel", func(t *testing.T) {
		soon(t, within, func(int) time.Duration {
			var late [2]time.Duration
			for i, c := range []*caller{c, direct} {
				ctx, cancel := context.WithCancel(t.Context())
				late[i], _ = hang(t, c, ctx, func() time.Time { cancel(); return time.Now() }, codes.Canceled)
			}
			return late[0] - 2*late[1]
		})
	})
	t.Run("deadline", func(t *testing.T) {
		soon(t, within, func(try int) time.Duration {
			var late [2]time.Duration
			for i, c := range []*caller{c, direct} {
				end := time.Now().Add(time.Duration(try+1) * 300 * time.Millisecond)
				ctx, cancel := context.WithDeadline(t.Context(), end)
				defer cancel()
				var arrived bool
				if late[i], arrived = hang(t, c, ctx, func() time.Time { return end }, codes.DeadlineExceeded); !arrived {
					return time.Hour
				}
			}
			return late[0] - 2*late[1]
		})
	})
}

// soon wants at least one of some tries to take no longer than most: a machine that is busy, or stands still for a second, is as slow now and then, and what is too slow is always.
func soon(t *testing.T, most time.Duration, try func(n int) time.Duration) {
	t.Helper()
	var took []time.Duration
	for n := range 20 {
		if took = append(took, try(n)); took[n] <= most {
			return
		}
	}
	t.Errorf("it took %v, want %v at least once", took, most)
}

// A timeout.request of the service ends a call that has no deadline.
func TestRequestTimeout(t *testing.T) {
	t.Parallel()
	bs, _, addr := oneService(t, 1, ", timeout: {request: 300ms}")
	c := newCaller(t, addr)
	for try := 0; ; try++ { // on a machine that stands still the time is over before the backend hears of a call
		began := time.Now()
		err := c.conn.Invoke(t.Context(), blockMethod, wrapperspb.Bytes(nil), new(wrapperspb.BytesValue))
		if took := time.Since(began); status.Code(err) != codes.DeadlineExceeded || took < 250*time.Millisecond {
			t.Errorf("after %v: %v", took, err)
		}
		select {
		case call := <-bs[0].blocked:
			receive(t, call.ended)
			return
		default:
			if try == 20 {
				t.Fatal("no call came to the backend")
			}
		}
	}
}

// Errors of the backend arrive as they were, in trailers only; none makes the agent retry or eject.
func TestStatusesPass(t *testing.T) {
	t.Parallel()
	_, _, addr := oneService(t, 1, "")
	c := newCaller(t, addr)
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		ctx := metadata.AppendToOutgoingContext(t.Context(), codeHeader, strconv.Itoa(int(code)))
		err := c.conn.Invoke(ctx, failMethod, wrapperspb.Bytes(nil), new(wrapperspb.BytesValue))
		if s := status.Convert(err); s.Code() != code || s.Message() != failText {
			t.Errorf("%v arrived as %v", code, err)
		}
	}
	if err := c.conn.Invoke(t.Context(), "/e2e.Echo/NoSuchMethod", wrapperspb.Bytes(nil), new(wrapperspb.BytesValue)); status.Code(err) != codes.Unimplemented {
		t.Errorf("an unknown method: %v", err)
	}
}

// Metadata and :authority arrive as they were sent; nothing is added (4.6).
func TestMetadataPasses(t *testing.T) {
	t.Parallel()
	bs, _, addr := oneService(t, 1, "")
	seen := make(chan metadata.MD, 2)
	bs[0].saw = seen
	direct, proxied := newCaller(t, bs[0].addr), newCaller(t, addr)
	send := metadata.Pairs("x-many", "a", "x-many", "b, c", "x-empty", "", "x-long", strings.Repeat("v", 20_000), "x-raw-bin", string([]byte{0, 255, 10, 13}))
	for _, c := range []*caller{direct, proxied} {
		if err := c.conn.Invoke(metadata.NewOutgoingContext(t.Context(), send), echoMethod, wrapperspb.Bytes(nil), new(wrapperspb.BytesValue)); err != nil {
			t.Fatal(err)
		}
	}
	want, got := receive(t, seen), receive(t, seen)
	want.Set(":authority", addr)
	if !maps.EqualFunc(got, want, slices.Equal[[]string]) {
		t.Errorf("through the agent %v, want %v", got, want)
	}
}

// A backend that stops gracefully (GOAWAY, then FIN once its calls have ended) costs no call, again and again (4.1).
func TestGracefulRestartsOfBackends(t *testing.T) {
	t.Parallel()
	bs := backends(t, 3, work)
	port := freePort(t)
	startAgent(t, fmt.Sprintf("- {name: user, backends: [%s], protocol: h2, listen: [%d]}", join(addrs(bs)), port))
	c := newCaller(t, fmt.Sprintf("127.0.0.1:%d", port))
	c.burst(50, 5)
	stop := c.keepCalling(10)
	for _, b := range bs {
		b.srv.GracefulStop()
		b.served.Wait()
		from := time.Now()
		poll(t, "calls go on", func() bool { _, n := c.since(from); return n > 100 })
		b.start()
		poll(t, "it is called again", func() bool { counts, _ := c.since(from); return counts[b.name] > 10 })
	}
	stop()
	c.wantNoFailures()
}

// A removed backend's running calls go on, new ones go elsewhere (4.7).
func TestRunningCallsOfARemovedBackend(t *testing.T) {
	t.Parallel()
	bs := backends(t, 1, 0)
	other := newBackend(t, "other", "127.0.0.1", 0)
	reg := etcdClient(t, etcd.Endpoints()...)
	register(t, reg, "user", bs[0].addr)
	port := freePort(t)
	startAgent(t, fmt.Sprintf("- {name: user, prefix: services/user/, listen: [%d]}", port), etcd.Endpoints()...)
	c := newCaller(t, fmt.Sprintf("127.0.0.1:%d", port))
	s, err := c.conn.NewStream(t.Context(), &echoDesc.Streams[0], streamMethod)
	if err != nil {
		t.Fatal(err)
	}
	exchange := func(text string) {
		t.Helper()
		out := new(wrapperspb.BytesValue)
		if err := errors.Join(s.SendMsg(wrapperspb.Bytes([]byte(text))), s.RecvMsg(out)); err != nil || string(out.GetValue()) != text {
			t.Fatalf("%q was answered %q, %v", text, out.GetValue(), err)
		}
	}
	exchange("before")
	register(t, reg, "user", other.addr)
	unregister(t, reg, "user", bs[0].addr)
	poll(t, "new calls go elsewhere", func() bool {
		from := time.Now()
		c.burst(10, 1)
		counts, _ := c.since(from)
		return counts["other"] == 10
	})
	exchange("after")
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(new(wrapperspb.BytesValue)); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ended with %v", err)
	}
	if got := s.Trailer().Get(nameHeader); !slices.Equal(got, []string{"b0"}) {
		t.Errorf("the stream was with %v", got)
	}
	c.wantNoFailures()
}

// When the agent stops, running calls get up to 5 s (6.2).
func TestRunningCallsOutliveTheStop(t *testing.T) {
	t.Parallel()
	bs := backends(t, 1, time.Second)
	port := freePort(t)
	a := startAgent(t, fmt.Sprintf("- {name: user, backends: [%q], listen: [%d]}", bs[0].addr, port))
	c := newCaller(t, fmt.Sprintf("127.0.0.1:%d", port))
	answered := make(chan error, 1)
	go func() {
		_, err := c.echo(context.Background(), 10)
		answered <- err
	}()
	poll(t, "the call is with the backend", func() bool { return bs[0].calls.Load() == 1 })
	a.stop()
	if err := receive(t, answered); err != nil {
		t.Error(err)
	}
	if n := bs[0].calls.Load(); n != 1 {
		t.Errorf("the backend was called %d times", n)
	}
}

// A service without a usable backend answers at once, and says why (4.5).
func TestNoUsableBackend(t *testing.T) {
	t.Parallel()
	bs, _, addr := oneService(t, 2, "")
	for _, b := range bs {
		b.kill()
	}
	c := newCaller(t, addr)
	began := time.Now()
	err := c.conn.Invoke(t.Context(), echoMethod, wrapperspb.Bytes(nil), new(wrapperspb.BytesValue))
	if s := status.Convert(err); s.Code() != codes.Unavailable || !strings.Contains(s.Message(), "lbagent: user: 2 backends, ") || !strings.Contains(s.Message(), "refused") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > patience/2 { // what waits for a backend waits for ever: the call has no deadline
		t.Errorf("it took %v", took)
	}
	bs[0].start()
	poll(t, "calls work again", func() bool { _, err := c.echo(t.Context(), 1); return err == nil })
}

// The listener of a bare port is on ::1 too, and backends may be IPv6.
func TestIPv6(t *testing.T) {
	t.Parallel()
	testneed.IPv6(t)
	six, four := newBackend(t, "six", "::1", 0), newBackend(t, "four", "127.0.0.1", 0)
	port := freePort(t)
	a := startAgent(t, fmt.Sprintf("- {name: user, backends: [%s], listen: [%d], policy: round_robin}", join([]string{six.addr, four.addr}), port))
	for _, host := range []string{"[::1]", "127.0.0.1"} {
		c := newCaller(t, fmt.Sprintf("%s:%d", host, port))
		began := time.Now()
		c.burst(20, 1)
		c.wantNoFailures()
		if ok, text := c.even(began, []string{"six", "four"}, 0.1); !ok {
			t.Errorf("through %s: %s", host, text)
		}
	}
	if got := a.addresses("user"); !sameSet(got, []string{six.addr, four.addr}) {
		t.Errorf("backends %v", got)
	}
}

// The service's port can be a unix socket.
func TestUnixListener(t *testing.T) {
	t.Parallel()
	bs := backends(t, 1, 0)
	a := newAgent(t, "")
	path := a.dir + "/user.sock"
	a.services = fmt.Sprintf(`- {name: user, backends: [%s], listen: ["unix:%s"]}`, join(addrs(bs)), path)
	a.writeConfig()
	a.start()
	out := new(wrapperspb.BytesValue)
	if err := a.dial("unix:"+path).Invoke(t.Context(), echoMethod, wrapperspb.Bytes([]byte("x")), out, grpc.WaitForReady(true)); err != nil || string(out.GetValue()) != "x" {
		t.Errorf("answer %q, %v", out.GetValue(), err)
	}
}

// receive waits for a value.
func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

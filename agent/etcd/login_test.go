package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// guarded is an etcd as far as a login goes: it counts logins, and forgets tokens when it is told to.
type guarded struct {
	pb.UnimplementedAuthServer
	pb.UnimplementedKVServer

	logins atomic.Int64
	hold   atomic.Pointer[chan struct{}] // logins wait for it, unless nil
	slow   atomic.Pointer[chan struct{}] // so do reads with a token
	reads  atomic.Int64                  // with a token
	conns  conns

	mu    sync.Mutex
	token string
	off   bool // authentication is off
	pw    string
}

func (g *guarded) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	g.logins.Add(1)
	if hold := g.hold.Load(); hold != nil {
		select {
		case <-*hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.off:
		return nil, rpctypes.ErrGRPCAuthNotEnabled
	case r.Name != "agent" || r.Password != g.pw:
		return nil, rpctypes.ErrGRPCAuthFailed
	}
	g.token = "token-" + r.Password + strings.Repeat("+", int(g.logins.Load()))
	return &pb.AuthenticateResponse{Token: g.token}, nil
}

func (g *guarded) Range(ctx context.Context, _ *pb.RangeRequest) (*pb.RangeResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	p, _ := grpcpeer.FromContext(ctx)
	g.conns.from(p.Addr.String())
	got := strings.Join(md.Get(rpctypes.TokenFieldNameGRPC), ",")
	if got != "" {
		g.reads.Add(1)
		if slow := g.slow.Load(); slow != nil {
			<-*slow
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.off:
	case got == "":
		return nil, rpctypes.ErrGRPCUserEmpty
	case got != g.token:
		return nil, rpctypes.ErrGRPCInvalidAuthToken
	}
	return &pb.RangeResponse{Header: &pb.ResponseHeader{}}, nil
}

// forget makes all tokens void, as a restart does.
func (g *guarded) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.token = "none"
}

// conns is the connections that a server has accepted.
type conns struct {
	net.Listener

	mu   sync.Mutex
	all  map[string]net.Conn // by the peer's address
	read string              // the address that the last read came from
}

func (c *conns) on(l net.Listener) net.Listener {
	c.Listener, c.all = l, make(map[string]net.Conn)
	return c
}

func (c *conns) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.mu.Lock()
		c.all[conn.RemoteAddr().String()] = conn
		c.mu.Unlock()
	}
	return conn, err
}

func (c *conns) from(addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read = addr
}

// cut closes the connection that the last read came on.
func (c *conns) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all[c.read].Close()
}

// guardedClient is a client of g, which is as it should be for it.
func guardedClient(t *testing.T, g *guarded) (*etcdClient, string) {
	t.Helper()
	e := guardedEtcd(t, g)
	c, err := Dial(t.Context(), e, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.(*etcdClient), e.PasswordFile
}

// guardedEtcd is how to reach g, which is as it should be.
func guardedEtcd(t *testing.T, g *guarded) Config {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pb.RegisterAuthServer(s, g)
	pb.RegisterKVServer(s, g)
	go func() { _ = s.Serve(g.conns.on(l)) }()
	t.Cleanup(s.Stop)
	file := filepath.Join(t.TempDir(), "password")
	write(t, file, g.pw+"\n")
	return Config{Endpoints: []string{l.Addr().String()}, Username: "agent", PasswordFile: file}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// However many calls find the token expired, there is one login for all of them, with the password as it is now (1.4).
func TestOneLoginForAll(t *testing.T) {
	g := &guarded{pw: "first"}
	c, file := guardedClient(t, g)
	for round := range int64(3) {
		if n := g.logins.Load(); n != round+1 {
			t.Fatalf("%d logins, want %d", n, round+1)
		}
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if _, err := c.Newest(t.Context(), "services/"); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		wg.Wait()
		g.forget()
		if round == 0 { // those that come while a login is under way wait for it
			hold := make(chan struct{})
			g.hold.Store(&hold)
			time.AfterFunc(50*time.Millisecond, func() { close(hold) })
		}
		g.mu.Lock()
		g.pw = "next"
		g.mu.Unlock()
		write(t, file, "next")
		if _, err := c.Newest(t.Context(), "services/"); err != nil {
			t.Fatal(err)
		}
	}
}

// A call doesn't wait for a login longer than it has time; the login goes on, and the next call has the good of it.
func TestLoginOutlivesCall(t *testing.T) {
	g := &guarded{pw: "first"}
	c, _ := guardedClient(t, g)
	hold := make(chan struct{})
	g.hold.Store(&hold)
	g.forget()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := c.Newest(ctx, "services/")
		done <- err
	}()
	eventually(t, time.Minute, "the login", func() bool { return g.logins.Load() == 2 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "log in to etcd as agent: no answer yet") {
		t.Errorf("error %v", err)
	}
	close(hold)
	if _, err := c.Newest(t.Context(), "services/"); err != nil {
		t.Error(err)
	}
	if n := g.logins.Load(); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
}

// A refusal is told as one, and authentication may be off, turned on, and off again.
func TestLoginRefusedAndOff(t *testing.T) {
	g := &guarded{pw: "first", off: true}
	c, file := guardedClient(t, g)
	set := func(off bool) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.off = off
	}
	try := func(want error) {
		t.Helper()
		if _, err := c.Newest(t.Context(), "services/"); !errors.Is(err, want) {
			t.Errorf("error %v, want %v", err, want)
		}
	}
	try(nil)
	set(false)
	g.forget()
	try(nil)
	write(t, file, "wrong")
	g.forget()
	try(rpctypes.ErrAuthFailed)
	if !IsAuth(rpctypes.ErrAuthFailed) {
		t.Error("a refused login makes no new client")
	}
	os.Remove(file)
	try(os.ErrNotExist)
	set(true)
	try(nil)
}

// While all hosts log in, etcd's answers to keepalives are late, and connections end by that. A login has one of its own, with more patience; if even that is lost, the
// next login waits.
func TestLoginHasOwnConnection(t *testing.T) {
	g := &guarded{pw: "first"}
	c, _ := guardedClient(t, g)
	hold := make(chan struct{})
	g.hold.Store(&hold)
	g.forget()
	done := make(chan error, 1)
	go func() {
		_, err := c.Newest(t.Context(), "services/")
		done <- err
	}()
	eventually(t, time.Minute, "the login", func() bool { return g.logins.Load() == 2 })
	g.conns.cut()
	if _, err := c.Raw().MemberList(t.Context()); status.Code(err) != codes.Unimplemented { // there is a new connection for the rest
		t.Errorf("error %v, want that it is unimplemented", err)
	}
	g.hold.Store(nil)
	close(hold)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := g.logins.Load(); n != 2 {
		t.Errorf("%d logins, want 2: the first of the client, and the one that was under way", n)
	}
}

// A login whose connection was lost is one that a busy etcd still computes: the next comes later and later. Those that etcd refused don't count.
func TestLoginPace(t *testing.T) {
	now := time.Unix(1000, 0)
	l := &login{}
	var longest time.Duration
	for i := range 400 {
		err := fmt.Errorf("log in to etcd as agent: %w", status.Error(codes.Unavailable, "connection reset"))
		if i%2 == 0 {
			err = fmt.Errorf("log in to etcd as agent: %w", rpctypes.ErrTimeout)
		}
		l.pace(now, err)
		longest = max(longest, l.next.Sub(now))
	}
	if longest < loginBackoff/2 || longest > loginBackoff {
		t.Errorf("the longest wait is %v, want one of up to %v", longest, loginBackoff)
	}
	for _, err := range []error{nil, rpctypes.ErrAuthFailed, rpctypes.ErrNoLeader, os.ErrNotExist, context.Canceled} {
		l.next = now.Add(time.Hour)
		if l.pace(now, err); !l.next.IsZero() {
			t.Errorf("after %v the next login waits", err)
		}
		if l.pace(now, status.Error(codes.Unavailable, "connection reset")); l.next.Sub(now) > MinBackoff {
			t.Errorf("after %v and one lost login, the next waits for %v", err, l.next.Sub(now))
		}
	}
}

// A call that takes long has somebody look whether it's the token; that costs no login. The machine may stand still for longer than a look waits for its answer, which then
// does cost one: not each time.
func TestLookCostsNoLogin(t *testing.T) {
	const tries = 5
	for range tries {
		if n := loginsOfLook(t); n == 1 {
			return
		} else {
			t.Logf("%d logins, want that of the beginning", n)
		}
	}
	t.Errorf("a login more in each of %d looks", tries)
}

// loginsOfLook counts the logins of a client with a call that takes so long that somebody looks.
func loginsOfLook(t *testing.T) int64 {
	t.Helper()
	g := &guarded{pw: "first"}
	c, _ := guardedClient(t, g)
	slow := make(chan struct{})
	g.slow.Store(&slow)
	done := make(chan error, 1)
	go func() {
		_, err := c.Newest(t.Context(), "services/")
		done <- err
	}()
	eventually(t, time.Minute, "the look with the token, after the one without", func() bool { return g.reads.Load() >= 2 })
	g.slow.Store(nil)
	close(slow)
	if err := <-done; err != nil {
		t.Error(err)
	}
	return g.logins.Load()
}

// What a look has found holds for its connection: behind the next one may be an etcd that was restored meanwhile, where calls with the token wait without end.
func TestLookAgainOnNextConnection(t *testing.T) {
	g := &guarded{pw: "first"}
	e := guardedEtcd(t, g)
	e.login = e.newLogin()
	defer e.login.close()
	c, err := Dial(t.Context(), e, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Newest(t.Context(), "services/"); err != nil {
		t.Fatal(err)
	}
	e.login.mu.Lock()
	e.login.looked = time.Now().Add(time.Hour) // a moment ago, for as long as this test may take
	e.login.mu.Unlock()
	waits := make(chan struct{})
	g.slow.Store(&waits)
	g.conns.cut()
	done := make(chan error, 1)
	go func() {
		_, err := c.Newest(t.Context(), "services/")
		done <- err
	}()
	eventually(t, time.Minute, "another login", func() bool { return g.logins.Load() == 2 })
	g.slow.Store(nil)
	close(waits)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A login goes on, for the next client, when the one that it was begun for is given up.
func TestLoginOutlivesClient(t *testing.T) {
	g := &guarded{pw: "first"}
	hold := make(chan struct{})
	g.hold.Store(&hold)
	e := guardedEtcd(t, g)
	e.login = e.newLogin()
	defer e.login.close()
	first, cancel := context.WithCancel(t.Context())
	defer cancel()
	given := make(chan error, 1)
	go func() {
		_, err := Dial(first, e, func(error) {})
		given <- err
	}()
	eventually(t, time.Minute, "the login", func() bool { return g.logins.Load() == 1 })
	cancel()
	if err := <-given; !errors.Is(err, errLoggingIn) {
		t.Fatalf("error %v, want that the login has no answer yet", err)
	}
	time.AfterFunc(50*time.Millisecond, func() { close(hold) })
	c, err := Dial(t.Context(), e, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Newest(t.Context(), "services/"); err != nil {
		t.Error(err)
	}
	if n := g.logins.Load(); n != 1 {
		t.Errorf("%d logins, want one", n)
	}
}

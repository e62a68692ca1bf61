package etcd

import (
	"context"
	"errors"
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
	"google.golang.org/grpc/metadata"
)

// guarded is an etcd as far as a login goes: it counts logins, and forgets tokens when it is told to.
type guarded struct {
	pb.UnimplementedAuthServer
	pb.UnimplementedKVServer

	logins atomic.Int64
	hold   atomic.Pointer[chan struct{}] // logins wait for it, unless nil

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
	g.mu.Lock()
	defer g.mu.Unlock()
	if got := strings.Join(md.Get(rpctypes.TokenFieldNameGRPC), ","); !g.off && got != g.token {
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

// guardedClient is a client of g, which is as it should be for it.
func guardedClient(t *testing.T, g *guarded) (*etcdClient, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pb.RegisterAuthServer(s, g)
	pb.RegisterKVServer(s, g)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	file := filepath.Join(t.TempDir(), "password")
	write(t, file, g.pw+"\n")
	c, err := Dial(t.Context(), Config{Endpoints: []string{l.Addr().String()}, Username: "agent", PasswordFile: file}, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.(*etcdClient), file
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
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Newest(ctx, "services/"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "log in to etcd as agent: no answer yet") {
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

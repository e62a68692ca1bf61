//go:build linux

package client

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	verdict "github.com/lbagent/lbagent/health"
	"github.com/lbagent/lbagent/localapi"
)

// rig is an agent's API over a real table, which may stop and start again on the same socket.
type rig struct {
	t      testing.TB
	dir    string
	socket string
	table  *table.Table
	events *event.Log

	api  *localapi.Server
	stop func()
}

func newRig(t testing.TB) *rig {
	dir, err := os.MkdirTemp("", "lbcl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, socket: filepath.Join(dir, "lbagent.sock"), events: event.NewLog(10), stop: func() {}}
	if r.table, err = table.New(table.Config{Log: hclog.NewNullLogger(), Events: r.events}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.stop() })
	return r
}

// start runs an agent.
func (r *rig) start() {
	r.t.Helper()
	api, err := localapi.New(localapi.Config{Log: hclog.NewNullLogger(), Table: r.table, Events: r.events, Socket: r.socket})
	if err == nil {
		err = api.Listen()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Run(ctx) }()
	r.api = api
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
		r.stop = func() {}
	}
}

// set makes the list of "user" those addresses.
func (r *rig) set(addrs ...string) {
	if r.table.Lookup("user") == nil {
		r.table.SetSpec(time.Now(), table.Spec{Name: "user", Policy: picker.P2C, PanicPercent: 50, InUse: true})
	}
	l := &service.List{Service: "user", Source: service.FromEtcd, Epoch: 1, Revision: 1, Confirmed: time.Now()}
	for _, a := range addrs {
		l.Backends = append(l.Backends, &service.Backend{Addr: netip.MustParseAddrPort(a), Weight: 100, Created: 1, Metadata: map[string]string{"a": a}})
	}
	r.table.Apply(time.Now(), l)
}

func (r *rig) judge(addr string, to verdict.Part) {
	b := r.table.Lookup("user").View().Find(netip.MustParseAddrPort(addr))
	r.table.SetVerdicts(time.Now(), []verdict.Change{{Group: "user", Addr: b.Addr, State: b.State, From: *b.Verdict, To: to}})
}

// file leaves a list as an agent would.
func (r *rig) file(service, text string) {
	r.t.Helper()
	dir := filepath.Join(r.dir, "lists")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, service), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) client() *Client {
	r.t.Helper()
	c, err := New(Config{Socket: r.socket})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}

// backend is a real gRPC server; its health service is what callers call.
func backend(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, health.NewServer())
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(s.Stop)
	return ln.Addr().String()
}

// dial is an application's connection to the service, balanced by the resolver.
func dial(t testing.TB, c *Client) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("lbagent:///user", grpc.WithResolvers(NewResolverBuilder(c)), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	return cc
}

// call makes one call and returns the backend that answered.
func call(cc *grpc.ClientConn) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var p peer.Peer
	_, err := healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Peer(&p), grpc.WaitForReady(true))
	if err != nil {
		return "", err
	}
	return p.Addr.String(), nil
}

// reached waits until calls reach exactly the wanted backends, every one of them.
func reached(t testing.TB, cc *grpc.ClientConn, want ...string) {
	t.Helper()
	eventually(t, func() string {
		got := map[string]bool{}
		for range 4 * len(want) {
			a, err := call(cc)
			if err != nil {
				t.Fatal(err)
			}
			got[a] = true
		}
		for _, w := range want {
			if !got[w] {
				return fmt.Sprintf("calls reach %v, want %v", got, want)
			}
		}
		if len(got) != len(want) {
			return fmt.Sprintf("calls reach %v, want %v", got, want)
		}
		return ""
	})
}

// eventually waits until ok returns "", and fails with what it last said.
func eventually(t testing.TB, ok func() string) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		why := ok()
		if why == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(why)
		}
	}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

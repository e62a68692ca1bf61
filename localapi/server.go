// Package localapi is the "ask" door: the API on the unix sockets, and lookups by TCP where that is configured, in gRPC and in JSON (DESIGN.md 6). It answers from published views, so that an answer takes
// no lock and waits for nobody. Each socket has the same set of services: what a caller may do follows from the socket it came by and from who it is, as the kernel says.
//
//	accept → peer credentials → first bytes ─┬─ HTTP/2: gRPC server ─────────────────────────┐
//	                                         └─ HTTP/1.1: gateway → in-memory → gRPC server ─┴→ interceptor → services
package localapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/test/bufconn"

	"github.com/lbagent/lbagent/agent/calls"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/mute"
	"github.com/lbagent/lbagent/agent/registrar"
	"github.com/lbagent/lbagent/agent/table"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// What Config.Follow returns, wrapped or not; any other error means that the service can't be followed now.
var (
	ErrUnknownService  = errors.New("no such service")
	ErrTooManyServices = errors.New("too many services are followed on demand")
)

// Config wires a Server.
type Config struct {
	Log    hclog.Logger
	Table  *table.Table
	Events *event.Log

	// Socket answers every local user (mode 0666); AdminSocket also serves AdminService (mode 0660, group AdminGID). "" = not served.
	Socket, AdminSocket string
	// Listen is the host:port where LookupService answers by TCP; "" = nowhere. Callers are told apart by their addresses, which proves little, so all of them
	// together have one user's say in reports, and nothing but lookups is theirs.
	Listen string
	// Inherited returns the listener of such an address that a former process made (SEMANTICS 6.2), nil if there is none. Nil = there are none.
	Inherited func(listen string) net.Listener
	// Listener and AdminListener, if set, are sockets that somebody else made and will remove. They take the place of the paths; a path at which they are not is served as well.
	Listener, AdminListener *net.UnixListener
	// AdminGID is the group whose members may change things, beside root and the agent's own user; 0 = no group.
	AdminGID uint32

	// Follow starts to follow a service that is not in the table because uid asked for it (1.15). It returns once Table.Lookup finds the service, without
	// waiting for a list; else ErrUnknownService or ErrTooManyServices, wrapped with what a person can do. nil = on demand is off.
	Follow func(ctx context.Context, name string, uid uint32) error
	// Hasten is called when somebody asks for a service that has no list yet: at a start it may be one of many that are being read. nil = nothing is to be done.
	Hasten func(service string)
	// Accept lets go of a service's orphans and returns them (1.10). nil = not supported.
	Accept func(service string) ([]netip.AddrPort, error)
	// Reload reads the configuration again and says what changed, a line each; an error says why nothing did (6.1). nil = not supported.
	Reload func(ctx context.Context) ([]string, error)
	// Status returns a fresh StatusResponse with everything but services, which the Server adds. nil = empty.
	Status func() *lbagentv1.StatusResponse
	// Upgrade has a successor take the agent's place, and returns when it has (6.3); an error says why this one goes on, ErrUpgradeBusy that it can't be tried now. nil = not supported.
	Upgrade func(ctx context.Context) (*lbagentv1.UpgradeResponse, error)
	// Outlooks is when backends of a service are probed and tried next, of one backend if only is valid (health.Monitor.Outlooks); nil if nobody knows before ctx ends. nil = unknown.
	Outlooks Outlooks
	// Calls gives the records of calls that go through the proxy. nil = not supported.
	Calls *calls.Taps
	// EtcdNow compares what etcd has of a service at this moment with what the agent knows. nil = not supported.
	EtcdNow func(ctx context.Context, service string) (*lbagentv1.EtcdNow, error)
	// Traffic is what has gone through the proxy. nil = nothing does.
	Traffic func() []ServiceTraffic
	// Connections are the proxy's to the backends of a service; of one backend if only is valid. nil = unknown.
	Connections Connections
	// Mutes is what operators have taken out by hand. nil = not supported.
	Mutes *mute.Mutes
	// Registry keeps services of this host in etcd; nil = not supported.
	Registry *registrar.Registrar
	// Hints returns what the proxy could tell about a service's protocol (4.9), a sentence each. nil = none.
	Hints func(service string) []string

	Limits Limits
}

// Server serves the local API. Listen binds, Run serves.
type Server struct {
	cfg     Config
	log     hclog.Logger
	limits  Limits
	rights  rights
	quotas  [doors]quotas
	counts  counts
	health  *health.Server
	answers serviceCache[viewAnswer]
	plans   serviceCache[*plan]
	report  [doors]reportLimit
	traffic trafficCache
	asks    etcdNowTurn

	compared serviceCache[*lbagentv1.EtcdNow]

	taps    atomic.Int64 // open
	watched atomic.Int64 // streams of Stats that are open

	stopping context.Context // ends when Run begins to stop
	stop     context.CancelCauseFunc
	settled  context.Context // ends when Run waits no longer for what accepted connections speak
	settle   context.CancelFunc

	mu sync.Mutex

	fronts   []*front // bound sockets
	handedOn bool     // another process serves them now

	inner atomic.Pointer[grpc.ClientConn] // the gateway's way to the services; nil before Run

	refused atomic.Uint64
	picks   atomic.Uint64
	reports atomic.Uint64
}

// Stats is what the server counted since its start.
type Stats struct {
	Connections int    // open now, on all sockets
	Calls       int    // gRPC calls open now, watches included; those of the JSON face are not in it
	Refused     uint64 // connections refused because a limit was reached
	Picks       uint64 // picks given, each of a batch counted
	Reports     uint64 // outcomes taken
	Methods     []Method
}

// ErrUpgradeBusy is what Config.Upgrade returns, wrapped, while none can be tried. Package scripts look for "try again" in it.
var ErrUpgradeBusy = errors.New("no upgrade can begin now, try again")

// errUpgraded is why streams end when another process has taken this one's place.
var errUpgraded = errors.New("upgraded, reconnect")

// errStopping is why streams end when the agent stops.
var errStopping = errors.New("the agent is stopping; connect again")

// New returns a Server. It binds nothing and starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Log == nil || cfg.Table == nil || cfg.Events == nil {
		return nil, errors.New("local api: Log, Table and Events are required")
	}
	if cfg.Socket == "" && cfg.Listener == nil && cfg.AdminSocket == "" && cfg.AdminListener == nil {
		return nil, errors.New("local api: no socket to serve")
	}
	s := &Server{
		cfg:    cfg,
		log:    cfg.Log,
		limits: cfg.Limits.withDefaults(),
		rights: newRights(cfg),
		counts: newCounts(),
		health: health.NewServer(),
		asks:   newEtcdNowTurn(),
	}
	for i := range s.quotas {
		s.quotas[i] = newQuotas(s.limits)
	}
	s.stopping, s.stop = context.WithCancelCause(context.Background())
	s.settled, s.settle = context.WithCancel(context.Background())
	for _, name := range []string{lbagentv1.LookupService_ServiceDesc.ServiceName, lbagentv1.StatusService_ServiceDesc.ServiceName,
		lbagentv1.AdminService_ServiceDesc.ServiceName, lbagentv1.RegistryService_ServiceDesc.ServiceName} {
		s.health.SetServingStatus(name, healthpb.HealthCheckResponse_SERVING)
	}
	return s, nil
}

// Run serves until ctx ends, then says goodbye to every caller within Limits.Goodbye. It can be called once.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Listen(); err != nil {
		return err
	}
	mem := bufconn.Listen(256 << 10)
	gateway, err := s.dialGateway(mem)
	if err != nil {
		return err
	}
	s.inner.Store(gateway)
	h2, h1 := newHandoff(s.fronts[0].sock.Addr()), newHandoff(s.fronts[0].sock.Addr())
	// The gateway's requests share one connection: their number is bounded by the connections to the sockets, not by streams.
	direct, inner := s.grpcServer(s.limits.StreamsPerConnection, s.tap), s.grpcServer(1<<31-1, nil)
	web, err := s.httpServer(gateway)
	if err != nil {
		return err
	}

	failed := make(chan error, 3+len(s.fronts))
	var wg, accepting sync.WaitGroup
	serve := func(wg *sync.WaitGroup, what string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("local api: %s: %w", what, err)
			}
		})
	}
	serve(&wg, "grpc", func() error { return direct.Serve(h2) })
	serve(&wg, "gateway", func() error { return inner.Serve(gatewayListener{mem}) })
	serve(&wg, "json", func() error { return web.Serve(h1) })
	for _, f := range s.fronts {
		serve(&accepting, f.sock.Addr().String(), func() error { return f.accept(h2, h1) })
	}

	select {
	case <-ctx.Done():
		err = nil
	case err = <-failed:
	}
	s.mu.Lock()
	handedOn := s.handedOn
	s.mu.Unlock()
	why := errStopping
	for _, f := range s.fronts {
		if handedOn {
			why = errUpgraded
			_ = f.sock.Close()
		} else {
			f.sock.close()
		}
	}
	s.stop(why)
	s.health.Shutdown()
	s.awaitSettled(&accepting)
	s.goodbye(direct, web)
	_ = gateway.Close()
	inner.Stop()
	_ = mem.Close()
	h2.Close()
	h1.Close()
	wg.Wait()
	return err
}

// pingEvery is how soon Ping asks again after an error.
const pingEvery = 100 * time.Millisecond

// Ping returns when the API has answered a call, or ctx has ended. The call goes through memory, as those of the JSON face do: what the kernel or other callers do to the
// sockets says nothing about the agent.
func (s *Server) Ping(ctx context.Context) {
	self := Peer{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), PID: int32(os.Getpid())}
	for {
		if inner := s.inner.Load(); inner != nil {
			md := metadata.NewOutgoingContext(ctx, metadata.Pairs(peerKey, self.String()))
			if _, err := healthpb.NewHealthClient(inner).Check(md, &healthpb.HealthCheckRequest{}); err == nil {
				return
			}
		}
		select {
		case <-time.After(pingEvery):
		case <-ctx.Done():
			return
		}
	}
}

// awaitSettled returns when each connection that was accepted is a server's, and cuts those that don't say in time what they speak. Its caller has no reason yet to call again:
// it sees a connection that was there and closes before an answer.
func (s *Server) awaitSettled(accepting *sync.WaitGroup) {
	defer s.settle()
	defer time.AfterFunc(s.limits.Settle, s.settle).Stop()
	accepting.Wait()
}

// goodbye lets unary calls end; streams were told by s.stop. After Limits.Goodbye it cuts what is left.
func (s *Server) goodbye(direct *grpc.Server, web *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), s.limits.Goodbye)
	defer cancel()
	cut := context.AfterFunc(ctx, direct.Stop)
	var wg sync.WaitGroup
	wg.Go(direct.GracefulStop)
	if web.Shutdown(ctx) != nil {
		_ = web.Close()
	}
	wg.Wait()
	cut()
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	st := Stats{Refused: s.refused.Load(), Picks: s.picks.Load(), Reports: s.reports.Load(), Methods: s.counts.methods()}
	for _, q := range s.quotas {
		st.Connections += q.connections.held()
		st.Calls += q.streams.held()
	}
	return st
}

// grpcServer returns a server of every service, with every limit set: grpc-go's own defaults are unlimited.
func (s *Server) grpcServer(streams uint32, tapHandle tapHandle) *grpc.Server {
	opts := append(s.limits.serverOptions(streams),
		grpc.Creds(peerCredentials{}),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
	)
	if tapHandle != nil {
		opts = append(opts, grpc.InTapHandle(tapHandle))
	}
	g := grpc.NewServer(opts...)
	lbagentv1.RegisterLookupServiceServer(g, lookupService{s: s})
	lbagentv1.RegisterStatusServiceServer(g, statusService{s: s})
	lbagentv1.RegisterAdminServiceServer(g, adminService{s: s})
	if s.cfg.Registry != nil {
		lbagentv1.RegisterRegistryServiceServer(g, registryService{s: s, r: s.cfg.Registry})
	}
	healthpb.RegisterHealthServer(g, healthService{s.health})
	reflection.Register(g)
	return g
}

// now is the time of an answer; every answer takes it once.
func (s *Server) now() time.Time { return time.Now() }

// Package admin serves what an operator and a monitoring system read of the agent: metrics, health, readiness and a page that shows what is going on.
// It is read-only, and the only importer of client_golang.
package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/discovery"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/fleet"
	"github.com/lbagent/lbagent/agent/mute"
	"github.com/lbagent/lbagent/agent/notify"
	"github.com/lbagent/lbagent/agent/registrar"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"golang.org/x/sys/unix"
)

// What a peer may cost: a scrape is small and quick, and nobody needs many at once.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	writeTimeout      = 30 * time.Second
	idleTimeout       = 2 * time.Minute // longer than the usual scrape interval, so that a scraper keeps its connection
	maxHeaderBytes    = 16 << 10
	maxConnections    = 64 // per address; more are closed at once
	stopTimeout       = time.Second
)

// Config wires a Server.
type Config struct {
	Log     hclog.Logger
	Version string
	// Listen is host:port of the page, the metrics and the health checks, for this host (admin.listen); "" = off.
	Listen string
	// MetricsListen is host:port of the metrics and the health checks only, for anybody (metrics.listen); "" = off.
	MetricsListen string

	Table  *table.Table
	Events *event.Log
	// API is what the page shows. Nil = no page.
	API API
	// Ready reports whether the agent is ready (SEMANTICS 6.4), and which services have no list; those may be missing although it is ready.
	Ready func() (ok bool, missing []string)
	// ConfigOK is false while the file at hand is invalid and an older configuration is in force (6.5).
	ConfigOK func() bool
	// Etcd is what is known of etcd, Discovery of the spool and the lists. Nil = none of their metrics.
	Etcd      func() etcd.Status
	Discovery func() discovery.Status
	// Fleet is what this host made of the fleet's configuration. Nil = none of its metrics.
	Fleet func() fleet.Status
	// Health counts probes and ejections. Nil = none of its metrics.
	Health func() health.Stats
	// Proxy is what went through the proxy. Nil = none of its metrics.
	Proxy func() Proxy
	// Mutes counts what operators have taken out. Nil = none of its metrics.
	Mutes func() mute.Stats
	// Process counts reloads and upgrades. Nil = none of its metrics.
	Process func() Process
	// Ask is what the ask door has to do. Nil = none of its metrics.
	Ask func() Ask
	// AccessLog and Notify count what leaves the host. Nil = none of their metrics.
	AccessLog func() AccessLog
	Notify    func() notify.Stats
	// Registrar says how this host's services fare in etcd. Nil = none of its metrics.
	Registrar func() registrar.Stats
	// Inherited returns the listener of an address that a former process made (SEMANTICS 6.2), nil if there is none. Nil = there are none.
	Inherited func(listen string) net.Listener
	// Now is the clock; nil = time.Now.
	Now func() time.Time
}

// Server answers on the listen addresses. Safe for concurrent use.
type Server struct {
	cfg       Config
	collector *collector
	page      *page // nil: there is none
	doors     []door
}

// door is one bound address and the server that answers there.
type door struct {
	listener net.Listener
	raw      *net.TCPListener
	server   *http.Server
}

// New binds the addresses of cfg, so that one that is taken is told at start; Run serves them.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Log == nil, cfg.Table == nil, cfg.Events == nil, cfg.Ready == nil, cfg.ConfigOK == nil:
		return nil, errors.New("admin: Log, Table, Events, Ready and ConfigOK are needed")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg, collector: newCollector(cfg)}
	if cfg.API != nil && cfg.Listen != "" {
		var err error
		if s.page, err = newPage(&cfg); err != nil {
			return nil, fmt.Errorf("admin: the page: %w", err)
		}
	}
	metrics, err := s.collector.handler(cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("admin: register metrics: %w", err)
	}
	for _, d := range []struct {
		key, addr string
		handler   http.Handler
	}{
		{"admin.listen", cfg.Listen, guard(cfg.Listen, s.routes(metrics, s.page))},
		{"metrics.listen", cfg.MetricsListen, s.routes(metrics, nil)},
	} {
		if d.addr == "" {
			continue
		}
		if err := s.open(d.addr, d.handler); err != nil {
			s.Close()
			return nil, fmt.Errorf("%s: %w", d.key, err)
		}
	}
	return s, nil
}

func (s *Server) open(addr string, h http.Handler) error {
	l, err := s.listen(addr)
	if err != nil {
		return err
	}
	s.doors = append(s.doors, door{
		listener: limit(l, maxConnections),
		raw:      l,
		server: &http.Server{
			Handler:           h,
			ReadHeaderTimeout: readHeaderTimeout,
			ReadTimeout:       readTimeout,
			WriteTimeout:      writeTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeaderBytes,

			DisableGeneralOptionsHandler: true, // OPTIONS * is refused like any other method
			ErrorLog:                     s.cfg.Log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
		},
	})
	return nil
}

func (s *Server) listen(addr string) (*net.TCPListener, error) {
	if s.cfg.Inherited != nil {
		if l, ok := s.cfg.Inherited(addr).(*net.TCPListener); ok {
			return l, nil
		}
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// Listening is a listening socket.
type Listening struct {
	Addr netip.AddrPort
	FD   int
}

// Listeners are duplicates of the listening sockets, for the caller to close.
func (s *Server) Listeners() []Listening {
	var out []Listening
	for _, d := range s.doors {
		addr := d.raw.Addr().(*net.TCPAddr).AddrPort()
		raw, err := d.raw.SyscallConn()
		if err != nil {
			continue
		}
		_ = raw.Control(func(fd uintptr) { // an error: it is closed
			if dup, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
				out = append(out, Listening{netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), dup})
			}
		})
	}
	return out
}

// Addrs are the bound addresses: admin.listen, then metrics.listen, without those that are off.
func (s *Server) Addrs() []net.Addr {
	out := make([]net.Addr, 0, len(s.doors))
	for _, d := range s.doors {
		out = append(out, d.listener.Addr())
	}
	return out
}

// Run serves until ctx ends. Answers that are being written get a second.
func (s *Server) Run(ctx context.Context) error {
	failed := make(chan error, len(s.doors))
	var serving sync.WaitGroup
	watching, unwatch := context.WithCancel(ctx)
	defer unwatch()
	if s.page != nil {
		serving.Go(func() { s.page.run(watching) })
	}
	for _, d := range s.doors {
		serving.Go(func() {
			if err := d.server.Serve(d.listener); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve %s: %w", d.listener.Addr(), err)
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	unwatch() // open pages never end by themselves
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	for _, d := range s.doors {
		if d.server.Shutdown(stop) != nil {
			d.server.Close()
		}
	}
	serving.Wait()
	return err
}

// Close frees the addresses of a Server that will not Run.
func (s *Server) Close() {
	for _, d := range s.doors {
		d.listener.Close()
	}
}

// Package etcdtest runs real etcds: one member or three, in this process or as processes of their own, with the networks between them. It is for tests and
// for cmd/lbdemo. Nothing that lbagent links may import it.
package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// readyWithin bounds a start: an etcd on a loaded machine takes a second, one that is not there by then never comes.
const readyWithin = 60 * time.Second

// Config is how to run an etcd; the zero value is a plain one on a free port of 127.0.0.1 with a temporary folder.
type Config struct {
	Dir      string        // data; empty = a temporary folder, removed by Close
	Addr     string        // host:port for clients; empty = a free port of 127.0.0.1
	TLS      *TLS          // nil = plain text
	TokenTTL time.Duration // life of an authentication token, in whole seconds; 0 = etcd's default of 5 min
	Bcrypt   int           // cost of a password's hash; 0 = 4, the least: etcd's own default is 10, which makes a login cost 50 ms of CPU
	Token    string        // a new cluster token makes a new cluster id; empty = always the same id
	LogLevel string        // empty = fatal
	// AuthToken is what authentication tokens are, in etcd's words ("simple", "jwt,..."); empty = simple.
	AuthToken string
	// Process runs it as a process of its own, which can be frozen and killed; the program, or its TestMain, must begin with Child.
	Process bool
	Peer    *Peer // nil = a cluster of one
}

// Peer is what makes an etcd a member of a larger cluster.
type Peer struct {
	Name    string
	Listen  string // host:port
	URL     string // where the other members reach it
	Cluster string // all members, as etcd's initial-cluster
}

// TLS names the files of an etcd that speaks TLS. With CAFile clients need a certificate of that authority.
type TLS struct{ CertFile, KeyFile, CAFile string }

// Server is one etcd that can be stopped and started again on the same data and port. Safe for concurrent use.
type Server struct {
	cfg     Config
	tempDir bool

	mu sync.Mutex

	etcd    *embed.Etcd
	grpc    *grpc.Server
	process *process // instead of both
}

// Run starts an etcd and returns when it serves. Close ends it.
func Run(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg}
	if cfg.Dir == "" {
		dir, err := os.MkdirTemp("", "etcdtest-")
		if err != nil {
			return nil, fmt.Errorf("make etcd's folder: %w", err)
		}
		s.cfg.Dir, s.tempDir = dir, true
	}
	err := s.firstStart()
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// firstStart looks for a free port below the range from which the kernel takes ports for outgoing connections (32768 on Linux): there, nobody takes
// the port while etcd is stopped.
func (s *Server) firstStart() error {
	if s.cfg.Addr != "" {
		return s.Start()
	}
	var err error
	for range 50 {
		s.cfg.Addr = fmt.Sprintf("127.0.0.1:%d", 15000+rand.IntN(17000))
		l, lerr := net.Listen("tcp", s.cfg.Addr)
		if lerr != nil {
			err = lerr
			continue
		}
		l.Close()
		if err = s.Start(); err == nil {
			return nil
		}
	}
	return err
}

// Start starts a stopped etcd on its old data and port, and returns when it serves.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.etcd != nil || s.process != nil {
		return nil
	}
	if s.cfg.Process {
		var err error
		s.process, err = startProcess(s.cfg)
		return err
	}
	c := s.config()
	serving := make(chan *grpc.Server, 1) // embed makes it on a goroutine of its own, after it says that it is ready
	c.ServiceRegister = func(g *grpc.Server) { serving <- g }
	e, err := embed.StartEtcd(c)
	if err != nil {
		return fmt.Errorf("start etcd on %s: %w", s.cfg.Addr, err)
	}
	s.etcd = e
	select {
	case s.grpc = <-serving:
		return nil
	case <-e.Server.StopNotify():
		err = errors.New("it stopped")
	case <-time.After(readyWithin):
		err = fmt.Errorf("not ready within %v", readyWithin)
	}
	s.stopLocked()
	return fmt.Errorf("start etcd on %s: %w", s.cfg.Addr, err)
}

func (s *Server) config() *embed.Config {
	c := embed.NewConfig()
	c.Name = "etcdtest"
	c.Dir = s.cfg.Dir
	here := []url.URL{s.url()}
	c.ListenClientUrls, c.AdvertiseClientUrls = here, here
	if s.cfg.Token != "" {
		c.InitialClusterToken = s.cfg.Token
	}
	if p := s.cfg.Peer; p != nil {
		c.Name, c.InitialCluster = p.Name, p.Cluster
		c.ListenPeerUrls = []url.URL{{Scheme: "http", Host: p.Listen}}
		c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: strings.TrimPrefix(p.URL, "http://")}}
	} else { // nothing listens for peers
		c.ListenPeerUrls = nil
		c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}
		c.InitialCluster = c.InitialClusterFromName(c.Name)
	}
	if s.cfg.AuthToken != "" {
		c.AuthToken = s.cfg.AuthToken
	}
	if t := s.cfg.TLS; t != nil {
		c.ClientTLSInfo = transport.TLSInfo{CertFile: t.CertFile, KeyFile: t.KeyFile, TrustedCAFile: t.CAFile, ClientCertAuth: t.CAFile != ""}
	}
	if s.cfg.TokenTTL > 0 {
		c.AuthTokenTTL = uint(max(1, s.cfg.TokenTTL/time.Second))
	}
	c.BcryptCost = 4
	if s.cfg.Bcrypt > 0 {
		c.BcryptCost = uint(s.cfg.Bcrypt)
	}
	c.TickMs, c.ElectionMs = 50, 500
	c.UnsafeNoFsync = true
	c.LogLevel = s.cfg.LogLevel
	if c.LogLevel == "" {
		c.LogLevel = "fatal"
	}
	return c
}

func (s *Server) url() url.URL {
	if s.cfg.TLS != nil {
		return url.URL{Scheme: "https", Host: s.cfg.Addr}
	}
	return url.URL{Scheme: "http", Host: s.cfg.Addr}
}

// Stop stops etcd at once, as a crash would look to its clients; its data and port stay for Start.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopLocked()
}

func (s *Server) stopLocked() {
	if s.process != nil {
		s.process.kill()
		s.process = nil
	}
	if s.etcd == nil {
		return
	}
	if s.grpc != nil {
		s.grpc.Stop() // embed's own Close would wait 5 s for open watches
	}
	s.etcd.Server.HardStop() // and 6 s until nobody was found who would lead instead
	s.etcd.Close()
	s.etcd, s.grpc = nil, nil
}

// Restart stops etcd and starts it again.
func (s *Server) Restart() error {
	s.Stop()
	return s.Start()
}

// Freeze stops the process of an etcd in its tracks, as SIGSTOP does: its connections stand, new ones are accepted by the kernel, nothing answers.
func (s *Server) Freeze() error { return s.signal(syscall.SIGSTOP) }

// Thaw lets a frozen etcd go on.
func (s *Server) Thaw() error { return s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return errors.New("etcd does not run as a process of its own")
	}
	return s.process.cmd.Process.Signal(sig)
}

// Close stops etcd for good and removes the folder that Run made.
func (s *Server) Close() {
	s.Stop()
	if s.tempDir {
		os.RemoveAll(s.cfg.Dir)
	}
}

// Addr is host:port for clients.
func (s *Server) Addr() string { return s.cfg.Addr }

// Dir is the folder of etcd's data.
func (s *Server) Dir() string { return s.cfg.Dir }

// Endpoint is the URL for clients.
func (s *Server) Endpoint() string {
	u := s.url()
	return u.String()
}

// Endpoints is Endpoint as the list that configurations take.
func (s *Server) Endpoints() []string { return []string{s.Endpoint()} }

// Client returns a new client without TLS or user, for the caller to close. Its calls wait for a stopped etcd until their context ends.
func (s *Server) Client() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: s.Endpoints(), Logger: zap.NewNop()})
}

// Compact forgets all of etcd's history before now.
func (s *Server) Compact(ctx context.Context, c *clientv3.Client) error {
	r, err := c.Get(ctx, "etcdtest")
	if err != nil {
		return fmt.Errorf("read etcd's revision: %w", err)
	}
	_, err = c.Compact(ctx, r.Header.Revision, clientv3.WithCompactPhysical())
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) { // which says that nothing has happened since the last time
		return fmt.Errorf("compact etcd at %d: %w", r.Header.Revision, err)
	}
	return nil
}

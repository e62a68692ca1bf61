package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.uber.org/zap"
)

// Cluster is an etcd of several members. What members say to each other, and what clients say to them, passes through proxies, so that any network between
// them can be cut. Its methods are for one goroutine.
type Cluster struct {
	Members []*Member

	cfg   Config
	lives int // that were restored from a backup
	dir   string
}

// Member is one etcd of a cluster.
type Member struct {
	*Server
	Clients *Proxy // between it and the clients that use Endpoints
	peers   *Proxy // between it and the other members that call it
	id      string // as it says it to them
}

// StartCluster runs an etcd of n members that ends with the test. Of cfg it takes what all members share.
func StartCluster(t T, n int, cfg Config) *Cluster {
	t.Helper()
	c := &Cluster{cfg: cfg, dir: t.TempDir()}
	var all []string
	for i := range n {
		s := &Server{cfg: cfg}
		s.cfg.Addr = freeAddr(t)
		listen := freeAddr(t)
		m := &Member{Server: s, Clients: StartProxy(t, s.cfg.Addr), peers: startProxy(t, listen, true)}
		s.cfg.Peer = &Peer{Name: fmt.Sprintf("m%d", i), Listen: listen, URL: "http://" + m.peers.Addr()}
		all = append(all, s.cfg.Peer.Name+"="+s.cfg.Peer.URL)
		c.Members = append(c.Members, m)
	}
	for _, m := range c.Members {
		m.cfg.Peer.Cluster = strings.Join(all, ",")
	}
	t.Cleanup(func() {
		for _, m := range c.Members {
			m.Stop()
		}
	})
	c.setDirs()
	err := c.identify()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
	return c
}

// identify works out the members' ids, as they will do themselves.
func (c *Cluster) identify() error {
	for _, m := range c.Members {
		urls, err := types.NewURLsMap(m.cfg.Peer.Cluster)
		if err != nil {
			return fmt.Errorf("members of etcd: %w", err)
		}
		all, err := membership.NewClusterFromURLsMap(nil, m.config().InitialClusterToken, urls)
		if err != nil {
			return fmt.Errorf("members of etcd: %w", err)
		}
		m.id = all.MemberByName(m.cfg.Peer.Name).ID.String()
	}
	return nil
}

// freeAddr is one on which nobody listens, below the range of outgoing connections: nobody takes it while its etcd is stopped.
func freeAddr(t T) string {
	t.Helper()
	for range 50 {
		addr := fmt.Sprintf("127.0.0.1:%d", 15000+rand.IntN(17000))
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatalf("no free port")
	return ""
}

// setDirs gives each member the folder of the cluster's present life.
func (c *Cluster) setDirs() {
	for i, m := range c.Members {
		m.cfg.Dir = filepath.Join(c.dir, fmt.Sprintf("life%d-m%d", c.lives, i))
	}
}

// Start starts all members that are stopped, and returns when they serve.
func (c *Cluster) Start() error {
	errs := make([]error, len(c.Members))
	var all sync.WaitGroup
	for i, m := range c.Members {
		all.Go(func() { errs[i] = m.Start() })
	}
	all.Wait()
	return errors.Join(errs...)
}

// Stop stops all members at once.
func (c *Cluster) Stop() {
	var all sync.WaitGroup
	for _, m := range c.Members {
		all.Go(m.Stop)
	}
	all.Wait()
}

// Stop stops the member at once; its data and ports stay for Start.
func (m *Member) Stop() {
	defer m.peers.drop()() // embed waits 5 s for the streams of other members
	m.Server.Stop()
}

// Restart stops the member and starts it again.
func (m *Member) Restart() error {
	m.Stop()
	return m.Start()
}

// Endpoints is where clients reach the members, through the proxies that can be cut.
func (c *Cluster) Endpoints() []string {
	var out []string
	for _, m := range c.Members {
		out = append(out, "http://"+m.Clients.Addr())
	}
	return out
}

// Client returns a client of the given members, all if none is named, that goes past the proxies and ends with the test; user may be empty.
func (c *Cluster) Client(t T, user, password string, members ...int) *clientv3.Client {
	t.Helper()
	var direct []string
	for i, m := range c.Members {
		if len(members) == 0 || slices.Contains(members, i) {
			direct = append(direct, m.Endpoint())
		}
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: direct, Username: user, Password: password, Logger: zap.NewNop()})
	if err != nil {
		t.Fatalf("new etcd client: %v", err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// Isolate cuts member i off from the others, both ways; clients still reach it.
func (c *Cluster) Isolate(i int) {
	for j, m := range c.Members {
		if j == i {
			m.peers.Cut()
		} else {
			m.peers.cutFrom(c.Members[i].id, true)
		}
	}
}

// Join ends Isolate.
func (c *Cluster) Join(i int) {
	for j, m := range c.Members {
		if j == i {
			m.peers.Heal()
		} else {
			m.peers.cutFrom(c.Members[i].id, false)
		}
	}
}

// Leader is the member that leads, -1 if nobody does.
func (c *Cluster) Leader(ctx context.Context, client *clientv3.Client) int {
	for i, m := range c.Members {
		s, err := client.Status(ctx, m.Endpoint())
		if err == nil && s.Leader != 0 && s.Leader == s.Header.MemberId {
			return i
		}
	}
	return -1
}

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// backendNames are the five that the story begins with, and the one that joins.
var backendNames = [...]string{"ada", "ben", "cleo", "dan", "eve", "fay"}

const firstBackends = 5

// backend is one gRPC server: a process that may die and come back at the same address.
type backend struct {
	name string
	addr netip.AddrPort

	child atomic.Pointer[child] // nil before its first life
	seen  *ledger               // of the current life, or of the last one
}

// stage is all that runs: etcd, backends, agent, caller.
type stage struct {
	dir      string
	self     string // this binary
	etcdAddr string
	etcd     *child
	backends []*backend
	agent    *agentProcess
	caller   *caller
	port     uint16 // the service's, on loopback
	kills    []kill
	rate     float64 // calls per second

	calls  sync.WaitGroup // the caller's loop
	hangUp context.CancelFunc
}

// build starts everything and returns when calls flow. What was started before an error is ended by close.
func (s *stage) build(ctx context.Context, o options) error {
	var err error
	if s.self, err = os.Executable(); err != nil {
		return err
	}
	if err := s.choosePorts(); err != nil {
		return err
	}
	if err := s.startEtcd(ctx); err != nil {
		return err
	}
	if err := s.startBackends(ctx, s.backends[:firstBackends]...); err != nil {
		return err
	}
	admin, err := freePort(loopback)
	if err != nil {
		return err
	}
	s.agent, err = prepareAgent(ctx, s.dir, o.agent, s.etcdAddr, netip.AddrPortFrom(loopback, admin).String(), s.port)
	if err != nil {
		return err
	}
	if err := s.agent.start(ctx); err != nil {
		return err
	}
	if s.caller, err = newCaller(netip.AddrPortFrom(loopback, s.port).String()); err != nil {
		return err
	}
	callCtx, hangUp := context.WithCancel(ctx)
	s.hangUp = hangUp
	s.calls.Go(func() { s.caller.run(callCtx, o.rate) })
	return until(ctx, 5*time.Second, "a first call is answered", func() bool { return s.caller.sums().answered > 0 })
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func (s *stage) choosePorts() error {
	var hosts []netip.Addr
	for i := range backendNames {
		// Each backend has a loopback address of its own: the kernel connects from 127.0.0.1, so no connection can ever take a dead backend's address.
		hosts = append(hosts, netip.AddrFrom4([4]byte{127, 0, 0, byte(11 + i)}))
	}
	port, err := freePort(hosts...)
	if err != nil {
		return err
	}
	for i, name := range backendNames {
		s.backends = append(s.backends, &backend{name: name, addr: netip.AddrPortFrom(hosts[i], port), seen: new(ledger)})
	}
	etcd, err := freePort(loopback)
	if err != nil {
		return err
	}
	s.etcdAddr = netip.AddrPortFrom(loopback, etcd).String()
	s.port, err = freePort(loopback)
	return err
}

// startEtcd starts etcd on the data of its last life.
func (s *stage) startEtcd(ctx context.Context) error {
	ready := make(chan struct{}, 1)
	c, err := spawn(s.dir, "etcd", func(string) { ready <- struct{}{} }, // it prints one line
		s.self, "etcd", "--dir", filepath.Join(s.dir, "etcd"), "--addr", s.etcdAddr)
	if err != nil {
		return err
	}
	s.etcd = c
	select {
	case <-ready:
		return nil
	case <-c.gone:
		return fmt.Errorf("etcd ended at once")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// startBackends starts bs and returns when all have registered.
func (s *stage) startBackends(ctx context.Context, bs ...*backend) error {
	registered := make([]chan struct{}, len(bs))
	for i, b := range bs {
		seen, done := new(ledger), make(chan struct{})
		var once sync.Once
		registered[i] = done
		line := func(text string) {
			if text == "registered" {
				once.Do(func() { close(done) })
			}
			seen.note(text)
		}
		c, err := spawn(s.dir, b.name, line, s.self, "backend", "--name", b.name, "--listen", b.addr.String(), "--etcd", s.etcdAddr)
		if err != nil {
			return err
		}
		b.child.Store(c)
		b.seen = seen
	}
	for i, b := range bs {
		select {
		case <-registered[i]:
		case <-b.child.Load().gone:
			return fmt.Errorf("backend %s ended at once", b.name)
		case <-time.After(20 * time.Second):
			return fmt.Errorf("backend %s has not registered within 20s", b.name)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// killBackends ends bs with SIGKILL, all at once, and returns when they are gone.
func (s *stage) killBackends(bs ...*backend) kill {
	k := kill{sent: time.Now()}
	dying := make(map[*backend]bool)
	for _, b := range bs {
		b.child.Load().signal(syscall.SIGKILL)
		dying[b] = true
		k.dead = append(k.dead, life{b.addr.String(), b.seen})
	}
	for _, b := range bs {
		<-b.child.Load().gone
	}
	k.reaped = time.Now()
	for _, b := range bs {
		<-b.child.Load().read // all that it said has been noted
	}
	for _, b := range s.backends {
		if b.child.Load().alive() && !dying[b] {
			k.survivors = append(k.survivors, life{b.addr.String(), b.seen})
		}
	}
	s.kills = append(s.kills, k)
	return k
}

// living returns the names of the backends that run.
func (s *stage) living() []string {
	var names []string
	for _, b := range s.backends {
		if b.child.Load().alive() {
			names = append(names, b.name)
		}
	}
	return names
}

// close ends everything, callers first.
func (s *stage) close() {
	if s.hangUp != nil {
		s.hangUp()
		s.calls.Wait()
		s.caller.conn.Close()
	}
	var all sync.WaitGroup
	if s.agent != nil {
		s.agent.api.Close()
		all.Go(func() { s.agent.child.Load().stop(7 * time.Second) })
	}
	for _, b := range s.backends {
		all.Go(func() { b.child.Load().stop(3 * time.Second) })
	}
	all.Wait()
	s.etcd.stop(3 * time.Second)
}

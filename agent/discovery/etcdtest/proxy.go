package etcdtest

import (
	"fmt"
	"io"
	"net"
	"sync"
)

// Proxy passes TCP connections on to one address, and can be cut: the network between a client and an etcd that goes on. Safe for concurrent use.
type Proxy struct {
	listener net.Listener
	target   string
	tasks    sync.WaitGroup

	mu sync.Mutex

	cut      bool
	paused   chan struct{} // closed when bytes pass again; nil while they pass
	accepted int
	conns    map[net.Conn]struct{}
}

// StartProxy passes connections on to target until the test ends.
func StartProxy(t T, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	p := &Proxy{listener: l, target: target, conns: make(map[net.Conn]struct{})}
	p.tasks.Go(p.run)
	t.Cleanup(func() {
		l.Close()
		p.Resume()
		p.Cut()
		p.tasks.Wait()
	})
	return p
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Accepted is the number of connections so far.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Cut closes every connection and those that come.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	for c := range p.conns {
		c.Close()
	}
}

// Heal lets connections through again.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
}

// Pause lets connections stand and passes no bytes, until Resume.
func (p *Proxy) Pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused == nil {
		p.paused = make(chan struct{})
	}
}

// Resume lets bytes pass again.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused != nil {
		close(p.paused)
		p.paused = nil
	}
}

func (p *Proxy) run() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.tasks.Go(func() { p.serve(c) }) //nolint:errcheck
	}
}

func (p *Proxy) serve(client net.Conn) error {
	defer client.Close()
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return fmt.Errorf("dial %s: %w", p.target, err)
	}
	defer server.Close()
	if !p.add(client, server) {
		return nil
	}
	defer p.forget(client, server)
	var both sync.WaitGroup
	pass := func(to, from net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			p.wait()
			if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
				break
			}
		}
		to.Close()
		io.Copy(io.Discard, from) //nolint:errcheck
	}
	both.Go(func() { pass(server, client) })
	both.Go(func() { pass(client, server) })
	both.Wait()
	return nil
}

func (p *Proxy) add(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		return false
	}
	p.accepted++
	for _, c := range conns {
		p.conns[c] = struct{}{}
	}
	return true
}

func (p *Proxy) forget(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		delete(p.conns, c)
	}
}

// wait returns when bytes may pass.
func (p *Proxy) wait() {
	p.mu.Lock()
	paused := p.paused
	p.mu.Unlock()
	if paused != nil {
		<-paused
	}
}

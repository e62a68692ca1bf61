package etcdtest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// Proxy passes TCP connections on to one address, and can be cut: the network between a client and an etcd that goes on. Safe for concurrent use.
type Proxy struct {
	listener net.Listener
	target   string
	peers    bool // it is called by members of a cluster, which say who they are
	tasks    sync.WaitGroup

	mu sync.Mutex

	cut      bool
	refused  map[string]bool // callers that are cut off
	paused   chan struct{}   // closed when bytes pass again; nil while they pass
	delay    time.Duration   // of what the target says
	accepted int
	conns    map[net.Conn]string // with who called; empty if nobody asked
}

// StartProxy passes connections on to target until the test ends.
func StartProxy(t T, target string) *Proxy {
	t.Helper()
	return startProxy(t, target, false)
}

func startProxy(t T, target string, peers bool) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	p := &Proxy{listener: l, target: target, peers: peers, refused: make(map[string]bool), conns: make(map[net.Conn]string)}
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

// drop cuts, and returns what undoes that.
func (p *Proxy) drop() (undo func()) {
	p.mu.Lock()
	was := p.cut
	p.mu.Unlock()
	p.Cut()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.cut = was
	}
}

// cutFrom closes the connections of one caller, and those that it makes, or lets them through again.
func (p *Proxy) cutFrom(caller string, cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused[caller] = cut
	for c, from := range p.conns {
		if cut && from == caller {
			c.Close()
		}
	}
}

// Slow holds up all that the target says for d, in order; 0 ends it for what comes after.
func (p *Proxy) Slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
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
	from := io.Reader(client)
	caller := ""
	if p.peers {
		caller, from = whoCalls(client)
	}
	if !p.add(caller, client, server) {
		return nil
	}
	defer p.forget(client, server)
	var both sync.WaitGroup
	both.Go(func() { p.pass(server, from, client) })
	both.Go(func() { p.answer(client, server) })
	both.Wait()
	return nil
}

// pass copies what comes from a connection until either end closes.
func (p *Proxy) pass(to net.Conn, from io.Reader, conn net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.wait()
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			break
		}
	}
	to.Close()
	io.Copy(io.Discard, conn) //nolint:errcheck
}

// answer is pass with the delay.
func (p *Proxy) answer(to, from net.Conn) {
	type piece struct {
		data []byte
		due  time.Time
	}
	pieces := make(chan piece, 4096)
	var writer sync.WaitGroup
	writer.Go(func() {
		failed := false
		for one := range pieces {
			if wait := time.Until(one.due); wait > 0 {
				<-time.After(wait)
			}
			p.wait()
			if failed {
				continue
			}
			if _, err := to.Write(one.data); err != nil {
				failed = true
				from.Close()
			}
		}
		to.Close()
	})
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			p.mu.Lock()
			delay := p.delay
			p.mu.Unlock()
			pieces <- piece{bytes.Clone(buf[:n]), time.Now().Add(delay)}
		}
		if err != nil {
			break
		}
	}
	close(pieces)
	writer.Wait()
}

// whoCalls reads the head of the first request, in which a member of etcd says who it is, and returns that with a reader of all.
func whoCalls(c net.Conn) (caller string, all io.Reader) {
	const most = 16 << 10
	var head bytes.Buffer
	for buf := make([]byte, 4<<10); head.Len() < most && !bytes.Contains(head.Bytes(), []byte("\r\n\r\n")); {
		n, err := c.Read(buf)
		head.Write(buf[:n])
		if err != nil {
			break
		}
	}
	_, rest, _ := strings.Cut(head.String(), "X-Server-From: ")
	caller, _, _ = strings.Cut(rest, "\r\n")
	return caller, io.MultiReader(&head, c)
}

func (p *Proxy) add(caller string, conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut || p.refused[caller] {
		return false
	}
	p.accepted++
	for _, c := range conns {
		p.conns[c] = caller
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

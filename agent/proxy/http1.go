package proxy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/h1"
	"golang.org/x/sys/unix"
)

// replayBudget bounds what request bodies kept for another attempt take, all together.
const replayBudget = 64 << 20

// http1 serves HTTP/1.1 on goroutines of its own, one per client connection: a loop hands a connection over once, with the bytes that it has read (HTTP2.md 2).
type http1 struct {
	p        *Proxy
	changed  chan struct{}
	buffered atomic.Int64  // bytes of request bodies kept for another attempt
	headers  time.Duration // headerTimeout, but for tests
	small    sync.Pool     // of *wireBuffer
	large    sync.Pool     // of *http1Buffer
	works    sync.Pool     // of *http1Work

	mu sync.Mutex

	servers map[*route]*http1Server
	retired map[*http1Server]struct{} // no new connections, some may run
	stats   map[string]*serviceStats  // by service
	group   sync.WaitGroup            // client connections, and ends of retired servers
	ended   bool

	draining bool // every connection's next answer is its last
	ending   bool // and idle ones end

	accounts http1Accounts
}

// http1Work is what one request needs while it runs; an idle connection has none.
type http1Work struct {
	req, resp h1.Head
	head      [4 << 10]byte // the request's head, and its body if that was there with it
	out       http1Buffer   // what is being sent
}

// http1Buffer is how much of a body is copied at once.
type http1Buffer [16 << 10]byte

func newHTTP1(p *Proxy) *http1 {
	h := &http1{
		p: p, changed: make(chan struct{}, 1), headers: headerTimeout,
		servers: map[*route]*http1Server{}, retired: map[*http1Server]struct{}{}, stats: map[string]*serviceStats{},
	}
	h.accounts.ledger.alarm = h.accounts.wake
	h.small.New = func() any { return new(wireBuffer) }
	h.large.New = func() any { return new(http1Buffer) }
	h.works.New = func() any { return new(http1Work) }
	return h
}

// run follows views until ctx ends, then ends every connection.
func (h *http1) run(ctx context.Context) {
	for {
		select {
		case <-h.changed:
			for _, s := range h.all() {
				s.viewChanged()
			}
			continue
		case <-ctx.Done():
		}
		break
	}
	h.mu.Lock()
	h.ended = true
	h.mu.Unlock()
	for _, s := range h.all() {
		s.close()
	}
	h.group.Wait()
}

// drain closes idle connections and lets running requests end. Connections that come yet were accepted before, and have one request each.
func (h *http1) drain() {
	h.retire()
	h.mu.Lock()
	h.ending = true
	h.mu.Unlock()
	for _, s := range h.all() {
		s.closeIdleClients()
	}
}

// retire has every answer say that it is its connection's last.
func (h *http1) retire() {
	h.mu.Lock()
	h.draining = true
	h.mu.Unlock()
	for _, s := range h.all() {
		s.draining.Store(true)
	}
}

// publish is called under the table's lock.
func (h *http1) publish() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// serve takes a client connection; from a loop, so that nothing here waits.
func (h *http1) serve(rt *route, fd int, received []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		unix.Close(fd)
		h.p.clients.Add(-1)
		return
	}
	s := h.servers[rt]
	if s == nil {
		s = newHTTP1Server(h, rt)
		s.ending = h.ending
		h.servers[rt] = s
	}
	if rt.gone || h.draining { // it was accepted before: its answer says that it's the last
		s.draining.Store(true)
	}
	h.group.Go(func() { s.serve(fd, received) })
	if rt.gone {
		h.retireLocked(rt)
	}
}

// remove retires the server of a route that is no longer configured.
func (h *http1) remove(rt *route) {
	h.mu.Lock()
	defer h.mu.Unlock()
	rt.gone = true
	h.retireLocked(rt)
	h.publish()
}

// retireLocked takes no more connections for rt's present server; those that it has go on, and end when they are idle.
func (h *http1) retireLocked(rt *route) {
	s := h.servers[rt]
	if s == nil || h.ended {
		return
	}
	delete(h.servers, rt)
	h.retired[s] = struct{}{}
	h.group.Go(func() {
		s.shutdown()
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.retired, s)
	})
}

func (h *http1) all() []*http1Server {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*http1Server, 0, len(h.servers)+len(h.retired))
	for _, s := range h.servers {
		all = append(all, s)
	}
	for s := range h.retired {
		all = append(all, s)
	}
	return all
}

// count changes the counters of a service.
func (h *http1) count(rt *route, f func(s *serviceStats)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.stats[rt.name]
	if s == nil {
		s = &serviceStats{}
		h.stats[rt.name] = s
	}
	f(s)
}

func (h *http1) snapshot() snapshot {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := snapshot{services: make(map[string]serviceStats, len(h.stats))}
	for name, one := range h.stats {
		s.services[name] = one.clone()
	}
	return s
}

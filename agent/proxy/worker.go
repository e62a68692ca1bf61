package proxy

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/loop"
	"github.com/lbagent/lbagent/agent/proxy/tcp"
	"github.com/lbagent/lbagent/agent/table"
	"golang.org/x/sys/unix"
)

// worker is one event loop and all that lives on it. Its loop's goroutine owns every field but those that say otherwise.
type worker struct {
	loop  *loop.Loop
	proxy *Proxy
	index int
	relay *relay
	stats map[string]*serviceStats // by service

	ledger   ledger // of connections to backends
	sums     loop.Timer
	sessions map[*table.Service]map[*session]struct{} // TCP
	draining bool                                     // nothing is accepted any more
	awaiting map[*binding]struct{}                    // listeners whose service has no list yet; the first loop's

	load     atomic.Int64  // client connections; the accepting worker compares them
	shedding atomic.Bool   // asked to look at limits.buffered
	ended    chan struct{} // closed when the loop has returned: its fields may be read then

	mu sync.Mutex

	dirty map[*table.Service]struct{} // published since the loop looked
}

func newWorker(p *Proxy, index int) (*worker, error) {
	w := &worker{
		proxy: p, index: index,
		stats:    map[string]*serviceStats{},
		sessions: map[*table.Service]map[*session]struct{}{},
		awaiting: map[*binding]struct{}{},
		dirty:    map[*table.Service]struct{}{},
		ended:    make(chan struct{}),
	}
	var err error
	if w.loop, err = loop.New(loop.Config{Log: p.log, OnTurn: func(took time.Duration) { w.relay.turned(took) }}); err != nil {
		return nil, fmt.Errorf("make event loop %d: %w", index, err)
	}
	w.relay = newRelay(w)
	w.sums.F = func() { w.ledger.tick(w.loop.Now()) }
	w.ledger = ledger{events: p.events, alarm: func(d time.Duration) { w.loop.Arm(&w.sums, d) }}
	return w, nil
}

// publish is called from any goroutine.
func (w *worker) publish(s *table.Service) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := len(w.dirty) == 0
	w.dirty[s] = struct{}{}
	if first && !w.loop.Post(w.viewsChanged) {
		clear(w.dirty)
	}
}

// viewsChanged compares what runs here with the views of now (4.7).
func (w *worker) viewsChanged() {
	w.mu.Lock()
	changed := w.dirty
	w.dirty = make(map[*table.Service]struct{}, len(changed))
	w.mu.Unlock()
	for svc := range changed {
		w.listed(svc)
		w.relay.viewChanged(svc)
		w.tcpViewChanged(svc)
	}
}

// statsOf returns the counters of a service on this loop; they stay the same for as long as the service is configured.
func (w *worker) statsOf(rt *route) *serviceStats {
	s := w.stats[rt.name]
	if s == nil {
		s = &serviceStats{}
		w.stats[rt.name] = s
	}
	return s
}

// least is the worker with the fewest client connections.
func (p *Proxy) least() *worker {
	least := p.workers[0]
	for _, w := range p.workers[1:] {
		if w.load.Load() < least.load.Load() {
			least = w
		}
	}
	return least
}

// assign gives a client connection to the worker with the fewest, or to HTTP/1.1; on the loop of w, which accepted it, or took it for another protocol.
func (w *worker) assign(rt *route, k protocol, fd int, received []byte, late bool) {
	p := w.proxy
	if k == protoHTTP1 {
		p.h1.serve(rt, fd, received)
		return
	}
	least := p.least()
	least.load.Add(1)
	if least == w {
		least.take(rt, k, fd, received, late)
	} else if !least.loop.Post(func() { least.take(rt, k, fd, received, late) }) {
		unix.Close(fd)
		least.load.Add(-1)
		p.clients.Add(-1)
	}
}

// take serves a client connection. Whoever serves it calls clientDone once when it is over. late: see session.late.
func (w *worker) take(rt *route, k protocol, fd int, received []byte, late bool) {
	w.statsOf(rt).active[k]++
	if k == protoH2 {
		w.relay.serve(rt, fd, received)
		return
	}
	w.serveTCP(rt, fd, received, late)
}

// adopt relays a connection, which is on this loop already, as bytes.
func (w *worker) adopt(rt *route, c *loop.Conn, late bool) {
	w.statsOf(rt).active[protoTCP]++
	s := w.newSession(rt, late)
	c.Handle(&s.ends[tcp.Client])
	s.begin(c)
}

// clientDone notes the end of a client connection that take has handed out.
func (w *worker) clientDone(rt *route, k protocol) {
	w.statsOf(rt).active[k]--
	w.load.Add(-1)
	w.proxy.clients.Add(-1)
}

// drain begins the end: streams and connections that run may go on.
func (w *worker) drain() {
	w.draining = true
	w.relay.drain()
	w.drainTCP()
}

// idle reports whether nothing is left to relay.
func (w *worker) idle() bool { return len(w.sessions) == 0 && w.relay.idle() }

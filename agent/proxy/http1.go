package proxy

import (
	"context"
	"log"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

const (
	// handedOver bounds the connections that wait until net/http takes them; one more is closed.
	handedOver = 1024
	// replayBudget bounds what request bodies kept for another attempt take, all together.
	replayBudget = 64 << 20
)

// http1 serves HTTP/1.1 by net/http, on its own goroutines: a loop hands a connection over once, with the bytes that it has read (HTTP2.md 2).
type http1 struct {
	p        *Proxy
	log      *log.Logger // of net/http, at debug level
	changed  chan struct{}
	buffered atomic.Int64 // bytes of request bodies kept for another attempt
	copies   sync.Pool    // of *[]byte, for bodies

	mu sync.Mutex

	servers map[*route]*http1Server
	retired map[*http1Server]struct{} // no new connections, some may run
	stats   map[string]*serviceStats  // by service
	group   sync.WaitGroup            // the servers' accepting goroutines, and ends of retired ones
	ended   bool
}

func newHTTP1(p *Proxy) *http1 {
	h := &http1{
		p: p, changed: make(chan struct{}, 1),
		log:     p.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
		servers: map[*route]*http1Server{}, retired: map[*http1Server]struct{}{}, stats: map[string]*serviceStats{},
	}
	h.copies.New = func() any { b := make([]byte, 32<<10); return &b }
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

// drain lets running requests end and takes no new ones; the channel is closed when none is left.
func (h *http1) drain() <-chan struct{} {
	h.mu.Lock()
	h.ended = true
	h.mu.Unlock()
	done := make(chan struct{})
	var all sync.WaitGroup
	for _, s := range h.all() {
		all.Go(s.shutdown)
	}
	go func() {
		all.Wait()
		close(done)
	}()
	return done
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
	if !h.ended {
		s := h.servers[rt]
		idle, header := rt.options().idle, h.p.limits.Load().HeaderBytes
		if s == nil || s.idle != idle || s.header != header {
			h.retireLocked(rt)
			s = newHTTP1Server(h, rt, idle, header)
			h.servers[rt] = s
			h.group.Go(s.run)
		}
		select {
		case s.handed <- handed{fd, received}:
			return
		default:
			h.p.refused.Add(1)
		}
	}
	unix.Close(fd)
	h.p.clients.Add(-1)
}

// remove retires the server of a route that is no longer configured.
func (h *http1) remove(rt *route) {
	h.mu.Lock()
	defer h.mu.Unlock()
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
		s.services[name] = *one
	}
	return s
}

// Get and Put lend the buffers by which bodies are copied.
func (h *http1) Get() []byte  { return *h.copies.Get().(*[]byte) }
func (h *http1) Put(b []byte) { h.copies.Put(&b) }

// handed is a connection on its way from a loop to net/http.
type handed struct {
	fd       int
	received []byte
}

// handover is the net.Listener over which a server gets its connections.
type handover struct{ s *http1Server }

func (l handover) Accept() (net.Conn, error) {
	for {
		select {
		case <-l.s.stopped:
			return nil, net.ErrClosed
		case c := <-l.s.handed:
			conn, err := l.s.adopt(c)
			if err == nil {
				return conn, nil
			}
			l.s.h.p.log.Debug("a connection could not be handed over", "service", l.s.rt.name, "cause", err)
		}
	}
}

func (l handover) Close() error {
	l.s.stop.Do(func() { close(l.s.stopped) })
	return nil
}

func (l handover) Addr() net.Addr { return net.TCPAddrFromAddrPort(netip.AddrPort{}) }

// adopt makes a net.Conn of what a loop had.
func (s *http1Server) adopt(c handed) (net.Conn, error) {
	f := os.NewFile(uintptr(c.fd), "client")
	defer f.Close()
	conn, err := net.FileConn(f) // has its own descriptor
	if err != nil {
		s.h.p.clients.Add(-1)
		return nil, err
	}
	s.h.count(s.rt, func(st *serviceStats) { st.active[protoHTTP1]++ })
	return &http1Conn{Conn: conn, s: s, received: c.received}, nil
}

// http1Conn is a client connection with the bytes that the loop had read.
type http1Conn struct {
	net.Conn
	s        *http1Server
	received []byte // read by one goroutine at a time
	once     sync.Once
}

func (c *http1Conn) Read(b []byte) (int, error) {
	if len(c.received) > 0 {
		n := copy(b, c.received)
		c.received = c.received[n:]
		return n, nil
	}
	c.received = nil
	return c.Conn.Read(b)
}

func (c *http1Conn) Close() error {
	c.once.Do(func() {
		c.s.h.count(c.s.rt, func(st *serviceStats) { st.active[protoHTTP1]-- })
		c.s.h.p.clients.Add(-1)
	})
	return c.Conn.Close()
}

// CloseWrite lets an upgraded connection end one direction.
func (c *http1Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

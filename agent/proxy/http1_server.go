package proxy

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// headerTimeout is how long a client may take for its request's head, from the first byte on.
	headerTimeout = 10 * time.Second
	// idlePerBackend is how many idle HTTP/1.1 connections to one backend are kept.
	idlePerBackend = 32
	// lookEvery is how often connections to backends are looked at, as long as there are any: the idle ones for an end, the others for a peer that vanished.
	lookEvery = 5 * time.Second
)

// http1Server serves one route's HTTP/1.1 connections.
type http1Server struct {
	h        *http1
	rt       *route
	draining atomic.Bool // each answer says that it's its connection's last

	mu sync.Mutex

	clients map[*http1Client]struct{}
	pools   map[netip.AddrPort]*http1Pool
	running map[*attempt]struct{}
	ending  bool       // idle connections end
	looking bool       // the next look is due
	none    *sync.Cond // no client is left
}

// likeAnother is why idle connections end because one of them was over: they will be as old.
const likeAnother = "another one, as old, had ended"

// http1Pool is the idle connections to one backend, the youngest last.
type http1Pool struct {
	idle []*http1Backend
}

func newHTTP1Server(h *http1, rt *route) *http1Server {
	s := &http1Server{
		h: h, rt: rt, clients: map[*http1Client]struct{}{}, pools: map[netip.AddrPort]*http1Pool{}, running: map[*attempt]struct{}{},
	}
	s.none = sync.NewCond(&s.mu)
	return s
}

// serve is a client connection's life.
func (s *http1Server) serve(fd int, received []byte) {
	defer s.h.p.clients.Add(-1)
	c := &http1Client{s: s}
	if err := c.adopt(fd, received); err != nil {
		s.h.p.log.Debug("a connection could not be handed over", "service", s.rt.name, "cause", err)
		return
	}
	s.h.count(s.rt, func(st *serviceStats) { st.active[protoHTTP1]++ })
	defer s.h.count(s.rt, func(st *serviceStats) { st.active[protoHTTP1]-- })
	s.mu.Lock()
	s.clients[c] = struct{}{}
	s.mu.Unlock()
	c.run()
	c.linger()
	c.Close()
	c.release()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, c)
	if len(s.clients) == 0 {
		s.none.Broadcast()
	}
}

// adopt makes a net.Conn of what a loop had.
func (c *http1Client) adopt(fd int, received []byte) error {
	f := os.NewFile(uintptr(fd), "client")
	defer f.Close()
	conn, err := net.FileConn(f) // has its own descriptor
	if err != nil {
		return err
	}
	if err := c.init(c.s.h, conn); err != nil {
		conn.Close()
		return err
	}
	c.buf, c.w = received, len(received)
	return nil
}

// setIdle notes whether a connection is between two requests; false if it is to wait for none.
func (s *http1Server) setIdle(c *http1Client, idle bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.idle = idle
	return !idle || !s.ending
}

// closeIdleClients ends the connections between two requests; answers say from now on that they are the last. Those that are idle are woken rather than closed: closing would reset
// one on which a request has just come.
func (s *http1Server) closeIdleClients() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining.Store(true)
	s.ending = true
	for c := range s.clients {
		if c.idle {
			c.SetReadDeadline(past())
		}
	}
}

// shutdown lets running requests end, until close.
func (s *http1Server) shutdown() {
	s.closeIdleClients()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.clients) > 0 {
		s.none.Wait()
	}
	s.closeIdleLocked()
}

// close ends everything now.
func (s *http1Server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining.Store(true)
	s.ending = true
	for a := range s.running {
		a.x.cancel(errStopped)
	}
	for c := range s.clients {
		c.Close()
	}
	s.closeIdleLocked()
}

func (s *http1Server) closeIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeIdleLocked()
}

func (s *http1Server) closeIdleLocked() {
	for _, p := range s.pools {
		p.closeAll(closedStop, "")
	}
}

func (p *http1Pool) closeAll(why closeCause, detail string) {
	for _, c := range p.idle {
		c.endIdle(why, detail)
	}
	clear(p.idle)
	p.idle = p.idle[:0]
}

// begin notes a running attempt, and returns a connection to its backend if one is idle.
func (s *http1Server) begin(a *attempt) *http1Backend {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running[a] = struct{}{}
	if v := s.rt.svc.View(); v != a.view && v.Leaving(a.b.Addr) {
		s.drainLocked(a) // viewChanged may have been here already
	}
	s.lookLocked()
	p := s.pools[a.b.Addr]
	for p != nil && len(p.idle) > 0 {
		last := len(p.idle) - 1
		c := p.idle[last]
		p.idle[last] = nil
		p.idle = p.idle[:last]
		if c.quiet() { // what came unasked would be taken for the next answer
			c.reused = true
			return c
		}
		c.endUnquiet()
		p.closeAll(closedSpare, likeAnother)
	}
	return nil
}

// over ends an attempt. Its connection is kept for another one, if it is given.
func (s *http1Server) over(a *attempt, c *http1Backend) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, a)
	if a.drain != nil {
		a.drain.Stop()
	}
	if c == nil {
		return
	}
	v := s.rt.svc.View()
	c.since = time.Now()
	switch {
	case s.draining.Load():
		c.endIdle(closedStop, "")
		return
	case v != a.view && v.Leaving(a.b.Addr):
		c.endIdle(closedRemoved, leaving(v, v.Find(a.b.Addr)))
		return
	}
	p := s.pools[a.b.Addr]
	if p == nil {
		p = &http1Pool{}
		s.pools[a.b.Addr] = p
	}
	if len(p.idle) == idlePerBackend {
		p.idle[0].endIdle(closedSpare, "")
		p.idle = append(p.idle[:0], p.idle[1:]...)
	}
	p.idle = append(p.idle, c)
}

// forget closes what is idle to a backend.
func (s *http1Server) forget(addr netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pools[addr]; p != nil {
		p.closeAll(closedSpare, likeAnother)
	}
}

// viewChanged closes idle connections to backends that are gone or going, and gives their running requests the time of the drain (4.7).
func (s *http1Server) viewChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.rt.svc.View()
	for addr, p := range s.pools {
		if v.Leaving(addr) {
			p.closeAll(closedRemoved, leaving(v, v.Find(addr)))
			delete(s.pools, addr)
		}
	}
	for a := range s.running {
		switch out := v.Leaving(a.b.Addr); {
		case out:
			s.drainLocked(a)
		case a.drain != nil && a.drain.Stop():
			a.drain = nil
		}
	}
}

func (s *http1Server) drainLocked(a *attempt) {
	if a.drain == nil {
		a.drain = time.AfterFunc(s.rt.options().drain, func() { a.x.cancel(errBackendRemoved) })
	}
}

// lookLocked has the connections to backends looked at.
func (s *http1Server) lookLocked() {
	if !s.looking {
		s.looking = true
		time.AfterFunc(lookEvery, s.look)
	}
}

// look closes idle connections that have ended or were idle for too long, and ends requests whose peer has vanished (2.11).
func (s *http1Server) look() {
	s.mu.Lock()
	s.looking = false
	now, idle := time.Now(), s.rt.options().idle
	kept := 0
	for addr, p := range s.pools {
		p.idle = keepQuiet(p.idle, now, idle)
		if kept += len(p.idle); len(p.idle) == 0 {
			delete(s.pools, addr)
		}
	}
	running := make([]*attempt, 0, len(s.running))
	for a := range s.running {
		running = append(running, a)
	}
	if kept+len(running) > 0 {
		s.lookLocked()
	}
	s.mu.Unlock()
	for _, a := range running {
		a.x.look()
	}
}

// keepQuiet closes the connections that are over.
func keepQuiet(all []*http1Backend, now time.Time, idle time.Duration) []*http1Backend {
	kept := all[:0]
	for _, c := range all {
		switch {
		case !c.quiet():
			c.endUnquiet()
		case idle > 0 && now.Sub(c.since) >= idle:
			c.endIdle(closedIdle, "")
		default:
			kept = append(kept, c)
		}
	}
	clear(all[len(kept):])
	return kept
}

package proxy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/proxy/loop"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
)

// backend is one backend as one loop sees it: its connections, and the calls that wait for one.
type backend struct {
	pool  *pool
	state *health.State
	addr  netip.AddrPort
	host  string // for authority: host (4.6)
	rt    *route // of the last call: its options

	conns   []*backendConn // dialing, up, or going away
	dialing int            // of these, without SETTINGS yet

	waiting    waiters
	again      reconnect
	warned     time.Time // when the log was told that this host can't connect
	told       time.Time // when an event said that it hangs
	pingEvery  time.Duration
	flood      lastFlood
	usable     bool // its verdict in the last view
	removed    bool // not in the view, or draining there
	drainTimer loop.Timer
}

// backend returns what this loop knows of b.
func (p *pool) backend(b *table.Backend, rt *route) *backend {
	be := p.backends[b.State]
	if be == nil {
		be = &backend{pool: p, state: b.State, addr: b.Addr, usable: true, pingEvery: pingEvery}
		be.drainTimer.F = be.expire
		p.backends[b.State] = be
	}
	be.rt = rt
	be.host = b.Host
	return be
}

// take gets c a stream, or lets it wait for one; if it can't, why says so, and the call has to go elsewhere.
func (be *backend) take(c *call, usable bool) (why string) {
	if be.removed || usable && !be.usable {
		be.keep(usable) // the pick saw a newer view than viewChanged
	}
	if conn := be.ready(); conn != nil {
		if conn.h2.HeaderLimit() < c.held {
			return tooLargeHeaders
		}
		c.send(conn)
		return ""
	}
	be.grow(usable)
	if be.inUse() == 0 { // those that are going away take no more calls
		return "is not connected to again so soon after it failed" // 4.10
	}
	limit := waitForSlot
	if be.dialing > 0 || be.suspect() {
		limit = waitForConn
	}
	if be.waiting.n < limit {
		c.wait(be)
		return ""
	}
	other := be.waiting.displaced(c.client)
	if other == nil {
		return tooManyWait
	}
	c.wait(be)
	other.moveOn(tooManyWait)
	return ""
}

const (
	tooManyWait = "has too many calls that wait for a stream"
	// tooLargeHeaders: some backends end the connection, with all that is on it, for a list above what they announced.
	tooLargeHeaders = "does not take a header list as large as the call's (SETTINGS_MAX_HEADER_LIST_SIZE)"
)

// ready is a connection with a free stream slot: the first one, so that few are used. One whose backend owes the answer to a PING gets no more until it
// speaks: what waits can still go elsewhere, what was sent can't.
func (be *backend) ready() *backendConn {
	for _, conn := range be.conns {
		if !conn.up || conn.retired {
			continue
		}
		switch {
		case conn.h2.Free() == 0:
			conn.retired = conn.h2.Spent()
		case conn.h2.Slots() < backendStreams && conn.lc.Unwritten() < pauseAt && !conn.hang.suspect():
			return conn
		}
	}
	return nil
}

// suspect reports whether a connection owes the answer to a PING: then its backend is not asked for another connection, nor judged twice.
func (be *backend) suspect() bool {
	return slices.ContainsFunc(be.conns, func(c *backendConn) bool { return c.up && c.hang.suspect() })
}

// spare reports whether the connections before c would do for few calls.
func (be *backend) spare(c *backendConn) bool {
	for _, conn := range be.conns {
		if conn == c {
			break
		}
		if conn.up && !conn.retired {
			return true
		}
	}
	return false
}

// grow dials one connection more, if that is allowed now: one at a time.
func (be *backend) grow(usable bool) {
	now := be.pool.relay.loop.Now()
	o := be.rt.options()
	if be.dialing > 0 || be.removed || be.inUse() >= be.pool.relay.limits().BackendConnections || be.suspect() || !be.again.may(now, usable, o.reconnectBase) {
		return
	}
	be.again.tried = now
	conn := &backendConn{relay: be.pool.relay, be: be, busy: now}
	conn.hang.silence = conn.relay.silence
	conn.timer.F = conn.tick
	lc, err := be.pool.relay.dial(be.addr, 0, conn) // the timer below ends it
	if err != nil {
		if errors.Is(err, loop.ErrEnded) {
			return
		}
		if now.Sub(be.warned) >= warnEvery {
			be.warned = now
			be.pool.relay.w.proxy.log.Warn("no connection to a backend can be begun on this host", "service", be.pool.svc.Name(), "backend", be.addr, "cause", err)
		}
		return // this host could not try: the call goes elsewhere, and nobody is blamed
	}
	conn.lc = lc
	be.conns = append(be.conns, conn)
	be.dialing++
	be.pool.relay.loop.Arm(&conn.timer, o.connect)
}

// inUse is the number of connections that take new streams, or will.
func (be *backend) inUse() int {
	n := 0
	for _, conn := range be.conns {
		if !conn.retired {
			n++
		}
	}
	return n
}

// pump gives what is free to the calls that wait.
func (be *backend) pump() {
	for c := be.waiting.next(); c != nil; c = be.waiting.next() {
		conn := be.ready()
		if conn == nil {
			break
		}
		if conn.h2.HeaderLimit() < c.held {
			c.moveOn(tooLargeHeaders)
			continue
		}
		c.unwait()
		c.send(conn)
	}
	if be.waiting.n == 0 {
		return
	}
	be.grow(be.usable)
	if be.inUse() == 0 {
		be.giveUp(false, "")
	}
}

// giveUp sends all that wait elsewhere; they may come back, once, if there is no other backend and this one might do better over a new connection.
func (be *backend) giveUp(back bool, why string) {
	for n := be.waiting.n; n > 0 && be.waiting.n > 0; n-- { // those that come back meanwhile stay
		c := be.waiting.next()
		if back {
			c.retrySame()
		}
		c.moveOn(why)
	}
}

// connected notes that a connection is up.
func (be *backend) connected(conn *backendConn) {
	ledger := &be.pool.relay.w.ledger
	conn.account = ledger.account(be.pool.svc, be.state, be.addr)
	ledger.up(conn.since, conn.account, protoH2)
	be.dialing--
	be.again.reset()
	s := be.stats()
	s.backendConns++
	s.backendOpened++
	be.state.Connected(be.pool.relay.loop.Now())
	be.state.SpeaksHTTP2()
	be.pump()
}

// connectFailed notes one failed connect, whatever number of calls waited for it (2.4, 4.1).
func (be *backend) connectFailed(conn *backendConn, cause string, why closeCause) {
	be.closed(conn, connEnd{why: why})
	if why == closedStop {
		return
	}
	now := be.pool.relay.loop.Now()
	ledger := &be.pool.relay.w.ledger
	ledger.refused(now, ledger.account(be.pool.svc, be.state, be.addr), cause)
	o := be.rt.options()
	be.stats().connectsFailed++
	be.again.failed(now, o.reconnectBase, o.reconnectMax, rand.N)
	be.state.ConnectFailed(now, cause)
	if be.inUse() == 0 {
		be.giveUp(false, "")
	}
	be.forget()
}

// closed forgets a connection.
func (be *backend) closed(conn *backendConn, e connEnd) {
	i := slices.Index(be.conns, conn)
	if i < 0 {
		return
	}
	be.conns = slices.Delete(be.conns, i, i+1)
	if !conn.up {
		be.dialing--
		return
	}
	s := be.stats()
	s.backendConns--
	s.backendClosed[e.why]++
	be.pool.relay.w.ledger.down(conn.account, e)
}

func (be *backend) stats() *serviceStats { return be.pool.relay.w.statsOf(be.rt) }

// calm makes PINGs rarer: the backend complained of them.
func (be *backend) calm() {
	be.pingEvery = min(2*be.pingEvery, maxPingEvery)
	be.pool.relay.w.proxy.log.Info("a backend finds our PINGs too many", "service", be.pool.svc.Name(), "backend", be.addr, "next_every", be.pingEvery)
}

// tellHang makes an event and a line of a hang: rare enough for their locks, however many connections it hits.
func (be *backend) tellHang(now time.Time, cause string) {
	p := be.pool.relay.w.proxy
	if p.events == nil || now.Sub(be.told) < tellEvery {
		return
	}
	be.told = now
	p.log.Warn("a connection to a backend is given up", "service", be.pool.svc.Name(), "backend", be.addr, "cause", cause)
	p.events.Add(event.Event{Time: now, Kind: event.Hang, Service: be.pool.svc.Name(), Backend: be.addr.String(), Detail: cause})
}

// forget drops the backend itself once it is out of the view and has nothing left.
func (be *backend) forget() {
	if be.removed && len(be.conns) == 0 && be.waiting.n == 0 && be.pool.backends[be.state] == be {
		be.pool.relay.loop.Disarm(&be.drainTimer)
		delete(be.pool.backends, be.state)
		be.pool.relay.dropPool(be.pool)
	}
}

// keep notes that the view has the backend. One that comes back is connected to at once (4.10), and no longer drained (4.7).
func (be *backend) keep(usable bool) {
	if be.removed || usable && !be.usable {
		be.again.reset()
	}
	if be.removed {
		be.removed = false
		be.pool.relay.loop.Disarm(&be.drainTimer)
	}
	be.usable = usable
}

// remove lets running streams go on until drain is over; idle connections close now (4.7). Calls that wait for one are left to giveUp.
func (be *backend) remove() {
	if be.removed {
		return
	}
	be.removed = true
	for _, conn := range slices.Clone(be.conns) {
		if !conn.up || conn.h2.Streams() == 0 {
			conn.end(closedRemoved)
		}
	}
	if len(be.conns) == 0 {
		be.forget()
		return
	}
	be.pool.relay.loop.Arm(&be.drainTimer, be.rt.options().drain)
}

// expire ends what still runs on a removed backend.
func (be *backend) expire() {
	for _, conn := range slices.Clone(be.conns) {
		for s := conn.anyStream(); s != nil; s = conn.anyStream() {
			s.Owner.(*call).backendRemoved()
		}
		conn.end(closedRemoved)
	}
	be.forget()
}

// name is the backend in a sentence.
func (be *backend) name() string { return fmt.Sprintf("%s: %s", be.pool.svc.Name(), be.addr) }

package proxy

import (
	"net/netip"
	"time"

	"github.com/lbagent/lbagent/agent/proxy/h2"
	"github.com/lbagent/lbagent/agent/proxy/loop"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"golang.org/x/sys/unix"
)

const (
	// streamWindow is what one stream may have parked here, in either direction: what a reader doesn't take is bounded by it, and a stream to a
	// backend 1 ms away gets 256 MB/s. Larger costs memory under slow readers, smaller costs speed over longer ways. (CPU per 1 MiB body with 64 KiB,
	// 256 KiB and 1 MiB: 0.44, 0.38 and 0.54 of HAProxy's for 4 clients with 8 streams, 0.36, 0.31 and 0.21 for one with one.)
	streamWindow = 256 << 10
	// connWindow only bounds what is under way: its credit goes back when bytes are read, so that a slow reader never stalls the other streams.
	connWindow = 16 << 20
	// creditStep is how many bytes of a stream have to be with the other side's kernel before their credit goes back: few WINDOW_UPDATE frames, and
	// the sender always has three quarters of the window to go on with.
	creditStep = streamWindow / 4

	// heldPerStream times the stream limit bounds the header lists that are kept, until responses begin, for the calls of one client connection, and their
	// trailers: what is over it is refused, and gRPC tries again. It's all the metadata that gRPC allows a call by default.
	heldPerStream = 8 << 10

	// keepBytes and keepLoop bound the request DATA that is kept for a retry until response headers: per call and per loop (4.3).
	keepBytes = 64 << 10
	keepLoop  = 16 << 20

	// fullAt and roomAt: DATA for a connection of which so much is unwritten waits in chunks, where a reset can drop it and other frames pass it.
	fullAt = 256 << 10
	roomAt = 64 << 10
	// pauseAt: a client that has so many answers unread isn't read from, a backend gets no new streams.
	pauseAt = 1 << 20

	// backendStreams bounds the streams of one connection whose backend sets no limit.
	backendStreams = 10000
	// waitForSlot and waitForConn bound the calls that wait for a stream slot of a backend (4.4), and those that wait while one more connection to it is
	// being made, or the answer to a PING is owed: a burst finds no slots, and will have all of a connection's in a moment, or go elsewhere.
	waitForSlot = 100
	waitForConn = 1000
	// maxTries bounds the backends that one call goes to (4.1 says all of them; this many take long enough).
	maxTries = 128

	// spareIdle is how long a connection beside another one to the same backend may have no stream.
	spareIdle = 30 * time.Second

	// warnEvery is how often the log is told that this host can't connect to a backend: out of descriptors or ports, no route.
	warnEvery = 10 * time.Second

	// restPatience is how long a backend that has answered may take nothing of the rest of the request.
	restPatience = 10 * time.Second

	// goawayPatience is how long a client may take to answer the PING of a graceful end, and to close.
	goawayPatience = time.Second

	freeCalls  = 1024
	freeChunks = 1024 // 4 MiB
)

// relay is the HTTP/2 side of a worker: it joins streams of client connections with streams of backend connections, call by call. The loop's goroutine
// owns all of it.
type relay struct {
	w    *worker
	loop *loop.Loop
	dial func(addr netip.AddrPort, timeout time.Duration, h loop.Handler) (*loop.Conn, error) // loop.Dial, but in fuzz targets

	pools   map[*table.Service]*pool
	clients map[*clientConn]struct{}
	calls   int // running
	idleRun *call
	nIdle   int

	chunks  *chunk // free list
	nChunks int
	inUse   int // chunks that are somewhere in a call
	kept    int // bytes of them that hold request DATA

	parked, reported int64 // bytes of chunks and of output; those that the process knows of
	slowness         slowness
	scratch          []h2.Field
	streams          []*h2.Stream
	hops             []hop // of this wake-up
	draining         bool
	silence          time.Duration // hangSilence
	noRefill         bool          // h2.Config's
}

// pool is what one loop has to do with one service.
type pool struct {
	relay    *relay
	svc      *table.Service
	backends map[*health.State]*backend
	clients  int
}

func newRelay(w *worker) *relay {
	return &relay{
		w: w, loop: w.loop, dial: w.loop.Dial, pools: map[*table.Service]*pool{}, clients: map[*clientConn]struct{}{},
		silence: hangSilence, slowness: defaultSlowness(),
	}
}

// serve takes a client connection; clientDone follows when it is over.
func (r *relay) serve(rt *route, fd int, received []byte) {
	p := r.pools[rt.svc]
	if p == nil {
		p = &pool{relay: r, svc: rt.svc, backends: map[*health.State]*backend{}}
		r.pools[rt.svc] = p
	}
	c := &clientConn{relay: r, rt: rt, pool: p, stats: r.w.statsOf(rt)}
	lc, err := r.loop.Add(fd, c, received)
	if err != nil {
		unix.Close(fd)
		r.w.clientDone(rt, protoH2)
		r.dropPool(p)
		return
	}
	p.clients++
	r.clients[c] = struct{}{}
	c.begin(lc)
}

// viewChanged compares the backend connections of this loop with the view of now (4.7).
func (r *relay) viewChanged(svc *table.Service) {
	p := r.pools[svc]
	if p == nil {
		return
	}
	v := svc.View()
	if v.Gone { // nobody looks after its list any more
		for c := range r.clients {
			if c.pool == p {
				c.shutdown()
			}
		}
	}
	var waited []*backend
	for state, be := range p.backends {
		if b := v.Find(be.addr); v.Leaving(be.addr) || b.State != state {
			if be.waiting.n > 0 {
				waited = append(waited, be)
			}
			be.remove()
		} else {
			be.keep(b.Verdict.Usable())
		}
	}
	// Not before: calls that go elsewhere pick by the newest view, which may have backends that the loop above would take out again, or not know.
	for _, be := range waited {
		be.giveUp(false, "")
		be.forget()
	}
	r.dropPool(p)
}

// dropPool forgets a pool that has nothing.
func (r *relay) dropPool(p *pool) {
	if p.clients == 0 && len(p.backends) == 0 {
		delete(r.pools, p.svc)
	}
}

// drain sends GOAWAY to clients; running streams go on.
func (r *relay) drain() {
	r.draining = true
	for c := range r.clients {
		c.shutdown()
	}
}

// limits are those of now.
func (r *relay) limits() *Limits { return r.w.proxy.limits.Load() }

// idle reports whether no client connection and no call is left.
func (r *relay) idle() bool { return len(r.clients) == 0 && r.calls == 0 }

// newCall takes a call from the free list.
func (r *relay) newCall() *call {
	c := r.idleRun
	if c == nil {
		c = &call{relay: r}
		c.cs.Owner, c.bs.Owner = c, c
		c.timer.F = c.timeUp
	} else {
		r.idleRun = c.next
		r.nIdle--
		c.next = nil
	}
	r.calls++
	return c
}

// freeCall gives a call back. Entries that still name it know by gen that it is another one.
func (r *relay) freeCall(c *call) {
	r.calls--
	c.req.release(r)
	c.resp.release(r)
	r.loop.Disarm(&c.timer)
	gen, tried := c.gen+1, c.tried
	clear(tried)
	*c = call{
		relay: r, gen: gen, fields: emptied(c.fields), tried: tried[:0], timer: c.timer,
		req: pipe{trailers: c.req.trailers}, resp: pipe{trailers: c.resp.trailers},
	}
	c.cs.Owner, c.bs.Owner = c, c
	if r.nIdle < freeCalls {
		c.next = r.idleRun
		r.idleRun = c
		r.nIdle++
	}
}

// emptied is a header list to be used again, which keeps nothing of what was in it.
func emptied(fields []h2.Field) []h2.Field {
	if cap(fields) > 64 {
		return nil
	}
	clear(fields)
	return fields[:0]
}

package proxy

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/proxy/loop"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"golang.org/x/sys/unix"
)

// bed is a relay on a loop that a fuzz target turns by hand, at times of its own: nothing waits, and nothing goes on behind its back. Its connections are
// socket pairs, whose other ends are the target's; each has a validator, which fails the target for whatever isn't HTTP/2.
type bed struct {
	t     testing.TB
	w     *worker
	relay *relay
	loop  *loop.Loop
	now   time.Time
	buf   []byte

	table *table.Table
	svc   *table.Service
	rt    *route

	backends []*service.Backend
	dials    []dialed
	ends     []*peerEnd
	accept   func(e *peerEnd) // a connection to a backend
	refuse   func() bool      // whether the next connect fails; nil: none does
}

// dialed is a connect that hasn't ended.
type dialed struct {
	h    loop.Handler
	conn *loop.Conn
	end  *peerEnd
}

// peerEnd is the target's end of a connection.
type peerEnd struct {
	bed  *bed
	name string
	fd   int
	v    *validator
	w    *writer
	over bool   // the relay has closed it
	deaf bool   // it doesn't read
	step func() // what its script does in every step; may be nil
}

// beds lends one bed, which is used again unless something went wrong on it.
type beds struct{ spare *bed }

// get returns a bed with a service of n backends.
func (b *beds) get(t testing.TB, n int) *bed {
	one := b.spare
	b.spare = nil
	if one == nil {
		one = newBed(t)
	}
	one.begin(t, n)
	return one
}

// end wants nothing left on one.
func (b *beds) end(one *bed) {
	one.t.Helper()
	one.end()
	b.spare = one
}

func newBed(t testing.TB) *bed {
	tbl, err := table.New(table.Config{Log: hclog.NewNullLogger(), Events: event.NewLog(10)})
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(Config{Table: tbl, Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{w: p.workers[0], now: time.Now(), buf: make([]byte, 64<<10)}
	b.relay, b.loop = b.w.relay, b.w.loop
	b.relay.dial = b.dial
	return b
}

// begin gives the relay a service that it has never seen, with n backends.
func (b *bed) begin(t testing.TB, n int) {
	b.t = t
	b.now = b.now.Add(time.Hour) // whatever the one before left is over
	b.turn()
	tbl, err := table.New(table.Config{Log: hclog.NewNullLogger(), Events: event.NewLog(10)})
	if err != nil {
		t.Fatal(err)
	}
	b.table = tbl
	tbl.SetSpec(b.now, table.Spec{
		Name: "user", Policy: picker.RoundRobin, PanicPercent: 50, InUse: true, Drain: time.Second,
		Health: health.Options{Probe: health.ProbeNone, HTTP2: true, Interval: 5 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3},
	})
	l := &service.List{Service: "user", Source: service.FromStatic, Confirmed: b.now}
	for i := range n {
		l.Backends = append(l.Backends, &service.Backend{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80), Weight: 100})
	}
	b.backends = l.Backends
	tbl.Apply(b.now, l)
	b.svc = tbl.Lookup("user")
	b.rt = &route{name: "user", svc: b.svc}
	b.rt.opts.Store(optionsOf(&Service{
		Name: "user", Protocol: "h2", Authority: "keep", Connect: time.Second, Idle: time.Minute, Drain: time.Second,
		ReconnectBase: 10 * time.Millisecond, ReconnectMax: 20 * time.Millisecond,
	}))
	b.dials, b.ends, b.accept, b.refuse = nil, nil, nil, nil
}

func (b *bed) pair() [2]int {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	return fds
}

// client connects to the relay.
func (b *bed) client(name string) *peerEnd {
	fds := b.pair()
	v := newValidator(false)
	e := &peerEnd{bed: b, name: name, fd: fds[0], v: v, w: newWriter(v)}
	b.ends = append(b.ends, e)
	b.w.statsOf(b.rt).active[protoH2]++
	b.relay.serve(b.rt, fds[1], nil)
	return e
}

// dial is the relay's; the connection is there in the next step.
func (b *bed) dial(_ netip.AddrPort, _ time.Duration, h loop.Handler) (*loop.Conn, error) {
	fds := b.pair()
	c, err := b.loop.Add(fds[1], h, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	v := newValidator(true)
	b.dials = append(b.dials, dialed{h, c, &peerEnd{bed: b, name: "backend", fd: fds[0], v: v, w: newWriter(v)}})
	return c, nil
}

func (b *bed) turn() {
	if err := b.loop.Turn(b.now); err != nil {
		b.t.Fatal(err)
	}
}

// steps lets the relay and the scripts act n times.
func (b *bed) steps(n int) {
	for range n {
		b.stepOnce()
	}
}

func (b *bed) stepOnce() {
	dials := b.dials
	b.dials = nil
	for _, d := range dials {
		if b.refuse != nil && b.refuse() {
			unix.Close(d.end.fd)
			d.conn.Close()
			d.h.Closed(unix.ECONNREFUSED)
			continue
		}
		b.ends = append(b.ends, d.end)
		if b.accept != nil {
			b.accept(d.end)
		}
		d.h.Connected()
	}
	b.turn()
	if err := b.relay.check(); err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i < len(b.ends); i++ {
		e := b.ends[i]
		e.read()
		if e.step != nil {
			e.step()
		}
		e.write(e.w.out)
		e.w.out = e.w.out[:0]
	}
}

// advance lets time pass.
func (b *bed) advance(d time.Duration) {
	b.now = b.now.Add(d)
	b.stepOnce()
}

// read validates what the relay has written.
func (e *peerEnd) read() {
	buf := e.bed.buf
	for e.fd >= 0 && !e.deaf {
		n, err := unix.Read(e.fd, buf[:])
		switch {
		case err == unix.EAGAIN:
			return
		case err == unix.EINTR:
			continue
		case n <= 0:
			e.over = true
			return
		}
		if err := e.v.feed(buf[:n]); err != nil {
			e.bed.t.Fatalf("what the %s sees: %v", e.name, err)
		}
	}
}

// write gives bytes to the relay, as many as the kernel takes.
func (e *peerEnd) write(b []byte) (n int) {
	for e.fd >= 0 && !e.over && len(b) > 0 {
		m, err := unix.SendmsgN(e.fd, b, nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		if err == unix.EINTR {
			continue
		}
		if err != nil || m <= 0 {
			return n
		}
		n += m
		b = b[m:]
	}
	return n
}

func (e *peerEnd) close() {
	if e.fd >= 0 {
		unix.Close(e.fd)
		e.fd = -1
	}
}

// end takes the service away, and wants nothing of it left.
func (b *bed) end() {
	b.t.Helper()
	for _, e := range b.ends {
		if e.name != "backend" {
			e.close()
		}
	}
	b.steps(2)
	if n := len(b.relay.clients); n != 0 {
		b.t.Fatalf("%d clients are left", n)
	}
	for _, e := range b.ends { // what still runs goes on for as long as a backend takes something of it
		e.step, e.v.onData = nil, nil
	}
	for range 12 {
		if b.relay.calls == 0 {
			break
		}
		b.advance(restPatience/10 + time.Millisecond)
	}
	if n := b.relay.calls; n != 0 {
		for _, p := range b.relay.pools {
			for _, be := range p.backends {
				for _, conn := range be.conns {
					for s := conn.anyStream(); s != nil; s = nil {
						c := s.Owner.(*call)
						b.t.Logf("%s stream %d: req %+v, resp %+v, timer %v, client %v", be.name(), s.ID(), c.req, c.resp, c.timer.Armed(), c.cs.Open())
					}
				}
			}
		}
		b.t.Fatalf("%d calls are left", n)
	}
	for _, be := range b.svc.View().Backends() {
		if n := be.State.Outstanding(); n != 0 {
			b.t.Fatalf("%s: %d outstanding", be.Addr, n)
		}
	}
	b.table.Remove(b.now, "user")
	b.relay.viewChanged(b.svc)
	b.steps(2)
	for _, e := range b.ends {
		e.close()
	}
	b.advance(2 * time.Second)
	b.advance(11 * time.Second)
	if s := b.loop.Stats(); len(b.relay.pools) != 0 || s.Conns != 0 || s.Timers != 0 || b.relay.inUse != 0 || b.relay.kept != 0 {
		b.t.Fatalf("left: %d pools, %d chunks with %d bytes, %+v", len(b.relay.pools), b.relay.inUse, b.relay.kept, s)
	}
}

// plan is what a fuzzer decides, byte by byte; 0 when it has no more to say.
type plan struct{ b []byte }

func (p *plan) next() byte {
	if len(p.b) == 0 {
		return 0
	}
	c := p.b[0]
	p.b = p.b[1:]
	return c
}

func (p *plan) more() bool { return len(p.b) > 0 }

// chance is true in n of 256 cases, and never without a plan.
func (p *plan) chance(n byte) bool { c := p.next(); return c > 0 && c <= n }

// pick is one of a few; the first without a plan.
func pick[T any](p *plan, of ...T) T { return of[int(p.next())%len(of)] }

// seeds are the recorded bytes of real programs.
func seeds(f *testing.F, folder string) (all [][]byte) {
	files, err := filepath.Glob(filepath.Join(folder, "*.bin"))
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds in %s: %v", folder, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

// byChance are n bytes that depend on seed only.
func byChance(seed, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

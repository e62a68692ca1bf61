// Package proxy is the dial door: a listener per service, what was sent there told apart by its first bytes, and the relay of each call or connection to
// a backend: pick, retry, deadline, outcome (SEMANTICS 4, HTTP2.md 2).
//
// A worker is one event loop with all that it owns; workers share nothing but the table's views. HTTP/1.1 runs beside them, a goroutine
// per connection.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/calls"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/table"
	"golang.org/x/sys/unix"
)

const (
	// maxLoops: a loop carries 50,000 requests a second and more; a host needs few.
	maxLoops = 4
	// stopGrace is how long running calls may go on after Run's context ended (6.2).
	stopGrace = 5 * time.Second
)

// Config wires a Proxy.
type Config struct {
	Log    hclog.Logger
	Table  *table.Table
	Events *event.Log
	// Calls are those who want the records of calls; nil = nobody ever does.
	Calls *calls.Taps
	// Loops is the number of event loops; 0 = by cores (a quarter of them, 1 to 4). More spread the load over more cores, and cost more CPU per request.
	Loops int
	// Limits, until SetLimits; nil = DefaultLimits.
	Limits *Limits
	// Inherited returns a listening socket that a former process made, for the caller to keep (6.2, 6.3); nil = there are none.
	Inherited func(Addr) (fd int, ok bool)
	// Kept says that somebody keeps the listening sockets for the next process: at its end, Run leaves them as they are.
	Kept bool
	// FirstList is how long callers of a service that has just begun, and has no list yet, wait in the backlog for one (6.4); 0 = they hear at once that there is none.
	FirstList time.Duration
}

// Proxy serves every configured service. Safe for concurrent use.
type Proxy struct {
	log     hclog.Logger
	table   *table.Table
	events  *event.Log
	calls   *calls.Taps
	workers []*worker // the first one accepts
	limits  atomic.Pointer[Limits]
	clients atomic.Int64
	parked  atomic.Int64  // bytes, of all loops
	refused atomic.Uint64 // client connections over Limits.Connections
	warned  atomic.Int64  // second of the last warning about them
	running atomic.Bool
	h1      *http1

	inherited func(Addr) (int, bool)
	kept      bool
	firstList time.Duration

	mu sync.Mutex

	routes   map[string]*route
	bindings map[Addr]*binding
	pending  *Change           // prepared, neither committed nor aborted
	closing  []<-chan struct{} // of withdrawn listeners
	stopped  bool
}

// New makes the loops; Run starts them.
func New(cfg Config) (*Proxy, error) {
	if cfg.Table == nil {
		return nil, errors.New("make a proxy: no table")
	}
	if cfg.Loops < 0 {
		return nil, fmt.Errorf("make a proxy: %d loops", cfg.Loops)
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	loops := cfg.Loops
	if loops == 0 {
		loops = min(maxLoops, max(1, runtime.NumCPU()/4))
	}
	p := &Proxy{
		log: cfg.Log, table: cfg.Table, events: cfg.Events, calls: cfg.Calls,
		routes: map[string]*route{}, bindings: map[Addr]*binding{},
		inherited: cfg.Inherited, kept: cfg.Kept, firstList: cfg.FirstList,
	}
	if p.inherited == nil {
		p.inherited = func(Addr) (int, bool) { return -1, false }
	}
	if cfg.Limits == nil {
		cfg.Limits = new(DefaultLimits())
	}
	p.SetLimits(*cfg.Limits)
	p.h1 = newHTTP1(p)
	p.h1.accounts.ledger.events = p.events
	for i := range loops {
		w, err := newWorker(p, i)
		if err != nil {
			return nil, err
		}
		p.workers = append(p.workers, w)
	}
	return p, nil
}

// Run serves until ctx ends: then nothing is accepted any more, HTTP/2 clients get GOAWAY, running calls have up to 5 s (6.2), and what is left is closed.
func (p *Proxy) Run(ctx context.Context) error {
	// Loops and HTTP/1.1 end after the drain, not with ctx.
	hard, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	failed := make(chan error, len(p.workers))
	var wg sync.WaitGroup
	for _, w := range p.workers {
		wg.Go(func() {
			defer close(w.ended)
			if err := w.loop.Run(hard); err != nil {
				failed <- fmt.Errorf("run event loop %d: %w", w.index, err)
			}
		})
	}
	wg.Go(func() { p.h1.run(hard) })
	p.running.Store(true)

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	p.stop(err == nil)
	cancel()
	wg.Wait()
	return err
}

// stop drains: no new connection, and the running calls get their time if the loops are well.
func (p *Proxy) stop(graceful bool) {
	p.mu.Lock()
	p.stopped = true
	if c := p.pending; c != nil {
		c.undo()
	}
	for a, b := range p.bindings {
		delete(p.bindings, a)
		p.withdraw(b, p.kept) // now: who comes during the drain shall be refused rather than wait for nothing, unless there is a next process
	}
	p.mu.Unlock()
	if !graceful {
		return
	}
	for _, w := range p.workers {
		w.loop.Post(w.drain)
	}
	p.h1.drain()
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	p.awaitIdle(ctx)
}

// awaitIdle returns when no client is left, or ctx has ended. A connection that was accepted just before, of which nobody knows yet what it speaks, is one, and is served like the
// others: its client has done nothing that would tell it to call again.
func (p *Proxy) awaitIdle(ctx context.Context) {
	for p.clients.Load() > 0 || !p.idle() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// settleTime is how long connections that were accepted just now have to show what they speak, and idle HTTP/1.1 ones to make the request that will be told it is
// their last, before HandOn closes those that are idle.
const settleTime = sniffTimeout + 300*time.Millisecond

// HandOn leaves the listeners to another process, which serves them already (6.3): nothing is accepted any more, clients are told to connect anew, and what runs goes on. It
// returns when nothing is left, or ctx has ended; Run goes on.
func (p *Proxy) HandOn(ctx context.Context) {
	p.mu.Lock()
	p.kept, p.stopped = true, true
	if c := p.pending; c != nil {
		c.undo()
	}
	for a, b := range p.bindings {
		delete(p.bindings, a)
		p.withdraw(b, true)
	}
	p.awaitClosed()
	p.mu.Unlock()
	p.h1.retire()
	select {
	case <-time.After(settleTime):
	case <-ctx.Done():
		return
	}
	for _, w := range p.workers {
		w.loop.Post(w.drain)
	}
	p.h1.drain()
	p.awaitIdle(ctx)
}

// idle reports whether no worker has anything left to relay.
func (p *Proxy) idle() bool {
	idle := true
	for _, w := range p.workers {
		answer := make(chan bool, 1)
		if w.loop.Post(func() { answer <- w.idle() }) {
			select {
			case ok := <-answer:
				idle = idle && ok
			case <-w.ended:
			}
		}
	}
	return idle
}

// Publish marks s as changed in each loop: one wake-up, however many changes come before the loop looks. It is the table's OnPublish, called under
// the table's lock: it never waits.
func (p *Proxy) Publish(s *table.Service) {
	for _, w := range p.workers {
		w.publish(s)
	}
	p.h1.publish()
}

// Loops is the number of event loops.
func (p *Proxy) Loops() int { return len(p.workers) }

// Ping returns when that loop has answered through its mailbox, or ctx has ended.
func (p *Proxy) Ping(ctx context.Context, loop int) {
	answered := make(chan struct{})
	if !p.workers[loop].loop.Post(func() { close(answered) }) {
		<-ctx.Done()
		return
	}
	select {
	case <-answered:
	case <-ctx.Done():
	}
}

// Listening is a listening socket.
type Listening struct {
	Addr Addr
	FD   int
}

// Listeners are duplicates of all listening sockets, for the caller to close: who has one keeps callers waiting while nobody accepts.
func (p *Proxy) Listeners() []Listening {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Listening, 0, len(p.bindings))
	for a, b := range p.bindings {
		if fd, err := unix.FcntlInt(uintptr(b.fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			out = append(out, Listening{a, fd})
		}
	}
	return out
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Package etcd keeps one connection to etcd for the whole agent, and lends it: the stages that read lists, write registrations, or follow the fleet's
// configuration all share it (SEMANTICS 1.2), and what is known of how etcd answers.
package etcd

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"google.golang.org/grpc/connectivity"
)

// How the one client is used. ProgressEvery is how often each watch says that it is level with etcd.
const (
	ProgressEvery = 10 * time.Second // a list's age is at most this while all is well; each costs etcd one small message per host (1.3)
	readsAtOnce   = 8                // whole reads at one time; more would only queue in etcd
	hungAfter     = 30 * time.Second // without any answer: another client is tried. One that gives up sooner has a busy etcd do everything again
	linkSettles   = 10 * time.Second // a client that lived this long was a good one: the next comes at once
)

// errReplaced ends a link because etcd is to be reached in another way from now on.
var errReplaced = errors.New("etcd's configuration changed")

// errHurry ends a link that waits to dial again.
var errHurry = errors.New("the next try to reach etcd comes sooner")

// Link is one client of etcd, from its login until it must be replaced. All share it.
type Link struct {
	Client

	ctx   context.Context         // ends when the client must no longer be used
	fail  context.CancelCauseFunc // ends it
	made  time.Time
	reads chan struct{} // holds one token per running read

	epochs *epochs // of all links of one Links

	served atomic.Bool // it has had an answer

	mu sync.Mutex

	back   Backoff // of moves to other endpoints
	moveAt time.Time
}

// NewLink is a link of c that ends with ctx; Links makes its own.
func NewLink(ctx context.Context, c Client) *Link {
	return newLink(ctx, c, &epochs{})
}

func newLink(ctx context.Context, c Client, e *epochs) *Link {
	l := &Link{Client: c, reads: make(chan struct{}, readsAtOnce), made: time.Now(), epochs: e}
	l.ctx, l.fail = context.WithCancelCause(ctx)
	return l
}

// Context ends when the link must no longer be used.
func (l *Link) Context() context.Context { return l.ctx }

// Fail ends the link: another takes its place.
func (l *Link) Fail(cause error) { l.fail(cause) }

// Acquire waits for a turn to read, and returns what gives it back.
func (l *Link) Acquire(ctx context.Context) (release func(), err error) {
	select {
	case l.reads <- struct{}{}:
		return func() { <-l.reads }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// DialFunc makes a client; failed is told of endpoints that can't be reached.
type DialFunc func(ctx context.Context, e Config, failed func(error)) (Client, error)

// Links keeps one link alive and lends it. Safe for concurrent use.
type Links struct {
	dial    DialFunc
	contact *contact
	epochs  *epochs

	mu sync.Mutex

	etcd    *Config
	changed chan struct{} // closed and replaced when etcd changes
	hurry   chan struct{} // closed and replaced by Hurry
	link    *Link         // nil while there is none
	there   chan struct{} // closed and replaced when there is a link
}

// Options of Links.
type Options struct {
	Log    hclog.Logger // nil = none
	Events *event.Log   // nil = none
	Etcd   *Config      // nil = none: Get waits
	Dial   DialFunc     // nil = Dial
}

// New returns Links; Run starts them. It opens no connection.
func New(o Options) *Links {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Dial == nil {
		o.Dial = Dial
	}
	c := &contact{log: o.Log, events: o.Events}
	return &Links{
		dial: o.Dial, contact: c, epochs: &epochs{tell: c.newEpoch}, etcd: o.Etcd.clone(),
		changed: make(chan struct{}), hurry: make(chan struct{}), there: make(chan struct{}),
	}
}

// Set changes how etcd is reached; nil = not at all. Nothing happens if nothing changed.
func (k *Links) Set(e *Config) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.etcd.equal(e) {
		return
	}
	k.etcd = e.clone()
	close(k.changed)
	k.changed = make(chan struct{})
	k.contact.log.Info("etcd's configuration changed; lists stay")
}

// OK notes that etcd answered.
func (k *Links) OK() {
	if l := k.lent(); l != nil && !l.served.Swap(true) {
		l.mu.Lock()
		l.back.Reset()
		l.mu.Unlock()
	}
	k.contact.ok()
}

// Fail notes that etcd did not answer, or not as it should, and has the link that is lent mended if that may help: another client, or another endpoint.
func (k *Links) Fail(err error) {
	l := k.lent()
	if IsAuth(err) { // no loss of etcd: another client logs in again
		if l != nil {
			l.Fail(err)
		}
		return
	}
	k.contact.fail(err)
	switch {
	case l == nil:
	case isHung(err):
		if now := time.Now(); now.Sub(l.made) >= hungAfter && k.contact.silent(now, hungAfter) {
			l.Fail(err)
		}
	case isRefusal(err):
		l.elsewhere(time.Now())
	}
}

// lent is the link of now, nil if there is none.
func (k *Links) lent() *Link {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.link
}

// elsewhere moves to another endpoint, but not over and over while none of them serves.
func (l *Link) elsewhere(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Before(l.moveAt) {
		return
	}
	l.served.Store(false)
	l.moveAt = now.Add(MinBackoff + l.back.Next())
	l.Elsewhere()
}

// well is closed when etcd was lost and answers again.
func (k *Links) well() <-chan struct{} { return k.contact.again() }

// Status is what is known of etcd.
func (k *Links) Status() Status {
	var s Status
	if e, _ := k.configured(); e != nil {
		s.Configured, s.Endpoints = true, slices.Clone(e.Endpoints)
		k.contact.fill(&s)
		s.Epochs = k.epochs.changes()
	}
	return s
}

// configured returns how etcd is reached, and a channel that is closed when that changes.
func (k *Links) configured() (*Config, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.etcd, k.changed
}

// Hurry has the next try to reach etcd come now, if there is no connection: for who has something to lose. (A new client does it: grpc's ResetConnectBackoff walks
// over a map that other goroutines change, which ends the process.)
func (k *Links) Hurry() {
	k.mu.Lock()
	close(k.hurry)
	k.hurry = make(chan struct{})
	l := k.link
	k.mu.Unlock()
	if l == nil {
		return
	}
	if c := l.Raw(); c != nil && c.ActiveConnection().GetState() == connectivity.TransientFailure {
		l.fail(errHurry)
	}
}

// wait waits for d, or until ctx ends, etcd changes or somebody is in a hurry.
func (k *Links) wait(ctx context.Context, d time.Duration, changed <-chan struct{}) {
	k.mu.Lock()
	hurry := k.hurry
	k.mu.Unlock()
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-hurry:
			cancel()
		case <-both.Done():
		}
	}()
	Sleep(both, d, changed)
}

// Get waits for a link with a connection.
func (k *Links) Get(ctx context.Context) (*Link, error) {
	for {
		k.mu.Lock()
		l, there := k.link, k.there
		k.mu.Unlock()
		if l == nil {
			select {
			case <-there:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
			continue
		}
		ready, cancel := l.Join(ctx)
		err := l.Ready(ready)
		cancel()
		switch {
		case err == nil && l.ctx.Err() == nil:
			return l, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
		// The link ended: wait for the next.
		<-l.ctx.Done()
		k.drop(l)
	}
}

// Join returns a context that ends with ctx or with the link.
func (l *Link) Join(ctx context.Context) (context.Context, context.CancelFunc) {
	both, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })
	return both, func() {
		stop()
		cancel(nil)
	}
}

// drop stops lending l.
func (k *Links) drop(l *Link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.link == l {
		k.link = nil
	}
}

// Run makes links until ctx ends, one at a time.
func (k *Links) Run(ctx context.Context) error {
	var back Backoff
	var fresh Budget
	var who *login
	defer func() { who.close() }()
	for ctx.Err() == nil {
		e, changed := k.configured()
		if e == nil || e.login != who {
			who.close()
			who = nil
		}
		if e == nil {
			select {
			case <-changed:
				k.contact.reset()
			case <-ctx.Done():
			}
			continue
		}
		who = e.login
		began := time.Now()
		served, err := k.serve(ctx, *e, changed)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, errReplaced):
			back.Reset()
			k.contact.reset()
		case errors.Is(err, errHurry):
		default:
			now := time.Now()
			settled := now.Sub(began) >= linkSettles
			if settled {
				k.contact.log.Info("making a new etcd client", "cause", err)
			}
			if IsAuth(err) {
				if !settled {
					k.contact.fail(err)
				}
				e.login.forget()
			}
			if served && fresh.Take(now) {
				back.Reset() // it was a good one: a token that expired, or another life of etcd
			}
			k.wait(ctx, back.Next(), changed)
		}
	}
	return nil
}

// serve lends one link until it ends, and returns why it did, and whether etcd ever answered over it.
func (k *Links) serve(ctx context.Context, e Config, changed <-chan struct{}) (served bool, err error) {
	l := newLink(ctx, nil, k.epochs)
	defer l.fail(context.Canceled)
	stop := make(chan struct{})
	defer close(stop)
	go func() { // a change of configuration ends the link, and a login that takes its time
		select {
		case <-changed:
			l.fail(errReplaced)
		case <-stop:
		}
	}()
	e.lost = k.contact.lostFor
	c, err := k.dial(l.ctx, e, func(err error) {
		if l.ctx.Err() == nil {
			k.contact.failDial(err)
		}
	})
	if err != nil {
		if cause := context.Cause(l.ctx); cause != nil {
			return false, cause
		}
		if errors.Is(err, context.DeadlineExceeded) {
			k.contact.lose(err) // that no endpoint could be dialed is known, with the reason
		} else {
			k.contact.fail(err) // at once, however long the login took
		}
		return false, err
	}
	defer c.Close()
	l.Client = c
	k.mu.Lock()
	k.link = l
	close(k.there)
	k.there = make(chan struct{})
	k.mu.Unlock()
	defer k.drop(l)
	k.tick(l)
	return l.served.Load(), context.Cause(l.ctx)
}

// tick asks for progress until l ends (1.3).
func (k *Links) tick(l *Link) {
	t := time.NewTicker(ProgressEvery)
	defer t.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-t.C:
		}
		ctx, cancel := context.WithTimeout(l.ctx, ProgressEvery/2)
		if err := l.Progress(ctx); err != nil && l.ctx.Err() == nil {
			k.contact.lose(err)
			l.Everywhere()
		}
		cancel()
	}
}

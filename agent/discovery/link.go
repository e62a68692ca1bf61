package discovery

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"time"
)

// How the one client is used.
const (
	progressEvery = 10 * time.Second // a list's age is at most this while all is well; each costs etcd one small message per host (1.3)
	readsAtOnce   = 8                // whole reads at one time; more would only queue in etcd
	linkSettles   = 10 * time.Second // a client that lived this long was a good one: the next comes at once
)

// errReplaced ends a link because etcd is to be reached in another way from now on.
var errReplaced = errors.New("etcd's configuration changed")

// link is one client of etcd, from its login until it must be replaced. All followers share it.
type link struct {
	client

	ctx   context.Context         // ends when the client must no longer be used
	fail  context.CancelCauseFunc // ends it
	reads chan struct{}           // holds one token per running read
}

// acquire waits for a turn to read, and returns what gives it back.
func (l *link) acquire(ctx context.Context) (release func(), err error) {
	select {
	case l.reads <- struct{}{}:
		return func() { <-l.reads }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// dialFunc makes a client; failed is told of endpoints that can't be reached.
type dialFunc func(ctx context.Context, e Etcd, failed func(error)) (client, error)

// links keeps one link alive and lends it to the followers.
type links struct {
	dial    dialFunc
	contact *contact

	mu sync.Mutex

	etcd    *Etcd
	changed chan struct{} // closed and replaced when etcd changes
	link    *link         // nil while there is none
	there   chan struct{} // closed and replaced when there is a link
}

func newLinks(e *Etcd, c *contact) *links {
	return &links{dial: dialEtcd, contact: c, etcd: e, changed: make(chan struct{}), there: make(chan struct{})}
}

// set changes how etcd is reached; it reports whether that is a change.
func (k *links) set(e *Etcd) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if reflect.DeepEqual(k.etcd, e) {
		return false
	}
	k.etcd = e
	close(k.changed)
	k.changed = make(chan struct{})
	return true
}

// configured returns how etcd is reached, and a channel that is closed when that changes.
func (k *links) configured() (*Etcd, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.etcd, k.changed
}

// get waits for a link with a connection.
func (k *links) get(ctx context.Context) (*link, error) {
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
		ready, cancel := l.join(ctx)
		err := l.ready(ready)
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

// join returns a context that ends with ctx or with the link.
func (l *link) join(ctx context.Context) (context.Context, context.CancelFunc) {
	both, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })
	return both, func() {
		stop()
		cancel(nil)
	}
}

// drop stops lending l.
func (k *links) drop(l *link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.link == l {
		k.link = nil
	}
}

// run makes links until ctx ends, one at a time.
func (k *links) run(ctx context.Context) {
	var back backoff
	for ctx.Err() == nil {
		e, changed := k.configured()
		if e == nil {
			select {
			case <-changed:
				k.contact.reset()
			case <-ctx.Done():
			}
			continue
		}
		began := time.Now()
		err := k.serve(ctx, *e, changed)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, errReplaced):
			back.reset()
			k.contact.reset()
		default:
			if time.Since(began) >= linkSettles {
				back.reset() // the usual case: a token that expired
				k.contact.log.Info("making a new etcd client", "cause", err)
			} else if isAuth(err) {
				k.contact.fail(err)
			}
			sleep(ctx, back.next(), changed)
		}
	}
}

// serve lends one link until it ends, and returns why it did.
func (k *links) serve(ctx context.Context, e Etcd, changed <-chan struct{}) error {
	lctx, fail := context.WithCancelCause(ctx)
	defer fail(context.Canceled)
	stop := make(chan struct{})
	defer close(stop)
	go func() { // a change of configuration ends the link, and a login that takes its time
		select {
		case <-changed:
			fail(errReplaced)
		case <-stop:
		}
	}()
	c, err := k.dial(lctx, e, func(err error) {
		if lctx.Err() == nil {
			k.contact.failDial(err)
		}
	})
	if err != nil {
		if cause := context.Cause(lctx); cause != nil {
			return cause
		}
		if errors.Is(err, context.DeadlineExceeded) {
			k.contact.lose(err) // that no endpoint could be dialed is known, with the reason
		} else {
			k.contact.fail(err) // at once, however long the login took
		}
		return err
	}
	defer c.close()
	l := &link{client: c, ctx: lctx, fail: fail, reads: make(chan struct{}, readsAtOnce)}
	k.mu.Lock()
	k.link = l
	close(k.there)
	k.there = make(chan struct{})
	k.mu.Unlock()
	defer k.drop(l)
	k.tick(l)
	return context.Cause(lctx)
}

// tick asks for progress until l ends (1.3).
func (k *links) tick(l *link) {
	t := time.NewTicker(progressEvery)
	defer t.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-t.C:
		}
		ctx, cancel := context.WithTimeout(l.ctx, progressEvery/2)
		if err := l.progress(ctx); err != nil && l.ctx.Err() == nil {
			k.contact.lose(err)
		}
		cancel()
	}
}

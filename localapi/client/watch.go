package client

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// Watch follows one service. Every Watch of a service of one Client hangs on the same stream; closing one never ends another's.
type Watch struct {
	f    *feed
	seen uint64

	closed chan struct{}
	once   sync.Once
}

// feed is the one stream of a service, shared by its watches: the last list, and a channel that is closed at the next one.
type feed struct {
	c       *Client
	service string
	cancel  context.CancelFunc
	refs    int // guarded by c.mu

	mu sync.Mutex

	seq       uint64 // rises with each news
	list      *lbagentv1.WatchResponse
	fromAgent bool
	err       error // why there is no list
	news      chan struct{}
}

// Between two attempts to reach the agent: full jitter between nothing and this, doubling.
const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 2 * time.Second
)

// Watch starts to follow service, on demand if the agent doesn't know it yet.
func (c *Client) Watch(service string) (*Watch, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	f := c.watches[service]
	if f == nil {
		ctx, cancel := context.WithCancel(c.ctx)
		f = &feed{c: c, service: service, cancel: cancel, news: make(chan struct{})}
		c.watches[service] = f
		c.wg.Go(func() { f.run(ctx) })
	}
	f.refs++
	return &Watch{f: f, closed: make(chan struct{})}, nil
}

// Next returns the newest list, as soon as there is one that this Watch hasn't returned: a slow reader misses steps, never the last one. The answer is shared and must
// not be written. An error means that nothing is known of the service yet; the Watch goes on trying, and Next may be called again.
// Provenance.source is "file" while the agent is away and only the list that it left is known.
func (w *Watch) Next(ctx context.Context) (*lbagentv1.WatchResponse, error) {
	for {
		w.f.mu.Lock()
		seq, list, err, news := w.f.seq, w.f.list, w.f.err, w.f.news
		w.f.mu.Unlock()
		if seq != w.seen {
			w.seen = seq
			if list != nil {
				return list, nil
			}
			return nil, err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-w.closed:
			return nil, ErrClosed
		case <-w.f.c.ctx.Done():
			return nil, ErrClosed
		}
	}
}

// Close ends this Watch; the last one of a service ends its stream.
func (w *Watch) Close() {
	w.once.Do(func() {
		close(w.closed)
		c := w.f.c
		c.mu.Lock()
		defer c.mu.Unlock()
		if w.f.refs--; w.f.refs == 0 {
			w.f.cancel()
			delete(c.watches, w.f.service)
		}
	})
}

// run keeps the stream open until ctx ends.
func (f *feed) run(ctx context.Context) {
	pause := retryFirst
	for {
		got, err := f.stream(ctx)
		if ctx.Err() != nil {
			return
		}
		f.failed(err)
		if got {
			pause = retryFirst
		}
		timer := time.NewTimer(rand.N(pause) + time.Millisecond)
		pause = min(2*pause, retryMost)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// stream reads one stream to its end; got is true if it brought a list.
func (f *feed) stream(ctx context.Context) (got bool, err error) {
	// An agent that takes the call but says nothing is as good as away.
	late := time.AfterFunc(f.c.patience, func() { f.fallBack() })
	defer late.Stop()
	s, err := f.c.lookup.Watch(ctx, &lbagentv1.WatchRequest{Service: f.service})
	if err != nil {
		return false, err
	}
	for {
		list, err := s.Recv()
		if err != nil {
			return got, err
		}
		got = true
		late.Stop()
		f.publish(list, true)
	}
}

// failed keeps the last list; without one it uses the file, and without that the error is the news.
func (f *feed) failed(err error) {
	if away(err) && f.fallBack() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.list == nil {
		f.err = err
		f.tellLocked()
	}
}

// fallBack reads the file unless the agent's own word is known; true if there is a list.
func (f *feed) fallBack() bool {
	f.mu.Lock()
	known := f.fromAgent
	f.mu.Unlock()
	if known {
		return true
	}
	lines, err := f.c.readList(f.service)
	if err != nil || len(lines) == 0 {
		return false
	}
	f.publish(fromFile(f.service, lines), false)
	return true
}

func (f *feed) publish(list *lbagentv1.WatchResponse, fromAgent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !fromAgent && (f.fromAgent || f.list != nil && proto.Equal(f.list, list)) {
		return
	}
	f.list, f.fromAgent, f.err = list, fromAgent, nil
	f.tellLocked()
}

func (f *feed) tellLocked() {
	f.seq++
	close(f.news)
	f.news = make(chan struct{})
}

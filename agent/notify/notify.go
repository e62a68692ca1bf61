// Package notify posts events to an address of the operator's (`notify: {url: ...}`), as JSON.
//
// The log of events is its queue: bounded, and nobody waits for whoever reads it. What an endpoint that is dead, slow or hanging doesn't take in time is
// pushed out there by newer events, and counted.
package notify

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
)

const (
	// pace is the least time between two posts: what happens meanwhile goes together. Shorter tells sooner, and costs the endpoint more.
	pace = time.Second
	// gather is how long the first of them waits for others: what happens at one moment is told together.
	gather = 100 * time.Millisecond
	// most is how many events one post carries.
	most = 500
	// patience is how long an endpoint may take to answer a post.
	patience = 10 * time.Second
	// firstPause and longestPause are between tries of a post that failed; it doubles from one to the next, and half of it is chance.
	firstPause, longestPause = time.Second, time.Minute
	// lastWords is how long a stop waits for the post of what happened last.
	lastWords = time.Second
)

// Config wires a Notifier.
type Config struct {
	Log     hclog.Logger
	Events  *event.Log
	Node    string // this host
	Version string
	Started time.Time // with Node and an event's ID it names an event
	// Client posts; nil = one that follows no redirects and trusts the roots of the system.
	Client *http.Client
}

// Stats are counters for metrics.
type Stats struct {
	On       bool
	OK       bool   // the last post succeeded, or there was none yet
	Sent     uint64 // events that the endpoint took
	Dropped  uint64 // events that it never got: pushed out while it took none, or part of a post that it refused
	Posts    uint64 // that succeeded
	Failures uint64 // posts that did not; each try counts
	Waiting  uint64 // events that are not sent yet
}

// Notifier posts events. Safe for concurrent use.
type Notifier struct {
	cfg    Config
	client *http.Client
	wake   chan struct{} // the address has changed

	mu sync.Mutex

	url   string // "" = off
	stats Stats
	done  uint64 // ID of the last event that was sent or dropped
	doneN uint64 // its N: connections aren't posted, they are too many for people to be told
}

// New returns a Notifier that is off; Set turns it on, Run posts.
func New(cfg Config) *Notifier {
	n := &Notifier{cfg: cfg, client: cfg.Client, wake: make(chan struct{}, 1), stats: Stats{OK: true}}
	if n.client == nil {
		n.client = newClient()
	}
	return n
}

// newClient is a client of few connections. A redirect is not followed: it would carry what this host says to where nobody has configured.
func newClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, MaxConnsPerHost: 2, MaxIdleConns: 1, IdleConnTimeout: time.Minute,
			TLSHandshakeTimeout: patience, ResponseHeaderTimeout: patience, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Set has events posted to url from now on, those of the start included if it is called before Run; "" = none are.
func (n *Notifier) Set(url string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if url == n.url {
		return
	}
	n.url, n.stats.On, n.stats.OK = url, url != "", true
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Stats returns the counters.
func (n *Notifier) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.stats
	if s.On {
		_, last := n.cfg.Events.End()
		s.Waiting = max(n.doneN, last) - n.doneN
	}
	return s
}

func (n *Notifier) address() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.url
}

// Run posts until ctx ends, and then once more what is left, within a second.
func (n *Notifier) Run(ctx context.Context) error {
	defer n.client.CloseIdleConnections()
	for ctx.Err() == nil {
		select {
		case <-n.wake: // what is read next is the new one
		default:
		}
		to := n.address()
		if to == "" {
			n.await(ctx, nil, 0)
			n.skip()
			continue
		}
		batch, more := n.next()
		if len(batch) == 0 {
			n.await(ctx, more, 0)
			n.await(ctx, nil, gather)
			continue
		}
		if n.deliver(ctx, to); n.address() == to {
			n.await(ctx, nil, pace)
		}
	}
	if to := n.address(); to != "" {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
		defer cancel()
		for last.Err() == nil {
			batch, _ := n.next()
			if len(batch) == 0 || n.try(last, to, batch) != nil {
				break
			}
		}
	}
	return nil
}

// deliver posts what happened until the endpoint has taken it, or another one is configured. Each try takes what is there by then.
func (n *Notifier) deliver(ctx context.Context, to string) {
	for pause := firstPause; ctx.Err() == nil && n.address() == to; pause = min(2*pause, longestPause) {
		batch, _ := n.next()
		if len(batch) == 0 || n.try(ctx, to, batch) == nil {
			return
		}
		n.await(ctx, nil, pause/2+rand.N(pause/2)) // many hosts lose their endpoint at the same moment
	}
}

// await returns at the end of ctx, when the address changes, when more is closed, or when d has passed (0 = never).
func (n *Notifier) await(ctx context.Context, more <-chan struct{}, d time.Duration) {
	var over <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-ctx.Done():
	case <-n.wake:
	case <-more:
	case <-over:
	}
}

// next is what is to be posted next, and a channel that is closed when there is more. What the ring has lost is counted.
func (n *Notifier) next() ([]event.Event, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	all, more := n.cfg.Events.Since(n.done)
	all = slices.DeleteFunc(all, func(e event.Event) bool { return e.Kind == event.Connection })
	if len(all) == 0 {
		return nil, more
	}
	n.stats.Dropped += all[0].N - 1 - n.doneN
	n.done, n.doneN = all[0].ID-1, all[0].N-1
	return all[:min(len(all), most)], more
}

// skip forgets what happened while nobody wanted to know.
func (n *Notifier) skip() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.done, n.doneN = n.cfg.Events.End()
}

// try posts batch once. Nil means that it is over with, though perhaps refused.
func (n *Notifier) try(ctx context.Context, to string, batch []event.Event) error {
	patient, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	n.mu.Lock()
	dropped := n.stats.Dropped
	n.mu.Unlock()
	err := n.post(patient, to, n.message(batch, dropped))
	if err != nil && ctx.Err() != nil {
		return err // it was ended from here, which says nothing about the endpoint
	}
	refused := isRefused(err)
	n.mu.Lock()
	defer n.mu.Unlock()
	was := n.stats.OK
	if n.stats.OK = err == nil; err == nil {
		n.stats.Posts++
		n.stats.Sent += n.passedLocked(batch)
	} else {
		n.stats.Failures++
		if refused { // it would be the next time, too, and keep others from being sent
			n.stats.Dropped += n.passedLocked(batch)
		}
	}
	switch {
	case was && err != nil:
		n.cfg.Log.Warn("events can't be posted", "host", hostOf(to), "cause", err, "dropped", refused)
	case !was && err == nil:
		n.cfg.Log.Info("events are posted again", "host", hostOf(to))
	}
	if refused {
		return nil
	}
	return err
}

// passedLocked notes that batch is over with, and returns how many events it had. What is missing in it was pushed out.
func (n *Notifier) passedLocked(batch []event.Event) uint64 {
	last := &batch[len(batch)-1]
	n.stats.Dropped += last.N - n.doneN - uint64(len(batch))
	n.done, n.doneN = last.ID, last.N
	return uint64(len(batch))
}

// hostOf is what a log may say of an address: its path may be a secret.
func hostOf(to string) string {
	u, err := url.Parse(to)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

package etcd

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// shortOutage is how long every endpoint is tried at least every 1.5 s, so that lists are right within 2 s of the end of an outage; dialing a port where nobody is costs next to
// nothing. After that a wait is up to MaxBackoff (1.4): a fleet of 10,000 hosts whose handshakes are what keeps etcd from answering ends it by that, and comes back over 30 s.
const shortOutage = time.Minute

var errLater = errors.New("the next try comes later: etcd has been lost for more than a minute")

// pace says when an endpoint is dialed in a long outage; in a short one grpc does alone (reconnect). Safe for concurrent use.
type pace struct {
	lost func() time.Duration // nil = never

	mu sync.Mutex

	next map[string]time.Time // by endpoint
	err  map[string]error     // why it could not be dialed last: a person wants to see that, and not that it waits
}

// due returns nil if endpoint is to be dialed now.
func (p *pace) due(endpoint string, now time.Time) error {
	if p.lost == nil {
		return nil
	}
	long := p.lost() >= shortOutage
	p.mu.Lock()
	defer p.mu.Unlock()
	if !long {
		p.next, p.err = nil, nil
		return nil
	}
	if now.Before(p.next[endpoint]) {
		return cmp.Or(p.err[endpoint], errLater)
	}
	if p.next == nil {
		p.next, p.err = make(map[string]time.Time), make(map[string]error)
	}
	p.next[endpoint] = now.Add(rand.N(MaxBackoff))
	return nil
}

// failed notes why endpoint could not be dialed.
func (p *pace) failed(endpoint string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		p.err[endpoint] = err
	}
}

package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/localapi"
)

// Bounds of services that are followed because somebody asked (SEMANTICS 1.15).
const (
	maxOnDemand       = 256
	maxOnDemandPerUID = 64
	onDemandSweep     = time.Minute
)

// onDemand knows which services are followed because somebody asked, and for whom. The configuration decides whether and how.
type onDemand struct {
	follow   func(...config.Service)                        // start following, or change how
	followed func(name string) bool                         // on demand or not
	drop     func(name string)                              // stop following
	unasked  func(name string, now time.Time) time.Duration // since the last use

	mu sync.Mutex

	config *config.Config    // says whether and how
	owner  map[string]uint32 // service -> uid that asked first
	count  map[uint32]int    // uid -> services
}

// set takes a new configuration. What would be read elsewhere under it is dropped; the next ask follows it anew. Whatever else changes applies to what is followed.
func (o *onDemand) set(c *config.Config) {
	o.mu.Lock()
	defer o.mu.Unlock()
	old := o.config
	o.config = c
	for name := range o.owner {
		was, _ := old.OnDemandService(name)
		is, on := c.OnDemandService(name)
		switch {
		case !on || was.Prefix != is.Prefix || was.Format != is.Format || was.Namespace != is.Namespace:
			o.forgetLocked(name)
			o.drop(name)
		case !was.Equal(is):
			o.follow(is)
		}
	}
}

// ask follows name for uid. Asking for what is followed already is free. Errors: localapi.ErrTooManyServices at a bound of 1.15; ErrUnknownService if names
// that aren't configured are not followed at all, or if name can't be a service's name.
func (o *onDemand) ask(name string, uid uint32) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.followed(name) {
		return nil // perhaps since a moment ago, by a reload: then it isn't on demand
	}
	s, on := o.config.OnDemandService(name)
	switch {
	case !service.ValidName(name):
		return fmt.Errorf("%w: a service's name is 1 to %d of A-Z a-z 0-9 . _ : @ -", localapi.ErrUnknownService, service.MaxNameLength)
	case !on && o.config.Etcd == nil:
		return fmt.Errorf("%w: %q is not configured, and there is no etcd to look it up in", localapi.ErrUnknownService, name)
	case !on:
		return fmt.Errorf("%w: %q is not configured, and on_demand is off", localapi.ErrUnknownService, name)
	case len(o.owner) >= maxOnDemand:
		return fmt.Errorf("%w: %d, the most for one agent; configure the services in steady use", localapi.ErrTooManyServices, maxOnDemand)
	case o.count[uid] >= maxOnDemandPerUID:
		who := fmt.Sprintf("uid %d, the most for one user", uid)
		if uid == localapi.RemoteUID {
			who = "all callers by TCP together, the most for them"
		}
		return fmt.Errorf("%w: %d for %s; configure the services in steady use", localapi.ErrTooManyServices, maxOnDemandPerUID, who)
	}
	o.owner[name] = uid
	o.count[uid]++
	o.follow(s)
	return nil
}

// configure follows services as the configuration says from now on: they are no longer followed on demand, and must not be dropped as idle. Nobody's ask comes in
// between.
func (o *onDemand) configure(services ...config.Service) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range services {
		o.forgetLocked(services[i].Name)
	}
	o.follow(services...)
}

func (o *onDemand) forgetLocked(name string) {
	uid, ok := o.owner[name]
	if !ok {
		return
	}
	delete(o.owner, name)
	if o.count[uid]--; o.count[uid] == 0 {
		delete(o.count, uid)
	}
}

// sweep drops what nobody has asked for during the rule's idle time.
func (o *onDemand) sweep(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.config.OnDemand == nil || o.config.OnDemand.Idle == 0 {
		return
	}
	for name := range o.owner {
		if o.unasked(name, now) >= o.config.OnDemand.Idle {
			o.forgetLocked(name)
			o.drop(name)
		}
	}
}

// run sweeps until ctx ends.
func (o *onDemand) run(ctx context.Context) error {
	tick := time.NewTicker(onDemandSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			o.sweep(now)
		}
	}
}

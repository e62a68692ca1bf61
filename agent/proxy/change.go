package proxy

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/event"
)

// Service is one configured service with its listeners, if it has any; all values are concrete.
type Service struct {
	Name      string
	Protocol  string // auto, h2, http1, tcp (4.9)
	Authority string // keep, host, or a literal (4.6)
	// HashHeader is the request header whose value is a call's key, in lower case; "" = calls have none (3.10).
	HashHeader string
	Listen     []Addr
	Connect    time.Duration // of one attempt (4.1); > 0
	Request    time.Duration // 0 = none
	Idle       time.Duration // of HTTP connections (4.8); 0 = none
	Drain      time.Duration // 4.7

	Retry Retry // 4.2

	ReconnectBase, ReconnectMax time.Duration // 4.10; 0 = no time between failed connects
}

// Addr is where a service listens.
type Addr struct {
	TCP  netip.AddrPort // invalid for a unix socket
	Unix string
}

func (a Addr) String() string {
	if a.Unix != "" {
		return "unix:" + a.Unix
	}
	return a.TCP.String()
}

// ServiceError says what keeps one service from being served.
type ServiceError struct {
	Service string
	Err     error
}

func (e *ServiceError) Error() string { return fmt.Sprintf("service %q: %v", e.Service, e.Err) }

// Unwrap returns what is wrong.
func (e *ServiceError) Unwrap() error { return e.Err }

// Change is a prepared configuration: everything new is bound, nothing of it is served. Commit or Abort ends it, once.
type Change struct {
	p     *Proxy
	want  []Service
	bound map[Addr]*binding // new ones
	done  bool
}

// Prepare binds what is new in services (6.1); nothing is served yet, and nothing that is served is touched. All errors come at once, each naming service
// and address (a *ServiceError where the host is the reason); then nothing is bound. One Change at a time.
func (p *Proxy) Prepare(services []Service) (*Change, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return nil, errors.New("prepare listeners: the proxy has stopped")
	}
	if p.pending != nil {
		return nil, errors.New("prepare listeners: another change is being made")
	}
	p.awaitClosed()
	c := &Change{p: p, bound: map[Addr]*binding{}}
	var errs []error
	names, addrs := map[string]bool{}, map[Addr]string{}
	for _, s := range services {
		if err := s.check(); err != nil {
			errs = append(errs, err)
			continue
		}
		if names[s.Name] {
			errs = append(errs, fmt.Errorf("service %q: configured twice", s.Name))
			continue
		}
		names[s.Name] = true
		s.Listen = slices.Clone(s.Listen)
		c.want = append(c.want, s)
		for _, a := range s.Listen {
			if other, taken := addrs[a]; taken {
				errs = append(errs, fmt.Errorf("service %q: listen on %s: service %q listens there", s.Name, a, other))
				continue
			}
			addrs[a] = s.Name
		}
	}
	for _, s := range c.want {
		for _, a := range s.Listen {
			if p.bindings[a] != nil || c.bound[a] != nil {
				continue
			}
			b, err := p.inherit(a), error(nil)
			if b == nil {
				b, err = bind(a, p.inTheWay(a, addrs))
			}
			switch {
			case err == nil:
				c.bound[a] = b
			case withoutIPv6(err, a, s.Listen):
				p.log.Warn("not listening on IPv6: this host has none", "service", s.Name, "listen", a.String())
			default:
				errs = append(errs, &ServiceError{s.Name, fmt.Errorf("listen on %s: %w", a, err)})
			}
		}
	}
	if len(errs) > 0 {
		c.undo()
		return nil, errors.Join(errs...)
	}
	p.pending = c
	return c, nil
}

func (s *Service) check() error {
	switch {
	case s.Name == "":
		return errors.New("a service without a name")
	case !slices.Contains([]string{"", "auto", "h2", "http1", "tcp"}, s.Protocol):
		return fmt.Errorf("service %q: protocol %q: allowed are auto, h2, http1, tcp", s.Name, s.Protocol)
	case s.Connect <= 0:
		return fmt.Errorf("service %q: timeout.connect has to be more than 0", s.Name)
	case s.ReconnectBase < 0 || s.ReconnectMax < 0:
		return fmt.Errorf("service %q: a negative reconnect time", s.Name)
	case s.Request < 0 || s.Idle < 0 || s.Drain < 0:
		return fmt.Errorf("service %q: a negative timeout", s.Name)
	}
	if _, err := retryPolicyOf(s.Retry); err != nil {
		return fmt.Errorf("service %q: %w", s.Name, err)
	}
	return nil
}

// inTheWay are the listening sockets that would refuse a its address, and that this change closes: 127.0.0.1:80 is in the way of 0.0.0.0:80, and the
// other way round. wanted are the addresses that stay.
func (p *Proxy) inTheWay(a Addr, wanted map[Addr]string) []*binding {
	var all []*binding
	for other, b := range p.bindings {
		if _, stays := wanted[other]; !stays && a.overlaps(other) {
			all = append(all, b)
		}
	}
	return all
}

// overlaps reports whether one of two addresses is the other's port on every address of this host.
func (a Addr) overlaps(b Addr) bool {
	x, y := a.TCP.Addr(), b.TCP.Addr()
	return a.TCP.IsValid() && b.TCP.IsValid() && a.TCP.Port() == b.TCP.Port() && x.Is4() == y.Is4() && (x.IsUnspecified() || y.IsUnspecified())
}

// Commit serves the change and closes the listeners that are no longer wanted. What did not change isn't touched: the same sockets stay, options hold
// for new calls, on connections that are there already as well, whether their listener stays or not. Those of a service that is gone from the
// configuration keep its last options for the time that they have (4.7). The table has to follow the services by now.
func (c *Change) Commit() {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.done {
		return
	}
	c.done = true
	p.pending = nil
	routes := make(map[string]*route, len(c.want))
	wanted := map[Addr]*route{}
	for _, s := range c.want {
		svc := p.table.Lookup(s.Name)
		if svc == nil {
			p.log.Error("not served: the table doesn't follow it", "service", s.Name)
			continue
		}
		rt := p.routes[s.Name]
		if rt == nil || rt.svc != svc {
			rt = &route{name: s.Name, svc: svc, budget: retryBudget{born: time.Now()}}
		}
		rt.opts.Store(optionsOf(&s))
		routes[s.Name] = rt
		for _, a := range s.Listen {
			wanted[a] = rt
		}
	}
	var opened, closed []string
	for a, b := range c.bound {
		if wanted[a] == nil {
			b.drop()
			continue
		}
		if err := b.listen(); err != nil {
			b.drop()
			p.log.Error("not listening", "listen", a.String(), "cause", err)
			continue
		}
		p.bindings[a] = b
		opened = append(opened, a.String())
		p.tellListener(wanted[a].name, "listening on "+a.String())
	}
	for a, b := range maps.Clone(p.bindings) {
		rt := wanted[a]
		if rt == nil {
			delete(p.bindings, a)
			closed = append(closed, a.String())
			p.tellListener(b.route.Load().name, "no longer listening on "+a.String())
			p.withdraw(b, false)
			continue
		}
		if b.route.Swap(rt) == nil {
			p.serve(b)
		}
	}
	log := p.log.Info
	if len(opened)+len(closed) == 0 {
		log = p.log.Debug
	}
	log("listeners changed", "opened", firstFew(opened), "closed", firstFew(closed), "all", len(p.bindings)) // one line: there may be thousands
	for name, rt := range p.routes {
		if routes[name] != rt {
			p.h1.remove(rt)
		}
	}
	p.routes = routes
}

// firstFew are the addresses of a change for a line of the log.
func firstFew(addrs []string) string {
	const few = 8
	slices.Sort(addrs)
	if n := len(addrs); n > few {
		return fmt.Sprintf("%s and %d more", strings.Join(addrs[:few], ", "), n-few)
	}
	return strings.Join(addrs, ", ")
}

// Abort closes what Prepare bound.
func (c *Change) Abort() {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.undo()
}

// undo is Abort under the lock.
func (c *Change) undo() {
	if c.done {
		return
	}
	c.done = true
	if c.p.pending == c {
		c.p.pending = nil
	}
	for _, b := range c.bound {
		b.drop()
	}
}

func (p *Proxy) tellListener(service, detail string) {
	if p.events != nil {
		p.events.Add(event.Event{Time: time.Now(), Kind: event.Listener, Service: service, Detail: detail})
	}
}

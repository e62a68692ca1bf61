package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// check finds what only shows when all services are known.
func (d *decoder) check(s *sections, drafts []*draft) {
	checkPrefixes(drafts)
	checkOnDemand(s, drafts)
	c := claims{tcp: make(map[netip.AddrPort]string), unix: make(map[string]string)}
	c.sections(d, s)
	for _, dr := range drafts {
		c.service(dr)
	}
	for _, dr := range drafts {
		c.backends(dr)
	}
}

// checkPrefixes refuses services that would read each other's keys. A service with overlap: true is meant so.
func checkPrefixes(drafts []*draft) {
	var sorted []*draft
	for _, dr := range drafts {
		if dr.etcdKeys() != "" && !dr.overlap {
			sorted = append(sorted, dr)
		}
	}
	slices.SortStableFunc(sorted, func(a, b *draft) int { return strings.Compare(a.etcdKeys(), b.etcdKeys()) })
	var outer []*draft // every one a prefix of the next
	for _, dr := range sorted {
		for len(outer) > 0 && !outer[len(outer)-1].holds(dr.etcdKeys()) {
			outer = outer[:len(outer)-1]
		}
		if len(outer) == 0 {
			outer = append(outer, dr)
			continue
		}
		last := outer[len(outer)-1]
		how, what := "lies inside", "prefix"
		if last.etcdKeys() == dr.etcdKeys() {
			how = "is"
		} else {
			outer = append(outer, dr)
		}
		if last.EtcdKey != "" {
			what = "key"
		}
		dr.source().fail("write overlap: true if that is meant", "%q %s the %s %q of service %q at %s",
			clip(dr.etcdKeys(), 128), how, what, clip(last.etcdKeys(), 128), last.Name, last.at.place())
	}
}

// holds reports whether the service reads key, or all that begins with it.
func (dr *draft) holds(key string) bool {
	return key == dr.EtcdKey || dr.EtcdPrefix != "" && strings.HasPrefix(key, dr.EtcdPrefix)
}

// checkOnDemand refuses services that hold the keys of services to come. One that lies deeper is refused only if on_demand was written: layouts
// such as services/NAME/grpc/ are common, and a default must not forbid them.
func checkOnDemand(s *sections, drafts []*draft) {
	if s.cfg.OnDemand == nil {
		return
	}
	_, written := s.written["on_demand"]
	before, after, _ := strings.Cut(s.cfg.Defaults.Namespace+s.cfg.OnDemand.Prefix, "{service}")
	for _, dr := range drafts {
		if dr.etcdKeys() == "" || dr.overlap {
			continue
		}
		const allowed = "write overlap: true if that is meant, or on_demand: off"
		if dr.holds(before) {
			dr.source().fail(allowed, "%q holds the keys of every service of on_demand.prefix", clip(dr.etcdKeys(), 128))
			continue
		}
		rest, inside := strings.CutPrefix(dr.etcdKeys(), before)
		name, deeper, found := strings.Cut(rest, after)
		if written && inside && found && deeper != "" && !strings.Contains(name, "/") {
			dr.source().fail(allowed, "%q lies inside the prefix that on_demand.prefix gives to service %q", clip(dr.etcdKeys(), 128), clip(name, 64))
		}
	}
}

// claims says who listens where.
type claims struct {
	tcp  map[netip.AddrPort]string
	unix map[string]string
	any  []netip.AddrPort // all addresses of the host, one port
}

// sections takes the addresses of the agent itself. Those that were not written stand at the line of no key.
func (c *claims) sections(d *decoder, s *sections) {
	for _, own := range []struct {
		key, addr string
		at        value
	}{{"admin.listen", s.cfg.AdminListen, s.admin}, {"metrics.listen", s.cfg.MetricsAddr, s.metrics}} {
		if strings.HasPrefix(own.addr, ":") {
			own.addr = "[::]" + own.addr
		}
		addr, err := netip.ParseAddrPort(own.addr)
		if err != nil {
			continue // off
		}
		if own.at.d == nil { // the default: whoever wrote the other one has to move
			c.tcp[addr] = own.key + " (by default)"
			continue
		}
		c.claim(own.at, addr, own.key)
	}
	api := s.written["api"]
	c.unix[s.cfg.API.Socket] = "api.socket"
	if s.cfg.API.AdminSocket == s.cfg.API.Socket {
		api.fail("two paths are allowed", "socket and admin_socket are the same")
	}
	c.unix[s.cfg.API.AdminSocket] = "api.admin_socket"
}

func (c *claims) service(dr *draft) {
	at := dr.own["listen"]
	for _, l := range dr.Listen {
		owner := fmt.Sprintf("service %q at %s", dr.Name, dr.at.place())
		if l.Unix == "" {
			if !c.claim(at, l.TCP, owner) {
				return // its twin on ::1 would say the same
			}
			continue
		}
		path := filepath.Clean(l.Unix)
		if first, taken := c.unix[path]; taken {
			at.fail("write another path", "%s is used by %s already", l, first)
			continue
		}
		c.unix[path] = owner
	}
}

// claim notes that owner listens at addr; it is false if somebody else does.
func (c *claims) claim(at value, addr netip.AddrPort, owner string) bool {
	first, taken := c.tcp[addr]
	for _, a := range c.any {
		if a.Port() == addr.Port() && (a.Addr().Is6() || addr.Addr().Is4()) { // [::] takes IPv4 too
			first, taken = c.tcp[a], true
		}
	}
	if addr.Addr().IsUnspecified() {
		for other, who := range c.tcp {
			if other.Port() == addr.Port() && (addr.Addr().Is6() || other.Addr().Is4()) {
				first, taken = who, true
			}
		}
		c.any = append(c.any, addr)
	}
	if taken {
		if _, ok := c.tcp[addr]; !ok {
			c.tcp[addr] = owner
		}
		at.fail("write another port", "%s is used by %s already", addr, first)
		return false
	}
	c.tcp[addr] = owner
	return true
}

// backends refuses static backends that are the agent itself: a call would go round for ever.
func (c *claims) backends(dr *draft) {
	for _, b := range dr.Backends {
		owner, own := c.tcp[b.Addr]
		for _, a := range c.any {
			if a.Port() == b.Addr.Port() && b.Addr.Addr().IsLoopback() {
				owner, own = c.tcp[a], true
			}
		}
		if own {
			dr.own["backends"].fail("write the address of the service itself", "%s is a listener of this agent, %s", b.Addr, owner)
		}
	}
}

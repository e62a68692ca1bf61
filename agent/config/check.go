package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lbagent/lbagent/agent/service"
)

// check finds what only shows when all services are known.
func check(s *sections, drafts []*draft) {
	checkPrefixes(drafts)
	checkFleet(s.cfg.Fleet, drafts)
	checkOnDemand(s, drafts)
	c := newClaims()
	c.sections(s)
	for _, dr := range drafts {
		if !dr.refused() {
			c.service(dr)
		}
	}
	for _, dr := range drafts {
		if !dr.refused() {
			c.backends(dr)
		}
	}
}

// clash says which of two services that can't both be has to go: the one that the check came to later, unless the other is the fleet's and of higher rank. It is
// nil if no host has both of them.
func clash(dr, other *draft) (guilty, stays *draft) {
	switch {
	case dr.rank > 0 && other.rank > 0 && (dr.Name == other.Name || dr.only.apart(other.only)):
		return nil, nil // variants of one service, or items for different hosts
	case dr.rank < other.rank:
		return other, dr
	}
	return dr, other
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
		leave := false // a prefix that is there already, or an item of the fleet that has to go: others don't clash with it
		for i := len(outer) - 1; i >= 0; i-- {
			guilty, stays := clash(dr, outer[i])
			if guilty == nil {
				continue
			}
			how, what := "lies inside", "prefix"
			switch {
			case stays.etcdKeys() == guilty.etcdKeys():
				how, leave = "is", true
			case guilty != dr:
				how = "holds"
			}
			if stays.EtcdKey != "" {
				what = "key"
			}
			guilty.source().fail("write overlap: true if that is meant", "%q %s the %s %q of service %q at %s",
				clip(guilty.etcdKeys(), 128), how, what, clip(stays.etcdKeys(), 128), stays.Name, stays.at.place())
			if guilty == dr {
				leave = leave || dr.rank > 0
				break
			}
			outer, leave = slices.Delete(outer, i, i+1), false
		}
		if !leave {
			outer = append(outer, dr)
		}
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
	tcp  map[netip.AddrPort][]claimant
	unix map[string][]claimant
	any  []netip.AddrPort // all addresses of the host, one port
}

// claimant is who listens: a service, or a section of the agent itself.
type claimant struct {
	words string
	dr    *draft // nil = a section
}

func newClaims() *claims {
	return &claims{tcp: make(map[netip.AddrPort][]claimant), unix: make(map[string][]claimant)}
}

// sections takes the addresses of the agent itself. Those that were not written stand at the line of no key.
func (c *claims) sections(s *sections) {
	for _, own := range []struct {
		key, addr string
		at        value
	}{{"admin.listen", s.cfg.AdminListen, s.admin}, {"metrics.listen", s.cfg.MetricsAddr, s.metrics}, {"api.listen", s.cfg.API.Listen, s.api}} {
		if strings.HasPrefix(own.addr, ":") {
			own.addr = "[::]" + own.addr
		}
		addr, err := netip.ParseAddrPort(own.addr)
		if err != nil {
			continue // off
		}
		if own.at.d == nil { // the default: whoever wrote the other one has to move
			c.tcp[addr] = []claimant{{words: own.key + " (by default)"}}
			continue
		}
		c.claim(own.at, addr, claimant{words: own.key})
	}
	api := s.written["api"]
	c.unix[s.cfg.API.Socket] = []claimant{{words: "api.socket"}}
	if s.cfg.API.AdminSocket == s.cfg.API.Socket {
		api.fail("two paths are allowed", "socket and admin_socket are the same")
	}
	c.unix[s.cfg.API.AdminSocket] = []claimant{{words: "api.admin_socket"}}
}

func (c *claims) service(dr *draft) {
	at := dr.own["listen"]
	who := claimant{words: fmt.Sprintf("service %q at %s", dr.Name, dr.at.place()), dr: dr}
	for _, l := range dr.Listen {
		if l.Unix == "" {
			if !c.claim(at, l.TCP, who) {
				return // its twin on ::1 would say the same
			}
			continue
		}
		path := filepath.Clean(l.Unix)
		if first := who.inTheWay(c.unix[path]); first != nil {
			at.fail("write another path", "%s is used by %s already", l, first.words)
			continue
		}
		c.unix[path] = append(c.unix[path], who)
	}
}

// inTheWay is who of those that are there already can't be on one host with c; nil if nobody.
func (c claimant) inTheWay(there []claimant) *claimant {
	for i, other := range there {
		if c.dr != nil && other.dr != nil {
			if guilty, _ := clash(c.dr, other.dr); guilty == nil {
				continue
			}
		}
		return &there[i]
	}
	return nil
}

// claim notes that who listens at addr; it is false if somebody else does.
func (c *claims) claim(at value, addr netip.AddrPort, who claimant) bool {
	first := who.inTheWay(c.tcp[addr])
	for _, a := range c.any {
		if a.Port() == addr.Port() && (a.Addr().Is6() || addr.Addr().Is4()) { // [::] takes IPv4 too
			if other := who.inTheWay(c.tcp[a]); other != nil {
				first = other
			}
		}
	}
	if addr.Addr().IsUnspecified() {
		for other, there := range c.tcp {
			if other.Port() == addr.Port() && (addr.Addr().Is6() || other.Addr().Is4()) {
				if one := who.inTheWay(there); one != nil {
					first = one
				}
			}
		}
		c.any = append(c.any, addr)
	}
	if first != nil {
		if len(c.tcp[addr]) == 0 {
			c.tcp[addr] = []claimant{who}
		}
		at.fail("write another port", "%s is used by %s already", addr, first.words)
		return false
	}
	c.tcp[addr] = append(c.tcp[addr], who)
	return true
}

// backends refuses static backends that are the agent itself: a call would go round for ever.
func (c *claims) backends(dr *draft) {
	c.notOwn(dr, dr.own["backends"], dr.Backends)
	if at, ok := dr.own["fallback"]; ok && dr.Fallback != nil {
		c.notOwn(dr, at, dr.Fallback.Backends)
	}
}

func (c *claims) notOwn(dr *draft, at value, backends []service.Backend) {
	for _, b := range backends {
		there := c.tcp[b.Addr]
		for _, a := range c.any {
			if a.Port() == b.Addr.Port() && b.Addr.Addr().IsLoopback() {
				there = c.tcp[a]
			}
		}
		for _, who := range there {
			if who.dr != nil && who.dr.rank > dr.rank && !who.dr.only.apart(dr.only) {
				who.dr.own["listen"].fail("write another port", "%s is a backend of service %q at %s: a call would go round for ever",
					b.Addr, dr.Name, dr.at.place())
				continue
			}
			if who.dr == nil || dr.rank == 0 || !who.dr.only.apart(dr.only) {
				at.fail("write the address of the service itself", "%s is a listener of this agent, %s", b.Addr, who.words)
				break
			}
		}
	}
}

package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/service"
)

// draft is a service while it is read: defaults: first, then its own keys over them, map by map.
type draft struct {
	Service

	at        value            // the entry
	own       map[string]value // its own keys
	ownProbe  map[string]value // and those of its probe
	overlap   bool
	namespace *string // nil = etcd's
	eject     bool    // the mode isn't off
	guard     guard
	node      Node

	rank int  // 0 = of the files; an item of the fleet has its place among them: of two that clash, the one with the higher rank gives way
	only only // of an item of the fleet: on which hosts it applies
}

// ownKeys say which service it is; they have no place in defaults:.
func ownKeys() []string { return []string{"name", "prefix", "key", "backends", "listen"} }

// onlyFleet are keys of the fleet's items: a file is of one host.
func onlyFleet() others {
	return others{[]string{"only"}, "belongs to the items that fleet: keeps in etcd", "leave it out"}
}

// services reads defaults: and every entry of services:.
func (d *decoder) services(s *sections) []*draft {
	base := draft{Service: s.cfg.Defaults, eject: s.cfg.Defaults.Eject.On, guard: guard{hold: s.cfg.Defaults.GuardHold}, node: s.cfg.Node}
	if v, ok := s.written["defaults"]; ok {
		known := base.keys()
		for _, k := range ownKeys() {
			delete(known, k)
		}
		v.object(known, others{ownKeys(), "has no place in defaults:, it is a service's own", "write it in each service"}, onlyFleet())
	}
	base.finish(s.cfg.Etcd)
	s.base = base
	s.cfg.Defaults = base.Service

	var drafts []*draft
	names := make(map[string]*draft)
	for _, list := range s.services {
		list.list("a list of entries such as {name: user, prefix: services/user/} is allowed", func(v value) {
			dr := base
			dr.at, dr.ownProbe = v, nil
			dr.decode(v, s.cfg.Etcd)
			if first := names[dr.Name]; first != nil && dr.Name != "" {
				dr.own["name"].fail("write each service once", "%q is the name of the service at %s already", dr.Name, first.at.place())
				return
			}
			names[dr.Name] = &dr
			drafts = append(drafts, &dr)
		})
	}
	return drafts
}

// decode reads one entry.
func (dr *draft) decode(v value, etcd *Etcd) {
	if name := v.get("name"); name != "" {
		v.path = fmt.Sprintf("services[%s]", clip(printable(name), 64))
	}
	dr.At = v.place()
	known := dr.keys()
	if dr.rank > 0 {
		known["only"] = func(v value) { dr.only = v.only() }
	}
	dr.own = v.object(known, onlyFleet())
	dr.checkProbe()
	if at, ok := dr.own["retry"]; ok && dr.Protocol == "tcp" && len(dr.Retry.On) > 0 {
		at.fail("leave it out; a failed connect goes on to the next backend in any case", "belongs to HTTP, the service is of protocol tcp")
	}
	if _, ok := dr.own["name"]; !ok && v.isMap() {
		v.fail("write name: and either prefix: or backends:", "the service has no name")
	}
	dr.checkHash()
	dr.checkSource(v, etcd)
	dr.finish(etcd)
	if dr.etcdKeys() == "" {
		dr.Namespace = "" // a static service does not change with it
	}
}

// checkSource finds what is wrong with where the backends come from: one of prefix, key and backends.
func (dr *draft) checkSource(v value, etcd *Etcd) {
	prefix, hasPrefix := dr.own["prefix"]
	key, hasKey := dr.own["key"]
	backends, hasBackends := dr.own["backends"]
	switch {
	case hasPrefix && hasBackends:
		backends.fail("one of them is allowed", "stands beside prefix")
	case hasKey && hasBackends:
		backends.fail("one of them is allowed", "stands beside key")
	case hasPrefix && hasKey:
		key.fail("one of them is allowed", "stands beside prefix")
	case !hasPrefix && !hasKey && !hasBackends && v.isMap():
		v.fail("write prefix: services/NAME/ or key: KEY or backends: [host:port]", "the service has neither prefix nor key nor backends")
	case hasPrefix && etcd == nil:
		prefix.fail("configure etcd, or write backends:", "needs etcd:, which is not configured")
	case hasKey && etcd == nil:
		key.fail("configure etcd, or write backends:", "needs etcd:, which is not configured")
	case hasBackends:
		for _, k := range []string{"format", "overlap", "namespace", "select", "guard"} {
			if at, ok := dr.own[k]; ok {
				at.fail("leave it out", "belongs to prefix or key, the service has backends")
			}
		}
	}
}

// etcdKeys is what the service reads of etcd: a prefix, which ends in /, or one key; "" for a static one.
func (dr *draft) etcdKeys() string { return dr.EtcdPrefix + dr.EtcdKey }

// source is the value that says so.
func (dr *draft) source() value {
	if dr.EtcdKey != "" {
		return dr.own["key"]
	}
	return dr.own["prefix"]
}

// finish works out what several keys say together.
func (dr *draft) finish(etcd *Etcd) {
	dr.GuardHold = dr.guard.kept()
	if dr.Zone = ""; dr.PreferZone {
		dr.Zone = dr.node.Zone
	}
	dr.Eject.On = dr.eject && dr.Eject.Consecutive+dr.Eject.SuccessRate > 0 && dr.Eject.MaxPercent > 0
	if etcd != nil {
		dr.Namespace = etcd.Namespace
	}
	if dr.namespace != nil {
		dr.Namespace = *dr.namespace
	}
	if dr.Prefix != "" {
		dr.EtcdPrefix = dr.Namespace + dr.Prefix
	}
	if dr.Key != "" {
		dr.EtcdKey = dr.Namespace + dr.Key
	}
	dr.finishFallback(etcd)
}

// keys are all keys of a service.
func (dr *draft) keys() keys {
	s := &dr.Service
	return keys{
		"name": func(v value) {
			v.str(&s.Name, nameAllowed, false, service.ValidName)
		},
		"prefix": func(v value) { v.prefix(&s.Prefix, false) },
		"key":    func(v value) { v.etcdKey(&s.Key) },
		"select": func(v value) { s.Select = v.selection() },
		"namespace": func(v value) {
			var namespace string
			v.prefix(&namespace, true)
			dr.namespace = &namespace
		},
		"format":   func(v value) { v.format(&s.Format) },
		"overlap":  func(v value) { v.boolean(&dr.overlap) },
		"fallback": dr.decodeFallback,
		"allow":    func(v value) { s.Allow = v.ranges() },
		"deny":     func(v value) { s.Deny = v.ranges() },
		"backends": func(v value) { s.Backends = v.backends() },
		"listen":   func(v value) { s.Listen = v.listeners() },
		"protocol": func(v value) { v.oneOf(&s.Protocol, []string{"auto", "h2", "http1", "tcp"}) },
		"authority": func(v value) {
			v.str(&s.Authority, "keep, host, or a name such as user.local or user.local:80 is allowed", false, validLiteral)
		},
		"policy":         func(v value) { v.oneOf(&s.Policy, []string{"p2c", "round_robin", "least_request", "random", "hash"}) },
		"hash":           dr.decodeHash,
		"dynamic_weight": func(v value) { v.boolean(&s.DynamicWeight) },
		"zone": func(v value) {
			var word string
			v.oneOf(&word, []string{"prefer", "ignore"})
			if word != "" {
				s.PreferZone = word == "prefer"
			}
		},
		"slow_start":    func(v value) { v.duration(&s.SlowStart, true, time.Second, time.Hour) },
		"subset":        func(v value) { v.integer(&s.Subset, 0, 10_000) },
		"load":          func(v value) { v.boolean(&s.Load) },
		"probe":         func(v value) { dr.ownProbe = s.Probe.decode(v) },
		"eject":         dr.decodeEject,
		"guard":         dr.guard.decode,
		"panic_percent": func(v value) { v.integer(&s.PanicPercent, 0, 100) },
		"retry":         s.Retry.decode,
		"reconnect":     s.Reconnect.decode,
		"timeout":       s.Timeout.decode,
		"drain":         func(v value) { v.duration(&s.Drain, true, time.Millisecond, time.Hour) },
	}
}

func (p *Probe) decode(v value) map[string]value {
	if v.isOff() || v.isScalar() && v.node.Value == "none" {
		p.Type = "none"
		return nil
	}
	return v.object(keys{
		"type": func(v value) {
			v.oneOf(&p.Type, []string{"tcp", "http", "grpc", "none", "off"})
			if p.Type == "off" {
				p.Type = "none"
			}
		},
		"interval": func(v value) { v.duration(&p.Interval, false, 100*time.Millisecond, time.Hour) },
		"timeout":  func(v value) { v.duration(&p.Timeout, false, 10*time.Millisecond, time.Minute) },
		"rise":     func(v value) { v.integer(&p.Rise, 1, 100) },
		"fall":     func(v value) { v.integer(&p.Fall, 1, 100) },
		"port": func(v value) {
			port := int(p.Port)
			v.integer(&port, 0, 65535)
			p.Port = uint16(port)
		},
		"path":    func(v value) { v.str(&p.Path, "a path such as /healthz is allowed", false, validPath) },
		"status":  p.status,
		"service": func(v value) { v.str(&p.Service, "the name of a gRPC service is allowed", true, validServiceName) },
	})
}

// checkProbe finds keys that the probe of this type would never look at. Those of defaults: may be for other services.
func (dr *draft) checkProbe() {
	if at, ok := dr.ownProbe["type"]; ok && dr.Probe.Type != at.node.Value && dr.Probe.Type != "none" {
		return // a type that is none: said already
	}
	for _, key := range []string{"path", "status", "service"} {
		needs := "http"
		if key == "service" {
			needs = "grpc"
		}
		if at, ok := dr.ownProbe[key]; ok && dr.Probe.Type != needs {
			at.fail(fmt.Sprintf("write type: %s, or leave it out", needs), "belongs to a probe of type %s, this one is of type %s", needs, dr.Probe.Type)
		}
	}
}

func (p *Probe) status(v value) {
	const allowed = "a status such as 200, or a range such as 200-399, is allowed"
	s, ok := v.text(allowed, false)
	if !ok {
		return
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	low, err := strconv.Atoi(first)
	high, err2 := strconv.Atoi(last)
	if err != nil || err2 != nil || low < 100 || high > 599 || low > high {
		v.fail(allowed, "%s is no HTTP status", v.quote())
		return
	}
	p.StatusMin, p.StatusMax = low, high
}

func (dr *draft) decodeEject(v value) {
	mode := func(v value) {
		var s string
		v.oneOf(&s, []string{"on", "observe", "off"})
		if s != "" {
			dr.eject, dr.Eject.Observe = s != "off", s == "observe"
		}
	}
	if v.isScalar() {
		mode(v)
		return
	}
	e := &dr.Eject
	found := v.object(keys{
		"mode":         mode,
		"consecutive":  func(v value) { v.integer(&e.Consecutive, 0, 1000) },
		"success_rate": func(v value) { v.integer(&e.SuccessRate, 0, 100) },
		"base":         func(v value) { v.duration(&e.Base, false, 10*time.Millisecond, time.Hour) },
		"max":          func(v value) { v.duration(&e.Max, false, 10*time.Millisecond, 24*time.Hour) },
		"max_percent":  func(v value) { v.integer(&e.MaxPercent, 0, 100) },
	})
	checkRange(v, found, e.Base, e.Max)
}

func (t *Timeout) decode(v value) {
	v.object(keys{
		"connect": func(v value) { v.duration(&t.Connect, true, time.Millisecond, time.Minute) },
		"request": func(v value) { v.duration(&t.Request, true, time.Millisecond, 24*time.Hour) },
		"idle":    func(v value) { v.duration(&t.Idle, true, time.Second, 7*24*time.Hour) },
	})
}

func sortServices(all []Service) {
	slices.SortFunc(all, func(a, b Service) int { return cmp.Compare(a.Name, b.Name) })
}

// OnDemandService is the service that is followed when name was asked for and isn't configured (1.15); false if on-demand is off, or name may not name one.
func (c *Config) OnDemandService(name string) (Service, bool) {
	if c.OnDemand == nil || !service.ValidName(name) {
		return Service{}, false
	}
	s := c.Defaults
	s.Name = name
	s.At = "on demand"
	s.Prefix = strings.Replace(c.OnDemand.Prefix, "{service}", name, 1)
	s.EtcdPrefix = s.Namespace + s.Prefix
	s.Format = c.OnDemand.Format
	s.OnDemand = true
	return s, true
}

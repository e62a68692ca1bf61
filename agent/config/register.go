package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/service"
	"gopkg.in/yaml.v3"
)

// Register is one entry of register: a service that runs on this host (SEMANTICS 5).
type Register struct {
	Name     string
	At       string // file:line
	Address  string // literal host:port; ":8080" is this host's own address
	Format   string // "" = that of the service
	Prefix   string // with the namespace; "" = that of the service
	Weight   uint32 // 0 = the record names none
	Zone     string
	Region   string
	Metadata map[string]string
	HostLoad bool
	Probe    Probe
}

// RegisterAllow is one entry of register_allow: who may register services on the open socket, beside those who may use the admin socket. A user, or a group.
type RegisterAllow struct {
	User, Group string   // a name or a number
	Services    []string // names, in which * stands for any letters; empty = all
}

const (
	maxRegister  = 256
	maxAllow     = 64
	maxMetadata  = 64   // entries of a record
	maxMetaBytes = 4096 // of its names and values
)

// registerFormats are the formats that can be written (5.5).
func registerFormats() []string { return []string{"grpc-naming", "gozero", "kratos", "kitex", "plain"} }

// defaultRegisterProbe finds a service that died within seconds (5.2).
func defaultRegisterProbe() Probe {
	p := defaultService().Probe
	p.Interval = time.Second
	return p
}

// registrations reads register:.
func (s *sections) registrations(v value) {
	seen := make(map[string]value)
	v.list("a list of entries such as {name: user, address: \":8080\"} is allowed", func(v value) {
		r := Register{Probe: defaultRegisterProbe(), At: v.place()}
		if name := v.get("name"); name != "" {
			v.path = fmt.Sprintf("register[%s]", clip(printable(name), 64))
		}
		found := r.decode(v)
		if !v.isMap() {
			return
		}
		for _, key := range []string{"name", "address"} {
			if _, ok := found[key]; !ok {
				v.fail("write name: and address: \":PORT\"", "the registration has no %s", key)
			}
		}
		id := r.Name + " " + r.Address
		if first, ok := seen[id]; ok && r.Name != "" && r.Address != "" {
			v.fail("write each one once", "%q at %s is registered at %s already", r.Name, r.Address, first.place())
			return
		}
		seen[id] = v
		if len(s.cfg.Register) == maxRegister {
			v.fail(fmt.Sprintf("at most %d registrations are allowed", maxRegister), "is one too many")
			return
		}
		s.cfg.Register = append(s.cfg.Register, r)
	})
}

func (r *Register) decode(v value) map[string]value {
	var ownProbe map[string]value
	found := v.object(keys{
		"name":    func(v value) { v.str(&r.Name, nameAllowed, false, service.ValidName) },
		"address": func(v value) { v.registered(&r.Address) },
		"format": func(v value) {
			v.oneOf(&r.Format, registerFormats())
		},
		"prefix":   func(v value) { v.prefix(&r.Prefix, false) },
		"metadata": r.metadata,
		"load": func(v value) {
			var load string
			v.oneOf(&load, []string{"off", "host"})
			r.HostLoad = load == "host"
		},
		"probe": func(v value) { ownProbe = r.Probe.decode(v) },
	})
	(&draft{Service: Service{Probe: r.Probe}, ownProbe: ownProbe}).checkProbe()
	return found
}

// registered reads the address of a registration: one that other hosts can use (5.5).
func (v value) registered(to *string) {
	const allowed = `":8080" for this host's own address, or a literal address such as 10.0.0.1:8080 or [2001:db8::1]:8080, is allowed`
	s, ok := v.text(allowed, false)
	if !ok {
		return
	}
	if port, found := strings.CutPrefix(s, ":"); found && validPort(port) {
		*to = s
		return
	}
	addr, problem := literal(s)
	if problem == "" {
		problem = notForOthers(addr.Addr())
	}
	if problem != "" {
		v.fail(allowed, "%s %s", v.quote(), problem)
		return
	}
	*to = addr.String()
}

// notForOthers says why other hosts can't use a.
func notForOthers(a netip.Addr) string {
	switch {
	case a.IsLoopback():
		return "is a loopback address, which other hosts can't reach"
	case a.IsUnspecified():
		return "is the address of no host"
	case a.IsLinkLocalUnicast():
		return "is a link-local address, which other networks can't reach"
	case a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is the address of many hosts"
	}
	return ""
}

// metadata reads a map of any names. weight, zone and region have a place of their own in most formats.
func (r *Register) metadata(v value) {
	const allowed = "a map such as {weight: 100, zone: eu-1a, version: v1} is allowed"
	if null(v.node) || v.d.bad[v.node] {
		return
	}
	if v.node.Kind != yaml.MappingNode {
		v.fail(allowed, "%s is no map", v.quote())
		return
	}
	size := 0
	all := make(map[string]string)
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		key := v.node.Content[i]
		at := v.child(clip(printable(key.Value), 64), key, v.node.Content[i+1])
		text, ok := at.text("a text or number is allowed", true)
		switch _, twice := all[key.Value]; {
		case !ok:
			continue
		case key.Kind != yaml.ScalarNode || key.Value == "":
			at.fail("a word is allowed", "the key is no word")
			continue
		case twice:
			at.fail("once is allowed", "is written twice")
			continue
		}
		size += len(key.Value) + len(text)
		all[key.Value] = text
		switch strings.ToLower(key.Value) {
		case "weight":
			n, err := strconv.ParseUint(text, 10, 31)
			if err != nil || n == 0 {
				at.fail(fmt.Sprintf("a whole number from 1 to %d is allowed; a service is taken out by lbagent drain", 1<<31-1), "%s is no weight", at.quote())
			}
			r.Weight = uint32(n)
		case "zone":
			r.Zone = text
		case "region":
			r.Region = text
		case "load", "load_at":
			at.fail("write load: host, beside metadata", "is written by the agent")
		default:
			continue
		}
		delete(all, key.Value)
	}
	if len(all) > maxMetadata || size > maxMetaBytes {
		v.fail(fmt.Sprintf("at most %d entries and %d bytes are allowed", maxMetadata, maxMetaBytes), "has %d entries and %d bytes", len(all), size)
		return
	}
	if len(all) > 0 {
		r.Metadata = all
	}
}

// registerAllow reads register_allow:.
func (s *sections) registerAllow(v value) {
	const allowed = "a list of entries such as {user: app} or {group: web, services: [\"shop-*\"]} is allowed"
	v.list(allowed, func(v value) {
		var a RegisterAllow
		v.object(keys{
			"user":  func(v value) { v.str(&a.User, "the name or number of a user is allowed", false, validAccount) },
			"group": func(v value) { v.str(&a.Group, "the name or number of a group is allowed", false, validAccount) },
			"services": func(v value) {
				v.list("a list of names is allowed", func(v value) {
					var name string
					v.str(&name, "the name of a service is allowed, in which * stands for any letters", false, validPattern)
					a.Services = append(a.Services, name)
				})
				if len(a.Services) == 0 && v.isList() {
					v.fail("leave it out to allow all of them", "has no service")
				}
			},
		})
		switch {
		case !v.isMap():
		case (a.User == "") == (a.Group == ""):
			v.fail("write either user: or group:", "names neither or both of user and group")
		case len(s.cfg.RegisterAllow) == maxAllow:
			v.fail(fmt.Sprintf("at most %d entries are allowed", maxAllow), "is one too many")
		default:
			s.cfg.RegisterAllow = append(s.cfg.RegisterAllow, a)
		}
	})
}

func validAccount(s string) bool {
	return len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' || r == '/' })
}

func validPattern(s string) bool { return service.ValidName(strings.ReplaceAll(s, "*", "x")) }

// checkRegister finds what only shows when the whole file is known.
func (s *sections) checkRegister() {
	if v, ok := s.written["register"]; ok && s.cfg.Etcd == nil && len(s.cfg.Register) > 0 {
		v.fail("configure etcd, or leave register out", "needs etcd:, which is not configured")
	}
	if s.cfg.Etcd == nil {
		return
	}
	for i := range s.cfg.Register {
		if r := &s.cfg.Register[i]; r.Prefix != "" {
			r.Prefix = s.cfg.Etcd.Namespace + r.Prefix
		}
	}
}

// Equal says whether two registrations are the same; where they stand in the file does not count.
func (r Register) Equal(o Register) bool {
	return r.Name == o.Name && r.Address == o.Address && r.Format == o.Format && r.Prefix == o.Prefix && r.Weight == o.Weight && r.Zone == o.Zone &&
		r.Region == o.Region && r.HostLoad == o.HostLoad && r.Probe == o.Probe && maps.Equal(r.Metadata, o.Metadata)
}

func equalRegister(a, b []Register) bool { return slices.EqualFunc(a, b, Register.Equal) }

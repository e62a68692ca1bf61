package config

import (
	"net/url"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/service"
)

// sections reads the main file.
type sections struct {
	cfg      *Config
	written  map[string]value // the top-level keys of the main file
	onDemand *OnDemand
	mute     string // mute.prefix
	admin    value  // admin.listen, if written
	metrics  value  // metrics.listen, if written
	api      value  // api.listen, if written
	services []value

	base draft // what defaults: makes of a service
}

func (s *sections) keys() keys {
	cfg := s.cfg
	return keys{
		"node": cfg.Node.decode,
		"etcd": s.etcd,
		"api":  func(v value) { s.api = cfg.API.decode(v)["listen"] },
		"admin": func(v value) {
			s.admin = v.object(keys{"listen": func(v value) { v.loopback(&cfg.AdminListen) }})["listen"]
		},
		"metrics": func(v value) {
			s.metrics = v.object(keys{"listen": func(v value) { v.anyAddress(&cfg.MetricsAddr) }})["listen"]
		},
		"state_dir":  func(v value) { v.absolute(&cfg.StateDir, false) },
		"proxy":      s.proxy,
		"limits":     cfg.Limits.decode,
		"on_demand":  s.decodeOnDemand,
		"fleet":      s.fleet,
		"mute":       func(v value) { v.object(keys{"prefix": func(v value) { v.prefix(&s.mute, true) }}) },
		"log":        cfg.Log.decode,
		"access_log": cfg.AccessLog.decode,
		"notify":     s.notify,
		"defaults":   func(value) {}, // read before the services
		"services":   func(v value) { s.services = append(s.services, v) },
		"register":   s.registrations,
		// etcd makes no lease shorter than a few of its heartbeats; a third of it is how long a repair may take.
		"registration_ttl": func(v value) { v.duration(&cfg.RegistrationTTL, false, 5*time.Second, time.Hour) },
		"register_allow":   s.registerAllow,
		"drain_timeout":    func(v value) { v.duration(&cfg.DrainTimeout, true, time.Second, 24*time.Hour) },
	}
}

// decode reads all files into cfg, which has the defaults already.
func (d *decoder) decode(cfg *Config, main value, dropIns []value) {
	onDemand := defaultOnDemand()
	s := &sections{cfg: cfg, onDemand: &onDemand, mute: defaultMutePrefix}
	s.written = main.object(s.keys())
	for _, root := range dropIns {
		s.dropIn(root, main.file)
	}
	if v, ok := s.written["on_demand"]; ok && cfg.Etcd == nil && s.onDemand != nil {
		v.fail("write on_demand: off, or configure etcd", "needs etcd:")
	}
	if v, ok := s.written["mute"]; ok && cfg.Etcd == nil && s.mute != "" {
		v.fail("leave it out, or configure etcd", "needs etcd:")
	}
	if cfg.Etcd != nil {
		cfg.OnDemand = s.onDemand
		if s.mute != "" {
			cfg.MutePrefix = cfg.Etcd.Namespace + s.mute
		}
	}
	if v, ok := s.written["fleet"]; ok && cfg.Fleet != nil {
		cfg.Fleet.decided(v, cfg.Etcd)
		if cfg.Etcd == nil || cfg.Fleet.Prefix == "" {
			cfg.Fleet = nil
		}
	}
	s.checkRegister()
	drafts := d.services(s)
	check(s, drafts)
	cfg.own = &own{opt: d.opt, sections: s}
	if cfg.Fleet != nil {
		cfg.own.drafts = drafts
	} else { // nobody will ask for their nodes, which take more room than what they say
		s.services = nil
		delete(s.written, "services")
	}
	for _, dr := range drafts {
		cfg.Services = append(cfg.Services, dr.Service)
	}
	sortServices(cfg.Services)
}

// dropIn reads a file of services.d, which holds services and nothing else: what holds for all of them stands in one place, the main file.
func (s *sections) dropIn(root value, main string) {
	known := keys{"services": s.keys()["services"]}
	elsewhere := others{words(s.keys()), "has no place in a drop-in, which holds services: only", "write it in " + main}
	root.object(known, elsewhere)
}

func (n *Node) decode(v value) {
	v.object(keys{
		"name":   func(v value) { v.str(&n.Name, nameAllowed, false, service.ValidName) },
		"zone":   func(v value) { v.str(&n.Zone, nameAllowed, true, service.ValidName) },
		"region": func(v value) { v.str(&n.Region, nameAllowed, true, service.ValidName) },
	})
}

const nameAllowed = "1 to 253 letters, digits and . _ : @ - are allowed"

func (s *sections) etcd(v value) {
	e := &Etcd{}
	s.cfg.Etcd = e
	found := v.object(keys{
		"endpoints":     e.endpoints,
		"namespace":     func(v value) { v.prefix(&e.Namespace, true) },
		"username":      func(v value) { v.str(&e.Username, "a name is allowed", true, nil) },
		"password_file": func(v value) { v.secretFile(&e.PasswordFile) },
		"tls":           e.TLS.decode,
	})
	if at, ok := found["endpoints"]; !ok {
		v.fail(endpointsAllowed, "endpoints is missing")
	} else if len(e.Endpoints) == 0 && len(at.node.Content) == 0 {
		at.fail(endpointsAllowed, "has no endpoint")
	}
	switch {
	case e.Username != "" && e.PasswordFile == "":
		found["username"].fail("write etcd.password_file too, or neither", "has no password_file beside it")
	case e.Username == "" && e.PasswordFile != "":
		found["password_file"].fail("write etcd.username too, or neither", "has no username beside it")
	}
	if at, ok := found["tls"]; ok && e.TLS != (TLS{}) && len(e.Endpoints) > 0 && strings.HasPrefix(e.Endpoints[0], "http:") {
		at.fail("write the endpoints as https://host:port, or leave tls out", "is set, but the endpoints are http")
	}
}

const endpointsAllowed = "a list of http://host:port or https://host:port is allowed"

func (e *Etcd) endpoints(v value) {
	seen := make(map[string]bool)
	v.list(endpointsAllowed, func(v value) {
		var s string
		v.str(&s, "http://host:port or https://host:port is allowed", false, nil)
		if s == "" {
			return
		}
		u, err := url.Parse(s)
		switch {
		// The text itself is not shown where it may hold a password.
		case strings.Contains(s, "@"):
			v.fail("write etcd.username and etcd.password_file", "a user has no place in an endpoint")
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || s != u.Scheme+"://"+u.Host || u.Hostname() == "" || !validPort(u.Port()):
			v.fail("http://host:port or https://host:port is allowed", "%s is no endpoint", v.quote())
		case seen[s]:
			v.fail("once is allowed", "%s is written twice", v.quote())
		case len(e.Endpoints) > 0 && !strings.HasPrefix(e.Endpoints[0], u.Scheme+":"):
			v.fail("all of them http, or all https, are allowed", "%s is of another kind than the first endpoint", v.quote())
		case len(seen) == 32:
			v.fail("at most 32 endpoints are allowed", "is one too many")
		default:
			e.Endpoints = append(e.Endpoints, s)
		}
		seen[s] = true
	})
}

func (t *TLS) decode(v value) {
	found := v.object(keys{
		"ca_file":     func(v value) { v.absolute(&t.CAFile, true) },
		"cert_file":   func(v value) { v.absolute(&t.CertFile, true) },
		"key_file":    func(v value) { v.secretFile(&t.KeyFile) },
		"server_name": func(v value) { v.str(&t.ServerName, "a host name is allowed", true, validAuthority) },
	})
	switch {
	case t.CertFile != "" && t.KeyFile == "":
		found["cert_file"].fail("write key_file too, or neither", "has no key_file beside it")
	case t.CertFile == "" && t.KeyFile != "":
		found["key_file"].fail("write cert_file too, or neither", "has no cert_file beside it")
	}
}

func (a *API) decode(v value) map[string]value {
	return v.object(keys{
		"socket":       func(v value) { v.socket(&a.Socket) },
		"admin_socket": func(v value) { v.socket(&a.AdminSocket) },
		"listen":       func(v value) { v.anyAddress(&a.Listen) },
	})
}

func (s *sections) proxy(v value) {
	v.object(keys{
		"loops": func(v value) {
			written := 0
			v.integer(&written, 0, 64)
			s.cfg.Loops = loops(written, v.d.opt.Cores)
		},
	})
}

func (s *sections) decodeOnDemand(v value) {
	if v.isOff() {
		s.onDemand = nil
		return
	}
	o := s.onDemand
	v.object(keys{
		"prefix": func(v value) {
			v.prefix(&o.Prefix, false)
			if strings.Count(o.Prefix, "{service}") != 1 {
				v.fail("{service} once is allowed, such as services/{service}/", "%s has no place for the name", v.quote())
			}
		},
		"format": func(v value) { v.format(&o.Format) },
		// Not below what a watch needs to say once more that its service is in use, each minute, and the sweep to look, each minute, too.
		"idle": func(v value) { v.duration(&o.Idle, true, 2*time.Minute, 30*24*time.Hour) },
	})
}

func (l *Log) decode(v value) {
	v.object(keys{
		"level":  func(v value) { v.oneOf(&l.Level, []string{"trace", "debug", "info", "warn", "error"}) },
		"format": func(v value) { v.oneOf(&l.Format, []string{"auto", "text", "json"}) },
	})
}

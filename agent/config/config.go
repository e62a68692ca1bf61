// Package config reads the YAML configuration into a validated Config: the only importer of yaml.v3. Every error names file, line, key and what is
// allowed, and all of them come at once.
package config

import (
	"net/netip"
	"time"

	"github.com/lbagent/lbagent/agent/service"
)

// DefaultPath is the configuration of the packaged daemon; drop-ins lie in services.d/*.yaml beside it.
const DefaultPath = "/etc/lbagent/lbagent.yaml"

// Config is a whole, valid configuration: every value is concrete, defaults applied.
type Config struct {
	Files []string // what was read, in order

	Node        Node
	Etcd        *Etcd // nil: static backends only
	API         API
	AdminListen string // host:port; "" = off
	MetricsAddr string // host:port; "" = off
	StateDir    string
	Loops       int       // >= 1
	OnDemand    *OnDemand // nil = off, or no etcd
	Log         Log
	Services    []Service // sorted by name
}

// Node is this host.
type Node struct{ Name, Zone, Region string }

// Etcd is how to reach etcd.
type Etcd struct {
	Endpoints    []string
	Namespace    string // "" or ends in /
	Username     string
	PasswordFile string
	TLS          TLS
}

// TLS names files; an empty TLS with https endpoints means the system's roots.
type TLS struct{ CAFile, CertFile, KeyFile, ServerName string }

// API is where the local API listens.
type API struct{ Socket, AdminSocket string }

// ListsDir is where the lists for callers without an agent are written (SEMANTICS 6.6): beside the open socket.
func (a API) ListsDir() string { panic("unwritten") }

// OnDemand is how services that were asked for but aren't configured are followed (1.15).
type OnDemand struct {
	Prefix string // contains {service}
	Format string
	Idle   time.Duration
}

// Log is how to log.
type Log struct{ Level, Format string }

// Service is one entry of services:.
type Service struct {
	Name         string
	At           string            // file:line
	Prefix       string            // "" if Backends is set; with the namespace of etcd applied it is EtcdPrefix
	Format       string            // grpc-naming, plain
	Backends     []service.Backend // static
	Listen       []Listen
	Protocol     string // auto, h2, http1, tcp
	Authority    string // keep, host, or a literal
	Policy       string
	Probe        Probe
	Eject        Eject
	PanicPercent int
	Timeout      Timeout
	Drain        time.Duration
	OnDemand     bool // not configured: followed because it was asked for
}

// Listen is one listener: a loopback address or a unix socket's path. A bare port in the file becomes two of them (127.0.0.1 and ::1).
type Listen struct {
	TCP  netip.AddrPort // invalid for a unix socket
	Unix string
}

// Probe is services[].probe.
type Probe struct {
	Type              string // tcp, http, grpc, none
	Interval, Timeout time.Duration
	Rise, Fall        int
	Port              uint16
	Path              string
	StatusMin         int
	StatusMax         int
	Service           string // grpc health service name
}

// Eject is services[].eject.
type Eject struct {
	On          bool
	Consecutive int
	Base, Max   time.Duration
	MaxPercent  int
}

// Timeout is services[].timeout; 0 = none.
type Timeout struct{ Connect, Request, Idle time.Duration }

// Load reads path and its drop-ins. The error, if any, is a *Errors with every mistake.
func Load(path string) (*Config, error) { panic("unwritten") }

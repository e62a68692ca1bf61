// Package config reads the YAML configuration into a validated Config: the only importer of yaml.v3. Every error names file, line, key and what is
// allowed, and all of them come at once.
//
// Values are the text that stands in the file: quotes around a number or a duration do not matter, and a port may be written as ${PORT}. A key without a
// value (`key:`) is the empty string, map or list where that is allowed, an error elsewhere. Anchors, aliases and tags are refused: what services share
// belongs in `defaults:`.
package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/lbagent/lbagent/agent/service"
)

// DefaultPath is the configuration of the packaged daemon; drop-ins lie in services.d/*.yaml beside it.
const DefaultPath = "/etc/lbagent/lbagent.yaml"

// Config is a whole, valid configuration: every value is concrete, defaults applied. It is not written after Load.
type Config struct {
	Files []string // what was read, in order

	Node        Node
	Etcd        *Etcd // nil: static backends only
	API         API
	AdminListen string // host:port; "" = off
	MetricsAddr string // host:port; "" = off
	StateDir    string
	Loops       int // >= 1
	Limits      Limits
	OnDemand    *OnDemand // nil = off, or no etcd
	Fleet       *Fleet    // nil = off
	MutePrefix  string    // of fleet-wide mutes, with the namespace; "" = off, or no etcd
	Log         Log
	AccessLog   AccessLog
	NotifyURL   string    // where events are posted; "" = nowhere
	Defaults    Service   // what defaults: makes of a service that says nothing itself; without Name
	Services    []Service // sorted by name

	Register        []Register
	RegisterAllow   []RegisterAllow
	RegistrationTTL time.Duration
	// DrainTimeout is how long running calls may go on in the old process after an upgrade; 0 = they end at once.
	DrainTimeout time.Duration

	good *good // what SaveGood writes; nil if it was not loaded
	own  *own  // what WithFleet adds to
}

// Node is this host.
type Node struct{ Name, Zone, Region string }

// Etcd is how to reach etcd.
type Etcd struct {
	Endpoints    []string // http://host:port or https://host:port, all of one kind
	Namespace    string   // "" or ends in /; Service.EtcdPrefix has it already
	Username     string
	PasswordFile string
	TLS          TLS
}

// TLS names files; an empty TLS with https endpoints means the system's roots.
type TLS struct{ CAFile, CertFile, KeyFile, ServerName string }

// API is where the local API listens.
type API struct {
	Socket, AdminSocket string
	Listen              string // host:port of LookupService by TCP; "" = off
}

// ListsDir is where the lists for callers without an agent are written (SEMANTICS 6.6): beside the open socket.
func (a API) ListsDir() string { return filepath.Join(filepath.Dir(a.Socket), "lists") }

// OnDemand is how services that were asked for but aren't configured are followed (1.15).
type OnDemand struct {
	Prefix string // contains {service} once, ends in /; without namespace
	Format string
	Idle   time.Duration // 0 = never dropped
}

// Log is how to log.
type Log struct {
	Level  string // trace, debug, info, warn, error
	Format string // auto, text, json
}

// Service is one entry of services:.
type Service struct {
	Name         string
	At           string // file:line
	Prefix       string // as written; "" if Key or Backends is set
	Key          string // as written: one key instead of a prefix
	EtcdPrefix   string // Prefix with the namespace applied: what discovery follows
	EtcdKey      string // likewise
	Namespace    string // the namespace that was applied
	Format       string // one of formats()
	Select       map[string][]string
	Fallback     *Fallback         // nil = none
	Allow, Deny  []netip.Prefix    // sorted; an address is a range of one
	Backends     []service.Backend // static, sorted by address
	Listen       []Listen
	Protocol     string // auto, h2, http1, tcp
	Authority    string // keep, host, or a literal
	Policy       string // p2c, round_robin, least_request, random, hash
	HashHeader   string // in lower case; "" = keys come by the API alone (3.10)
	Probe        Probe
	Eject        Eject
	PanicPercent int // 0 = off

	DynamicWeight bool          // 3.3
	PreferZone    bool          // 3.8
	Zone          string        // of this host, if it is preferred; "" = none is
	SlowStart     time.Duration // 3.7; 0 = off
	Subset        int           // 3.9; 0 = off
	Load          bool          // 3.12

	Retry     Retry
	Reconnect Reconnect
	Timeout   Timeout
	GuardHold time.Duration // how long backends whose keys seem to have expired en masse are kept at least (SEMANTICS 1.9, 1.10); 0 = not at all
	Drain     time.Duration // 0 = running calls end at once
	OnDemand  bool          // not configured: followed because it was asked for
	Item      string        // of the fleet's configuration: its key below fleet.prefix; "" = of the files
}

// Fallback is services[].fallback: one of Prefix and Backends.
type Fallback struct {
	Prefix     string // as written
	EtcdPrefix string // with the service's namespace applied
	Format     string // "" = the service's own
	Backends   []service.Backend
}

// Warnings are sentences about what is allowed and may not be meant: listeners that other hosts can reach.
func (c *Config) Warnings() []string {
	var out []string
	if at, err := netip.ParseAddrPort(c.API.Listen); c.API.Listen != "" && (err != nil || !at.Addr().IsLoopback()) { // :port is no address: it is all of them
		out = append(out, fmt.Sprintf("api.listen: %s is open to other hosts and containers, and nobody is asked who they are: they can read every service's addresses and report outcomes; keep them out by a firewall if that isn't meant", c.API.Listen))
	}
	for _, s := range c.Services {
		for _, l := range s.Listen {
			if l.TCP.IsValid() && !l.TCP.Addr().IsLoopback() {
				out = append(out, fmt.Sprintf("%s: services[%s].listen: %s is open to other hosts and containers, and nobody is asked who they are; keep them out by a firewall if that isn't meant", s.At, s.Name, l.TCP))
			}
		}
	}
	return out
}

// Listen is one listener: an address or a unix socket's path. A bare port in the file becomes two of them (127.0.0.1 and ::1).
type Listen struct {
	TCP  netip.AddrPort // invalid for a unix socket
	Unix string
}

// String is the listener as the file would write it.
func (l Listen) String() string {
	if l.Unix != "" {
		return "unix:" + l.Unix
	}
	return l.TCP.String()
}

// Probe is services[].probe.
type Probe struct {
	Type              string // tcp, http, grpc, none
	Interval, Timeout time.Duration
	Rise, Fall        int
	Port              uint16 // 0 = the backend's own
	Path              string
	StatusMin         int
	StatusMax         int
	Service           string // grpc health service name
}

// Eject is services[].eject.
type Eject struct {
	On          bool // mode is on or observe, max_percent is not 0, nor are both consecutive and success_rate
	Observe     bool // mode is observe
	Consecutive int
	SuccessRate int // percent
	Base, Max   time.Duration
	MaxPercent  int
}

// Timeout is services[].timeout; 0 = none.
type Timeout struct{ Connect, Request, Idle time.Duration }

// Load reads path and its drop-ins. The error, if any, is a *Errors with every mistake.
func Load(path string) (*Config, error) { return Options{}.Load(path) }

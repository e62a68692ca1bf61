package health

import (
	"context"
	"net/netip"
	"time"

	"github.com/hashicorp/go-hclog"
)

// ProbeType says how a backend is probed (2.1).
type ProbeType string

// Every ProbeType.
const (
	ProbeNone ProbeType = "none"
	ProbeTCP  ProbeType = "tcp"
	ProbeHTTP ProbeType = "http"
	ProbeGRPC ProbeType = "grpc"
)

// Options are a group's probe and ejection settings, all concrete (defaults are applied by the configuration).
type Options struct {
	Probe       ProbeType
	HTTP2       bool // the group is spoken to as h2: a tcp probe waits for SETTINGS (2.1)
	Interval    time.Duration
	Timeout     time.Duration
	Rise, Fall  int
	Port        uint16 // 0 = the backend's own
	Path        string // http
	Status      [2]int // http: lowest and highest status that passes
	HealthName  string // grpc: the service asked about
	Eject       bool
	Consecutive int           // 2.5
	EjectBase   time.Duration // 2.7
	EjectMax    time.Duration
	MaxPercent  int // 2.6
}

// Target is one backend to judge. The same *State for an address in a later SetGroup is the same life of it; another one is a restarted process:
// probed at once, up after one success (1.1, 2.2). A State belongs to one group.
type Target struct {
	Addr     netip.AddrPort
	State    *State
	Draining bool // it gets no new calls: probed, but neither ejected nor counted in the caps (2.6)
}

// Change says that the verdict of one target of Group moved.
type Change struct {
	Group    string
	Addr     netip.AddrPort
	State    *State
	From, To Part // by precedence, of this package's own verdicts only; To.Soft is true if all that applies is soft (2.9)
}

// Config wires a Monitor.
type Config struct {
	Log hclog.Logger
	// OnChange is called from the Monitor's goroutine with every verdict that moved, in order. It must not call the Monitor.
	OnChange func(now time.Time, changes []Change)
}

// Monitor owns all verdicts: one goroutine, woken by crossings and timers; probes run beside it.
type Monitor struct{}

// New returns a Monitor; Run starts it.
func New(cfg Config) (*Monitor, error) { return &Monitor{}, nil }

// Run judges until ctx ends.
func (m *Monitor) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// SetGroup replaces the targets and options of a group; no targets = the group is gone. It never blocks on probes or OnChange (which may be running).
func (m *Monitor) SetGroup(group string, o Options, targets []Target) {}

// SetActive says whether the group is in use: only those are probed (2.3).
func (m *Monitor) SetActive(group string, active bool) {}

type target struct{}

func (t *target) notify() {}

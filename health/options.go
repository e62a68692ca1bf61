package health

import (
	"net/netip"
	"time"
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
	Observe     bool          // with Eject: everything is judged and told as if, but nothing is taken out
	Consecutive int           // 2.5; 0 = no streak ejects
	SuccessRate int           // 2.5, in percent; 0 = no window ejects, neither that of 10 s nor that for few calls
	EjectBase   time.Duration // 2.7
	EjectMax    time.Duration
	MaxPercent  int // 2.6
	// PanicPercent is from how few that are usable on ejections are ignored (2.9), and so none begins; 0 = they never are.
	PanicPercent int
}

// Target is one backend to judge. The same *State for an address in a later SetGroup is the same life of it; another one is a restarted process:
// probed at once, up after one success (1.1, 2.2). A State belongs to one group.
type Target struct {
	Addr     netip.AddrPort
	State    *State
	Orphan   bool // it lost its keys: probed each second whatever the group does, and reported when it is gone (1.10)
	Draining bool // or muted: it gets no new calls; probed, but neither ejected nor counted in the caps (2.6)
}

// Change says that the verdict of one target of Group moved.
type Change struct {
	Group    string
	Addr     netip.AddrPort
	State    *State
	Gone     string // of an orphan: why it is to leave (1.10). From and To are the same then. Empty for all other changes
	Would    *Part  // of a backend of which ejection is only observed: that it would be ejected now. From and To are the same then. Nil for all other changes
	Accused  bool   // reports have as many failures in a row as eject: no verdict, since reports alone are none, but reason to give it less. From and To are the same then
	From, To Part   // by precedence, of this package's own verdicts only; To.Soft is true if all that applies is soft (2.9)
}

// Targets is the backends of a group at one moment: it is read later and by another goroutine, so it must never change. It spares who has ten thousand
// backends a copy of them for each change.
type Targets interface {
	Len() int
	At(i int) Target
}

// probes reports whether backends are probed while the group is in use.
func (o *Options) probes() bool { return o.Probe != ProbeNone && o.Probe != "" }

// sane keeps settings that no configuration should hold from making the Monitor spin or count to nothing.
func (o Options) sane() Options {
	o.Interval = max(o.Interval, 100*time.Millisecond)
	o.Timeout = max(o.Timeout, 10*time.Millisecond)
	o.EjectBase = max(o.EjectBase, 100*time.Millisecond)
	o.EjectMax = max(o.EjectMax, o.EjectBase)
	o.Rise, o.Fall = max(o.Rise, 1), max(o.Fall, 1)
	return o
}

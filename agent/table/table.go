// Package table joins lists and verdicts into immutable views and publishes them by one atomic pointer per service. It is pure memory:
// writers take its lock, readers load. It knows no network and starts no goroutine.
package table

import (
	"context"
	"net/netip"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/picker"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/health"
)

// Spec is how one service is picked and judged; all values are concrete.
type Spec struct {
	Name         string
	Policy       picker.Policy
	PanicPercent int // 0 = off (2.9)
	Health       health.Options
	Drain        time.Duration // 4.7
	OnDemand     bool          // followed because someone asked (1.15)
	Listeners    []string      // as configured, for `services` and Status
	Protocol     string
	InUse        bool // it has a listener: always probed (2.3)
}

// Config wires a Table. The hooks are called under the table's lock: they must not block and must not call the table.
type Config struct {
	Log       hclog.Logger
	Events    *event.Log
	OnTargets func(group string, o health.Options, targets []health.Target) // health.Monitor.SetGroup
	OnActive  func(group string, active bool)                               // health.Monitor.SetActive
	OnPublish func(s *Service)                                              // a new view of s: loops are marked dirty
}

// Table is every service this agent follows. Safe for concurrent use.
type Table struct{}

// New returns an empty table.
func New(cfg Config) (*Table, error) { panic("unwritten") }

// SetSpec adds a service or changes how it is treated; what did not change is not touched (6.1).
func (t *Table) SetSpec(now time.Time, spec Spec) {}

// Remove forgets a service; its subscriptions end, its last view says Gone.
func (t *Table) Remove(now time.Time, name string) {}

// Apply takes a new list, which must not be written afterwards. A list of a service without Spec is ignored.
func (t *Table) Apply(now time.Time, l *service.List) {}

// Confirm notes that name's list was still true at `at`: age starts again (1.3).
func (t *Table) Confirm(name string, at time.Time) {}

// SetVerdicts takes what health found (health.Config.OnChange).
func (t *Table) SetVerdicts(now time.Time, changes []health.Change) {}

// Run does what has to be done each second while a service is in use: medians (3.4), ends of use (2.3), ends of drain. It returns when ctx ends.
func (t *Table) Run(ctx context.Context) error { return nil }

// Lookup returns a service by name, nil if it isn't followed. It takes no lock.
func (t *Table) Lookup(name string) *Service { return nil }

// Services returns every service, sorted by name.
func (t *Table) Services() []*Service { return nil }

// Service is one service of the table; the pointer is the same for as long as the service is followed.
type Service struct{}

// Name is the service's name.
func (s *Service) Name() string { return "" }

// Spec is how it is treated now.
func (s *Service) Spec() *Spec { return nil }

// View is the view of now, never nil; before the first list it has Ready false.
func (s *Service) View() *View { return nil }

// Age is the time since the list was last confirmed by its source (1.3).
func (s *Service) Age(now time.Time) time.Duration { return 0 }

// Asked notes that somebody used the service (2.3: asked in the last 5 min = in use).
func (s *Service) Asked(now time.Time) {}

// Picks is the number of picks since the start (per caller kind is the caller's to count).
func (s *Service) Picks() uint64 { return 0 }

// Changed returns the view of now and a channel that is closed when there is a newer one: the latest wins, a slow reader holds up nobody.
func (s *Service) Changed() (*View, <-chan struct{}) { return nil, nil }

// View is a service at one moment: list, verdicts and a ready picker. It is immutable.
type View struct {
	Service  *Service
	List     *service.List // never nil; empty before the first list
	Ready    bool          // a list has come
	Gone     bool          // the service was removed
	Backends []Backend     // one per list entry, same order
	Usable   int           // backends whose verdict is usable
	Panic    bool          // too few are usable: soft verdicts are ignored (2.9)
	At       time.Time     // when it was made
}

// Backend is one backend in a view.
type Backend struct {
	*service.Backend
	State   *health.State
	Verdict health.Part // the one that wins (2.8), draining included
	Weight  float64     // effective (3.2)
}

// Pick returns a backend for one call, nil if none is left. tried holds the states of backends that this call has been at already: usable backends
// are drawn first, then the others that are neither draining nor muted (4.1); with panic off and nothing usable, none. It does not call State.Begin.
func (v *View) Pick(now time.Time, tried []*health.State) *Backend { return nil }

// Find returns the backend with that address, nil if the view has none.
func (v *View) Find(addr netip.AddrPort) *Backend { return nil }

// Unusable is the sentence of 4.5 that says why a call got no backend:
// `lbagent: user: 3 backends, 0 usable; 10.0.0.1:80 unreachable: connection refused (2 s ago)`. It names at most 3 backends.
func (v *View) Unusable(now time.Time) string { return "" }

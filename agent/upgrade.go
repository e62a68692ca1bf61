package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/handoff"
	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"github.com/lbagent/lbagent/localapi"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"golang.org/x/sys/unix"
)

// upgradeWithin is how long a successor may take until it is ready (6.3).
const upgradeWithin = 10 * time.Second

// offer is what an agent tells its successor. It is read by the release before this one and by the one after it: fields may be added, and none may change its meaning.
type offer struct {
	Time     time.Time `json:"time"`
	Ready    []string  `json:"ready"`     // services that have a list
	OnDemand []asker   `json:"on_demand"` // followed because somebody asked
	Backends []known   `json:"backends"`
}

type asker struct {
	Service string `json:"service"`
	UID     uint32 `json:"uid"`
}

// known is what is known of one life of a backend.
type known struct {
	Service string         `json:"service"`
	Epoch   uint64         `json:"epoch,omitempty"`
	Created int64          `json:"created,omitempty"`
	Addr    netip.AddrPort `json:"addr"`
	Health  health.Dump    `json:"health"`
	// Factors of its weight that tell what happened to it (3.3, 3.7); 0, which isn't written, is 1.
	Dynamic   float32 `json:"dynamic,omitempty"`
	SlowStart float32 `json:"slow_start,omitempty"`
}

// unlessWhole is a factor as it is told.
func unlessWhole(f float32) float32 {
	if f == 1 {
		return 0
	}
	return f
}

// Upgrade has the program that is installed now take this process's place (6.3). Until it serves, this one does; if it doesn't get there, this one goes on, and the error says why.
func (a *Agent) Upgrade(ctx context.Context) (*lbagentv1.UpgradeResponse, error) {
	if !a.reload.TryLock() {
		return nil, fmt.Errorf("%w: a reload or another upgrade is under way", localapi.ErrUpgradeBusy)
	}
	defer a.reload.Unlock()
	switch {
	case a.handedOn():
		return nil, fmt.Errorf("%w: this process was followed by another one already, which is asked then", localapi.ErrUpgradeBusy)
	case a.follows.Load():
		return nil, fmt.Errorf("%w: the process before this one still has running calls, for drain_timeout (%v) at most; a restart ends them", localapi.ErrUpgradeBusy, a.config().DrainTimeout)
	case !a.ready.Load():
		return nil, fmt.Errorf("%w: this process isn't ready itself yet", localapi.ErrUpgradeBusy)
	}
	a.log.Info("upgrading", "path", a.options.Binary)
	a.tell(a.notifier.Status("upgrading; " + a.summary(a.missing())))
	// That whoever asked has gone changes nothing.
	out, err := a.handOn(context.WithoutCancel(ctx))
	if err != nil {
		a.counts.upgradesFailed.Add(1)
		text := fmt.Sprintf("the upgrade failed, %s (pid %d) goes on: %v", a.options.Version, unix.Getpid(), err)
		a.log.Error("the upgrade failed, this process goes on", "path", a.options.Binary, "error", err)
		a.events.Add(event.Event{Time: a.now(), Kind: event.Agent, Detail: text})
		a.tell(a.notifier.Status(text + "; " + a.summary(a.missing())))
		return nil, err
	}
	a.log.Info("upgraded; running calls may end here", "version", out.GetTo(), "pid", out.GetPid(), "drain_timeout", a.config().DrainTimeout)
	return out, nil
}

// handOn is Upgrade under a.reload.
func (a *Agent) handOn(ctx context.Context) (*lbagentv1.UpgradeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, upgradeWithin)
	defer cancel()
	a.discovery.HoldSpool(true) // the successor begins with what is written by now
	s, err := handoff.StartSuccessor(a.options.Binary, a.options.Args)
	if err != nil {
		a.discovery.HoldSpool(false)
		return nil, fmt.Errorf("start %s: %w", a.options.Binary, err)
	}
	to, err := a.prepareSuccessor(ctx, s)
	if err == nil {
		// Two may accept at once, but only one may write; and it serves before this one stops to.
		a.keepsRegistrations.pause()
		a.registrar.HandOn()
		if err = s.Go(ctx); err != nil {
			a.registrar.TakeBack()
			a.keepsRegistrations.resume()
		}
	}
	if err != nil {
		s.Kill()
		a.discovery.HoldSpool(false)
		return nil, fmt.Errorf("%s: %w", a.options.Binary, err)
	}
	a.tell(a.notifier.Main(s.PID))
	a.notifier.Off()
	a.api.HandOn()
	close(a.handing)
	if err := s.Main(); err != nil {
		a.log.Error("the successor could not be told that it is the agent now", "pid", s.PID, "error", err)
	}
	a.successor = s
	return &lbagentv1.UpgradeResponse{From: a.options.Version, To: to, Pid: int32(s.PID)}, nil
}

// prepareSuccessor gives s the sockets and what is known, and returns its release once it is ready.
func (a *Agent) prepareSuccessor(ctx context.Context, s *handoff.Successor) (string, error) {
	sockets := a.listeners()
	for _, l := range a.api.Listeners() {
		if l.TCP.IsValid() {
			_ = unix.Close(l.FD) // it is among a.listeners
			continue
		}
		name := handoff.API
		if l.Admin {
			name = handoff.Admin
		}
		sockets = append(sockets, handoff.Listener{Addr: name, FD: l.FD})
	}
	defer closeAll(sockets)
	return s.Prepare(ctx, a.options.Version, append(sockets, a.sockets.Starts()...), a.offer())
}

// offer is what this process knows.
func (a *Agent) offer() offer {
	now := a.now()
	o := offer{Time: now, OnDemand: a.ondemand.askers()}
	for _, s := range a.table.Services() {
		v := s.View()
		if !v.Ready {
			continue
		}
		o.Ready = append(o.Ready, s.Name())
		for _, b := range v.Backends() {
			if b.State == nil {
				continue // nobody has used the service
			}
			o.Backends = append(o.Backends, known{Service: s.Name(), Epoch: v.List.Epoch, Created: b.Created, Addr: b.Addr, Health: b.State.Dump(now),
				Dynamic: unlessWhole(b.Factors.Dynamic), SlowStart: unlessWhole(b.Factors.SlowStart)})
		}
	}
	return o
}

// handedOn reports whether another process has taken this one's place.
func (a *Agent) handedOn() bool {
	select {
	case <-a.handing:
		return true
	default:
		return false
	}
}

// untilHandedOn runs a stage that another process does instead once it has taken this one's place.
func (a *Agent) untilHandedOn(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		mine, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			select {
			case <-a.handing:
				cancel()
			case <-mine.Done():
			}
		}()
		err := run(mine)
		if a.handedOn() {
			<-ctx.Done()
			return nil
		}
		return err
	}
}

// drained returns when this process was followed by another one and nothing runs here any more, or drain_timeout is over, or ctx.
func (a *Agent) drained(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-a.handing:
	}
	ctx, cancel := context.WithTimeout(ctx, a.config().DrainTimeout)
	defer cancel()
	a.proxy.HandOn(ctx)
}

// inheritance is what a predecessor knew, until this process is ready.
type inheritance struct {
	offer
	states map[place]known
}

// place is where a backend was known.
type place struct {
	service string
	addr    netip.AddrPort
}

// takeOver reads what the predecessor offers.
func (a *Agent) takeOver() error {
	if a.from == nil {
		return nil
	}
	i := &inheritance{states: map[place]known{}}
	if err := a.from.Offer(&i.offer); err != nil {
		return fmt.Errorf("read what the agent before knew: %w", err)
	}
	for _, k := range i.Backends {
		i.states[place{k.Service, k.Addr}] = k
	}
	a.inherited.Store(i)
	a.follows.Store(true)
	return nil
}

// known is what the predecessor knew of a backend that joins, if it is the same life of it (1.1).
func (a *Agent) known(now time.Time, name string, epoch uint64, b *service.Backend) (*health.State, table.Factors) {
	if i := a.inherited.Load(); i != nil {
		if k, ok := i.states[place{name, b.Addr}]; ok && k.Epoch == epoch && k.Created == b.Created {
			return health.Restore(now, i.Time, k.Health), table.Factors{Dynamic: k.Dynamic, SlowStart: k.SlowStart}
		}
	}
	return nil, table.Factors{}
}

// succeed takes the predecessor's place: with every list that it had (6.3), and without a moment at which nobody accepts.
func (a *Agent) succeed(ctx context.Context) error {
	i := a.inherited.Load()
	if err := a.awaitLists(ctx, upgradeWithin, i.Ready); err != nil {
		return err
	}
	var missing []string
	for _, name := range i.Ready {
		if s := a.table.Lookup(name); s != nil && !s.View().Ready {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		err := fmt.Errorf("no list of %s, which the agent before has", firstFew(missing, 5))
		a.from.Failed(err)
		return err
	}
	if err := a.from.Ready(ctx, a.options.Version); err != nil {
		return fmt.Errorf("the agent before does without this one: %w", err)
	}
	a.registrar.TakeOver()
	close(a.opened)
	for loop := range a.proxy.Loops() {
		a.proxy.Ping(ctx, loop) // once it answers, it has the listeners
	}
	a.api.Ping(ctx)
	if err := a.from.Serving(ctx); err != nil {
		return fmt.Errorf("the agent before does without this one: %w", err)
	}
	a.notifier.On()
	a.tell(a.notifier.Alive()) // the watchdog's time goes on over an upgrade, and what was told before is lost
	a.inherited.Store(nil)
	return nil
}

// onceOpened runs a stage once this process may serve: at once, unless it follows another one.
func (a *Agent) onceOpened(run func(context.Context) error) func(context.Context) error {
	return after(a.opened, run)
}

// awaitPredecessor notes when the process before this one has ended: then the next upgrade may come.
func (a *Agent) awaitPredecessor(ctx context.Context) {
	if a.from != nil {
		a.from.Ended(ctx)
		a.follows.Store(false)
	}
}

// askers are the services that are followed because somebody asked, with who did.
func (o *onDemand) askers() []asker {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make([]asker, 0, len(o.owner))
	for name, uid := range o.owner {
		out = append(out, asker{name, uid})
	}
	slices.SortFunc(out, func(a, b asker) int { return strings.Compare(a.Service, b.Service) })
	return out
}

// Package agent is the daemon: it makes every stage, joins them, starts and stops them in order, and applies configurations. It is the only package that
// knows them all.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/accesslog"
	"github.com/lbagent/lbagent/agent/admin"
	"github.com/lbagent/lbagent/agent/calls"
	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/discovery"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/fleet"
	"github.com/lbagent/lbagent/agent/handoff"
	"github.com/lbagent/lbagent/agent/mute"
	"github.com/lbagent/lbagent/agent/notify"
	"github.com/lbagent/lbagent/agent/proxy"
	"github.com/lbagent/lbagent/agent/registrar"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	"github.com/lbagent/lbagent/localapi"
)

const (
	keptEvents = 4096
	// settling is how long what has only files to write leaves the CPU to the first answers after a start.
	settling = time.Second
	// stopGrace bounds the whole stop: open calls get up to 5 s (6.2), the API's callers 2 s, the others next to nothing. The unit's TimeoutStopSec is above it.
	stopGrace = 12 * time.Second
)

// Options of an Agent.
type Options struct {
	ConfigPath string
	Config     *config.Config // runs on this instead, which no reload changes; nil = ConfigPath is read
	Strict     bool           // end on an invalid file instead of running on the last good configuration (6.5)
	Version    string
	NewLog     func(config.Log) hclog.Logger // makes the logger once the configuration is known

	Binary string   // what an upgrade starts: the path of the program, which may hold a newer one by then
	Args   []string // what it is started with
}

// Agent is one daemon.
type Agent struct {
	options   Options
	log       hclog.Logger
	started   time.Time
	events    *event.Log
	calls     *calls.Taps
	monitor   *health.Monitor
	table     *table.Table
	etcd      *etcd.Links
	fleet     *fleet.Fleet
	discovery *discovery.Discovery
	mutes     *mute.Mutes
	registrar *registrar.Registrar
	placing   atomic.Pointer[config.Config] // says where registrations go
	proxy     *proxy.Proxy
	api       *localapi.Server
	lists     *localapi.Lists
	admin     *admin.Server
	notify    *notify.Notifier
	accessLog *accesslog.Log
	counts    counts
	ondemand  *onDemand
	own       own
	notifier  handoff.Notifier
	sockets   *handoff.Sockets

	// For an upgrade (6.3), of the process before this one or of this one.
	from               *handoff.Predecessor // nil if there is none
	inherited          atomic.Pointer[inheritance]
	follows            atomic.Bool   // the process before still runs
	opened             chan struct{} // closed when this process may serve
	handing            chan struct{} // closed when another process has taken this one's place
	successor          *handoff.Successor
	keepsRegistrations pausable

	loop    atomic.Int64 // starts in a minute, if this one is of a crash loop (6.6)
	ready   atomic.Bool
	reload  sync.Mutex // one reload at a time
	saving  sync.Mutex // held by who saves the good configuration
	applied atomic.Pointer[applied]
}

// applied is the configuration in force, and what is wrong with the file if that isn't it.
type applied struct {
	files  *config.Config // what the files of this host say
	config *config.Config // that, with what the fleet's configuration adds
	err    error          // why the file at hand isn't in force; nil if it is
}

// New reads the configuration and binds every socket; Run starts the stages. An error says what to mend. ctx ends the wait of a crash loop (6.6);
// the error is its own then.
func New(ctx context.Context, o Options) (*Agent, error) {
	a := &Agent{options: o, started: time.Now(), events: event.NewLog(keptEvents), calls: &calls.Taps{}, opened: make(chan struct{}), handing: make(chan struct{})}
	var strange, err error
	if a.sockets, a.from, strange, err = handoff.Inherit(); err != nil {
		return nil, err
	}
	if a.from == nil {
		p := pacer{sockets: a.sockets, log: func() hclog.Logger { return o.NewLog(config.Log{Format: "auto"}) }, pause: loopPause}
		p.tell = func(status string) { _ = a.notifier.Status(status) } // the log says it, too
		a.loop.Store(int64(p.pace(ctx, handoff.SinceBoot())))
		if err := ctx.Err(); err != nil {
			_ = a.sockets.Settled()
			return nil, err
		}
		close(a.opened)
	} else {
		a.options.Strict = true // the process before runs on the last good configuration already (6.3)
		a.notifier.Off()        // until this one is the service's main process
	}
	if err := a.make(strange); err != nil {
		if a.from != nil {
			a.from.Failed(err)
		}
		return nil, err
	}
	return a, nil
}

// make is New; strange is what is wrong with what was inherited.
func (a *Agent) make(strange error) error {
	c, err := a.load()
	if err != nil {
		return err
	}
	if strange != nil {
		a.log.Warn("some sockets of the service manager can't be used", "error", strange)
	}
	if err := a.takeOver(); err != nil {
		return err
	}
	// A disk that can't be written is no reason not to serve: the spool and saveGood say so.
	if err := os.MkdirAll(c.StateDir, 0o750); err != nil {
		a.log.Warn("the state directory can't be made; lists and configuration are kept in memory only", "path", c.StateDir, "error", err)
	}
	if a.from == nil {
		a.sockets.Clear(wanted(c))
	}
	if err := a.wire(c); err != nil {
		return err
	}
	a.mutes.Load(a.started) // before the first list, so that nothing muted gets a call
	a.fleet.Set(a.started, fleetPrefix(c))
	if c.Fleet != nil && a.from == nil {
		merged, _ := merge(c, a.fleet.Entries(), nil)
		a.sockets.Clear(wanted(merged))
	}
	p, err := a.prepare(c)
	if err != nil {
		return err
	}
	a.put(&config.Config{}, p.config)
	if i := a.inherited.Load(); i != nil {
		for _, on := range i.OnDemand {
			if err := a.ondemand.ask(on.Service, on.UID); err != nil {
				a.log.Warn("a service is no longer followed on demand", "service", on.Service, "cause", err)
			}
		}
		for _, k := range i.Backends { // what was used is, also if no listener says so: what was known of its backends goes on
			if s := a.table.Lookup(k.Service); s != nil {
				s.Asked(a.started)
			}
		}
	}
	if err := a.api.Listen(); err != nil {
		p.change.Abort() // or its unix sockets stay behind
		return err
	}
	p.change.Commit()
	a.applied.Store(&applied{files: c, config: p.config, err: a.applied.Load().err})
	a.counts.inForce(a.now())
	a.outlets(c)
	a.fleet.Settle(a.started, p.entries, p.outcomes)
	return nil
}

// load reads the file, or the last configuration that worked if the file is invalid (6.5), and makes the logger that it asks for.
func (a *Agent) load() (*config.Config, error) {
	c, err := a.read()
	if err == nil {
		a.log = a.options.NewLog(c.Log)
		a.applied.Store(&applied{files: c, config: c})
		return c, nil
	}
	if a.options.Strict {
		return nil, err
	}
	stateDir := config.Options{}.StateDirOf(a.options.ConfigPath, config.DefaultStateDir)
	good, goodErr := config.LoadGood(stateDir, a.options.ConfigPath)
	switch {
	case errors.Is(goodErr, fs.ErrNotExist):
		return nil, err
	case goodErr != nil:
		return nil, fmt.Errorf("%w\nand there is no older one to run on: %w", err, goodErr)
	}
	a.log = a.options.NewLog(good.Log)
	a.log.Error("the configuration is invalid, running on the last one that worked; mend it, then run lbagent reload", "file", a.options.ConfigPath, "error", err)
	a.events.Add(event.Event{Time: a.started, Kind: event.Config, Detail: "started on the last good configuration: " + err.Error()})
	a.applied.Store(&applied{files: good, config: good, err: err})
	return good, nil
}

// read is the configuration at hand, which may be invalid.
func (a *Agent) read() (*config.Config, error) {
	if a.options.Config != nil {
		return a.options.Config, nil
	}
	return config.Load(a.options.ConfigPath)
}

// Run serves until ctx ends, then stops in order: the doors first, what feeds them last.
func (a *Agent) Run(ctx context.Context) error {
	a.log.Info("starting", "version", a.options.Version, "services", len(a.config().Services), "node", a.config().Node.Name)
	asked := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var watching sync.WaitGroup
	watching.Go(func() {
		if a.drained(ctx); a.handedOn() {
			cancel()
		}
	})
	door := func(run func(context.Context) error) func(context.Context) error {
		return a.untilHandedOn(a.onceOpened(run))
	}
	err := runStages(ctx, a.log, stopGrace,
		stage{"readiness", a.untilHandedOn(func(ctx context.Context) error {
			err := a.announce(ctx)
			if asked.Err() != nil && !a.handedOn() {
				a.settle() // an end that somebody wants is no crash
			}
			return err
		})},
		stage{"watchdog", door(a.feedWatchdog)},
		stage{"fleet", a.untilHandedOn(a.fleet.Run)},
		stage{"proxy", a.onceOpened(a.proxy.Run)},
		stage{"access log", a.accessLog.Run}, // after the calls that it writes
		stage{"local api", door(a.api.Run)},
		stage{"lists", door(later(a.lists.Run))},
		stage{"last good configuration", door(later(a.keepGood))},
		stage{"admin", door(a.admin.Run)},
		stage{"on demand", a.untilHandedOn(a.ondemand.run)},
		stage{"discovery", a.discovery.Run},
		stage{"mutes", a.mutes.Run},
		stage{"registrar", door(func(ctx context.Context) error { return a.keepsRegistrations.run(ctx, a.registrar.Run) })},
		stage{"etcd", after(a.Loaded(), a.etcd.Run)},
		stage{"health", a.monitor.Run},
		stage{"table", a.table.Run},
		stage{"notify", a.notify.Run}, // last: it tells what the others did
	)
	cancel()
	watching.Wait()
	a.log.Info("stopped")
	return err
}

// Loaded is closed when Run has read what the spool has; then etcd is asked.
func (a *Agent) Loaded() <-chan struct{} { return a.discovery.Loaded() }

func (a *Agent) config() *config.Config { return a.applied.Load().config }

// spoolDir is where discovery keeps the last good lists.
func spoolDir(c *config.Config) string { return filepath.Join(c.StateDir, "lists") }

func (a *Agent) logWarnings() {
	for _, w := range a.config().Warnings() {
		a.log.Warn("the configuration opens a listener to other hosts", "warning", w)
	}
}

// firstSteps says, as the last line of the log at start, what somebody who just installed the agent may do next.
func (a *Agent) firstSteps() {
	if c := a.config(); len(c.Services) == 0 && c.Fleet == nil {
		a.log.Info("no services yet: write them into the file, which `lbagent scan --etcd URL` helps with, then run `lbagent reload`", "file", a.options.ConfigPath)
	}
}

// tell logs a notification that could not be sent: the agent serves all the same.
func (a *Agent) tell(err error) {
	if err != nil {
		a.log.Warn("the service manager could not be told", "error", err)
	}
}

// now is the clock of everything that isn't told the time.
func (a *Agent) now() time.Time { return time.Now() }

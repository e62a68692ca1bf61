package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lbagent/lbagent/agent/event"
)

// readyWithin bounds how long a service without a list holds up readiness (SEMANTICS 6.4).
const readyWithin = 2 * time.Second

// announce tells the service manager when the agent is ready, and that it stops.
func (a *Agent) announce(ctx context.Context) error {
	began := time.Now()
	if err := a.awaitFleet(ctx); err != nil {
		return nil // stopped before it was ready
	}
	if err := a.awaitLists(ctx, readyWithin-time.Since(began), a.names()); err != nil {
		return nil
	}
	if a.from != nil {
		if err := a.succeed(ctx); err != nil {
			return err
		}
	}
	a.ready.Store(true)
	a.registrar.Ready()
	missing := a.missing()
	a.tell(a.notifier.Ready(a.summary(missing)))
	a.keepListeners()
	a.events.Add(event.Event{Time: a.now(), Kind: event.Agent, Detail: "ready: " + a.summary(missing)})
	a.log.Info("ready", "services", len(a.config().Services), "missing", missing)
	a.logWarnings()
	a.firstSteps()
	a.awaitPredecessor(ctx)
	outlive(ctx, a.well)
	a.ready.Store(false)
	a.tell(a.notifier.Stopping())
	return nil
}

// awaitLists waits until every one of names has a list, for the time that is left (6.4).
func (a *Agent) awaitLists(ctx context.Context, left time.Duration, names []string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, left, errNotAll)
	defer cancel()
	for _, name := range names {
		for {
			entry := a.table.Lookup(name)
			if entry == nil {
				break // removed by a reload meanwhile
			}
			view, changed := entry.Changed()
			if view.Ready || view.Gone {
				break
			}
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				if errors.Is(context.Cause(ctx), errNotAll) {
					return nil
				}
				return ctx.Err()
			}
		}
	}
	return nil
}

var errNotAll = errors.New("not every service has a list")

// names are the configured services.
func (a *Agent) names() []string {
	var out []string
	for _, s := range a.config().Services {
		out = append(out, s.Name)
	}
	return out
}

// missing names the configured services without a list.
func (a *Agent) missing() []string {
	var out []string
	for _, s := range a.config().Services {
		if entry := a.table.Lookup(s.Name); entry != nil && !entry.View().Ready {
			out = append(out, s.Name)
		}
	}
	return out
}

// summary is one line for `systemctl status`.
func (a *Agent) summary(missing []string) string {
	s := "1 service"
	if n := len(a.config().Services); n != 1 {
		s = fmt.Sprintf("%d services", n)
	}
	if len(missing) > 0 {
		s += fmt.Sprintf(", no list yet of %s", firstFew(missing, 5))
	}
	if err := a.applied.Load().err; err != nil {
		s += ", running on the last good configuration (lbagent check says why)"
	}
	if words := a.loopWords(); words != "" {
		s += "; " + words
	}
	return s
}

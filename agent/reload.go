package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/event"
)

// Reload reads the configuration again and applies it whole, or not at all: it builds and binds all that is new, then swaps (SEMANTICS 6.1). It returns
// what changed, a line each. On an error the old configuration stays in force, and the error says why.
func (a *Agent) Reload(ctx context.Context) ([]string, error) {
	a.reload.Lock()
	defer a.reload.Unlock()
	now := a.now()
	lines, err := a.reloadLocked(ctx)
	if err != nil {
		a.counts.refused.Add(1)
		in := a.applied.Load()
		a.applied.Store(&applied{files: in.files, config: in.config, err: err})
		a.log.Error("reload refused, the old configuration stays in force", "file", a.options.ConfigPath, "error", err)
		a.events.Add(event.Event{Time: now, Kind: event.Config, Detail: "reload refused: " + err.Error()})
		return nil, err
	}
	a.counts.reloads.Add(1)
	detail := "reloaded: nothing changed"
	if len(lines) > 0 {
		detail = "reloaded: " + firstFew(lines, 10)
	}
	a.log.Info("reloaded", "changes", lines)
	a.logWarnings()
	a.events.Add(event.Event{Time: now, Kind: event.Config, Detail: detail})
	if a.ready.Load() {
		a.tell(a.notifier.Status(a.summary(a.missing())))
	}
	return lines, nil
}

func (a *Agent) reloadLocked(ctx context.Context) ([]string, error) {
	if a.handedOn() {
		return nil, errors.New("another process has taken this one's place")
	}
	files, err := a.read()
	if err != nil {
		return nil, err
	}
	p, err := a.prepare(files)
	if err != nil {
		return nil, err
	}
	old := a.config()
	lines, err := differs(old, p.config)
	if err != nil {
		p.change.Abort()
		return nil, err
	}
	a.swap(ctx, p)
	if files.Limits != old.Limits {
		a.proxy.SetLimits(limits(files.Limits))
	}
	a.outlets(files)
	if len(lines) > 0 {
		a.counts.inForce(a.now())
	}
	a.log.SetLevel(hclog.LevelFromString(files.Log.Level))
	a.applied.Store(&applied{files: files, config: p.config})
	a.fleet.Set(a.now(), fleetPrefix(files))
	a.saveGood()
	return lines, nil
}

// swap puts in force what was prepared.
func (a *Agent) swap(ctx context.Context, p *prepared) {
	old := a.config()
	a.put(old, p.config)
	a.awaitChanged(ctx, config.Compare(old, p.config))
	p.change.Commit()
	a.prune(old, p.config)
	a.proxy.AwaitClosed()
	a.fleet.Settle(a.now(), p.entries, p.outcomes)
	if a.ready.Load() { // else announce does it
		a.keepLocked()
	}
}

// awaitChanged waits until what is new or changed has the list that is asked for now, at most readyWithin: callers of a new port wait in its backlog for it, instead of being
// told that there is none, and who calls after a reload finds none of the backends that it took away. That whoever asked for the change has gone ends the wait, not the change.
func (a *Agent) awaitChanged(ctx context.Context, change config.Change) {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	a.discovery.Await(ctx, slices.Concat(change.Added, change.Changed))
}

// keepGood saves the configuration that the agent started on.
func (a *Agent) keepGood(ctx context.Context) error {
	a.saveGood()
	<-ctx.Done()
	return nil
}

// saveGood keeps what is in force for a start at which the file is invalid (6.5). That it can't be kept is no reason not to run on it.
func (a *Agent) saveGood() {
	a.saving.Lock()
	defer a.saving.Unlock()
	in := a.applied.Load()
	if in.err != nil || a.options.Config != nil {
		return // it is kept already, or there is no file of which it would be the copy
	}
	if err := config.SaveGood(in.files.StateDir, a.options.ConfigPath, in.files); err != nil {
		a.log.Warn("the configuration in force could not be kept for the next start", "error", err)
	}
}

// firstFew joins at most n words and counts the others.
func firstFew(words []string, n int) string {
	if len(words) <= n {
		return strings.Join(words, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(words[:n], ", "), len(words)-n)
}

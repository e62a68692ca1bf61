package agent

import (
	"context"
	"fmt"
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
		a.applied.Store(&applied{config: a.config(), err: err})
		a.log.Error("reload refused, the old configuration stays in force", "file", a.options.ConfigPath, "error", err)
		a.events.Add(event.Event{Time: now, Kind: event.Config, Detail: "reload refused: " + err.Error()})
		return nil, err
	}
	detail := "reloaded: nothing changed"
	if len(lines) > 0 {
		detail = "reloaded: " + firstFew(lines, 10)
	}
	a.log.Info("reloaded", "changes", lines)
	a.events.Add(event.Event{Time: now, Kind: event.Config, Detail: detail})
	if a.ready.Load() {
		a.tell(a.notifier.Status(a.summary(a.missing())))
	}
	return lines, nil
}

func (a *Agent) reloadLocked(ctx context.Context) ([]string, error) {
	next, err := config.Load(a.options.ConfigPath)
	if err != nil {
		return nil, err
	}
	old := a.config()
	lines, err := differs(old, next)
	if err != nil {
		return nil, err
	}
	// The sockets are the one thing that can fail from here on: they are bound before anything is touched.
	change, err := a.proxy.Prepare(served(next))
	if err != nil {
		return nil, err
	}
	a.put(old, next)
	// Callers of a new port wait in its backlog until there is a list, instead of being told that there is none. That whoever asked for the reload has
	// gone ends the wait, not the reload.
	_ = a.awaitLists(ctx, config.Compare(old, next).Added)
	if next.Limits != old.Limits {
		a.proxy.SetLimits(limits(next.Limits))
	}
	change.Commit()
	a.prune(old, next)
	a.log.SetLevel(hclog.LevelFromString(next.Log.Level))
	a.applied.Store(&applied{config: next})
	a.saveGood(next)
	return lines, nil
}

// saveGood keeps c for a start at which the file is invalid (6.5). That it can't be kept is no reason not to run on it.
func (a *Agent) saveGood(c *config.Config) {
	if err := config.SaveGood(c.StateDir, a.options.ConfigPath, c); err != nil {
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

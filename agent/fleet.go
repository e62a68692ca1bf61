package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/fleet"
	"github.com/lbagent/lbagent/agent/proxy"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// fleetPrefix is where c keeps the services of all hosts; "" = nowhere.
func fleetPrefix(c *config.Config) string {
	if c.Fleet == nil {
		return ""
	}
	return c.Fleet.Prefix
}

// prepared is a configuration, the files' with what the fleet adds, whose listeners are bound; the fate of each of the fleet's items is known.
type prepared struct {
	config   *config.Config
	change   *proxy.Change
	entries  []fleet.Entry
	outcomes []fleet.Outcome
}

// prepare joins files with the fleet's items and binds what is new (6.1). An item that can't be bound on this host leaves the others alone: its last good form takes its place, or nothing. What the files
// name and can't be bound is an error.
func (a *Agent) prepare(files *config.Config) (*prepared, error) {
	p := &prepared{}
	if files.Fleet != nil {
		p.entries = a.fleet.Entries()
	}
	refused := make(map[string]map[string]error) // item -> text -> why this host can't have it
	for {
		next, outcomes := merge(files, p.entries, refused)
		change, err := a.proxy.Prepare(served(next))
		if err == nil {
			p.config, p.change, p.outcomes = next, change, outcomes
			return p, nil
		}
		if !refuse(refused, next, outcomes, err) {
			return nil, err
		}
	}
}

// refuse notes which of the fleet's items err is about; it is false if it is about anything else.
func refuse(refused map[string]map[string]error, c *config.Config, outcomes []fleet.Outcome, err error) bool {
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	for _, one := range all {
		blocked, ok := errors.AsType[*proxy.ServiceError](one)
		if !ok {
			return false
		}
		i := slices.IndexFunc(c.Services, func(s config.Service) bool { return s.Name == blocked.Service })
		if i < 0 || c.Services[i].Item == "" {
			return false
		}
		key := c.Services[i].Item
		o := outcomes[slices.IndexFunc(outcomes, func(o fleet.Outcome) bool { return o.Key == key })]
		if refused[key] == nil {
			refused[key] = make(map[string]error)
		}
		if refused[key][o.Used] != nil {
			return false // it was left out, and yet it is there: trying again would be for ever
		}
		refused[key][o.Used] = blocked
	}
	return true
}

// merge is files with entries, without the texts that are refused; outcomes are parallel to entries.
func merge(files *config.Config, entries []fleet.Entry, refused map[string]map[string]error) (*config.Config, []fleet.Outcome) {
	var items []config.Item
	var at []int // of entries
	outcomes := make([]fleet.Outcome, len(entries))
	for i, e := range entries {
		outcomes[i] = fleet.Outcome{Key: e.Key, Place: string(config.Nowhere)}
		item := config.Item{Key: e.Key, File: "etcd:" + fleetPrefix(files) + e.Key, Now: e.Now, Good: e.Good}
		if err := refused[e.Key][e.Now]; err != nil {
			outcomes[i].Problem, outcomes[i].Again = err.Error(), true
			item.Now = e.Good
		}
		if _, bad := refused[e.Key][e.Good]; bad {
			if item.Good = ""; item.Now == e.Good {
				continue // neither
			}
		}
		if item.Now != "" || outcomes[i].Problem == "" {
			items, at = append(items, item), append(at, i)
		}
	}
	next, fates := files.WithFleet(items)
	for n, f := range fates {
		o := &outcomes[at[n]]
		o.Place, o.Used, o.Only, o.By = string(f.Place), f.Used, f.Only, f.By
		if o.Problem == "" && f.Problem != nil {
			o.Problem = strings.ReplaceAll(f.Problem.Error(), "\n", "; ")
		}
	}
	return next, outcomes
}

// applyFleet puts in force what is known of the fleet's items now. What did not change isn't touched.
func (a *Agent) applyFleet(ctx context.Context) {
	a.reload.Lock()
	defer a.reload.Unlock()
	in := a.applied.Load()
	p, err := a.prepare(in.files)
	if err != nil {
		a.log.Error("the fleet's items can't be applied; all stays as it is", "error", err)
		return
	}
	change := config.Compare(in.config, p.config)
	if change.None() {
		p.change.Abort()
		a.fleet.Settle(a.now(), p.entries, p.outcomes)
		return
	}
	a.swap(ctx, p)
	a.applied.Store(&applied{files: in.files, config: p.config, err: in.err})
	a.counts.inForce(a.now())
	a.log.Info("the fleet's items were applied", "changes", change.String())
	a.events.Add(event.Event{Time: a.now(), Kind: event.Config, Detail: "the fleet's configuration changed: " + change.String()})
	if a.ready.Load() {
		a.tell(a.notifier.Status(a.summary(a.missing())))
	}
}

// awaitFleet waits until etcd has said for the first time what the fleet's items are, unless the spool has them; at most readyWithin (6.4).
func (a *Agent) awaitFleet(ctx context.Context) error {
	if a.config().Fleet == nil {
		return nil
	}
	enough := time.NewTimer(readyWithin)
	defer enough.Stop()
	select {
	case <-a.fleet.First():
	case <-enough.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// hints are what a person should know of a service beyond its backends.
func (a *Agent) hints(name string) []string {
	out := a.proxy.Hints(name)
	if why, denied := a.discovery.Trouble(name); denied {
		out = append(out, why+"; `lbagent doctor` says which right is missing")
	} else if why != "" {
		out = append(out, why+": is that the right prefix? `lbagent scan` lists what etcd holds")
	}
	for _, i := range a.fleet.Status().Items {
		if service, _, _ := strings.Cut(i.Key, "/"); service == name {
			out = append(out, itemHints(i)...)
		}
	}
	return out
}

func itemHints(i fleet.Item) (out []string) {
	if !i.Held.IsZero() {
		out = append(out, fmt.Sprintf("fleet item %s is no longer in etcd and stays in force, since too many vanished at once; \"lbagent config rm --vanished %s\" removes it on all hosts", i.Key, i.Key))
	}
	switch {
	case i.Problem != "" && i.Used != "":
		out = append(out, "fleet item "+i.Key+" can't be used, its last good form is in force: "+i.Problem)
	case i.Problem != "":
		out = append(out, "fleet item "+i.Key+" can't be used: "+i.Problem)
	case i.Place == string(config.Overridden):
		out = append(out, fmt.Sprintf("fleet item %s is overridden by this host's own configuration, %s", i.Key, i.By))
	case i.Only != "" && i.Place == string(config.Here):
		out = append(out, fmt.Sprintf("fleet item %s is in force, which is only for %s", i.Key, i.Only))
	case i.Only != "" && i.Place == string(config.Elsewhere):
		out = append(out, fmt.Sprintf("fleet item %s is only for %s", i.Key, i.Only))
	}
	return out
}

// maxFleetWarnings bounds what status says of single items; lbagent config list has all.
const maxFleetWarnings = 5

// fleetWarnings are the sentences about the fleet that a person should read first.
func fleetWarnings(s fleet.Status) []string {
	var out []string
	if s.Error != "" {
		out = append(out, "the fleet's configuration can't be followed, what is known of it stays in force: "+s.Error)
	}
	if s.SpoolError != "" {
		out = append(out, "the fleet's configuration can't be spooled, so a restart while etcd is down would begin without it: "+s.SpoolError)
	}
	more := 0
	for _, i := range s.Items {
		switch {
		case i.Problem == "" && i.Held.IsZero():
		case len(out) >= maxFleetWarnings:
			more++
		default:
			out = append(out, itemHints(i)...)
		}
	}
	if more > 0 {
		out = append(out, fmt.Sprintf("%d more items of the fleet need a look; lbagent config list names them", more))
	}
	return out
}

// fleetStatus is s for the API; nil if this host follows no fleet.
func fleetStatus(now time.Time, s fleet.Status) *lbagentv1.FleetStatus {
	if s.Prefix == "" {
		return nil
	}
	out := &lbagentv1.FleetStatus{Prefix: s.Prefix, Source: s.Source, Revision: s.Revision, Error: s.Error}
	if !s.Confirmed.IsZero() {
		out.Age = durationpb.New(now.Sub(s.Confirmed))
	}
	for _, i := range s.Items {
		item := &lbagentv1.FleetItem{
			Key: i.Key, Place: i.Place, Only: i.Only, By: i.By, Problem: i.Problem, LastGood: i.Problem != "" && i.Used != "", Revision: i.Modified,
		}
		if !i.Held.IsZero() {
			item.Held = timestamppb.New(i.Held)
		}
		out.Items = append(out.Items, item)
	}
	return out
}

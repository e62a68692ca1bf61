package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/discovery"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/event"
	"github.com/lbagent/lbagent/agent/mute"
	"github.com/lbagent/lbagent/agent/table"
	"github.com/lbagent/lbagent/health"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// status is what the agent knows of itself; localapi adds the services.
func (a *Agent) status() *lbagentv1.StatusResponse {
	now, in := a.now(), a.applied.Load()
	e := a.etcd.Status()
	out := &lbagentv1.StatusResponse{
		Version:     a.options.Version,
		Started:     timestamppb.New(a.started),
		Ready:       a.ready.Load(),
		Missing:     a.missing(),
		ConfigOk:    in.err == nil,
		ConfigFiles: a.configFiles(in.config),
		Node:        in.config.Node.Name,
		Pid:         int32(os.Getpid()),
		Etcd: &lbagentv1.EtcdStatus{
			Configured: e.Configured, Connected: e.Connected, Endpoints: e.Endpoints, LastError: e.LastError,
		},
		Warnings: slices.Concat(warnings(now, e, a.discovery.Status(), a.mutes.Stats()), a.loopWarnings(), suspicionWarnings(now, a.monitor.Suspicion()),
			fleetWarnings(a.fleet.Status()), a.deniedWarnings(), orphanWarnings(a.table.Services()), zoneWarnings(a.table.Services()), in.config.Warnings()),
		Fleet: fleetStatus(now, a.fleet.Status()),
	}
	if in.err != nil {
		out.ConfigError = in.err.Error()
	}
	if !e.LastContact.IsZero() {
		out.Etcd.LastContact = timestamppb.New(e.LastContact)
	}
	return out
}

// etcdNow is what etcd has of a service at this moment, beside what is known.
func (a *Agent) etcdNow(ctx context.Context, name string) (*lbagentv1.EtcdNow, error) {
	c, err := a.discovery.Compare(ctx, name)
	switch {
	case errors.Is(err, discovery.ErrNotInEtcd):
		return nil, err
	case err != nil && ctx.Err() != nil:
		return nil, errors.New("etcd did not answer in time")
	case err != nil:
		return nil, fmt.Errorf("etcd could not be asked: %w", etcd.Plain(err))
	}
	return &lbagentv1.EtcdNow{
		Revision: c.Revision, ListRevision: c.Known, Keys: uint32(c.Keys), Missing: c.Missing, Gone: c.Gone, Changed: c.Changed,
		MissingCount: uint32(c.Missings), GoneCount: uint32(c.Gones), ChangedCount: uint32(c.Changeds),
	}, nil
}

// configFiles are those that c was read from. The one that this process is told to read comes first, also while it runs on the copy of an older one (6.5): it is what a person has to
// mend, and what doctor looks at.
func (a *Agent) configFiles(c *config.Config) []string {
	if a.options.Config != nil || slices.Contains(c.Files, a.options.ConfigPath) {
		return c.Files
	}
	return append([]string{a.options.ConfigPath}, c.Files...)
}

// warnings are the sentences that a person should read first.
func warnings(now time.Time, e etcd.Status, d discovery.Status, m mute.Stats) []string {
	var out []string
	if e.Configured && !e.Connected {
		s := "etcd is not reachable; lists, probes and picks go on with what was known last"
		if !e.LastContact.IsZero() {
			s += " (last contact " + now.Sub(e.LastContact).Round(time.Second).String() + " ago)"
		}
		if e.LastError != "" {
			s += ": " + e.LastError
		}
		out = append(out, s)
	}
	if d.SpoolError != "" {
		out = append(out, "the spool can't be written, so a restart while etcd is down would begin without lists: "+d.SpoolError)
	}
	return append(out, muteWarnings(m)...)
}

// suspicionWarnings says that this host suspects itself (2.10).
func suspicionWarnings(now time.Time, s health.Suspicion) []string {
	if !s.On {
		return nil
	}
	return []string{fmt.Sprintf("this host's own network seems to be ill, for %s: %s; no backend is taken out for being silent until fewer than half are", health.Ago(now.Sub(s.Since)), s.Words)}
}

// tellSuspicion makes an event and a line of a suspicion that began or ended.
func (a *Agent) tellSuspicion(s health.Suspicion) {
	detail := "this host trusts its network again: fewer than half of the backends can't be reached"
	if s.On {
		detail = "this host suspects its own network: " + s.Words + "; no backend is taken out for being silent"
		a.log.Warn("this host suspects its own network: no backend is taken out for being silent", "cause", s.Words)
	} else {
		a.log.Info("this host trusts its network again")
	}
	a.events.Add(event.Event{Time: s.Since, Kind: event.Suspicion, Detail: detail})
}

func orphanWarnings(services []*table.Service) []string {
	var out []string
	for _, s := range services {
		if v := s.View(); v.Orphans() > 0 {
			out = append(out, fmt.Sprintf("%s: %d of %d backends are orphans: their keys went from etcd, most at once, and they are kept while they are alive; `lbagent accept %s` lets go of them",
				s.Name(), v.Orphans(), v.Len(), s.Name()))
		}
	}
	return out
}

// maxDenied bounds how many services deniedWarnings names.
const maxDenied = 5

// deniedWarnings names services that etcd doesn't let this host follow.
func (a *Agent) deniedWarnings() []string {
	var out []string
	for _, s := range a.table.Services() {
		if why, denied := a.discovery.Trouble(s.Name()); denied {
			if len(out) == maxDenied {
				return append(out, "more services can't be read; the log names them")
			}
			out = append(out, s.Name()+": "+why)
		}
	}
	return out
}

// zoneWarnings names services that have lost all of their backends in this host's zone (3.8).
func zoneWarnings(services []*table.Service) []string {
	var out []string
	for _, s := range services {
		if words, gone := s.View().ZoneWords(); gone {
			out = append(out, s.Name()+": "+words)
		}
	}
	return out
}

func muteWarnings(m mute.Stats) []string {
	var out []string
	if m.FileError != "" {
		out = append(out, "mutes can't be written to disk, so a restart would forget what changed of them: "+m.FileError)
	}
	if m.Followed && m.Trouble != "" {
		out = append(out, "fleet-wide mutes are not followed (grant the agent's etcd user to read their prefix, or turn them off by mute.prefix): "+m.Trouble)
	}
	if m.Bad > 0 {
		out = append(out, fmt.Sprintf("%d keys below mute.prefix can't be read as a mute; the log names them", m.Bad))
	}
	if m.Over {
		out = append(out, "there are more fleet-wide mutes than are honoured")
	}
	return out
}

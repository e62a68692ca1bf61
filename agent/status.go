package agent

import (
	"os"
	"time"

	"github.com/lbagent/lbagent/agent/discovery"
	"github.com/lbagent/lbagent/agent/etcd"
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
		ConfigFiles: in.config.Files,
		Node:        in.config.Node.Name,
		Pid:         int32(os.Getpid()),
		Etcd: &lbagentv1.EtcdStatus{
			Configured: e.Configured, Connected: e.Connected, Endpoints: e.Endpoints, LastError: e.LastError,
		},
		Warnings: append(warnings(now, e, a.discovery.Status()), fleetWarnings(a.fleet.Status())...),
		Fleet:    fleetStatus(now, a.fleet.Status()),
	}
	if in.err != nil {
		out.ConfigError = in.err.Error()
	}
	if !e.LastContact.IsZero() {
		out.Etcd.LastContact = timestamppb.New(e.LastContact)
	}
	return out
}

// warnings are the sentences that a person should read first.
func warnings(now time.Time, e etcd.Status, d discovery.Status) []string {
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
	return out
}

package agent

import (
	"os"
	"time"

	"github.com/lbagent/lbagent/agent/discovery"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// status is what the agent knows of itself; localapi adds the services.
func (a *Agent) status() *lbagentv1.StatusResponse {
	now, in := a.now(), a.applied.Load()
	d := a.discovery.Status()
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
			Configured: d.Configured, Connected: d.Connected, Endpoints: d.Endpoints, LastError: d.LastError,
		},
		Warnings: warnings(now, d),
	}
	if in.err != nil {
		out.ConfigError = in.err.Error()
	}
	if !d.LastContact.IsZero() {
		out.Etcd.LastContact = timestamppb.New(d.LastContact)
	}
	return out
}

// warnings are the sentences that a person should read first.
func warnings(now time.Time, d discovery.Status) []string {
	var out []string
	if d.Configured && !d.Connected {
		s := "etcd is not reachable; lists, probes and picks go on with what was known last"
		if !d.LastContact.IsZero() {
			s += " (last contact " + now.Sub(d.LastContact).Round(time.Second).String() + " ago)"
		}
		if d.LastError != "" {
			s += ": " + d.LastError
		}
		out = append(out, s)
	}
	if d.SpoolError != "" {
		out = append(out, "the spool can't be written, so a restart while etcd is down would begin without lists: "+d.SpoolError)
	}
	return out
}

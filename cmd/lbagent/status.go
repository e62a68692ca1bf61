package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

func (a *app) statusVerb() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "the agent, its configuration, etcd and every service",
		GroupID: groupWhy,
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.askOrRead(cmd.Context(), "", asJSON, func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, a.patience)
				defer cancel()
				r, err := lbagentv1.NewStatusServiceClient(c).Status(ctx, &lbagentv1.StatusRequest{})
				if err != nil || asJSON {
					return orJSON(a.stdout, r, err)
				}
				a.printStatus(r)
				return nil
			}, a.printLeftServices)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) printStatus(r *lbagentv1.StatusResponse) {
	state := "ready"
	if !r.GetReady() {
		state = "NOT READY"
	}
	if missing := r.GetMissing(); len(missing) > 0 {
		state += "; no list yet: " + strings.Join(missing, ", ")
	}
	field := func(name, text string) { hanging(a.stdout, pad(name, 14)+"  ", text) }
	field("agent", fmt.Sprintf("%s on %s, up %s, pid %d, %s", r.GetVersion(), r.GetNode(), ago(a.now(), r.GetStarted()), r.GetPid(), state))
	if files := r.GetConfigFiles(); len(files) > 0 {
		field("configuration", strings.Join(files, ", "))
	}
	if !r.GetConfigOk() {
		field("", "INVALID, an older configuration is in force:")
		for line := range strings.Lines(r.GetConfigError()) {
			field("", "  "+strings.TrimRight(line, "\n"))
		}
	}
	field("etcd", a.etcdWords(r.GetEtcd(), r.GetWarnings()))
	a.printMutes(r.GetMutes(), field)
	for _, warning := range r.GetWarnings() {
		field("WARNING", warning)
	}
	fmt.Fprintln(a.stdout)
	printServices(a.stdout, r.GetServices())
	a.printRegistrations(r.GetRegistrations())
}

func (a *app) etcdWords(e *lbagentv1.EtcdStatus, warnings []string) string {
	if !e.GetConfigured() {
		return "none is configured; static backends only"
	}
	words := "connected"
	if !e.GetConnected() {
		words = "NOT CONNECTED"
	}
	words += " to " + strings.Join(e.GetEndpoints(), ", ")
	if why := e.GetLastError(); !e.GetConnected() && why != "" && slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, why) }) {
		return words // since when, and why, is said there
	}
	if contact := ago(a.now(), e.GetLastContact()); contact != "" {
		words += ", last contact " + contact + " ago"
	}
	if e.GetLastError() != "" && !e.GetConnected() {
		words += ": " + e.GetLastError()
	}
	return words
}

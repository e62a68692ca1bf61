package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

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
			return a.ask(cmd.Context(), func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, a.patience)
				defer cancel()
				r, err := lbagentv1.NewStatusServiceClient(c).Status(ctx, &lbagentv1.StatusRequest{})
				if err != nil || asJSON {
					return orJSON(a.stdout, r, err)
				}
				a.printStatus(r)
				return nil
			})
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
	field("etcd", a.etcdWords(r.GetEtcd()))
	a.printMutes(r.GetMutes(), field)
	for _, warning := range r.GetWarnings() {
		field("WARNING", warning)
	}
	fmt.Fprintln(a.stdout)
	printServices(a.stdout, r.GetServices())
	a.printRegistrations(r.GetRegistrations())
}

func (a *app) etcdWords(e *lbagentv1.EtcdStatus) string {
	if !e.GetConfigured() {
		return "none is configured; static backends only"
	}
	words := "connected"
	if !e.GetConnected() {
		words = "NOT CONNECTED"
	}
	words += " to " + strings.Join(e.GetEndpoints(), ", ")
	if contact := ago(a.now(), e.GetLastContact()); contact != "" {
		words += ", last contact " + contact + " ago"
	}
	if e.GetLastError() != "" && !e.GetConnected() {
		words += ": " + e.GetLastError()
	}
	return words
}

func (a *app) explainVerb() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "explain SERVICE [BACKEND]",
		Short:             "why each backend is in or out, since when, and what is next",
		GroupID:           groupWhy,
		Args:              exactly("SERVICE", "[BACKEND]"),
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &lbagentv1.ExplainRequest{Service: args[0]}
			if len(args) > 1 {
				req.Address = args[1]
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, a.patience)
				defer cancel()
				r, err := lbagentv1.NewStatusServiceClient(c).Explain(ctx, req)
				if err != nil || asJSON {
					return orJSON(a.stdout, r, err)
				}
				a.printExplanation(r)
				return nil
			})
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) printExplanation(r *lbagentv1.ExplainResponse) {
	s := r.GetService()
	paragraph(a.stdout, "", r.GetSummary())
	how := fmt.Sprintf("policy %s, protocol %s", s.GetPolicy(), s.GetProtocol())
	if listeners := s.GetListeners(); len(listeners) > 0 {
		how += ", listens on " + strings.Join(listeners, " ")
	}
	paragraph(a.stdout, "  ", how)
	for _, hint := range r.GetHints() {
		paragraph(a.stdout, "  ", "hint: "+hint)
	}
	for _, b := range r.GetBackends() {
		fmt.Fprintln(a.stdout)
		a.printBackend(b)
	}
	if n := r.GetBadRecordCount(); n > 0 {
		fmt.Fprintf(a.stdout, "\n%s of the list can't be read:\n", plural(n, "record"))
		t := table{head: []string{"KEY", "REASON"}}
		for _, bad := range r.GetBadRecords() {
			t.add(bad.GetKey(), bad.GetReason())
		}
		t.print(a.stdout)
		if more := int(n) - len(r.GetBadRecords()); more > 0 {
			fmt.Fprintf(a.stdout, "and %d more\n", more)
		}
	}
}

func (a *app) eventsVerb() *cobra.Command {
	var asJSON, follow bool
	cmd := &cobra.Command{
		Use:               "events [SERVICE]",
		Short:             "what happened: verdicts, lists, mutes, panic, etcd, configuration",
		GroupID:           groupWhy,
		Args:              exactly("[SERVICE]"),
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &lbagentv1.EventsRequest{Follow: follow}
			if len(args) > 0 {
				req.Service = args[0]
			}
			return a.ask(cmd.Context(), func(ctx context.Context, c *agentConn) error {
				if !follow {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, a.patience)
					defer cancel()
				}
				stream, err := lbagentv1.NewStatusServiceClient(c).Events(ctx, req)
				for err == nil {
					var e *lbagentv1.EventsResponse
					if e, err = stream.Recv(); err != nil {
						break
					}
					if asJSON {
						err = printJSON(a.stdout, e, true)
					} else {
						a.printEvent(e)
						err = a.stdout.err
					}
				}
				if errors.Is(err, io.EOF) && !follow {
					return nil
				}
				if errors.Is(err, io.EOF) {
					return errors.New("the agent ended the stream of events")
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new events until stopped")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// printEvent writes one event; it can't wait for others to see how wide a column is.
func (a *app) printEvent(e *lbagentv1.EventsResponse) {
	about := strings.TrimSpace(e.GetService() + " " + e.GetBackend())
	if about != "" {
		about += ": "
	}
	prefix := e.GetTime().AsTime().In(a.now().Location()).Format(time.DateTime) + "  " + pad(clean(e.GetKind()), 8) + "  "
	hanging(a.stdout, prefix, about+e.GetDetail())
}

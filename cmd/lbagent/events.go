package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lbagent/lbagent/agent/event"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

func (a *app) eventsVerb() *cobra.Command {
	var asJSON, follow bool
	var kinds []string
	cmd := &cobra.Command{
		Use:   "events [SERVICE]",
		Short: "what happened: verdicts, lists, mutes, panic, etcd, configuration",
		Long: `Prints the events that the agent keeps, the last 4096: time, kind, service and backend, and what
happened with the evidence for it. With --follow it goes on with new ones, over restarts of the
agent; what it can't have seen meanwhile it says.

Of connections to backends there are so many that they are shown only if --kind asks for them, or as
JSON. Every KIND:
` + strings.Join(wrap(strings.Join(eventKinds(), ", ")+".", width), "\n"),
		Example:           "  lbagent events user\n  lbagent events user --kind verdict,connection\n  lbagent events -f --json | jq 'select(.kind == \"verdict\")'",
		GroupID:           groupWhy,
		Args:              exactly("[SERVICE]"),
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, kind := range kinds {
				if !slices.Contains(eventKinds(), kind) {
					return &codedError{exitUsage, fmt.Errorf("--kind %s: there is no such kind%s", kind, didYouMean(kind, eventKinds()))}
				}
			}
			e := &eventReader{a: a, asJSON: asJSON, follow: follow, kinds: kinds}
			if len(args) > 0 {
				e.service = args[0]
			}
			if !follow {
				return a.ask(cmd.Context(), func(ctx context.Context, c *agentConn) error {
					ctx, cancel := context.WithTimeout(ctx, a.patience)
					defer cancel()
					return e.read(ctx, c, func() {})
				})
			}
			return a.lasting(cmd.Context(), func(met func()) error {
				return a.ask(cmd.Context(), func(ctx context.Context, c *agentConn) error { return e.read(ctx, c, met) })
			}, func() { e.say("the agent has gone; waiting for it") })
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new events until stopped")
	cmd.Flags().StringSliceVar(&kinds, "kind", nil, "only events of `KIND,...`")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(eventKinds(), cobra.ShellCompDirectiveNoFileComp)) // fails only for a flag that isn't there
	jsonFlag(cmd, &asJSON)
	return cmd
}

func eventKinds() []string {
	var all []string
	for _, kind := range event.Kinds() {
		all = append(all, string(kind))
	}
	slices.Sort(all)
	return all
}

// eventReader prints events, each once, over the lives of the agent.
type eventReader struct {
	a              *app
	service        string
	asJSON, follow bool
	kinds          []string // to show; none: every one, for people without connections

	hidden int       // connections that were not shown
	last   uint64    // id of the last event
	at     time.Time // of the last event
	began  time.Time // the agent's start; another one has other ids

	opened time.Time // the stream
}

// read prints events until the stream ends. met is called once the agent has answered.
func (e *eventReader) read(ctx context.Context, c *agentConn, met func()) error {
	client := lbagentv1.NewStatusServiceClient(c)
	if e.follow {
		if err := e.meet(ctx, client); err != nil {
			return away(err)
		}
		met()
	}
	e.opened = e.a.now()
	stream, err := client.Events(ctx, &lbagentv1.EventsRequest{Service: e.service, Follow: e.follow, After: e.last})
	for err == nil {
		var one *lbagentv1.EventsResponse
		if one, err = stream.Recv(); err == nil {
			err = e.print(one)
		}
	}
	if errors.Is(err, io.EOF) && !e.follow {
		if e.hidden > 0 {
			fmt.Fprintf(e.a.stderr, "%s of kind connection left out; --kind connection shows them\n", plural(e.hidden, "event"))
		}
		return nil
	}
	if e.follow && e.a.stdout.err == nil {
		return away(err)
	}
	return err
}

// meet finds out whether it's the agent from which the last event came, and says what may be missing if it isn't.
func (e *eventReader) meet(ctx context.Context, client lbagentv1.StatusServiceClient) error {
	ctx, cancel := context.WithTimeout(ctx, e.a.patience)
	defer cancel()
	r, err := client.Status(ctx, &lbagentv1.StatusRequest{})
	if err != nil {
		return err
	}
	began := r.GetStarted().AsTime()
	if !e.began.IsZero() && !began.Equal(e.began) {
		gap := fmt.Sprintf("the agent was started anew at %s", e.a.clock(began))
		if !e.at.IsZero() {
			gap += fmt.Sprintf("; what happened since the event of %s may be missing here", e.a.clock(e.at))
		}
		e.say(gap)
		e.last = 0
	} else if !e.began.IsZero() {
		e.say("the agent is there again")
	}
	e.began = began
	return nil
}

func (e *eventReader) print(one *lbagentv1.EventsResponse) error {
	// Of what was before, the agent keeps connections for a shorter time than all else.
	if e.service == "" && e.last > 0 && one.GetId() > e.last+1 && one.GetTime().AsTime().After(e.opened) {
		e.say(plural(int(one.GetId()-e.last-1), "event") + " came faster than they were read, and are missing here")
	}
	e.last, e.at = one.GetId(), one.GetTime().AsTime()
	switch kind := one.GetKind(); {
	case len(e.kinds) > 0 && !slices.Contains(e.kinds, kind):
		return nil
	case len(e.kinds) == 0 && !e.asJSON && kind == string(event.Connection):
		e.hidden++
		return nil
	}
	if e.asJSON {
		return printJSON(e.a.stdout, one, true)
	}
	e.a.printEvent(one)
	return e.a.stdout.err
}

// say says something about the events: among them for people, beside them for programs.
func (e *eventReader) say(what string) {
	to := io.Writer(e.a.stdout)
	if e.asJSON {
		to = e.a.stderr
	}
	hanging(to, e.a.now().Format(time.DateTime)+"  "+pad("---", kindWidth)+"  ", what)
}

// clock is a time of today for a person, in the zone of the app's clock.
func (a *app) clock(t time.Time) string { return t.In(a.now().Location()).Format(time.TimeOnly) }

// kindWidth is the width of the longest kind.
const kindWidth = len(event.Registration)

// printEvent writes one event; it can't wait for others to see how wide a column is.
func (a *app) printEvent(e *lbagentv1.EventsResponse) {
	about := strings.TrimSpace(e.GetService() + " " + e.GetBackend())
	if about != "" {
		about += ": "
	}
	prefix := e.GetTime().AsTime().In(a.now().Location()).Format(time.DateTime) + "  " + pad(clean(e.GetKind()), kindWidth) + "  "
	hanging(a.stdout, prefix, about+e.GetDetail())
}

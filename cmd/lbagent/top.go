package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

func (a *app) topVerb() *cobra.Command {
	var (
		asJSON, once bool
		every        time.Duration
		by           string
	)
	cmd := &cobra.Command{
		Use:   "top [SERVICE]",
		Short: "services and backends, live: calls, errors, latency, shares",
		Long: `Shows every service, or the backends of one, once a second: calls and errors a second and latency
of what goes through the proxy; of backends what this host knows of them, calls that programs report
included. Keys: arrows and Enter open a service, Esc goes back, n c e l u sort, r turns the order
round, q ends, ? says more.

Without a terminal, or with --once, it prints one table, of the first second; with --json, an object
a line.`,
		Example: "  lbagent top\n  lbagent top user --once\n  lbagent top --json --once | jq '.services[] | select(.errors_per_second > 0).name'",
		GroupID: groupWhy, Args: exactly("[SERVICE]"), ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			m := &topModel{order: orderBy(by)}
			if m.order == nil {
				return &codedError{exitUsage, fmt.Errorf("--sort %q: name, calls, errors, latency or usable", by)}
			}
			if len(args) > 0 {
				m.opened = args[0]
			}
			out, isFile := a.stdout.w.(*os.File)
			if once || asJSON || !isFile || !isTerminal(out) || !isTerminal(os.Stdin) {
				return a.printTop(cmd.Context(), m, every, asJSON, !once && asJSON)
			}
			t := &top{a: a, m: m, every: every}
			return t.run(cmd.Context(), os.Stdin, out)
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "print one table, and end")
	cmd.Flags().DurationVar(&every, "interval", time.Second, "from one look to the next, 200ms to 1m")
	cmd.Flags().StringVar(&by, "sort", "calls", "`KEY` to sort by: name, calls, errors, latency or usable")
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions([]string{"name", "calls", "errors", "latency", "usable"}, cobra.ShellCompDirectiveNoFileComp))
	jsonFlag(cmd, &asJSON)
	return cmd
}

// printTop prints the first answer that has rates; if on is set, each.
func (a *app) printTop(ctx context.Context, m *topModel, every time.Duration, asJSON, on bool) error {
	return a.ask(ctx, func(ctx context.Context, c *agentConn) error {
		stream, err := lbagentv1.NewStatusServiceClient(c).Stats(ctx, &lbagentv1.StatsRequest{Service: m.opened, Interval: durationpb.New(every)})
		for err == nil {
			var r *lbagentv1.StatsResponse
			if r, err = stream.Recv(); err != nil {
				break
			}
			if r.GetOver() == nil {
				continue
			}
			if asJSON {
				err = printJSON(a.stdout, r, true)
			} else {
				m.stats = r
				lines, _ := m.lines(width, len(r.GetServices())+len(r.GetBackends())+topFrame, a.now())
				for _, line := range lines {
					fmt.Fprintln(a.stdout, line)
				}
				err = a.stdout.err
			}
			if !on || err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return errors.New("the agent ended the stream of counters")
		}
		return err
	})
}

// top is the live view. Its goroutine owns all of it.
type top struct {
	a     *app
	m     *topModel
	every time.Duration

	fresh chan topNews
	stop  context.CancelFunc // of who sends to fresh
}

// topNews is what came of asking about a service.
type topNews struct {
	about string
	stats *lbagentv1.StatsResponse // nil: there is none
	err   error                    // why
}

// run shows the view until somebody ends it. The terminal is what it was when it returns, also by a panic.
func (t *top) run(ctx context.Context, in, out *os.File) error {
	resized, ended, unwatch := watchSignals()
	defer unwatch()
	term, err := openTerminal(in, out)
	if err != nil {
		return err
	}
	defer term.restore()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	keys := make(chan key, 16)
	go term.keys(ctx, keys) // ends with the process: a read of a terminal can't be taken back
	t.fresh = make(chan topNews)
	t.begin(ctx)
	for {
		columns, rows := term.size()
		if err := term.show(t.m.screen(columns, rows, t.a.now())); err != nil {
			return fmt.Errorf("write to the terminal: %w", err)
		}
		select {
		case k := <-keys:
			before := t.m.opened
			if t.m.press(k, rows) {
				return nil
			}
			if t.m.opened != before {
				t.stop()
				t.begin(ctx)
			}
		case n := <-t.fresh:
			if n.about == t.m.opened {
				t.m.take(n)
			}
		case <-resized:
		case <-ended:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// begin has the agent asked about what is shown from now on.
func (t *top) begin(ctx context.Context) {
	ctx, t.stop = context.WithCancel(ctx)
	about := t.m.opened
	tell := func(n topNews) {
		n.about = about
		select {
		case t.fresh <- n:
		case <-ctx.Done():
		}
	}
	go func() {
		for ctx.Err() == nil {
			err := t.a.ask(ctx, func(ctx context.Context, c *agentConn) error {
				stream, err := lbagentv1.NewStatusServiceClient(c).Stats(ctx, &lbagentv1.StatsRequest{Service: about, Interval: durationpb.New(t.every)})
				for err == nil {
					var r *lbagentv1.StatsResponse
					if r, err = stream.Recv(); err == nil {
						tell(topNews{stats: r})
					}
				}
				return err
			})
			tell(topNews{err: err})
			select {
			case <-time.After(reconnectEvery):
			case <-ctx.Done():
			}
		}
	}()
}

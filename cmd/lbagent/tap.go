package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

func (a *app) tapVerb() *cobra.Command {
	var (
		asJSON bool
		count  uint32
		slow   time.Duration
		req    lbagentv1.TapRequest
	)
	cmd := &cobra.Command{
		Use:   "tap [SERVICE]",
		Short: "calls that go through the proxy, live: which backend, which status, how long",
		Long: `Prints each call at its end, of those that begin from now on; of tcp, each connection. Nothing is
looked at while nobody asks, and a reader that is too slow misses calls rather than slow them down:
what was left out is said. Queries of paths, headers and bodies are never shown. It is for root and
the agent's group.

A line has the time at which the call began; the protocol; the status; three times since it began
(until a backend was sent it / until its answer began / until the end; "-" is never); the backend,
with "x2" if it was the second that was tried; method and path; and how it ended, if not by a whole
answer: who ended it, how far it had come (request, connect, wait, answer) and why.

STATUS is one of HTTP (503), a class of them (5xx), one of gRPC by name or number (unavailable, 14),
or "error": whatever failed by the doing of a backend or of the agent.`,
		Example: "  lbagent tap user --status error\n  lbagent tap user --status 5xx,unavailable --slow 100ms --count 20",
		GroupID: groupWhy, Args: exactly("[SERVICE]"), ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				req.Service = args[0]
			}
			if slow > 0 {
				req.Slow = durationpb.New(slow)
			}
			t := &tapReader{a: a, asJSON: asJSON, count: count, req: &req}
			return a.lasting(cmd.Context(), func(met func()) error {
				return a.change(cmd.Context(), func(ctx context.Context, c *agentConn) error { return t.read(ctx, c, met) })
			}, func() { fmt.Fprintln(a.stderr, "lbagent: the agent has gone; waiting for it") })
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&req.Statuses, "status", nil, "only calls with one of `STATUS,...`: 503, 5xx, unavailable, error")
	f.StringVar(&req.Address, "backend", "", "only calls to this `HOST:PORT`")
	f.DurationVar(&slow, "slow", 0, "only calls that took at least so long, such as 100ms")
	f.Uint32Var(&count, "count", 0, "stop after `N` calls; 0 = never")
	f.Uint32Var(&req.PerSecond, "per-second", 0, "show at most `N` calls a second, 1 to 1000; 0 = 100")
	_ = cmd.RegisterFlagCompletionFunc("backend", a.completeBackend)
	jsonFlag(cmd, &asJSON)
	return cmd
}

// tapReader prints calls.
type tapReader struct {
	a      *app
	asJSON bool
	count  uint32 // to stop after; 0 = never
	req    *lbagentv1.TapRequest

	shown uint32
}

func (t *tapReader) read(ctx context.Context, c *agentConn, met func()) error {
	stream, err := lbagentv1.NewAdminServiceClient(c).Tap(ctx, t.req)
	if err != nil {
		return err
	}
	if head, _ := stream.Header(); head != nil { // else it is refused, as Recv will say
		met()
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return away(err)
		}
		if err := t.print(m); err != nil {
			return err
		}
		if t.count > 0 && t.shown >= t.count {
			return nil
		}
	}
}

func (t *tapReader) print(m *lbagentv1.TapResponse) error {
	a := t.a
	if n := m.GetLeftOut(); n > 0 {
		fmt.Fprintf(a.stderr, "lbagent: %s left out: more than are shown a second, or than are read\n", plural(int(n), "call"))
	}
	if m.GetCall() == nil {
		return nil
	}
	t.shown++
	if t.asJSON {
		return printJSON(a.stdout, m.GetCall(), true)
	}
	fmt.Fprintln(a.stdout, a.callLine(m.GetCall(), t.req.GetService() == ""))
	return a.stdout.err
}

// callLine is a call on one line, however long: it is to be searched by line.
func (a *app) callLine(c *lbagentv1.Call, named bool) string {
	what := strings.TrimSpace(c.GetMethod() + " " + c.GetPath())
	if c.GetProtocol() == "grpc" {
		what = c.GetPath() // the method is always POST
	}
	if c.GetProtocol() == "tcp" {
		what = fmt.Sprintf("%d bytes in, %d out", c.GetBytesIn(), c.GetBytesOut())
	}
	if named {
		what = c.GetService() + " " + what
	}
	backend := c.GetAddress()
	if backend == "" {
		backend = "-"
	}
	if c.GetAttempts() > 1 {
		backend += fmt.Sprintf(" x%d", c.GetAttempts())
	}
	line := fmt.Sprintf("%s  %s  %s  %s  %s  %s", c.GetTime().AsTime().In(a.now().Location()).Format("15:04:05.000"), pad(c.GetProtocol(), 5),
		pad(statusWord(c), 11), pad(timesOf(c), 20), pad(backend, 18), what)
	if c.GetPhase() != "done" {
		line += fmt.Sprintf("; ended by the %s in %s: %s", c.GetEndedBy(), c.GetPhase(), strings.TrimPrefix(c.GetCause(), "lbagent: "+c.GetService()+": "))
	}
	return strings.TrimRight(strings.ReplaceAll(clean(line), "\n", " "), " ")
}

// statusWord is how the call came out, in its protocol's words.
func statusWord(c *lbagentv1.Call) string {
	switch {
	case c.GrpcStatus != nil:
		return codes.Code(c.GetGrpcStatus()).String()
	case c.GetProtocol() != "tcp":
		return fmt.Sprint(c.GetStatus())
	case c.GetPhase() == "done":
		return "ok"
	}
	return "broken"
}

// timesOf is wait/first byte/total, in one unit.
func timesOf(c *lbagentv1.Call) string {
	total := c.GetTotal().AsDuration()
	unit, name := time.Microsecond, "µs"
	switch {
	case total >= 10*time.Second:
		unit, name = time.Second, "s"
	case total >= 10*time.Millisecond:
		unit, name = time.Millisecond, "ms"
	}
	one := func(d *durationpb.Duration) string {
		if d == nil {
			return "-"
		}
		return three(float64(d.AsDuration()) / float64(unit))
	}
	return one(c.GetWait()) + "/" + one(c.GetFirstByte()) + "/" + one(c.GetTotal()) + name
}

// three is f with about three digits.
func three(f float64) string {
	switch {
	case f >= 100 || f == 0:
		return fmt.Sprintf("%.0f", f)
	case f >= 10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// maxPicks is the API's own limit on the count of a Pick.
const maxPicks = 10000

func (a *app) servicesVerb() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "services",
		Short:   "every service that the agent follows",
		GroupID: groupAsk,
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.askOrRead(cmd.Context(), "", asJSON, func(ctx context.Context, c *agentConn) error {
				r, err := a.services(ctx, c)
				if err != nil || asJSON {
					return orJSON(a.stdout, r, err)
				}
				printServices(a.stdout, r.GetServices())
				return nil
			}, a.printLeftServices)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) services(ctx context.Context, c *agentConn) (*lbagentv1.ServicesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	return lbagentv1.NewLookupServiceClient(c).Services(ctx, &lbagentv1.ServicesRequest{})
}

func printServices(w io.Writer, all []*lbagentv1.ServiceInfo) {
	if len(all) == 0 {
		fmt.Fprintln(w, `No services. They are named under "services:" in the configuration.`)
		return
	}
	t := table{head: []string{"SERVICE", "USABLE", "SOURCE", "AGE", "PROTOCOL", "POLICY", "LISTENERS"}}
	for _, s := range all {
		source, age := s.GetProvenance().GetSource(), short(s.GetProvenance().GetAge().AsDuration())
		switch {
		case !s.GetReady():
			source, age = "no list yet", ""
		case source == "static":
			age = "" // the configuration does not grow old
		}
		usable := fmt.Sprintf("%d/%d", s.GetUsable(), s.GetBackends())
		if s.GetProvenance().GetPanic() {
			usable += " panic"
		}
		listeners := strings.Join(s.GetListeners(), " ")
		if s.GetOrigin() == "on-demand" {
			listeners = "(on demand)"
		}
		t.add(s.GetName(), usable, source, age, s.GetProtocol(), s.GetPolicy(), listeners)
	}
	t.print(w)
}

func (a *app) lookupVerb() *cobra.Command {
	var asJSON bool
	var count uint32
	cmd := &cobra.Command{
		Use:   "lookup SERVICE",
		Short: "the backend that a call should go to now",
		Long: `Prints the address that a call should go to now, as an application would get it.
With --count, the backends of that many calls, in the order in which to spend them.`,
		Example:           "  curl http://$(lbagent lookup user)/health\n  lbagent lookup user --count 100",
		GroupID:           groupAsk,
		Args:              exactly("SERVICE"),
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			if count < 1 || count > maxPicks {
				return &codedError{exitUsage, fmt.Errorf("--count %d: 1 to %d", count, maxPicks)}
			}
			return a.askOrRead(cmd.Context(), args[0], asJSON, func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, a.patience)
				defer cancel()
				r, err := lbagentv1.NewLookupServiceClient(c).Pick(ctx, &lbagentv1.PickRequest{Service: args[0], Count: count})
				if err != nil || asJSON {
					return orJSON(a.stdout, r, err)
				}
				if count == 1 && len(r.GetPicks()) > 0 {
					fmt.Fprintln(a.stdout, r.GetPicks()[0].GetAddress())
					return nil
				}
				t := table{head: []string{"BACKEND", "CALLS"}}
				for _, p := range r.GetPicks() {
					t.add(p.GetAddress(), fmt.Sprint(max(1, p.GetCount())))
				}
				t.print(a.stdout)
				return nil
			}, a.printLeftPick)
		},
	}
	cmd.Flags().Uint32Var(&count, "count", 1, "number of calls, 1 to 10000")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) listVerb() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "list SERVICE",
		Short:             "every backend of a service, with its verdict and why",
		GroupID:           groupAsk,
		Args:              exactly("SERVICE"),
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.askOrRead(cmd.Context(), args[0], asJSON, func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, a.patience)
				defer cancel()
				r, err := lbagentv1.NewLookupServiceClient(c).List(ctx, &lbagentv1.ListRequest{Service: args[0]})
				if err != nil || asJSON {
					return orJSON(a.stdout, r, err)
				}
				a.printList(r.GetService(), r.GetBackends(), r.GetProvenance())
				return nil
			}, a.printLeftList)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// printList writes a service's list as a headline and a table.
func (a *app) printList(name string, backends []*lbagentv1.Backend, p *lbagentv1.Provenance) {
	usable, tried := 0, 0
	for _, b := range backends {
		switch {
		case !b.GetUsable():
		case p.GetPanic() && !well(b):
			tried++
		default:
			usable++
		}
	}
	line := fmt.Sprintf("%s: %s, %d usable, %s", name, plural(len(backends), "backend"), usable, origin(p))
	if p.GetPanic() {
		line += fmt.Sprintf("; PANIC: too few are usable, so doubtful ones get calls, too: %d", tried)
	}
	paragraph(a.stdout, "", line)
	if len(backends) == 0 {
		paragraph(a.stdout, "", fmt.Sprintf("Why there are none: lbagent explain %s", name))
		return
	}
	t := table{head: []string{"BACKEND", "HOST", "VERDICT", "SINCE", "WEIGHT", "ZONE", "WHY"}}
	for _, b := range backends {
		t.add(b.GetAddress(), b.GetHost(), b.GetVerdict(), ago(a.now(), b.GetSince()), number(b.GetWeight()), b.GetZone(), why(b))
	}
	t.print(a.stdout)
}

// origin is where a list comes from and how old it is.
func origin(p *lbagentv1.Provenance) string {
	if p.GetSource() == "static" {
		return "from the configuration"
	}
	s := "from " + p.GetSource()
	if p.GetRevision() != 0 {
		s += fmt.Sprintf(" at revision %d", p.GetRevision())
	}
	return s + ", confirmed " + short(p.GetAge().AsDuration()) + " ago"
}

// why is a verdict's cause without the verdict in front, which has a column of its own.
func why(b *lbagentv1.Backend) string {
	cause := strings.TrimPrefix(b.GetCause(), b.GetVerdict()+": ")
	if b.GetUsable() && cause != "" && !well(b) {
		return "used nevertheless; " + cause
	}
	return cause
}

// well reports whether calls would go there outside panic: that is what "usable" counts everywhere, while the API's usable says of a backend that calls go there now.
func well(b *lbagentv1.Backend) bool { return b.GetVerdict() == "up" || b.GetVerdict() == "orphaned" }

// number is a weight with at most three digits behind the point.
func number(f float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", f), "0"), ".")
}

func (a *app) watchVerb() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "watch SERVICE",
		Short: "a service's list, now and whenever it changes",
		Long: `Prints a service's list, then a line for each change until it is stopped. The latest list wins: a slow
reader misses steps, never the last one. With --json, each list whole, one line each.`,
		GroupID:           groupAsk,
		Args:              exactly("SERVICE"),
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *agentConn) error {
				stream, err := lbagentv1.NewLookupServiceClient(c).Watch(ctx, &lbagentv1.WatchRequest{Service: args[0]})
				if err != nil {
					return err
				}
				var before *lbagentv1.WatchResponse
				for {
					r, err := stream.Recv()
					switch {
					case errors.Is(err, io.EOF):
						return errors.New("the agent ended the watch")
					case err != nil || asJSON:
						if err := orJSONLine(a.stdout, r, err); err != nil {
							return err
						}
					case before == nil:
						a.printList(r.GetService(), r.GetBackends(), r.GetProvenance())
					default:
						printLines(a.stdout, a.now(), differences(before, r))
					}
					if a.stdout.err != nil {
						return a.stdout.err
					}
					before = r
				}
			})
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// differences says in words what changed from one list to the next.
func differences(old, next *lbagentv1.WatchResponse) []string {
	var out []string
	before := make(map[string]*lbagentv1.Backend, len(old.GetBackends()))
	for _, b := range old.GetBackends() {
		before[b.GetAddress()] = b
	}
	for _, b := range next.GetBackends() {
		was, known := before[b.GetAddress()]
		delete(before, b.GetAddress())
		switch {
		case !known:
			out = append(out, fmt.Sprintf("%s added, %s, weight %s", b.GetAddress(), b.GetVerdict(), number(b.GetWeight())))
		case was.GetVerdict() != b.GetVerdict() || was.GetUsable() != b.GetUsable():
			line := fmt.Sprintf("%s %s, was %s", b.GetAddress(), b.GetVerdict(), was.GetVerdict())
			if cause := why(b); cause != "" {
				line += ": " + cause
			}
			out = append(out, line)
		case was.GetWeight() != b.GetWeight():
			out = append(out, fmt.Sprintf("%s weight %s, was %s", b.GetAddress(), number(b.GetWeight()), number(was.GetWeight())))
		}
	}
	for _, b := range old.GetBackends() { // in the order of the list
		if _, gone := before[b.GetAddress()]; gone {
			out = append(out, b.GetAddress()+" removed")
		}
	}
	switch was, is := old.GetProvenance(), next.GetProvenance(); {
	case is.GetPanic() && !was.GetPanic():
		out = append(out, "PANIC: too few backends are usable, so doubtful ones get calls, too")
	case was.GetPanic() && !is.GetPanic():
		out = append(out, "the panic is over")
	case was.GetSource() != is.GetSource():
		out = append(out, "the list is now "+origin(is))
	}
	return out
}

// printLines writes each text with the time in front.
func printLines(w io.Writer, now time.Time, lines []string) {
	for _, line := range lines {
		hanging(w, now.Format(time.TimeOnly)+"  ", line)
	}
}

// hanging writes s behind prefix; further lines are indented as much.
func hanging(w io.Writer, prefix, s string) {
	for _, line := range wrap(clean(s), max(width-len(prefix), 30)) {
		fmt.Fprintln(w, prefix+line)
		prefix = strings.Repeat(" ", len(prefix))
	}
}

func (a *app) envVerb() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "env SERVICE",
		Short:             "where the proxy listens for a service, as an environment variable",
		Example:           "  export $(lbagent env user)    # USER_ADDR=127.0.0.1:7001",
		GroupID:           groupAsk,
		Args:              exactly("SERVICE"),
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd.Context(), func(ctx context.Context, c *agentConn) error {
				r, err := a.services(ctx, c)
				if err != nil {
					return err
				}
				addr, err := listenerOf(r.GetServices(), args[0])
				if err != nil {
					return err
				}
				name := variable(args[0])
				if asJSON {
					raw, err := json.Marshal(map[string]string{name: addr})
					if err != nil {
						return fmt.Errorf("write JSON: %w", err)
					}
					return writeJSON(a.stdout, raw, false)
				}
				fmt.Fprintf(a.stdout, "%s=%s\n", name, addr)
				return nil
			})
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// listenerOf returns the listener of a service that most programs can use: IPv4 before IPv6 before a unix socket.
func listenerOf(all []*lbagentv1.ServiceInfo, name string) (string, error) {
	for _, s := range all {
		if s.GetName() != name {
			continue
		}
		best, rank := "", 3
		for _, l := range s.GetListeners() {
			r := 2
			if addr, err := netip.ParseAddrPort(l); err == nil {
				r = 1
				if addr.Addr().Is4() {
					r = 0
				}
			}
			if r < rank {
				best, rank = l, r
			}
		}
		if best == "" {
			return "", advise(fmt.Sprintf("the proxy does not listen for %q", name),
				fmt.Sprintf(`Give it "listen: [PORT]" in the configuration, or ask for a backend by "lbagent lookup %s".`, name))
		}
		return best, nil
	}
	var names []string
	for _, s := range all {
		names = append(names, s.GetName())
	}
	return "", &codedError{exitNone, fmt.Errorf(`no service %q; "lbagent services" names those that there are%s`, name, didYouMean(name, names))}
}

// variable is the name of the variable for a service: what isn't a letter or digit becomes _.
func variable(service string) string {
	name := strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' {
			return r - 'a' + 'A'
		}
		if 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' {
			return r
		}
		return '_'
	}, service)
	if '0' <= name[0] && name[0] <= '9' {
		name = "_" + name
	}
	return name + "_ADDR"
}

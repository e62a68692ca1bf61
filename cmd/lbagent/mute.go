package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

const mutesInStatus = 10 // "lbagent mute" names them all

func (a *app) muteVerb() *cobra.Command {
	var asJSON, fleet, force bool
	var length, reason string
	cmd := &cobra.Command{
		Use:   "mute [SERVICE BACKEND]",
		Short: "take a backend out by hand, here or on every host; or list what is",
		Long: `Takes a backend out at once: it gets no new calls, those that run go on, until the time is over or
"lbagent unmute" takes it back. That lasts through restarts of the agent and of the backend, and
panic does not override it. The backend need not be in the list: it may come.

With --fleet it is out on every host, within a second, by a key in etcd that ends by itself. If that
is half of the service or more, --force has to say that it is meant.

Without arguments it lists what is muted, which everybody may; only root and the group lbagent may
mute.`,
		Example: `  lbagent mute user 10.0.0.1:80 --for 15m
  lbagent mute user 10.0.0.1:80 --fleet --reason "bad disk, see OPS-4711"
  lbagent mute`,
		GroupID:           groupOperate,
		Args:              bothOrNone,
		ValidArgsFunction: a.completeBackend,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				for _, name := range []string{"for", "reason", "fleet", "force"} {
					if cmd.Flags().Changed(name) {
						return &codedError{exitUsage, fmt.Errorf("--%s needs SERVICE and BACKEND", name)}
					}
				}
				return a.listMutes(cmd.Context(), asJSON)
			}
			req := &lbagentv1.MuteRequest{Service: args[0], Address: args[1], Reason: reason, Fleet: fleet, Force: force, OnBehalfOf: a.getenv("SUDO_USER")}
			if cmd.Flags().Changed("for") {
				d, err := parseFor(length)
				if err != nil {
					return &codedError{exitUsage, err}
				}
				req.Duration = durationpb.New(d)
			}
			return a.change(cmd.Context(), func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, a.patience)
				defer cancel()
				r, err := lbagentv1.NewAdminServiceClient(c).Mute(ctx, req)
				if err != nil || asJSON {
					return orJSON(a.stdout, r, err)
				}
				m := r.GetMute()
				where := "on this host"
				if m.GetFleet() {
					where = "on every host"
				}
				paragraph(a.stdout, "", fmt.Sprintf("%s of %s is muted %s until %s: no new calls, those that run go on.",
					m.GetAddress(), m.GetService(), where, m.GetUntil().AsTime().In(a.now().Location()).Format(time.DateTime)))
				a.warn(r.GetWarnings())
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&length, "for", "1h", "how `LONG`: 90s, 15m, 1h30m, 2d; at most 7d")
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` for those who find it")
	cmd.Flags().BoolVar(&fleet, "fleet", false, "on every host; needs --reason")
	cmd.Flags().BoolVar(&force, "force", false, "with --fleet, also half of the service or more")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) unmuteVerb() *cobra.Command {
	var asJSON, fleet bool
	cmd := &cobra.Command{
		Use:   "unmute SERVICE BACKEND",
		Short: "take a mute back, here or on every host",
		Long: `Ends the mute of this host, or with --fleet the one of every host, whoever made it. That there is
none is no error. Only root and the group lbagent may.`,
		GroupID:           groupOperate,
		Args:              exactly("SERVICE", "BACKEND"),
		ValidArgsFunction: a.completeMuted,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, a.patience)
				defer cancel()
				r, err := lbagentv1.NewAdminServiceClient(c).Unmute(ctx, &lbagentv1.UnmuteRequest{
					Service: args[0], Address: args[1], Fleet: fleet, OnBehalfOf: a.getenv("SUDO_USER"),
				})
				if err != nil || asJSON {
					return orJSON(a.stdout, r, err)
				}
				where := "on this host"
				if fleet {
					where = "fleet-wide"
				}
				said := "is unmuted " + where
				if !r.GetWasMuted() {
					said = "was not muted " + where
				}
				paragraph(a.stdout, "", fmt.Sprintf("%s of %s %s.", args[1], args[0], said))
				a.warn(r.GetWarnings())
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&fleet, "fleet", false, "the fleet-wide mute instead of this host's")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// bothOrNone wants SERVICE and BACKEND, or neither.
func bothOrNone(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return exactly("SERVICE", "BACKEND")(cmd, args)
}

// parseFor reads how long a mute lasts; a day is a unit, too.
func parseFor(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n > 0 && n < 1000 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("--for %q is no time to mute for; write it as 90s, 15m, 1h30m or 2d", s)
	}
	return d, nil
}

func (a *app) warn(warnings []string) {
	for _, w := range warnings {
		hanging(a.stdout, "WARNING  ", w)
	}
}

func (a *app) mutes(ctx context.Context, c *agentConn) (*lbagentv1.MutesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	return lbagentv1.NewStatusServiceClient(c).Mutes(ctx, &lbagentv1.MutesRequest{})
}

func (a *app) listMutes(ctx context.Context, asJSON bool) error {
	return a.ask(ctx, func(ctx context.Context, c *agentConn) error {
		r, err := a.mutes(ctx, c)
		if err != nil || asJSON {
			return orJSON(a.stdout, r, err)
		}
		if len(r.GetMutes()) == 0 {
			fmt.Fprintln(a.stdout, "Nothing is muted.")
			return nil
		}
		t := table{head: []string{"SERVICE", "BACKEND", "WHERE", "ENDS IN", "BY", "REASON"}}
		for _, m := range r.GetMutes() {
			t.add(m.GetService(), m.GetAddress(), whereMuted(m), a.left(m), mutedBy(m), m.GetReason())
		}
		t.print(a.stdout)
		return nil
	})
}

func whereMuted(m *lbagentv1.MuteInfo) string {
	if m.GetFleet() {
		return "fleet"
	}
	return "here"
}

// mutedBy is who is to be asked: for a mute of the fleet, on which host, too.
func mutedBy(m *lbagentv1.MuteInfo) string {
	if m.GetFleet() {
		return m.GetAuthor() + " on " + m.GetHost()
	}
	return m.GetAuthor()
}

// left is the time that a mute has.
func (a *app) left(m *lbagentv1.MuteInfo) string { return short(m.GetUntil().AsTime().Sub(a.now())) }

// printMutes is the part of the status.
func (a *app) printMutes(mutes []*lbagentv1.MuteInfo, field func(name, text string)) {
	for i, m := range mutes {
		if i == mutesInStatus {
			field("", fmt.Sprintf(`and %d more; "lbagent mute" names them`, len(mutes)-i))
			return
		}
		name := ""
		if i == 0 {
			name = "muted"
		}
		text := fmt.Sprintf("%s %s (%s) by %s, ends in %s", m.GetService(), m.GetAddress(), whereMuted(m), mutedBy(m), a.left(m))
		if m.GetReason() != "" {
			text += ": " + m.GetReason()
		}
		field(name, text)
	}
}

// completeBackend completes the name of a service, then the address of one of its backends.
func (a *app) completeBackend(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return a.completeService(cmd, args, toComplete)
	}
	var addresses []string
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	_ = a.ask(ctx, func(ctx context.Context, c *agentConn) error { // without an agent there is nothing to complete
		r, err := lbagentv1.NewLookupServiceClient(c).List(ctx, &lbagentv1.ListRequest{Service: args[0]})
		for _, b := range r.GetBackends() {
			addresses = append(addresses, b.GetAddress())
		}
		return err
	})
	return addresses, cobra.ShellCompDirectiveNoFileComp
}

// completeMuted completes what is muted.
func (a *app) completeMuted(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var words []string
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	_ = a.ask(ctx, func(ctx context.Context, c *agentConn) error {
		r, err := a.mutes(ctx, c)
		for _, m := range r.GetMutes() {
			switch {
			case len(args) == 0:
				words = append(words, m.GetService())
			case len(args) == 1 && m.GetService() == args[0]:
				words = append(words, m.GetAddress())
			}
		}
		return err
	})
	return words, cobra.ShellCompDirectiveNoFileComp
}

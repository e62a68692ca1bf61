package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

func (a *app) acceptVerb() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "accept SERVICE",
		Short: "let go of backends that are kept although their keys are gone from etcd",
		Long: `When most keys of a service go from etcd at once, that looks like leases that expired and says nothing
about the backends: the agent keeps them as orphans while they are alive. This says that the keys are
right: the orphans go at once, on this host. Only root and the group lbagent may.`,
		GroupID:           groupOperate,
		Args:              exactly("SERVICE"),
		ValidArgsFunction: a.completeService,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, a.patience)
				defer cancel()
				r, err := lbagentv1.NewAdminServiceClient(c).Accept(ctx, &lbagentv1.AcceptRequest{Service: args[0]})
				if err != nil || asJSON {
					return orJSON(a.stdout, r, err)
				}
				switch gone := r.GetAddresses(); len(gone) {
				case 0:
					fmt.Fprintf(a.stdout, "%s has no orphans; nothing changed\n", args[0])
				case 1:
					fmt.Fprintf(a.stdout, "1 orphan of %s is gone: %s\n", args[0], gone[0])
				default:
					fmt.Fprintf(a.stdout, "%d orphans of %s are gone: %s\n", len(gone), args[0], strings.Join(gone, ", "))
				}
				return nil
			})
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

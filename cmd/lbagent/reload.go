package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

func (a *app) reloadVerb() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "make the agent read its configuration again",
		Long: `Makes the agent read its configuration again and prints what changed. If anything is wrong with it,
nothing changes and the answer says why. Only root and the group lbagent may.`,
		GroupID: groupProcess,
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.change(cmd.Context(), func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
				defer cancel()
				r, err := lbagentv1.NewAdminServiceClient(c).Reload(ctx, &lbagentv1.ReloadRequest{})
				if err != nil || asJSON {
					return orJSON(a.stdout, r, err)
				}
				if len(r.GetChanges()) == 0 {
					fmt.Fprintln(a.stdout, "reloaded; nothing changed")
				}
				for _, line := range r.GetChanges() {
					fmt.Fprintln(a.stdout, clean(line))
				}
				return nil
			})
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

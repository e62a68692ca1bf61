package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// upgradeTimeout is above what the agent gives its successor.
const upgradeTimeout = 20 * time.Second

func (a *app) upgradeVerb() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "have the installed program take the running agent's place",
		Long: `Starts the program that is installed now as the running agent's successor. It takes over every
socket, what is known of backends, and the registrations; callers notice nothing. Calls that run
end in the old process, which has drain_timeout (5m) for that.

If the new program crashes, refuses the configuration, or is not ready within 10 s, it ends, the
running agent goes on, and the answer says why. Only root and the group lbagent may.`,
		GroupID: groupProcess,
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.change(cmd.Context(), func(ctx context.Context, c *agentConn) error {
				ctx, cancel := context.WithTimeout(ctx, upgradeTimeout)
				defer cancel()
				r, err := lbagentv1.NewAdminServiceClient(c).Upgrade(ctx, &lbagentv1.UpgradeRequest{})
				if err != nil || asJSON {
					return orJSON(a.stdout, r, err)
				}
				fmt.Fprintf(a.stdout, "upgraded from %s to %s, pid %d\n", clean(r.GetFrom()), clean(r.GetTo()), r.GetPid())
				return nil
			})
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

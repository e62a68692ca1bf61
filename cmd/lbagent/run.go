package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/lbagent/lbagent/agent"
	"github.com/lbagent/lbagent/agent/config"
)

func (a *app) runVerb() *cobra.Command {
	o := agent.Options{}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "be the agent, until SIGTERM or SIGINT",
		Long: `Runs the agent until SIGTERM or SIGINT; a second one ends it at once. SIGHUP makes it read its
configuration again, like "lbagent reload". Beside FILE, it reads services.d/*.yaml.

If the configuration is invalid, the agent runs on the last one that worked and says so in its log
and in "lbagent status" until the file is mended and reloaded; --strict ends it instead.`,
		GroupID: groupProcess,
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Version = thisBuild().Version
			o.NewLog = func(c config.Log) hclog.Logger { return newLog(c, os.Stderr, a.getenv) }
			return runAgent(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.ConfigPath, "config", config.DefaultPath, "configuration `FILE`")
	cmd.Flags().BoolVar(&o.Strict, "strict", false, "end if the configuration is invalid")
	return cmd
}

// runAgent joins the agent with the process's signals.
func runAgent(ctx context.Context, o agent.Options) error {
	// Without this, the first line of log after its reader went (a restarted journald, the end of a pipe) would kill the process.
	signal.Ignore(syscall.SIGPIPE)
	hangUps := make(chan os.Signal, 1) // one more while a reload runs is one reload more, not many
	signal.Notify(hangUps, syscall.SIGHUP)
	defer signal.Stop(hangUps)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // the next signal is the kernel's to handle: it ends the process

	a, err := agent.New(o)
	if err != nil {
		return fmt.Errorf("the agent can't start: %w", err)
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case <-hangUps:
				_, _ = a.Reload(ctx) // the agent logs what came of it
			case <-ended:
				return
			}
		}
	}()
	return a.Run(ctx)
}

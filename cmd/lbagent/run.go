package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/lbagent/lbagent/agent"
	"github.com/lbagent/lbagent/agent/config"
)

func (a *app) runVerb() *cobra.Command {
	o := agent.Options{}
	var static staticFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "be the agent, until SIGTERM or SIGINT",
		Long: `Runs the agent until SIGTERM or SIGINT; a second one ends it at once. SIGHUP makes it read its
configuration again, like "lbagent reload". Beside FILE, it reads services.d/*.yaml.

If the configuration is invalid, the agent runs on the last one that worked and says so in its log
and in "lbagent status" until the file is mended and reloaded; --strict ends it instead.

With --static it reads no file, and needs no etcd, no root and no /run/lbagent: for a laptop or a CI
job. Its sockets are in $XDG_RUNTIME_DIR/lbagent or a temporary folder, or where --socket says.`,
		Example: `  lbagent run
  lbagent run --static user=127.0.0.1:8080,127.0.0.1:8081 --listen 20001
  lbagent run --static user=10.0.0.1:80 --listen 20001 --static cart=dns:cart.svc:80 --listen 20002`,
		GroupID: groupProcess,
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Version = thisBuild().Version
			o.Binary, o.Args = thisProgram(), os.Args[1:]
			o.NewLog = func(c config.Log) hclog.Logger { return newLog(c, os.Stderr, a.getenv) }
			if len(static.services) == 0 {
				return runAgent(cmd.Context(), o)
			}
			p, remove, err := a.staticPlaces(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			defer remove()
			if o.Config, err = static.config(p); err != nil {
				return &codedError{exitUsage, err}
			}
			fmt.Fprintf(a.stderr, "lbagent: in another terminal, to ask it: %s\n", p.exports())
			return runAgent(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.ConfigPath, "config", config.DefaultPath, "configuration `FILE`")
	cmd.Flags().BoolVar(&o.Strict, "strict", false, "end if the configuration is invalid")
	static.add(cmd)
	cmd.MarkFlagsMutuallyExclusive("static", "config")
	cmd.MarkFlagsMutuallyExclusive("static", "strict")
	return cmd
}

// thisProgram is the path that this process was started by: what an upgrade starts, since a package puts the new program there. That is not /proc/self/exe, which says where links
// have led to at the start, or that the program was deleted.
func thisProgram() string {
	path, err := exec.LookPath(os.Args[0])
	if err != nil && !errors.Is(err, exec.ErrDot) {
		path = os.Args[0]
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return path
}

// startGC lets the heap grow while configuration and spool are read, of which nearly all stays: looking at it again and again on the way would be half of what a start
// takes. Higher gives the first answers sooner, and costs memory until the collection that follows.
const startGC = 1000

// usualGC lets the heap grow by two fifths between two collections, by which a host that follows 1,000 services stays below 100 MiB. Higher costs memory, lower CPU time: a
// collection looks at all that lives, some 40 ms for those. GOGC in the environment goes before it.
const usualGC = 40

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

	usual := debug.SetGCPercent(startGC)
	if os.Getenv("GOGC") == "" {
		usual = usualGC
	}
	a, err := agent.New(ctx, o)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil // stopped before it began
	case err != nil:
		return fmt.Errorf("the agent can't start: %w", err)
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		loaded := a.Loaded()
		for {
			select {
			case <-loaded:
				debug.SetGCPercent(usual)
				loaded = nil
			case <-hangUps:
				_, _ = a.Reload(ctx) // the agent logs what came of it
			case <-ended:
				return
			}
		}
	}()
	return a.Run(ctx)
}

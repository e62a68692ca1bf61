package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// Exit codes, part of the promise of DESIGN.md 6.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2 // the command line is wrong
	exitNone    = 3 // no such service or backend, or no usable backend
	exitLeft    = 4 // there is no agent; what was printed is what the last one left on disk
)

// answerTimeout is the usual patience: no client hangs over 5 s (SEMANTICS 6.6).
const answerTimeout = 5 * time.Second

// Where a packaged agent listens.
const (
	defaultSocket      = "/run/lbagent/lbagent.sock"
	defaultAdminSocket = "/run/lbagent-admin/admin.sock"
)

// app is one call of the program: what it sees of the process, so that tests can stand in for it, and the flags of all verbs.
type app struct {
	stdout   *output
	stderr   io.Writer
	getenv   func(string) string
	now      func() time.Time
	patience time.Duration // bounds a question to the agent, which answers from memory

	lasts bool // each connection is to one agent: what follows one over its restarts looks after them itself

	socket, adminSocket string
	config              string // the file that says where an agent that isn't there kept its state; "" = the packaged one
}

// output is stdout; it remembers the first error, so that a full disk behind it doesn't look like success.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.w.Write(p)
	if err != nil {
		o.err = fmt.Errorf("write the answer: %w", err)
	}
	return n, o.err
}

// codedError is an error that ends the process with a code of its own.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// execute runs one command line and returns the exit code.
func (a *app) execute(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(append([]string{}, args...)) // cobra takes nil for os.Args
	root.SetOut(a.stdout)                     // help
	root.SetErr(a.stderr)
	// Cobra does not say which errors are the command line's: they are those that come before a verb begins.
	began := false
	root.PersistentPreRun = func(*cobra.Command, []string) { began = true }
	verb, err := root.ExecuteContextC(ctx)
	code := exitFailure
	if a.stdout.err != nil {
		err, began = a.stdout.err, true
	}
	if err == nil {
		return exitOK
	}
	if coded, ok := errors.AsType[*codedError](err); ok {
		code = coded.code
	} else if !began {
		code = exitUsage
	}
	if text := err.Error(); text != "" {
		// The sentence of 4.5 brings the name itself.
		fmt.Fprintf(a.stderr, "lbagent: %s\n", clean(strings.TrimPrefix(text, "lbagent: ")))
	}
	if code == exitUsage {
		fmt.Fprintf(a.stderr, "Usage: %s\n", verb.UseLine())
		fmt.Fprintf(a.stderr, "More:  %s --help\n", verb.CommandPath())
	}
	return code
}

// root is the command line.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lbagent VERB",
		Short: "load balancing for every program on this host",
		Long: `lbagent keeps the service lists of etcd, knows which backends are alive, and gives every program
on this host load balancing without a client library. "lbagent run" is the daemon; the other verbs
ask it.

Exit codes: 0 done, 1 failed, 2 wrong command line, 3 no such service or no usable backend,
4 there is no agent, and what was printed is what the last one left on disk.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return unknownVerb(cmd, args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(likeFlags)
	root.Version = thisBuild().line()
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetUsageTemplate(usage)
	flags := root.PersistentFlags()
	flags.StringVar(&a.socket, "socket", cmp.Or(a.getenv("LBAGENT_SOCKET"), defaultSocket),
		"`PATH`, or LBAGENT_SOCKET, or "+defaultSocket)
	flags.StringVar(&a.adminSocket, "admin-socket", cmp.Or(a.getenv("LBAGENT_ADMIN_SOCKET"), defaultAdminSocket),
		"`PATH`, or LBAGENT_ADMIN_SOCKET, or "+defaultAdminSocket)
	flags.Lookup("socket").DefValue, flags.Lookup("admin-socket").DefValue = "", "" // the texts say it
	root.AddGroup(
		&cobra.Group{ID: groupProcess, Title: "The process and its configuration:"},
		&cobra.Group{ID: groupAsk, Title: "What an application would get:"},
		&cobra.Group{ID: groupHost, Title: "Services of this host:"},
		&cobra.Group{ID: groupWhy, Title: "What is going on, and why:"},
		&cobra.Group{ID: groupOperate, Title: "Operating:"},
	)
	root.AddCommand(
		a.runVerb(), a.checkVerb(), a.scanVerb(), a.reloadVerb(), a.upgradeVerb(), a.configVerb(), a.versionVerb(), completionVerb(), manualVerb(),
		a.registerVerb(), a.deregisterVerb(), a.drainVerb(), a.undrainVerb(),
		a.servicesVerb(), a.lookupVerb(), a.listVerb(), a.watchVerb(), a.envVerb(),
		a.statusVerb(), a.explainVerb(), a.topVerb(), a.eventsVerb(), a.tapVerb(), a.doctorVerb(),
		a.muteVerb(), a.unmuteVerb(), a.acceptVerb(),
	)
	root.SetHelpCommand(helpVerb())
	root.SetHelpCommandGroupID(groupProcess)
	root.InitDefaultVersionFlag()
	root.Flags().Lookup("version").Usage = "print the version"
	return root
}

// usage is the form of the help behind its first lines.
const usage = `Usage:
  {{.UseLine}}
{{- if .HasExample}}

Examples:
{{.Example}}
{{- end}}
{{- $all := .Commands}}
{{- range $group := .Groups}}

{{.Title}}
{{- range $all}}{{if and .IsAvailableCommand (eq .GroupID $group.ID)}}
  {{rpad .Name .NamePadding}}  {{.Short}}{{end}}{{end}}
{{- end}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}
{{- if .HasAvailableInheritedFlags}}

Of every verb:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}
{{- end}}
{{- if .HasAvailableSubCommands}}

{{if .HasParent}}"{{.CommandPath}} VERB --help"{{else}}"{{.CommandPath}} help VERB"{{end}} says more about a verb.
{{- end}}
`

// Groups of verbs in the help.
const (
	groupProcess = "process"
	groupAsk     = "ask"
	groupHost    = "host"
	groupWhy     = "why"
	groupOperate = "operate"
)

func unknownVerb(cmd *cobra.Command, word string) error {
	var verbs []string
	for _, verb := range cmd.Commands() {
		if verb.IsAvailableCommand() {
			verbs = append(verbs, verb.Name())
		}
	}
	return fmt.Errorf("no verb %q%s", word, didYouMean(word, verbs))
}

// helpVerb is cobra's, but a wrong topic is an error.
func helpVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "help [VERB]",
		Short: "say how to use a verb",
		Args: func(cmd *cobra.Command, args []string) error {
			if verb, rest, err := cmd.Root().Find(args); err != nil || verb == nil || len(rest) > 0 {
				return unknownVerb(cmd.Root(), strings.Join(args, " "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			verb, _, err := cmd.Root().Find(args)
			if err != nil {
				return err
			}
			verb.InitDefaultHelpFlag()
			return verb.Help()
		},
	}
}

// completionVerb prints what a shell needs to complete verbs, flags and the names of services.
func completionVerb() *cobra.Command {
	return &cobra.Command{
		Use:       "completion SHELL",
		Short:     "a script that makes bash, zsh or fish complete verbs and services",
		Example:   "  source <(lbagent completion bash)",
		GroupID:   groupProcess,
		ValidArgs: []string{"bash", "zsh", "fish"},
		Args:      cobra.MatchAll(exactly("SHELL"), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			}
			return root.GenFishCompletion(out, true)
		},
	}
}

// exactly wants the arguments that names says: "SERVICE", "[BACKEND]" may be absent.
func exactly(names ...string) cobra.PositionalArgs {
	required := 0
	for _, n := range names {
		if !strings.HasPrefix(n, "[") {
			required++
		}
	}
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < required:
			return fmt.Errorf("%s is missing", names[len(args)])
		case len(args) > len(names):
			return fmt.Errorf("one argument too many: %q", args[len(names)])
		}
		for i, arg := range args {
			if arg == "" {
				return fmt.Errorf("%s is empty", strings.Trim(names[i], "[]"))
			}
		}
		return nil
	}
}

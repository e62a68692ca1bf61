package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/lbagent/lbagent/agent"
	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/etcd"
	"github.com/lbagent/lbagent/agent/fleet"
)

// configVerb is the family of verbs about the services that etcd keeps for all hosts.
func (a *app) configVerb() *cobra.Command {
	f := &fleetFlags{}
	cmd := &cobra.Command{
		Use:   "config",
		Short: "the services that etcd keeps for all hosts: put, get, list, history, rm",
		Long: `The fleet's services: one key in etcd for each, which every agent with the same fleet.prefix
follows. These verbs read and write etcd themselves, as the etcd: and fleet: of a configuration say;
they need no agent.

What is put is checked first, against all other items too: a port that another service has is
refused, also if two people put at once.`,
		GroupID: groupProcess,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return unknownVerb(cmd, args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SuggestionsMinimumDistance = 2
	flags := cmd.PersistentFlags()
	flags.StringVar(&f.path, "config", config.DefaultPath, "configuration `FILE`")
	flags.StringSliceVar(&f.endpoints, "etcd", nil, "`URL` of etcd, instead of the file's etcd.endpoints")
	flags.StringVar(&f.prefix, "prefix", "", "`PREFIX` of the items, instead of the file's fleet.prefix")
	flags.StringVar(&f.user, "user", "", "`NAME` of etcd's user, instead of the file's etcd.username")
	flags.StringVar(&f.passwordFile, "password-file", "", "`FILE` with the password of --user")
	const group = "verbs"
	cmd.AddGroup(&cobra.Group{ID: group, Title: "Verbs:"})
	for _, verb := range []*cobra.Command{a.configPutVerb(f), a.configGetVerb(f), a.configListVerb(f), a.configHistoryVerb(f), a.configRemoveVerb(f)} {
		verb.GroupID = group
		cmd.AddCommand(verb)
	}
	return cmd
}

// fleetFlags say where the fleet's items are.
type fleetFlags struct {
	path, prefix, user, passwordFile string
	endpoints                        []string
}

// fleetStore is etcd as a person changes it.
type fleetStore struct {
	*fleet.Store

	config *config.Config
	prefix string
}

// load reads the configuration that says where etcd is, and what a service is by default.
func (f *fleetFlags) load() (*config.Config, string, error) {
	c, err := config.Load(f.path)
	if len(f.endpoints) > 0 {
		given, givenErr := config.ForFleet(f.endpoints)
		switch {
		case givenErr != nil:
			return nil, "", &codedError{exitUsage, givenErr}
		case errors.Is(err, fs.ErrNotExist):
			c, err = given, nil
		case err == nil && c.Etcd == nil:
			c.Etcd = given.Etcd
		case err == nil:
			c.Etcd.Endpoints = given.Etcd.Endpoints
		}
	}
	switch {
	case err != nil && errors.Is(err, fs.ErrNotExist):
		return nil, "", advise(err.Error(), "Say where by --config FILE, or name etcd by --etcd URL and --prefix lbagent/config/.")
	case err != nil:
		return nil, "", mistakes(err)
	case c.Etcd == nil:
		return nil, "", advise(fmt.Sprintf("etcd: is not configured in %s", f.path), "Write it there, or name etcd by --etcd URL.")
	}
	prefix := ""
	switch {
	case f.prefix != "" && !strings.HasSuffix(f.prefix, "/"):
		return nil, "", &codedError{exitUsage, fmt.Errorf("--prefix %q does not end in /", f.prefix)}
	case f.prefix != "":
		prefix = c.Etcd.Namespace + f.prefix
	case c.Fleet != nil:
		prefix = c.Fleet.Prefix
	default:
		return nil, "", advise(fmt.Sprintf("fleet: is not configured in %s", f.path),
			"Write fleet: {prefix: lbagent/config/} there, and in the file of every host that is to follow; or say --prefix lbagent/config/.")
	}
	if (f.user == "") != (f.passwordFile == "") {
		return nil, "", &codedError{exitUsage, errors.New("--user and --password-file belong together")}
	}
	if f.user != "" {
		c.Etcd.Username, c.Etcd.PasswordFile = f.user, f.passwordFile
	}
	return c, prefix, nil
}

// fleetStore connects to etcd and calls do, whose errors it explains.
func (a *app) fleetStore(ctx context.Context, f *fleetFlags, do func(context.Context, *fleetStore) error) error {
	c, prefix, err := f.load()
	if err != nil {
		return err
	}
	where := strings.Join(c.Etcd.Endpoints, ", ")
	why := &lastError{}
	ctx, cancel := context.WithCancelCause(ctx) // the client's life, too
	defer cancel(nil)
	late := time.AfterFunc(a.patience, func() { cancel(context.DeadlineExceeded) })
	client, err := etcd.Dial(ctx, *agent.EtcdOf(c.Etcd), why.set)
	if err == nil {
		defer client.Close()
		err = client.Ready(ctx)
	}
	if !late.Stop() && err != nil {
		err = context.DeadlineExceeded
	}
	if err != nil {
		return noEtcd(where, why.or(err))
	}
	err = do(ctx, &fleetStore{Store: fleet.NewStore(client, prefix), config: c, prefix: prefix})
	switch {
	case err == nil:
	case etcd.IsDenied(err):
		who := cmp.Or(c.Etcd.Username, "whom the client certificate names")
		return advise(fmt.Sprintf("etcd does not let user %s do that: %v", who, err),
			fmt.Sprintf("To read takes a role with read on the prefix %s and on %s; to change takes readwrite on both.", prefix, fleet.HistoryPrefix(prefix)),
			"Another user is named by --user NAME --password-file FILE.")
	case etcd.IsAuth(err):
		return advise(fmt.Sprintf("etcd at %s does not know who asks: %v", where, err), "A user is named by etcd.username in the configuration, or by --user NAME --password-file FILE.")
	case errors.Is(err, context.DeadlineExceeded):
		return noEtcd(where, why.or(err))
	}
	return etcd.Plain(err)
}

// lastError is why a connection failed last. Safe for concurrent use.
type lastError struct {
	mu sync.Mutex

	err error
}

func (l *lastError) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// or is that, or err if nothing is known, or err says more than that time is up.
func (l *lastError) or(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return l.err
}

func noEtcd(where string, err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.New("no answer in time; does it have a leader?")
	}
	if errors.Is(err, fs.ErrPermission) { // the agent's password is not everybody's
		return advise(fmt.Sprintf("etcd at %s can't be used: %v", where, err), "Use sudo, or another user of etcd: --user NAME --password-file FILE.")
	}
	return advise(fmt.Sprintf("etcd at %s can't be used: %v", where, etcd.Plain(err)),
		"The agents go on with what they have. Nothing was changed, unless the answer to a change is what is missing: see \"lbagent config list\" later.")
}

// author is who changes something: the person behind sudo, and the host.
func (a *app) author() string {
	name := cmp.Or(a.getenv("SUDO_USER"), a.getenv("USER"), a.getenv("LOGNAME"))
	if name == "" {
		if u, err := user.Current(); err == nil {
			name = u.Username
		}
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return cmp.Or(name, "nobody") + "@" + host
}

// items are what is in etcd as the checks take it, in the order in which it was written; without is left out.
func (s *fleetStore) items(now *fleet.Snapshot, without ...string) []config.Item {
	entries := slices.Clone(now.Items)
	slices.SortStableFunc(entries, func(x, y fleet.Entry) int { return cmp.Compare(x.Modified, y.Modified) })
	var out []config.Item
	for _, e := range entries {
		if !slices.Contains(without, e.Key) {
			out = append(out, config.Item{Key: e.Key, File: "etcd:" + s.prefix + e.Key, Now: e.Now})
		}
	}
	return out
}

// validItem is the argument SERVICE or SERVICE/VARIANT.
func validItem(key string) error {
	if _, _, err := config.SplitKey(key); err != nil {
		return &codedError{exitUsage, err}
	}
	return nil
}

// completeItem completes the key of an item when Tab is pressed.
func (a *app) completeItem(f *fleetFlags) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		var keys []string
		if len(args) > 0 && !strings.HasPrefix(cmd.Use, "rm") {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		_ = a.fleetStore(ctx, f, func(ctx context.Context, s *fleetStore) error { // without etcd there is nothing to complete
			now, err := s.Read(ctx)
			if err == nil {
				for _, e := range now.Items {
					keys = append(keys, e.Key)
				}
			}
			return err
		})
		return keys, cobra.ShellCompDirectiveNoFileComp
	}
}

// when is a time in the caller's zone.
func (a *app) when(t time.Time) string { return t.In(a.now().Location()).Format(time.DateTime) }

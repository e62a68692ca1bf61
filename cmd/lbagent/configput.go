package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/fleet"
)

// maxPutFile bounds a file that is put: more than MaxChanges items of the largest size.
const maxPutFile = (fleet.MaxChanges + 1) * config.MaxItem

// change is what put and rm have in common.
type change struct {
	reason string
	dryRun bool
	asJSON bool
}

func (c *change) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.reason, "reason", "", "`TEXT` for the history")
	cmd.Flags().BoolVarP(&c.dryRun, "dry-run", "n", false, "check and compare, and write nothing")
	jsonFlag(cmd, &c.asJSON)
}

func (a *app) configPutVerb(f *fleetFlags) *cobra.Command {
	var (
		c             change
		variant       string
		version, over int
	)
	cmd := &cobra.Command{
		Use:   "put FILE|-|SERVICE",
		Short: "keep services for all hosts, or go back to an older version",
		Long: `Puts the service that FILE describes, or standard input if that is "-", into etcd: one entry of
services:, as a file of services.d would have it, or services: with several of them, which come
together or not at all. With --version, puts an older version of SERVICE back.

An item with only: {zone: ...}, {region: ...} or {node: ...} is for the hosts that match. With
--variant it stands beside the item itself and takes its place on those hosts: a canary.`,
		Example: `  lbagent config put user.yaml --reason "new port"
  lbagent config get user | sed s/7001/7002/ | lbagent config put - --dry-run
  lbagent config put user-new.yaml --variant canary
  lbagent config put user --version 3`,
		Args: exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.fleetStore(cmd.Context(), f, func(ctx context.Context, s *fleetStore) error {
				var items []config.Item
				var err error
				if version > 0 {
					items, err = s.older(ctx, args[0], variant, version)
				} else {
					items, err = readItems(cmd.InOrStdin(), args[0], variant)
				}
				if err != nil {
					return err
				}
				changes := make([]fleet.Change, len(items))
				for i, item := range items {
					changes[i] = fleet.Change{Key: item.Key, Text: item.Now, Over: over}
				}
				return a.write(ctx, s, c, changes, func(now *fleet.Snapshot) error { return s.judge(now, items) })
			})
		},
	}
	c.flags(cmd)
	cmd.Flags().StringVar(&variant, "variant", "", "`NAME` of a variant with only: beside the item itself")
	cmd.Flags().IntVar(&version, "version", 0, "put version `N` of SERVICE back")
	cmd.Flags().IntVar(&over, "over", 0, "refuse if version `N` is not the latest any more")
	return cmd
}

func (a *app) configRemoveVerb(f *fleetFlags) *cobra.Command {
	var c change
	var vanished bool
	cmd := &cobra.Command{
		Use:   "rm SERVICE...",
		Short: "remove services from all hosts",
		Long: `Removes services, or variants of them (SERVICE/VARIANT), from etcd. Every agent drops them, and
lets their running calls end.

If many items vanish from etcd in another way, agents keep them in force: it may be an accident.
--vanished says, once for all hosts, that these were meant to go.`,
		Args: func(cmd *cobra.Command, args []string) error {
			return exactly(append([]string{"SERVICE"}, args[min(1, len(args)):]...)...)(cmd, args)
		},
		ValidArgsFunction: a.completeItem(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			var changes []fleet.Change
			for _, key := range args {
				if err := validItem(key); err != nil {
					return err
				}
				changes = append(changes, fleet.Change{Key: key, Remove: true})
			}
			return a.fleetStore(cmd.Context(), f, func(ctx context.Context, s *fleetStore) error {
				return a.write(ctx, s, c, changes, func(now *fleet.Snapshot) error {
					for _, key := range args {
						if _, ok := now.Find(key); !ok && !vanished {
							return &codedError{exitNone, advise(fmt.Sprintf("no item %s in etcd below %s", key, s.prefix),
								"If agents keep it in force since too many items vanished at once, say --vanished.")}
						}
					}
					return nil
				})
			})
		},
	}
	c.flags(cmd)
	cmd.Flags().BoolVar(&vanished, "vanished", false, "also what is not in etcd any more")
	return cmd
}

// readItems reads what is to be put.
func readItems(stdin io.Reader, file, variant string) ([]config.Item, error) {
	in, name := stdin, "stdin"
	if file != "-" {
		opened, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer opened.Close()
		in, name = opened, file
	}
	data, err := io.ReadAll(io.LimitReader(in, maxPutFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", name, err)
	case len(data) > maxPutFile:
		return nil, fmt.Errorf("%s has more than %d KiB", name, maxPutFile>>10)
	}
	items, err := config.FleetItems(name, data)
	if err != nil {
		return nil, notPut(err)
	}
	if variant == "" {
		return items, nil
	}
	if len(items) > 1 {
		return nil, &codedError{exitUsage, fmt.Errorf("--variant is for one service, %s has %d", name, len(items))}
	}
	items[0].Key += "/" + variant
	return items, validItem(items[0].Key)
}

// older reads a version that the history has.
func (s *fleetStore) older(ctx context.Context, key, variant string, version int) ([]config.Item, error) {
	if variant != "" {
		key += "/" + variant
	}
	v, err := s.version(ctx, key, version)
	if err != nil {
		return nil, err
	}
	if v.Removed {
		return nil, fmt.Errorf("version %d of %s is its removal; \"lbagent config rm %s\" does that again", version, key, key)
	}
	return []config.Item{{Key: key, File: fmt.Sprintf("%s, version %d", key, version), Now: v.Text}}, nil
}

// judge says whether items may be put beside all others.
func (s *fleetStore) judge(now *fleet.Snapshot, items []config.Item) error {
	var keys []string
	for _, item := range items {
		if slices.Contains(keys, item.Key) {
			return fmt.Errorf("%s: %s is written twice", item.File, item.Key)
		}
		keys = append(keys, item.Key)
	}
	all := s.items(now, keys...) // before those that come: of two that clash, the later one gives way
	others := len(all)
	all = append(all, items...)
	var errs []error
	for _, fate := range s.config.CheckFleet(all)[others:] {
		if fate.Problem != nil {
			errs = append(errs, fate.Problem)
		}
	}
	if len(errs) > 0 {
		return notPut(errors.Join(errs...))
	}
	return nil
}

func notPut(err error) error {
	return fmt.Errorf("nothing was put:\n%w", err)
}

// wrote is what put and rm say as JSON.
type wrote struct {
	Revision int64           `json:"revision"` // of etcd; 0 = nothing was written, the versions are what would be
	Versions []fleet.Version `json:"versions"`
}

// write makes changes, all or none, and says what changed.
func (a *app) write(ctx context.Context, s *fleetStore, c change, changes []fleet.Change, check func(*fleet.Snapshot) error) error {
	if c.dryRun {
		return a.wouldWrite(ctx, s, c, changes, check)
	}
	by := fleet.By{Time: a.now(), Author: a.author(), Reason: c.reason}
	w, err := s.Write(ctx, by, changes, check)
	if errors.Is(err, fleet.ErrNothing) {
		w, err = &fleet.Written{Versions: []fleet.Version{}}, nil
	}
	if err != nil {
		return err
	}
	if c.asJSON {
		return a.printAsJSON(wrote{w.Revision, w.Versions})
	}
	if len(w.Versions) == 0 {
		fmt.Fprintln(a.stdout, "all of it is so already; nothing was written")
		return nil
	}
	for i, v := range w.Versions {
		what := "put"
		if v.Removed {
			what = "removed"
		}
		fmt.Fprintf(a.stdout, "%s: %s, version %d\n", clean(v.Key), what, v.Version)
		a.printDiff(w.Before[i], v.Text)
	}
	hanging(a.stdout, "", fmt.Sprintf("agents that follow %s have it within a second, as etcd revision %d", s.prefix, w.Revision))
	return nil
}

// wouldWrite says what write would do.
func (a *app) wouldWrite(ctx context.Context, s *fleetStore, how change, changes []fleet.Change, check func(*fleet.Snapshot) error) error {
	now, err := s.Read(ctx)
	if err == nil {
		err = check(now)
	}
	if err != nil {
		return err
	}
	if how.asJSON {
		said := wrote{Versions: []fleet.Version{}}
		for _, c := range changes {
			said.Versions = append(said.Versions, fleet.Version{Key: c.Key, Removed: c.Remove, Text: c.Text, Time: a.now(), Author: a.author(), Reason: how.reason})
		}
		return a.printAsJSON(said)
	}
	for _, c := range changes {
		old, _ := now.Find(c.Key)
		what := "would be put"
		switch {
		case c.Remove:
			what = "would be removed"
		case old.Now == c.Text:
			what = "is so already"
		}
		fmt.Fprintf(a.stdout, "%s: %s\n", clean(c.Key), what)
		a.printDiff(old.Now, c.Text)
	}
	return nil
}

// printDiff writes the lines that differ, with those around them.
func (a *app) printDiff(before, after string) {
	for _, line := range diff(strings.Split(strings.TrimSuffix(before, "\n"), "\n"), strings.Split(strings.TrimSuffix(after, "\n"), "\n")) {
		fmt.Fprintln(a.stdout, strings.TrimRight("  "+clean(line), " "))
	}
}

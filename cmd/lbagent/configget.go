package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lbagent/lbagent/agent/fleet"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// gotItem is an item as JSON.
type gotItem struct {
	Key      string `json:"key"`
	Revision int64  `json:"revision,omitempty"` // of etcd; 0 = an older version
	Version  int    `json:"version,omitempty"`  // 0 = the history doesn't have it
	Author   string `json:"author,omitempty"`
	Text     string `json:"text"`
}

func (a *app) configGetVerb(f *fleetFlags) *cobra.Command {
	var asJSON bool
	var version int
	cmd := &cobra.Command{
		Use:               "get SERVICE",
		Short:             "the text of a service, or of an older version of it, as it was put",
		Args:              exactly("SERVICE"),
		ValidArgsFunction: a.completeItem(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			key := args[0]
			if err := validItem(key); err != nil {
				return err
			}
			return a.fleetStore(cmd.Context(), f, func(ctx context.Context, s *fleetStore) error {
				got, err := s.get(ctx, key, version, asJSON)
				if err != nil {
					return err
				}
				if !asJSON {
					// As it was put, so that it can be put again; what a terminal should not get has no place in YAML either.
					fmt.Fprint(a.stdout, got.Text)
					if !strings.HasSuffix(got.Text, "\n") {
						fmt.Fprintln(a.stdout)
					}
					return nil
				}
				return a.printAsJSON(got)
			})
		},
	}
	cmd.Flags().IntVar(&version, "version", 0, "version `N` of the history")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) printAsJSON(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return writeJSON(a.stdout, raw, false)
}

// get is an item as it is now, or as it was; whose it is only if all is wanted.
func (s *fleetStore) get(ctx context.Context, key string, version int, all bool) (gotItem, error) {
	if version > 0 {
		v, err := s.version(ctx, key, version)
		if err == nil && v.Removed {
			err = &codedError{exitNone, fmt.Errorf("version %d of %s is its removal", version, key)}
		}
		return gotItem{Key: key, Version: v.Version, Author: v.Author, Text: v.Text}, err
	}
	now, err := s.Read(ctx)
	if err != nil {
		return gotItem{}, err
	}
	e, ok := now.Find(key)
	if !ok {
		return gotItem{}, &codedError{exitNone, advise(fmt.Sprintf("no item %s in etcd below %s", key, s.prefix),
			`"lbagent config list" names those that are there, "lbagent config history" those that were.`)}
	}
	got := gotItem{Key: key, Revision: e.Modified, Text: e.Now}
	if !all {
		return got, nil
	}
	versions, err := s.History(ctx, key)
	if err != nil {
		return got, err
	}
	i := slices.IndexFunc(versions, func(v fleet.Version) bool { return v.Key == key })
	if i >= 0 && versions[i].Text == e.Now {
		got.Version, got.Author = versions[i].Version, versions[i].Author
	}
	return got, nil
}

// version is one of the history.
func (s *fleetStore) version(ctx context.Context, key string, version int) (fleet.Version, error) {
	if err := validItem(key); err != nil {
		return fleet.Version{}, err
	}
	v, err := s.Get(ctx, key, version)
	if errors.Is(err, fleet.ErrNone) {
		return v, &codedError{exitNone, err}
	}
	return v, err
}

// listed is an item in the list.
type listed struct {
	Key      string   `json:"key"`
	Only     string   `json:"only,omitempty"` // in words; absent = all hosts
	Listen   []string `json:"listen"`
	Source   string   `json:"source"` // where the backends come from
	Revision int64    `json:"revision"`
	Problem  string   `json:"problem,omitempty"`
	Here     string   `json:"here,omitempty"` // what the agent of this host made of it; absent = there is none that follows these items
}

func (a *app) configListVerb(f *fleetFlags) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "every service that etcd keeps for all hosts",
		Long: `Lists the items, what is wrong with each, and, if an agent that follows them runs on this host, what
it made of them (HERE): in force; elsewhere, since its only: names other hosts; hidden by a variant;
overridden by a file of this host; bad, if the text can't be used here; held, if etcd lost it.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.fleetStore(cmd.Context(), f, func(ctx context.Context, s *fleetStore) error {
				now, err := s.Read(ctx)
				if err != nil {
					return err
				}
				list := s.list(now, a.here(ctx, s.prefix))
				if asJSON {
					return a.printAsJSON(struct {
						Prefix   string   `json:"prefix"`
						Revision int64    `json:"revision"`
						Items    []listed `json:"items"`
					}{s.prefix, now.Revision, list})
				}
				a.printItems(s, list)
				return nil
			})
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// here is what the agent of this host made of the items, by key; empty if there is none, or it follows others.
func (a *app) here(ctx context.Context, prefix string) map[string]*lbagentv1.FleetItem {
	out := make(map[string]*lbagentv1.FleetItem)
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	_ = a.ask(ctx, func(ctx context.Context, c *agentConn) error { // the list is no worse without
		r, err := lbagentv1.NewStatusServiceClient(c).Status(ctx, &lbagentv1.StatusRequest{})
		if r.GetFleet().GetPrefix() == prefix {
			for _, item := range r.GetFleet().GetItems() {
				out[item.GetKey()] = item
			}
		}
		return err
	})
	return out
}

func (s *fleetStore) list(now *fleet.Snapshot, here map[string]*lbagentv1.FleetItem) []listed {
	items := s.items(now)
	out := make([]listed, 0, len(items))
	for i, fate := range s.config.CheckFleet(items) {
		e, _ := now.Find(items[i].Key)
		l := listed{Key: e.Key, Only: fate.Only, Listen: []string{}, Revision: e.Modified, Here: hereWords(here[e.Key])}
		for _, addr := range fate.Service.Listen {
			l.Listen = append(l.Listen, addr.String())
		}
		l.Source = cmp.Or(fate.Service.EtcdPrefix, fate.Service.EtcdKey)
		if n := len(fate.Service.Backends); n > 0 {
			l.Source = plural(n, "static backend")
		}
		if fate.Problem != nil {
			l.Problem = fate.Problem.Error()
		} else if item := here[e.Key]; item.GetProblem() != "" {
			l.Problem = "on this host: " + item.GetProblem()
		}
		out = append(out, l)
	}
	for key, item := range here { // what etcd no longer has
		if item.GetHeld() != nil {
			out = append(out, listed{Key: key, Only: item.GetOnly(), Listen: []string{}, Source: "-", Here: hereWords(item),
				Problem: "it vanished from etcd and stays in force: put it back, or say once, for all hosts: lbagent config rm --vanished " + key})
		}
	}
	slices.SortFunc(out, func(x, y listed) int { return strings.Compare(x.Key, y.Key) })
	return out
}

func hereWords(item *lbagentv1.FleetItem) string {
	switch {
	case item == nil:
		return ""
	case item.GetHeld() != nil:
		return "held"
	case item.GetLastGood():
		return "last good form " + item.GetPlace()
	case item.GetBy() != "":
		return item.GetPlace() + " by " + item.GetBy()
	}
	return item.GetPlace()
}

func (a *app) printItems(s *fleetStore, list []listed) {
	if len(list) == 0 {
		hanging(a.stdout, "", fmt.Sprintf("no items below %s; \"lbagent config put FILE\" writes one", s.prefix))
		return
	}
	t := table{head: []string{"ITEM", "FOR", "LISTENS", "BACKENDS", "HERE"}}
	for _, l := range list {
		t.add(l.Key, cmp.Or(l.Only, "all"), strings.Join(ports(l.Listen), " "), l.Source, l.Here)
	}
	t.print(a.stdout)
	for _, l := range list {
		if l.Problem != "" {
			fmt.Fprintln(a.stdout)
			for i, line := range strings.Split(l.Problem, "\n") {
				hanging(a.stdout, pad(map[bool]string{true: clean(l.Key) + ":"}[i == 0], len(l.Key)+1)+" ", clean(line))
			}
		}
	}
}

// ports shortens the two addresses of a bare port to that port.
func ports(listen []string) []string {
	var out []string
	for _, l := range listen {
		port, v4 := strings.CutPrefix(l, "127.0.0.1:")
		v6 := strings.TrimPrefix(l, "[::1]:")
		switch {
		case v4 && slices.Contains(listen, "[::1]:"+port):
			out = append(out, port)
		case v6 != l && slices.Contains(listen, "127.0.0.1:"+v6):
		default:
			out = append(out, l)
		}
	}
	return out
}

func (a *app) configHistoryVerb(f *fleetFlags) *cobra.Command {
	var asJSON, withDiff bool
	var most int
	cmd := &cobra.Command{
		Use:   "history [SERVICE]",
		Short: "who changed which service, when, and why",
		Long: fmt.Sprintf(`Lists the last changes, newest first: of SERVICE and its variants, or of all. The last %d versions
of each are kept, those of removed services too; "lbagent config get SERVICE --version N" prints
one, and "lbagent config put SERVICE --version N" puts it back.`, fleet.KeepVersions),
		Args:              exactly("[SERVICE]"),
		ValidArgsFunction: a.completeItem(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			key := ""
			if len(args) > 0 {
				key = args[0]
				if err := validItem(key); err != nil {
					return err
				}
			}
			return a.fleetStore(cmd.Context(), f, func(ctx context.Context, s *fleetStore) error {
				all, err := s.History(ctx, key)
				if err != nil {
					return err
				}
				if len(all) == 0 && key != "" {
					return &codedError{exitNone, fmt.Errorf("%s has no history", key)}
				}
				texts := previous(all)
				slices.SortStableFunc(all, func(x, y fleet.Version) int { return y.Time.Compare(x.Time) })
				all = all[:min(len(all), most)]
				if asJSON {
					return a.printAsJSON(struct {
						Versions []fleet.Version `json:"versions"`
					}{append([]fleet.Version{}, all...)})
				}
				now, err := s.Read(ctx)
				if err != nil {
					return err
				}
				a.printHistory(all, texts, withDiff)
				a.printUnwritten(s, now, all, key)
				return nil
			})
		},
	}
	cmd.Flags().IntVar(&most, "most", 20, "the last `N` changes")
	cmd.Flags().BoolVarP(&withDiff, "diff", "d", false, "say what each changed")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// previous is the text before each version, by key and version; all is sorted by both.
func previous(all []fleet.Version) map[string]string {
	texts := make(map[string]string)
	for i, v := range all {
		if i+1 < len(all) && all[i+1].Key == v.Key {
			texts[fmt.Sprint(v.Key, " ", v.Version)] = all[i+1].Text
		}
	}
	return texts
}

func (a *app) printHistory(all []fleet.Version, texts map[string]string, withDiff bool) {
	if len(all) == 0 {
		fmt.Fprintln(a.stdout, "nothing was put yet")
		return
	}
	rows := func(v fleet.Version) []string {
		what := "put"
		if v.Removed {
			what = "removed"
		}
		return []string{v.Key, fmt.Sprint(v.Version), a.when(v.Time), v.Author, what, v.Reason}
	}
	head := []string{"ITEM", "VERSION", "TIME", "BY", "WHAT", "REASON"}
	if !withDiff {
		t := table{head: head}
		for _, v := range all {
			t.add(rows(v)...)
		}
		t.print(a.stdout)
		return
	}
	for i, v := range all {
		if i > 0 {
			fmt.Fprintln(a.stdout)
		}
		cells := rows(v)
		hanging(a.stdout, "", strings.TrimSpace(fmt.Sprintf("%s version %s, %s %s by %s  %s", cells[0], cells[1], cells[4], cells[2], cells[3], cells[5])))
		a.printDiff(texts[fmt.Sprint(v.Key, " ", v.Version)], v.Text)
	}
}

// printUnwritten names what was written with another tool: the history does not have it yet.
func (a *app) printUnwritten(s *fleetStore, now *fleet.Snapshot, all []fleet.Version, key string) {
	latest := make(map[string]fleet.Version)
	for _, v := range all {
		if v.Version > latest[v.Key].Version {
			latest[v.Key] = v
		}
	}
	for _, e := range now.Items {
		v, ok := latest[e.Key]
		mine := key == "" || e.Key == key || strings.HasPrefix(e.Key, key+"/")
		if mine && (ok && v.Text != e.Now || !ok && key != "") {
			hanging(a.stdout, "", fmt.Sprintf("%s was written without lbagent config, as etcd revision %d; its text is kept when it is put the next time", e.Key, e.Modified))
		}
	}
}

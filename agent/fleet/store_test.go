package fleet

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lbagent/lbagent/agent/discovery/etcdtest"
	"github.com/lbagent/lbagent/agent/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func anything(*Snapshot) error { return nil }

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// write writes texts, "" = remove, as author.
func write(t *testing.T, s *Store, author string, pairs ...string) *Written {
	t.Helper()
	var changes []Change
	for i := 0; i < len(pairs); i += 2 {
		changes = append(changes, Change{Key: pairs[i], Text: pairs[i+1], Remove: pairs[i+1] == ""})
	}
	w, err := s.Write(t.Context(), By{Time: noon, Author: author, Reason: "because"}, changes, anything)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func tellHistory(t *testing.T, s *Store, key string) string {
	t.Helper()
	all, err := s.History(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, v := range all {
		text := v.Text
		if v.Removed {
			text = "removed"
		}
		fmt.Fprintf(&b, "%s %d %s %s; ", v.Key, v.Version, v.Author, text)
	}
	return b.String()
}

// TestHistory: every write has a version with its author, the last KeepVersions stay, and what others wrote without this tool isn't lost.
func TestHistory(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, server)
	s := NewStore(etcd.Wrap(c), "ns/f/")
	w := write(t, s, "ann", "user", "1", "mail", "1", "user/new", "9")
	if len(w.Versions) != 3 || w.Versions[0].Version != 1 || w.Before[0] != "" || w.Revision == 0 {
		t.Errorf("%+v", w)
	}
	if w = write(t, s, "bob", "user", "2"); w.Versions[0].Version != 2 || w.Before[0] != "1" {
		t.Errorf("%+v", w)
	}
	if got, want := tellHistory(t, s, "user"), "user 2 bob 2; user 1 ann 1; user/new 1 ann 9; "; got != want {
		t.Errorf("got %s want %s", got, want)
	}
	if _, err := s.Write(t.Context(), By{}, []Change{{Key: "user", Text: "2"}, {Key: "mail", Text: "1"}}, anything); !errors.Is(err, ErrNothing) {
		t.Errorf("nothing to change: %v", err)
	}
	put(t, c, "ns/f/user", "by hand")
	write(t, s, "ann", "user", "3")
	if got, want := tellHistory(t, s, "user"), "user 4 ann 3; user 3 unknown by hand; user 2 bob 2; user 1 ann 1; user/new 1 ann 9; "; got != want {
		t.Errorf("got %s want %s", got, want)
	}
	write(t, s, "ann", "user", "")
	if snapshot, err := s.Read(t.Context()); err != nil || len(snapshot.Items) != 2 || len(snapshot.removed) != 1 {
		t.Errorf("%+v, %v", snapshot, err)
	}
	write(t, s, "bob", "user", "4")
	if got, want := tellHistory(t, s, "user"), "user 6 bob 4; user 5 ann removed; user 4"; !strings.HasPrefix(got, want) {
		t.Errorf("got %s want %s", got, want)
	}
	if snapshot, err := s.Read(t.Context()); err != nil || len(snapshot.removed) != 0 {
		t.Errorf("it is there again, and yet removed: %+v, %v", snapshot, err)
	}
	for i := range 12 {
		write(t, s, "ann", "user", fmt.Sprint("text ", i))
	}
	all, err := s.History(t.Context(), "user")
	if err != nil || len(all) != KeepVersions+1 || all[0].Version != 18 || all[KeepVersions-1].Version != 9 {
		t.Errorf("%d versions, the first is %+v, %v", len(all), all[0], err)
	}
	// etcd's own memory is not needed.
	if err := server.Compact(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	v, err := s.Get(t.Context(), "user", 9)
	if err != nil || v.Text != "text 2" || v.Author != "ann" || !v.Time.Equal(noon) || v.Reason != "because" {
		t.Errorf("%+v, %v", v, err)
	}
	for _, c := range []struct {
		key     string
		version int
		want    string
	}{{"user", 1, "user has no version 1, there are 18, 17"}, {"nobody", 1, "nobody has no history"}} {
		if _, err := s.Get(t.Context(), c.key, c.version); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	if all, err := s.History(t.Context(), ""); err != nil || len(all) != KeepVersions+2 || all[0].Key != "mail" {
		t.Errorf("all: %d, %v", len(all), err)
	}
}

// TestOver: who says which version the change was made of does not undo another's.
func TestOver(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, server)
	s := NewStore(etcd.Wrap(c), "f/")
	write(t, s, "ann", "user", "1")
	over := func(version int, text string) error {
		_, err := s.Write(t.Context(), By{}, []Change{{Key: "user", Text: text, Over: version}}, anything)
		return err
	}
	if err := over(1, "2"); err != nil {
		t.Error(err)
	}
	if err := over(1, "3"); !errors.Is(err, ErrNotThen) {
		t.Errorf("over an older version: %v", err)
	}
	put(t, c, "f/user", "by hand")
	if err := over(2, "3"); !errors.Is(err, ErrNotThen) {
		t.Errorf("over what was written with another tool: %v", err)
	}
}

// TestRace: of two people who take one port at the same moment, one is refused; that holds against other tools too.
func TestRace(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, server)
	s := NewStore(etcd.Wrap(c), "f/")
	taken := errors.New("taken")
	claim := func(key, port string, before func()) error {
		tries := 0
		_, err := s.Write(t.Context(), By{Author: key}, []Change{{Key: key, Text: port}}, func(now *Snapshot) error {
			for _, e := range now.Items {
				if e.Now == port && e.Key != key {
					return fmt.Errorf("%w by %s", taken, e.Key)
				}
			}
			if tries++; before != nil && tries == 1 {
				before()
			}
			return nil
		})
		return err
	}
	// Between the judgement of one and its write, the other is written.
	if err := claim("a", "7001", func() { put(t, c, "f/b", "7001") }); !errors.Is(err, taken) {
		t.Errorf("the other came first: %v", err)
	}
	if err := claim("a", "7002", func() { put(t, c, "f/b", "7003") }); err != nil {
		t.Errorf("the other took another port: %v", err)
	}
	if err := claim("a", "7009", func() { del(t, c, "f/a") }); err != nil {
		t.Errorf("somebody removed it: %v", err)
	}
	for round := range 10 {
		port := fmt.Sprint(8000 + round)
		var wg sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			wg.Go(func() { errs[i] = claim(fmt.Sprintf("r%d-%d", round, i), port, nil) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			switch {
			case err == nil:
				won++
			case !errors.Is(err, taken):
				t.Errorf("round %d: %v", round, err)
			}
		}
		r, err := c.Get(t.Context(), fmt.Sprintf("f/r%d-", round), clientv3.WithPrefix())
		if won != 1 || err != nil || r.Count != 1 {
			t.Errorf("round %d: %d have the port, etcd has %d, %v", round, won, r.Count, err)
		}
	}
	if _, err := s.Write(t.Context(), By{}, make([]Change, MaxChanges+1), anything); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("too many: %v", err)
	}
}

// TestMost: the most that one Write may change fits into one transaction of etcd, with all that belongs to it.
func TestMost(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Config{})
	c := etcdtest.NewClient(t, server)
	s := NewStore(etcd.Wrap(c), "f/")
	var pairs []string
	for i := range MaxChanges {
		pairs = append(pairs, fmt.Sprint("s", i), "")
	}
	for round := range KeepVersions + 1 {
		for i := range MaxChanges {
			pairs[2*i+1] = fmt.Sprint("text ", round)
		}
		write(t, s, "ann", pairs...)
	}
	for i := range MaxChanges {
		put(t, c, fmt.Sprint("f/s", i), "by hand")
		pairs[2*i+1] = ""
	}
	if w := write(t, s, "ann", pairs...); len(w.Versions) != MaxChanges || w.Versions[0].Version != KeepVersions+3 {
		t.Errorf("%+v", w.Versions[0])
	}
}

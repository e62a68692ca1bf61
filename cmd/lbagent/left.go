package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lbagent/lbagent/agent/config"
	"github.com/lbagent/lbagent/agent/discovery"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

// leftovers is what an agent that isn't there has left on this host (SEMANTICS 1.8, 6.6): what verbs that only look can still say.
type leftovers struct {
	Agent    string         `json:"agent"` // "absent"
	Why      string         `json:"why"`
	Services []*leftService `json:"services"`
	Notes    []string       `json:"notes,omitempty"` // what could not be read
}

// leftService is the last list of a service.
type leftService struct {
	Service   string        `json:"service"`
	Revision  int64         `json:"revision,omitempty"` // of etcd; only of the spool
	Confirmed time.Time     `json:"confirmed"`          // by its source; without the spool, when the file was written
	Backends  []leftBackend `json:"backends"`
	Spooled   bool          `json:"spooled"`
}

type leftBackend struct {
	Address string   `json:"address"`
	Weight  *float64 `json:"weight,omitempty"` // the effective one, as it was last; 0 = only if all others fail; nil: unknown, or it got no calls
	Static  uint32   `json:"static_weight,omitempty"`
	Zone    string   `json:"zone,omitempty"`
	Key     string   `json:"key,omitempty"`
	Drains  bool     `json:"draining,omitempty"`
}

// askOrRead asks the agent. If there is none, it says so, and has what was left of one shown, of one service if only names it; that is an error with a code of its own.
func (a *app) askOrRead(ctx context.Context, only string, asJSON bool, ask func(context.Context, *agentConn) error, show func(*leftovers) error) error {
	err := a.ask(ctx, ask)
	if _, absent := errors.AsType[*absentError](err); !absent {
		return err
	}
	l := a.leftovers()
	if len(l.Services) == 0 {
		for _, note := range l.Notes {
			err = fmt.Errorf("%w\n%s", err, note)
		}
		return err
	}
	l.Why, _, _ = strings.Cut(err.Error(), "\n")
	fmt.Fprintf(a.stderr, "lbagent: %s\nWhat follows is what the last agent left on disk; it may be out of date.\n", clean(err.Error()))
	for _, note := range l.Notes {
		fmt.Fprintln(a.stderr, clean(note))
	}
	if only != "" {
		s, err := l.find(only)
		if err != nil {
			return err
		}
		l.Services = []*leftService{s}
	}
	if !asJSON {
		return cmp.Or(show(l), left())
	}
	raw, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return cmp.Or(writeJSON(a.stdout, raw, false), left())
}

// left ends the process with its own code; all has been said.
func left() error { return &codedError{exitLeft, errors.New("")} }

// leftovers reads the spool, and the files for callers beside the socket.
func (a *app) leftovers() *leftovers {
	l := &leftovers{Agent: "absent"}
	file := cmp.Or(a.config, a.getenv("LBAGENT_CONFIG"), config.DefaultPath)
	dir := filepath.Join(config.Options{}.StateDirOf(file, config.DefaultStateDir), "lists")
	lists, unread, err := discovery.ReadSpool(dir)
	switch {
	case errors.Is(err, fs.ErrPermission):
		l.Notes = append(l.Notes, "The spool in "+dir+" is for root and the agent's user to read: with sudo there may be more.")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		l.Notes = append(l.Notes, err.Error())
	}
	for _, what := range unread {
		l.Notes = append(l.Notes, "In the spool "+what)
	}
	for _, list := range lists {
		s := &leftService{Service: list.Service, Revision: list.Revision, Confirmed: list.Confirmed, Spooled: true}
		for _, b := range list.Backends {
			s.Backends = append(s.Backends, leftBackend{Address: b.Addr.String(), Static: b.Weight, Zone: b.Zone, Key: b.Key, Drains: b.Draining})
		}
		l.Services = append(l.Services, s)
	}
	l.addFiles(filepath.Join(filepath.Dir(a.socket), "lists"))
	slices.SortFunc(l.Services, func(a, b *leftService) int { return strings.Compare(a.Service, b.Service) })
	return l
}

// find is the service of that name; an error if there is none.
func (l *leftovers) find(name string) (*leftService, error) {
	for _, s := range l.Services {
		if s.Service == name {
			return s, nil
		}
	}
	return nil, &codedError{exitNone, fmt.Errorf("the last agent left no list of %q%s", name, didYouMean(name, l.names()))}
}

func (l *leftovers) names() (all []string) {
	for _, s := range l.Services {
		all = append(all, s.Service)
	}
	return all
}

// addFiles adds the weights of the files that callers read while there is no agent, and the lists that the spool doesn't have.
func (l *leftovers) addFiles(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // what the spool has is enough
	}
	for _, e := range entries {
		name := lbagentv1.ListFileService(e.Name())
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || strings.HasPrefix(e.Name(), ".") || info.Size() > 64<<20 {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			l.Notes = append(l.Notes, err.Error())
			continue
		}
		s, err := l.find(name)
		if err != nil {
			s = &leftService{Service: name, Confirmed: info.ModTime()}
			l.Services = append(l.Services, s)
		}
		s.add(string(text))
	}
}

// add reads a file of `host:port weight` lines, the best first, and brings the backends into that order.
func (s *leftService) add(text string) {
	var first []leftBackend
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		address, w, _ := strings.Cut(lines.Text(), " ")
		weight, err := strconv.ParseFloat(w, 64)
		if err != nil {
			continue
		}
		one := leftBackend{Address: address}
		if i := slices.IndexFunc(s.Backends, func(b leftBackend) bool { return b.Address == address }); i >= 0 {
			one = s.Backends[i]
			s.Backends = slices.Delete(s.Backends, i, i+1)
		}
		one.Weight = &weight
		first = append(first, one)
	}
	s.Backends = append(first, s.Backends...)
}

// best is the backend that a call should have gone to last; nil if none could have.
func (s *leftService) best() *leftBackend {
	for i := range s.Backends {
		if b := &s.Backends[i]; b.Weight != nil || s.Spooled && !b.Drains {
			return b
		}
	}
	return nil
}

// origin is where the list comes from and how old it is.
func (s *leftService) origin(now time.Time) string {
	if !s.Spooled {
		return "from the file for callers, written " + short(now.Sub(s.Confirmed)) + " ago"
	}
	from := "from the spool"
	if s.Revision > 0 {
		from += fmt.Sprintf(", etcd's at revision %d", s.Revision)
	}
	return from + ", confirmed " + short(now.Sub(s.Confirmed)) + " ago"
}

// printLeftServices writes what there is, a line per service.
func (a *app) printLeftServices(l *leftovers) error {
	t := table{head: []string{"SERVICE", "BACKENDS", "REVISION", "AGE", "FROM"}}
	for _, s := range l.Services {
		from, revision := "file for callers", ""
		if s.Spooled {
			from, revision = "spool", fmt.Sprint(s.Revision)
		}
		t.add(s.Service, fmt.Sprint(len(s.Backends)), revision, short(a.now().Sub(s.Confirmed)), from)
	}
	t.print(a.stdout)
	return a.stdout.err
}

// printLeftList writes the last list of the one service.
func (a *app) printLeftList(l *leftovers) error {
	s := l.Services[0]
	paragraph(a.stdout, "", fmt.Sprintf("%s: %s, %s; which of them are alive nobody knows now", s.Service, plural(len(s.Backends), "backend"), s.origin(a.now())))
	t := table{head: []string{"BACKEND", "WEIGHT", "STATIC", "ZONE", "STATE", "KEY"}}
	for _, b := range s.Backends {
		weight, static, state := "", "", ""
		if b.Weight != nil {
			weight = number(*b.Weight)
		}
		if b.Static > 0 {
			static = fmt.Sprint(b.Static)
		}
		if b.Drains {
			state = "draining"
		}
		t.add(b.Address, weight, static, b.Zone, state, b.Key)
	}
	t.print(a.stdout)
	return a.stdout.err
}

// printLeftPick writes the backend that was best last.
func (a *app) printLeftPick(l *leftovers) error {
	b := l.Services[0].best()
	if b == nil {
		return &codedError{exitNone, fmt.Errorf("the last list of %q has no backend", l.Services[0].Service)}
	}
	fmt.Fprintln(a.stdout, b.Address)
	return a.stdout.err
}

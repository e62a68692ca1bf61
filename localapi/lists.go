package localapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/lbagent/lbagent/agent/service"
	"github.com/lbagent/lbagent/agent/table"
	lbagentv1 "github.com/lbagent/lbagent/localapi/lbagent/v1"
)

const (
	listsEvery  = time.Second         // between two rounds of writing
	listsRetry  = 10 * time.Second    // after a round that failed
	listsLook   = 10 * time.Second    // between two looks whether the folder is still there: something on the host may clear /run
	listsStale  = 30 * 24 * time.Hour // files of services that nobody follows are removed at start when this old; a quiet list's file is old, too
	listTmpName = ".tmp-"
)

// ListsConfig wires Lists.
type ListsConfig struct {
	Log   hclog.Logger
	Table *table.Table
	Dir   string // made with 0755 if it is missing
}

// Lists writes each service's list to a file, for callers while there is no agent (SEMANTICS 6.6). The files stay when the agent ends.
type Lists struct {
	cfg  ListsConfig
	seed maphash.Seed // orders backends of equal weight: another order on each host and run, so that `head -1` doesn't send all hosts to one
	wake chan struct{}

	written map[string]uint64 // a hash of what each file holds; Run's own
	failed  bool

	mu sync.Mutex

	dirty map[string]*table.Service
}

// NewLists returns a Lists; it touches no file before Run.
func NewLists(cfg ListsConfig) (*Lists, error) {
	if cfg.Log == nil || cfg.Table == nil || cfg.Dir == "" {
		return nil, errors.New("lists: Log, Table and Dir are required")
	}
	return &Lists{
		cfg:     cfg,
		seed:    maphash.MakeSeed(),
		wake:    make(chan struct{}, 1),
		written: map[string]uint64{},
		dirty:   map[string]*table.Service{},
	}, nil
}

// Published notes that s has a new view (table.Config.OnPublish). It never blocks.
func (l *Lists) Published(s *table.Service) {
	l.mu.Lock()
	l.dirty[s.Name()] = s
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends; what was published by then is written before it returns. A disk that takes no files is a warning, and tried again.
func (l *Lists) Run(ctx context.Context) error {
	if err := makeDir(l.cfg.Dir, 0o755, false, 0); err != nil {
		l.cfg.Log.Warn("lists for callers without an agent can't be written", "path", l.cfg.Dir, "cause", err)
	}
	l.sweep(time.Now())
	l.all() // published before there was a Lists
	look := time.NewTicker(listsLook)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			l.round(time.Now())
			return nil
		case <-look.C:
			l.restore()
			continue
		case <-l.wake:
		}
		pause := listsEvery
		if !l.round(time.Now()) {
			pause = listsRetry
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			l.round(time.Now())
			return nil
		case <-timer.C:
		}
	}
}

// all notes every service.
func (l *Lists) all() {
	for _, s := range l.cfg.Table.Services() {
		l.Published(s)
	}
}

// restore has all files written again if somebody removed the folder, or one of them.
func (l *Lists) restore() {
	entries, err := os.ReadDir(l.cfg.Dir)
	there := make(map[string]bool, len(entries))
	for _, e := range entries {
		there[e.Name()] = true
	}
	missing := false
	for name := range l.written {
		if !there[lbagentv1.ListFile(name)] {
			missing = true
			delete(l.written, name)
		}
	}
	if !missing && !errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err := makeDir(l.cfg.Dir, 0o755, false, 0); err != nil {
		return // the round says so
	}
	l.all()
}

// round writes what is dirty; false if something couldn't be.
func (l *Lists) round(now time.Time) bool {
	l.mu.Lock()
	dirty := l.dirty
	l.dirty = map[string]*table.Service{}
	l.mu.Unlock()
	if len(dirty) == 0 {
		return true
	}
	root, err := os.OpenRoot(l.cfg.Dir)
	if err == nil {
		defer root.Close()
		for name, s := range dirty {
			if e := l.update(root, now, s); e != nil {
				err = fmt.Errorf("list of %q: %w", name, e)
				break
			}
			delete(dirty, name)
		}
	}
	if err == nil {
		if l.failed {
			l.cfg.Log.Info("lists for callers without an agent are written again", "path", l.cfg.Dir)
		}
		l.failed = false
		return true
	}
	if !l.failed {
		l.cfg.Log.Warn("lists for callers without an agent can't be written", "path", l.cfg.Dir, "cause", err)
	}
	l.failed = true
	for _, s := range dirty { // unless a newer one has come
		l.again(s)
	}
	return false
}

// again notes s once more, unless a newer one of its name was published.
func (l *Lists) again(s *table.Service) {
	l.mu.Lock()
	if _, newer := l.dirty[s.Name()]; !newer {
		l.dirty[s.Name()] = s
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// update makes the file of s what its view says.
func (l *Lists) update(root *os.Root, now time.Time, s *table.Service) error {
	v := s.View()
	name := s.Name()
	if v.Gone {
		if l.cfg.Table.Lookup(name) != nil {
			return nil // followed again already
		}
		delete(l.written, name)
		if err := root.Remove(lbagentv1.ListFile(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if !v.Ready {
		return nil // what a former agent wrote is better than nothing
	}
	text := l.format(v)
	sum := maphash.Bytes(l.seed, text)
	if old, ok := l.written[name]; ok && old == sum {
		return nil
	}
	if err := replaceFile(root, lbagentv1.ListFile(name), text); err != nil {
		return err
	}
	l.written[name] = sum
	return nil
}

// format is the file: usable backends by weight, then those of last resort with weight 0. Draining and muted ones get no calls, so they aren't in it.
func (l *Lists) format(v *table.View) []byte {
	type line struct {
		addr   string
		weight float64
		order  uint64
	}
	var lines []line
	for i, ok := range usable(v) {
		b := v.Backend(i)
		if !mayBeTried(b.Verdict) {
			continue
		}
		n := line{addr: b.Addr.String()}
		if ok {
			n.weight = b.Weight
		}
		n.order = maphash.String(l.seed, n.addr)
		lines = append(lines, n)
	}
	slices.SortFunc(lines, func(a, b line) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.order, b.order))
	})
	var out []byte
	for _, n := range lines {
		out = append(out, n.addr...)
		out = append(out, ' ')
		out = strconv.AppendFloat(out, n.weight, 'f', -1, 64)
		out = append(out, '\n')
	}
	return out
}

// replaceFile writes name whole or not at all, readable by all.
func replaceFile(root *os.Root, name string, text []byte) error {
	tmp := listTmpName + strconv.Itoa(os.Getpid())
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = root.Rename(tmp, name)
	}
	if err != nil {
		_ = root.Remove(tmp)
	}
	return err
}

// sweep removes what former agents left: files half written, and lists of services that nobody has followed for long. Files with other names aren't
// the agent's.
func (l *Lists) sweep(now time.Time) {
	root, err := os.OpenRoot(l.cfg.Dir)
	if err != nil {
		return
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return
	}
	for _, e := range entries {
		name := lbagentv1.ListFileService(e.Name())
		torn := strings.HasPrefix(e.Name(), listTmpName)
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && (torn ||
			service.ValidName(name) && lbagentv1.ListFile(name) == e.Name() && l.cfg.Table.Lookup(name) == nil && now.Sub(info.ModTime()) > listsStale) {
			_ = root.Remove(e.Name())
		}
	}
}

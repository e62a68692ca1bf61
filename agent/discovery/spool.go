package discovery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/service"
)

const (
	spoolEvery   = 5 * time.Second    // a change is on disk at most this late (1.8)
	confirmEvery = time.Minute        // how often files are stamped with when their list was confirmed
	syncUpTo     = 64                 // files: a larger round is not synced. One fsync costs the host's other programs a journal commit; hundreds would hurt them
	keepUnused   = 7 * 24 * time.Hour // files that no service has asked for since

	listSuffix = ".list"
	prevSuffix = ".list.prev"
	badSuffix  = ".bad"
	tempPrefix = ".tmp-"

	maxRoom = 1 << 20 // bytes of room for a file that are kept for the next
)

// spool keeps the last good lists on disk: one file per service, and the generation before it (SEMANTICS 1.8). A file's modification time is when etcd last
// confirmed its list, so that confirmations cost no writing. Files are written to a temporary one, synced (unless there are many) and renamed; a torn one shows by
// its checksum. Safe for concurrent use.
type spool struct {
	dir string // empty = no spool
	log hclog.Logger

	mu sync.Mutex

	dirty     map[string]spooled   // by service, since the last round
	taken     map[string]spooled   // what the round of now took of dirty
	confirmed map[string]time.Time // by service, since the last stamps
	stamped   time.Time
	failed    string // why the last write failed; empty if it didn't

	round sync.Mutex // held by a round of writing

	readers sync.Pool // of *spoolReader: a start reads a thousand files

	left bool // to another process, which writes the spool; guarded by round
}

// spooled is what has to be done with a service's file: write list, or remove it if that is nil.
type spooled struct {
	follow Follow
	list   *service.List
}

func newSpool(dir string, log hclog.Logger) *spool {
	return &spool{dir: dir, log: log, dirty: make(map[string]spooled), confirmed: make(map[string]time.Time)}
}

// put has l written in the next round.
func (s *spool) put(f Follow, l *service.List) {
	if s.dir == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty[f.Name] = spooled{follow: f, list: l}
	delete(s.confirmed, f.Name)
}

// remove has a service's files removed in the next round.
func (s *spool) remove(name string) {
	if s.dir == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty[name] = spooled{}
	delete(s.confirmed, name)
}

// confirm notes that the list of name is still so.
func (s *spool) confirm(name string, at time.Time) {
	if s.dir == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.confirmed[name] = at
}

// trouble is why the spool can't be written, empty if it can.
func (s *spool) trouble() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// run writes rounds until ctx ends; followed are the services whose files stay, however old they are.
func (s *spool) run(ctx context.Context, followed []string) {
	if s.dir == "" {
		return
	}
	s.sweep(time.Now(), followed)
	t := time.NewTicker(spoolEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			s.write(time.Now(), false)
		case <-ctx.Done():
			return
		}
	}
}

// hold ends the writing, after all that is known, or begins it again.
func (s *spool) hold(held bool) {
	if held {
		s.flush()
	}
	s.round.Lock()
	defer s.round.Unlock()
	s.left = held
}

// flush writes all that is left, stamps included.
func (s *spool) flush() {
	if s.dir != "" {
		s.write(time.Now(), true)
	}
}

// write is one round. At the first error it ends, and what is left stays for the next: a full disk costs one attempt per round.
func (s *spool) write(now time.Time, stamp bool) {
	s.round.Lock()
	defer s.round.Unlock()
	if s.left {
		return
	}
	s.mu.Lock()
	dirty := s.dirty
	s.dirty, s.taken = make(map[string]spooled), maps.Clone(dirty)
	var stamps map[string]time.Time
	if stamp || now.Sub(s.stamped) >= confirmEvery {
		stamps, s.stamped = s.confirmed, now
		s.confirmed = make(map[string]time.Time)
	}
	s.mu.Unlock()

	if len(dirty) > 0 {
		err := s.writeFiles(dirty)
		s.settle(err, dirty)
	}
	s.mu.Lock()
	s.taken = nil
	s.mu.Unlock()
	for name, at := range stamps {
		// A file that is not there, or can't be stamped, will only look older than it is.
		os.Chtimes(s.path(name, listSuffix), time.Time{}, at) //nolint:errcheck
	}
}

// writeFiles does what dirty says, and removes from it what is done.
func (s *spool) writeFiles(dirty map[string]spooled) error {
	if err := os.MkdirAll(s.dir, 0o750); err != nil {
		return fmt.Errorf("make the spool's folder: %w", err)
	}
	sync := len(dirty) <= syncUpTo
	for _, name := range slices.Sorted(maps.Keys(dirty)) {
		if d := dirty[name]; d.list == nil {
			s.removeFiles(name)
		} else if err := s.writeFile(d, sync); err != nil {
			return err
		}
		delete(dirty, name)
	}
	return nil
}

// settle keeps what a round has left undone, unless there is something newer, and says once what is wrong.
func (s *spool) settle(err error, left map[string]spooled) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, d := range left {
		if _, newer := s.dirty[name]; !newer {
			s.dirty[name] = d
		}
	}
	switch {
	case err == nil && s.failed != "":
		s.failed = ""
		s.log.Info("the spool is written again", "dir", s.dir)
	case err != nil && s.failed == "":
		s.failed = err.Error()
		s.log.Error("cannot write the spool; lists are kept in memory only", "dir", s.dir, "cause", err)
	case err != nil:
		s.failed = err.Error()
	}
}

// writeFile replaces a service's file and keeps the one that was there.
func (s *spool) writeFile(d spooled, sync bool) error {
	final := s.path(d.follow.Name, listSuffix)
	prev := s.path(d.follow.Name, prevSuffix)
	temp, err := os.CreateTemp(s.dir, tempPrefix)
	if err != nil {
		return fmt.Errorf("spool %s: %w", d.follow.Name, err)
	}
	defer os.Remove(temp.Name()) // fails when it was renamed, as it should
	_, err = temp.Write(encodeSpool(d.follow, d.list))
	if err == nil && sync {
		err = temp.Sync()
	}
	err = errors.Join(err, temp.Close())
	if err == nil {
		// A list is never without a file: the old one gets its second name before the new one takes the first.
		os.Remove(prev)
		if lerr := os.Link(final, prev); lerr != nil && !errors.Is(lerr, fs.ErrNotExist) {
			os.Rename(final, prev) //nolint:errcheck // without hard links: for a moment only prev is there, which is read too
		}
		err = os.Rename(temp.Name(), final)
	}
	if err != nil {
		return fmt.Errorf("spool %s: %w", d.follow.Name, err)
	}
	os.Chtimes(final, time.Time{}, d.list.Confirmed) //nolint:errcheck // it would only look younger
	return nil
}

func (s *spool) removeFiles(name string) {
	for _, suffix := range []string{listSuffix, prevSuffix, listSuffix + badSuffix, prevSuffix + badSuffix} {
		os.Remove(s.path(name, suffix))
	}
}

// sweep removes what is left of services that nobody follows any more, and of crashes.
func (s *spool) sweep(now time.Time, followed []string) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return // not there yet; a folder that can't be used shows at the first write
	}
	used := make(map[string]bool, 2*len(followed))
	for _, name := range followed {
		used[s.path(name, listSuffix)], used[s.path(name, prevSuffix)] = true, true
	}
	for _, e := range entries {
		name := e.Name()
		ours := strings.HasSuffix(name, listSuffix) || strings.HasSuffix(name, prevSuffix) || strings.HasSuffix(name, badSuffix) || strings.HasPrefix(name, tempPrefix)
		info, err := e.Info()
		if !ours || used[filepath.Join(s.dir, name)] || err != nil || !info.Mode().IsRegular() || now.Sub(info.ModTime()) < keepUnused {
			continue
		}
		s.log.Info("removing an old file from the spool", "file", name)
		os.Remove(filepath.Join(s.dir, name))
	}
}

// load returns the spooled list of f, nil if there is none that can be used. A list of another prefix or format is not f's (it is overwritten in time); a file that is
// torn, foreign or of a newer version is set aside, and the generation before it is tried.
func (s *spool) load(f Follow, now time.Time) *service.List {
	if s.dir == "" {
		return nil
	}
	d, dirty := s.due(f.Name)
	if dirty && d.list != nil && d.follow.keys() == f.keys() && d.follow.Format == f.Format {
		l := *d.list // newer than the file
		l.Source, l.Backends = service.FromSpool, slices.Clone(l.Backends)
		return &l
	}
	for _, suffix := range []string{listSuffix, prevSuffix} {
		path := s.path(f.Name, suffix)
		l, err := s.loadFile(path, f, now)
		switch {
		case err == nil:
			if dirty { // the file is about to be removed, or to hold another list
				s.put(f, l) // wanted again; who finds the same list in etcd relies on the file
			}
			return l
		case errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, errOtherList):
			return nil
		case errors.Is(err, errUnreadable):
			s.log.Warn("setting a spool file aside", "service", f.Name, "file", path+badSuffix, "cause", err)
			os.Rename(path, path+badSuffix) //nolint:errcheck // it is overwritten otherwise
		default:
			s.log.Warn("cannot read a spool file", "service", f.Name, "file", path, "cause", err)
		}
	}
	return nil
}

// due is what is to be done with the file of name, or is being done at the moment.
func (s *spool) due(name string) (d spooled, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, ok = s.dirty[name]; !ok {
		d, ok = s.taken[name]
	}
	return d, ok
}

// spoolReader is what reading one file after another uses again.
type spoolReader struct {
	spoolDecoder

	room []byte
}

// loadFile reads one file. The list was confirmed when the file was stamped, but never in the future.
func (s *spool) loadFile(path string, f Follow, now time.Time) (*service.List, error) {
	r, _ := s.readers.Get().(*spoolReader)
	if r == nil {
		r = &spoolReader{}
	}
	defer func() {
		if cap(r.room)+cap(r.keys) <= maxRoom {
			s.readers.Put(r)
		}
	}()
	data, mod, err := readSpoolFile(path, r.room)
	r.room = data
	if err != nil {
		return nil, err
	}
	l, err := r.decode(data, f)
	if err != nil {
		return nil, err
	}
	if mod.After(l.Confirmed) {
		l.Confirmed = mod
	}
	if l.Confirmed.After(now) {
		l.Confirmed = now
	}
	return l, nil
}

// path is a service's file. A valid name is a safe file name with a suffix on it, and the suffixes tell all files apart; only a long one is too long for a
// file name, and is cut and hashed, with a character that no name has.
func (s *spool) path(name, suffix string) string {
	const longest = 200 // of 255, less the suffixes
	if len(name) > longest {
		sum := sha256.Sum256([]byte(name))
		name = name[:longest-33] + "~" + hex.EncodeToString(sum[:16])
	}
	return filepath.Join(s.dir, name+suffix)
}

// spoolSentence says that n lists came from the spool.
func spoolSentence(n int) string {
	if n == 1 {
		return "the list of 1 service was read from the spool"
	}
	return fmt.Sprintf("the lists of %d services were read from the spool", n)
}

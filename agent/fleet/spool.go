package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/hashicorp/go-hclog"
)

const (
	spoolName  = "fleet.spool"
	spoolMagic = "lbagent fleet 1 "
	spoolMost  = 4 * maxBytes // JSON escapes
)

// spool keeps the items on disk, so that a start without etcd has them: the last two generations, each whole or not there (SEMANTICS 1.8).
type spool struct {
	dir     string // "" = none
	log     hclog.Logger
	failure atomic.Pointer[string]
}

type spooled struct {
	Prefix    string    `json:"prefix"`
	Epoch     uint64    `json:"epoch"`
	Revision  int64     `json:"revision"`
	Confirmed time.Time `json:"confirmed"`
	Entries   []Entry   `json:"entries"`
}

func (s *spool) path() string { return filepath.Join(s.dir, spoolName) }

// save is true if there is nothing left to write. An empty prefix removes the file.
func (s *spool) save(what spooled) bool {
	if s.dir == "" {
		return true
	}
	err := s.write(what)
	was := s.failure.Load()
	switch {
	case err == nil && was != nil:
		s.failure.Store(nil)
		s.log.Info("the fleet's items are spooled again", "file", s.path())
	case err != nil:
		text := err.Error()
		s.failure.Store(&text)
		if was == nil {
			s.log.Error("cannot spool the fleet's items; they are kept in memory only", "error", err)
		}
	}
	return err == nil
}

func (s *spool) write(what spooled) error {
	path := s.path()
	if what.Prefix == "" {
		err := errors.Join(os.Remove(path), os.Remove(path+".prev"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	body, err := json.Marshal(what)
	if err != nil {
		return fmt.Errorf("spool the fleet's items: %w", err)
	}
	text := append(fmt.Appendf(nil, "%s%016x\n", spoolMagic, xxhash.Sum64(body)), body...)
	temp := path + ".new" // one writer: none piles up
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("spool the fleet's items: %w", err)
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		os.Remove(path + ".prev")
		if lerr := os.Link(path, path+".prev"); lerr != nil && !errors.Is(lerr, fs.ErrNotExist) {
			os.Rename(path, path+".prev") //nolint:errcheck // without hard links: for a moment only prev is there, which is read too
		}
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return fmt.Errorf("spool the fleet's items: %w", err)
	}
	return nil
}

// load is what was spooled of prefix, nil if nothing was that can be used. A torn or foreign file is set aside.
func (s *spool) load(prefix string, now time.Time) *spooled {
	if s.dir == "" {
		return nil
	}
	for _, path := range []string{s.path(), s.path() + ".prev"} {
		what, err := readSpool(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			s.log.Warn("setting a spool file aside", "file", path+".bad", "cause", err)
			os.Rename(path, path+".bad") //nolint:errcheck // it is overwritten otherwise
		case what.Prefix != prefix:
			return nil
		default:
			if what.Confirmed.After(now) {
				what.Confirmed = now
			}
			return what
		}
	}
	return nil
}

func readSpool(path string) (*spooled, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("it is no regular file"))
	}
	text, err := io.ReadAll(io.LimitReader(f, spoolMost))
	if err != nil {
		return nil, err
	}
	head, body, _ := bytes.Cut(text, []byte("\n"))
	if string(head) != fmt.Sprintf("%s%016x", spoolMagic, xxhash.Sum64(body)) {
		return nil, errors.New("it is torn or of another kind")
	}
	what := new(spooled)
	if err := json.Unmarshal(body, what); err != nil {
		return nil, err
	}
	return what, nil
}

// trouble is why the spool can't be written, "" if it can.
func (s *spool) trouble() string {
	if text := s.failure.Load(); text != nil {
		return *text
	}
	return ""
}

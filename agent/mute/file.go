package mute

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/lbagent/lbagent/agent/service"
)

const (
	fileVersion = 1       // fields that an older agent doesn't know need no new version: it skips them
	maxFile     = 4 << 20 // far more than the most mutes take
)

// file keeps mutes on disk: JSON, written to a temporary file, synced and renamed. Cut short it isn't JSON, and is set aside. Safe for concurrent use.
type file struct {
	path string // "" = none
	log  hclog.Logger

	writing sync.Mutex // held while it is written: the disk may hang, which must hold up nobody but writers

	mu sync.Mutex

	dirty  bool
	failed string // why it could not be written; empty if it could
}

// fileForm is the file's content.
type fileForm struct {
	Version int      `json:"version"`
	Mutes   []record `json:"mutes"`
}

// touch says that there is something new to write.
func (f *file) touch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dirty = true
}

// trouble is why the file can't be written, empty if it can.
func (f *file) trouble() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

// save writes what content returns, if there is something new. That it can't is said once, and tried again by the next call.
func (f *file) save(content func() []service.Mute) {
	if f.path == "" {
		return
	}
	f.writing.Lock()
	defer f.writing.Unlock()
	f.mu.Lock()
	dirty := f.dirty
	f.dirty = false // from here on: what changes now may not be in content
	f.mu.Unlock()
	if !dirty {
		return
	}
	err := f.write(content())
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err != nil:
		if f.failed == "" {
			f.log.Error("mutes can't be written to disk; a restart would forget what changed", "path", f.path, "error", err)
		}
		f.dirty, f.failed = true, err.Error()
	case f.failed != "":
		f.failed = ""
		f.log.Info("mutes are written to disk again", "path", f.path)
	}
}

func (f *file) write(mutes []service.Mute) error {
	if len(mutes) == 0 {
		if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the mutes: %w", err)
		}
		return nil
	}
	form := fileForm{Version: fileVersion}
	for i := range mutes {
		form.Mutes = append(form.Mutes, recordOf(&mutes[i]))
	}
	text, err := json.MarshalIndent(form, "", " ")
	if err != nil {
		return fmt.Errorf("write the mutes: %w", err)
	}
	dir := filepath.Dir(f.path)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("make the folder of the mutes: %w", err)
	}
	temp, err := os.CreateTemp(dir, ".tmp-")
	if err != nil {
		return fmt.Errorf("write the mutes: %w", err)
	}
	defer os.Remove(temp.Name()) // fails when it was renamed, as it should
	_, err = temp.Write(append(text, '\n'))
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), f.path)
	}
	if err != nil {
		return fmt.Errorf("write the mutes: %w", err)
	}
	return nil
}

// load returns the mutes of the file that aren't over. One that can't be read is set aside: it mutes nobody.
func (f *file) load(now time.Time, fleet bool) []service.Mute {
	if f.path == "" {
		return nil
	}
	form, err := readFile(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		f.log.Error("the mutes of before the start can't be read, and are set aside: nothing of them is muted any more", "path", f.path+".bad", "error", err)
		if err := os.Rename(f.path, f.path+".bad"); err != nil {
			f.log.Warn("the mutes can't be set aside", "path", f.path, "error", err)
		}
		return nil
	}
	var out []service.Mute
	for _, r := range form.Mutes {
		m, err := r.mute(fleet)
		if err != nil {
			f.log.Warn("one of the mutes of before the start can't be read", "path", f.path, "service", r.Service, "backend", r.Address, "cause", err)
			continue
		}
		if now.Before(m.Until) {
			out = append(out, m)
		} else {
			f.touch()
		}
	}
	return out
}

func readFile(path string) (fileForm, error) {
	var form fileForm
	in, err := os.Open(path)
	if err != nil {
		return form, err
	}
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	if err != nil {
		return form, err
	}
	if len(text) > maxFile {
		return form, fmt.Errorf("more than %d bytes", maxFile)
	}
	if err := json.Unmarshal(text, &form); err != nil {
		return form, err
	}
	if form.Version != fileVersion {
		return form, fmt.Errorf("version %d, %d is known", form.Version, fileVersion)
	}
	return form, nil
}

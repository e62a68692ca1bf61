package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	maxFile    = 1 << 20  // bytes of one file
	maxSources = 16 << 20 // bytes of all files
	maxDropIns = 1000

	// An editor replaces a file by renames, or by writing it anew: for a moment it is gone or half. Reading starts over until two looks agree.
	readTries = 5
	readPause = 20 * time.Millisecond
)

// dropInDir is where the drop-ins of the main file path lie.
func dropInDir(path string) string { return filepath.Join(filepath.Dir(path), "services.d") }

// source is one file as it was read.
type source struct {
	name string
	data []byte
	info fs.FileInfo
}

// read returns the main file and its drop-ins, in the order of their names, as they stood together at one moment.
func (o Options) read(path string) ([]source, *Errors) {
	for try := 1; ; try++ {
		sources, errs := o.readOnce(path)
		still := settled(path, sources)
		if still && len(errs.List) == 0 {
			return sources, errs
		}
		if try == readTries {
			if len(errs.List) == 0 {
				errs.add(Error{File: path, Problem: "keeps changing while it is read"})
			}
			return sources, errs
		}
		if still && !errors.Is(errs, fs.ErrNotExist) {
			return sources, errs // reading again would say the same
		}
		time.Sleep(readPause)
	}
}

func (o Options) readOnce(path string) ([]source, *Errors) {
	errs := &Errors{}
	names, err := dropIns(path)
	if err != nil {
		errs.add(Error{File: dropInDir(path), Problem: "cannot be read: " + cause(err), Cause: err})
	}
	var sources []source
	left := maxSources
	for i, name := range append([]string{path}, names...) {
		if i > 0 && filepath.Ext(name) == ".yml" {
			errs.add(Error{File: name, Problem: "is not read: only *.yaml is", Allowed: "rename it, to another ending such as .off if it is not meant to be read"})
			continue
		}
		s, err := readFile(name)
		if err != nil {
			errs.add(Error{File: name, Problem: "cannot be read: " + cause(err), Cause: err})
			continue
		}
		if left -= len(s.data); left < 0 || i > maxDropIns {
			errs.add(Error{File: name, Problem: fmt.Sprintf("is one too many: at most %d drop-ins and %d MiB are read", maxDropIns, maxSources>>20)})
			break
		}
		sources = append(sources, s)
		if o.afterRead != nil {
			o.afterRead(name)
		}
	}
	return sources, errs
}

// dropIns lists services.d; hidden files belong to editors and config maps.
func dropIns(path string) ([]string, error) {
	entries, err := os.ReadDir(dropInDir(path)) // sorted
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if !strings.HasPrefix(e.Name(), ".") && (ext == ".yaml" || ext == ".yml") {
			names = append(names, filepath.Join(dropInDir(path), e.Name()))
		}
	}
	return names, err
}

// settled says whether what stands on disk now is what was read.
func settled(path string, sources []source) bool {
	names, err := dropIns(path)
	if err != nil {
		return true // said by readOnce
	}
	read := make(map[string]fs.FileInfo, len(sources))
	for _, s := range sources {
		read[s.name] = s.info
	}
	for _, name := range append([]string{path}, names...) {
		info, ok := read[name]
		if !ok {
			continue // could not be read: said by readOnce
		}
		now, err := os.Stat(name)
		if err != nil || !same(now, info) {
			return false
		}
		delete(read, name)
	}
	return len(read) == 0
}

func same(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// readFile reads a regular file of at most maxFile bytes; opening never waits (a FIFO would).
func readFile(name string) (source, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return source{}, err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return source{}, err
	}
	if !before.Mode().IsRegular() {
		return source{}, errors.New("it is no regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return source{}, err
	}
	if len(data) > maxFile {
		return source{}, fmt.Errorf("it has more than %d MiB", maxFile>>20)
	}
	// The look before is the one to compare with: whatever was written since then shows.
	return source{name: name, data: data, info: before}, nil
}

// cause is err without the operation and path that the message has already.
func cause(err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}
